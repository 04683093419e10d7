"""Layers as blocks of weights: their kernels, Kronecker factors and scales; networks over some weights, and linear heads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from seqbdl.errors import InvalidOptionError, UnknownNameError
from seqbdl.networks import MLP, AffineNetwork, LinearHead, ModuleNetwork, Network, RelativeNetwork, masked

D, N = 3, 6


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def points(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def features(X: Tensor) -> Tensor:
    return torch.cat([X, X.square(), torch.ones_like(X[..., :1])], -1)


def make(name: str, m: int = 2) -> Network:
    ones = torch.ones(4).double()
    mlp = MLP((5, 4), 2 * ones[:D], 3 * ones[:2], 0.5 * ones[:3], m, branches=2)
    module = ModuleNetwork(nn.Sequential(nn.Linear(D, 5), nn.Tanh(), nn.Linear(5, m)), D, m)
    if name == "mlp":
        return mlp
    if name == "module":
        return module
    if name == "relative":
        return RelativeNetwork(mlp, normals(1, mlp.num_params, seed=3))
    if name == "masked":
        return masked(mlp, normals(1, mlp.num_params, seed=3), torch.tensor([0, 7, 20, 41]))
    if name == "affine":
        A = normals(module.num_params, 6, seed=4)
        return AffineNetwork(module, normals(1, module.num_params, seed=3), lambda u: u @ A.T, lambda v: v @ A, 6)
    return LinearHead(features, D, 7, m, 0.7)


NAMES = ["mlp", "module", "relative", "masked", "affine", "head"]


def dense_jacobian(network: Network, z: Tensor, X: Tensor) -> Tensor:
    rows = torch.autograd.functional.jacobian(lambda w: network.forward(w.unsqueeze(0), X)[0], z[0])
    assert isinstance(rows, Tensor)
    return rows  # N x m x P


@pytest.mark.parametrize("m", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_products_with_the_jacobian(name: str, m: int) -> None:
    network, X = make(name, m), points(N)
    z = normals(1, network.num_params, seed=1)
    J, tangents = dense_jacobian(network, z, X), network.tangents(z, X)
    flat = J.flatten(0, 1)
    torch.testing.assert_close(tangents.values, network.forward(z, X))
    torch.testing.assert_close(network.jacobian(tangents)[0], J)
    torch.testing.assert_close(network.tangent_kernel(tangents, tangents)[0], flat @ flat.T)
    v, alpha = normals(4, network.num_params, seed=2), normals(4, N, m, seed=3)
    torch.testing.assert_close(network.jvp(tangents, v), torch.einsum("nmp,sp->snm", J, v))
    torch.testing.assert_close(network.vjp(tangents, alpha), torch.einsum("nmp,snm->sp", J, alpha))
    gram = network.tangent_gram(tangents, torch.Size([3]), 2)[0]
    for b in range(3):
        rows = J[2 * b : 2 * b + 2].flatten(0, 1)
        torch.testing.assert_close(gram[b], rows @ rows.T)
    values, back = network.pullback(z, X)
    torch.testing.assert_close(values, tangents.values)
    torch.testing.assert_close(back(alpha[:1]), network.vjp(tangents, alpha[:1]))


@pytest.mark.parametrize("name", ["masked", "affine"])
def test_several_weight_vectors_at_once(name: str) -> None:
    network, X = make(name), points(N)
    z, alpha, v = normals(3, network.num_params, seed=1), normals(3, N, 2, seed=2), normals(3, network.num_params, seed=3)
    tangents = network.tangents(z, X)
    for s in range(3):
        alone = network.tangents(z[s : s + 1], X)
        torch.testing.assert_close(network.vjp(tangents, alpha)[s], network.vjp(alone, alpha[s : s + 1])[0])
        torch.testing.assert_close(network.jvp(tangents, v)[s], network.jvp(alone, v[s : s + 1])[0])


def test_a_mask_moves_its_weights_only() -> None:
    mlp, X = make("mlp"), points(N)
    base, index = normals(1, mlp.num_params, seed=3), torch.tensor([0, 7, 20, 41])
    network, u = masked(mlp, base, index), normals(2, 4, seed=5)
    full = base.repeat(2, 1)
    full[:, index] = u
    torch.testing.assert_close(network.forward(u, X), mlp.forward(full, X))
    torch.testing.assert_close(network.weights(base[:, index]), base)


@pytest.mark.parametrize("name", ["mlp", "module", "relative", "head", "affine"])
def test_blocks_cover_the_weights_and_group_kernels_sum_to_the_kernel(name: str) -> None:
    network, X = make(name), points(N)
    assert sum(b.rows * b.cols for b in network.blocks) == network.num_params
    z = normals(1, network.num_params, seed=1)
    tangents, group = network.tangents(z, X), network.group_of_weights(z)
    kernels, J = network.group_kernels(tangents), network.jacobian(tangents)[0].flatten(0, 1)
    assert kernels.shape[0] == network.num_groups == {"mlp": 3, "module": 4, "relative": 3}.get(name, 1)
    for g in range(network.num_groups):
        torch.testing.assert_close(kernels[g], J[:, group == g] @ J[:, group == g].T)
    torch.testing.assert_close(kernels.sum(0), network.tangent_kernel(tangents, tangents)[0])


@pytest.mark.parametrize("name", ["mlp", "module", "relative", "head"])
def test_rescaled_networks_are_the_same_functions_of_rescaled_weights(name: str) -> None:
    network, X = make(name), points(N)
    z = normals(2, network.num_params, seed=1)
    factors = normals(network.num_groups, seed=2).exp()
    other = network.rescaled(factors)
    moved = z / factors[network.group_of_weights(z)]
    torch.testing.assert_close(other.forward(moved, X), network.forward(z, X))
    here, there = network.tangents(z[:1], X), other.tangents(moved[:1], X)
    expected = (factors.square()[:, None, None] * network.group_kernels(here)).sum(0)
    torch.testing.assert_close(other.tangent_kernel(there, there)[0], expected)
    torch.testing.assert_close(other.jvp(there, moved[1:]), network.jvp(here, z[1:]))


def test_only_networks_with_scales_can_be_rescaled() -> None:
    with pytest.raises(InvalidOptionError, match="fixed"):
        make("affine").rescaled(torch.ones(1).double())


@pytest.mark.parametrize("shape", ["diagonal", "full"])
def test_kronecker_factors_of_layers_by_loops(shape: str) -> None:
    """Inputs and backward signals of every layer and branch, from the Jacobian of one row and one output at a time."""
    m, network, X = 2, make("mlp"), points(N)
    assert isinstance(network, MLP)
    z = normals(1, network.num_params, seed=1)
    R = normals(N, m, seed=2) if shape == "diagonal" else normals(N, m, m, seed=2)
    J = dense_jacobian(network, z, X)
    full = torch.diag_embed(R) if shape == "diagonal" else R
    found = network.kronecker_factors(network.tangents(z, X), R)
    offset = 0
    for block, (A, B, c) in zip(network.blocks, found, strict=True):
        size = block.rows * block.cols
        expected_A, expected_B = torch.zeros(block.rows, block.rows).double(), torch.zeros(block.cols, block.cols).double()
        for n in range(N):
            # The last input is the constant, times the bias' scale: sqrt(0.5).
            pieces = [(full[n][:, r] @ J[n, :, offset : offset + size]).reshape(block.rows, block.cols) for r in range(m)]
            signals = [piece[-1] / 0.5**0.5 for piece in pieces]
            inputs = pieces[0] @ signals[0] / signals[0].square().sum()
            expected_A += torch.outer(inputs, inputs)
            expected_B += sum(torch.outer(g, g) for g in signals)
        torch.testing.assert_close(A, expected_A)
        torch.testing.assert_close(B, expected_B)
        assert float(c) == N
        offset += size


@pytest.mark.parametrize("name", ["module", "head"])
def test_kronecker_factors_of_one_linear_layer_are_exact(name: str) -> None:
    """Of weights and of biases, for the same noise in every row; between weights and biases a module has nothing."""
    m, X, R = 2, points(N), torch.tensor([2.0, 0.5]).double().expand(N, 2)
    network = ModuleNetwork(nn.Linear(D, m), D, m) if name == "module" else make("head")
    z = normals(1, network.num_params)
    rows = (R.unsqueeze(-1) * dense_jacobian(network, z, X)).flatten(0, 1)
    curvature, offset = rows.T @ rows, 0
    for block, (A, B, c) in zip(network.blocks, network.kronecker_factors(network.tangents(z, X), R), strict=True):
        size = block.rows * block.cols
        torch.testing.assert_close(torch.kron(A, B) / c, curvature[offset : offset + size, offset : offset + size])
        offset += size


def test_kronecker_factors_of_any_module_keep_the_trace() -> None:
    network, X, R = make("module"), points(N), normals(N, 2, 2, seed=2)
    z = normals(1, network.num_params, seed=1)
    rows = (R.transpose(-1, -2) @ dense_jacobian(network, z, X)).flatten(0, 1)
    offset = 0
    for block, (A, B, c) in zip(network.blocks, network.kronecker_factors(network.tangents(z, X), R), strict=True):
        size = block.rows * block.cols
        torch.testing.assert_close(A.trace() * B.trace() / c, rows[:, offset : offset + size].square().sum())
        offset += size


def test_parameters_of_modules_by_name() -> None:
    module = nn.Sequential(nn.Linear(D, 5), nn.Tanh(), nn.Linear(5, 2))
    network = ModuleNetwork(module, D, 2)
    assert network.mask(["2"]).nonzero().flatten().tolist() == list(range(20, 32))
    assert network.mask(["0.bias", "2.bias"]).sum() == 7
    with pytest.raises(UnknownNameError, match=r"0\.weight"):
        network.mask(["1"])
