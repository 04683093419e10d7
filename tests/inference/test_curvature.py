"""The generalized Gauss-Newton curvature in all structures, against slow loops over rows."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from seqbdl.errors import StateError
from seqbdl.inference import curvature
from seqbdl.inference.curvature import FunctionSpace, WeightSpace, add_curvature, curvature_at, curvature_from_tree
from seqbdl.likelihoods import LIKELIHOODS, get_likelihood
from seqbdl.networks import MLP, LinearHead, Network
from seqbdl.serialization import load_tree, save_tree

NOISE = torch.tensor([0.3, 0.1, 0.5]).double()
X_TEST = torch.rand(2, 3, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def points(n: int, seed: int = 0) -> Tensor:
    return torch.rand(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make(latents: int, widths: tuple[int, ...] = (4, 3), branches: int = 1) -> MLP:
    ones = torch.ones(4).double()
    depth = len(widths)
    return MLP(widths, 3 * ones[:2], ones[:depth], ones[: depth + 1], latents, branches=branches)


def targets(name: str, n: int, m: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if name == "categorical":
        return torch.randint(m, (n, 1), generator=generator).double()
    return torch.randint(2, (n, m), generator=generator).double()


def oracle(name: str, network: Network, z: Tensor, X: Tensor, Y: Tensor, noise: Tensor) -> Tensor:
    """``I + G``: of every row, the Jacobian by automatic differentiation and the expected Hessian of ``-log p`` in ``f``: the
    Hessian itself for likelihoods of the exponential family in their natural parameter; by the known formula for variances."""
    lik, total = get_likelihood(name), torch.eye(network.num_params).double()
    for n in range(X.shape[0]):
        J = torch.autograd.functional.jacobian(lambda w, n=n: network.forward(w.unsqueeze(0), X[n : n + 1])[0, 0], z[0])
        f = network.forward(z, X[n : n + 1])[0, 0]
        if name == "heteroscedastic":
            m = f.shape[0] // 2
            L = torch.diag(torch.cat([(-f[m:] / 2).exp() / noise, torch.full((m,), 0.125).double()]))
        else:
            loss = lambda f, n=n: -lik.log_prob(f.unsqueeze(0), Y[n : n + 1], noise).sum()  # noqa: E731
            L = torch.autograd.functional.hessian(loss, f)
        total = total + J.T @ L @ J
    return total


def case(name: str, n: int = 5, **options: object) -> tuple[Network, Tensor, Tensor, Tensor, Tensor]:
    """A network, weights, inputs, Fisher roots and the dense ``I + G``."""
    lik, m = get_likelihood(name), 3 if name == "categorical" else 2
    network = make(lik.num_latents(m), **options)  # type: ignore[arg-type]
    z = torch.randn(1, network.num_params, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    X, Y, noise = points(n), targets(name, n, m), NOISE[:m]
    root = lik.root(network.forward(z, X)[0], noise)
    return network, z, X, root, oracle(name, network, z, X, Y, noise)


def covariance(network: Network, posterior: curvature.Curvature, z: Tensor, X: Tensor) -> Tensor:
    return posterior.covariance(network, network.tangents(z, X), X.shape[:-2], X.shape[-2])


@pytest.mark.parametrize("n", [3, 30])
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_full_curvature_is_exact_in_function_space_and_in_weight_space(name: str, n: int) -> None:
    network, z, X, root, precision = case(name, n)
    found = curvature_at(network, z, X, root, "full")
    assert isinstance(found, FunctionSpace) == (n * network.num_outputs < network.num_params)
    torch.testing.assert_close(found.log_det, torch.logdet(precision), rtol=1e-8, atol=1e-8)
    here = network.tangents(z, X_TEST)
    J = network.jacobian(here)[0].reshape(2, 3 * network.num_outputs, -1)
    expected = J @ torch.linalg.solve(precision, J.transpose(-1, -2))
    torch.testing.assert_close(covariance(network, found, z, X_TEST), expected, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_both_forms_of_the_full_curvature_agree(name: str) -> None:
    """Also of more branches than one."""
    network, z, X, root, _ = case(name, 5, branches=2)
    rows = curvature_at(network, z, X, root, "full")
    nothing = WeightSpace(curvature.Diagonal(torch.ones_like(z[0])), z.new_zeros(0))
    matrix = add_curvature(network, nothing, z, X, root, "full")
    assert isinstance(rows, FunctionSpace)
    torch.testing.assert_close(rows.log_det, matrix.log_det, rtol=1e-8, atol=1e-8)
    ours, theirs = (covariance(network, c, z, X_TEST) for c in (rows, matrix))
    # Function space keeps a share of 1e-9 of the prior variance (see joint_gaussian.remaining).
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8 * float(theirs.diagonal(dim1=-2, dim2=-1).max()))


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_diagonal_of_the_curvature(name: str) -> None:
    network, z, X, root, precision = case(name)
    found = curvature_at(network, z, X, root, "diag")
    assert isinstance(found, WeightSpace)
    torch.testing.assert_close(found.precision.dense(), torch.diag(precision.diagonal()))
    torch.testing.assert_close(found.log_det, precision.diagonal().log().sum())


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_kronecker_products_per_layer(name: str) -> None:
    """Of every layer ``mean(a a^T) (x) sum(g g^T) + I``, zero between layers."""
    network, z, X, root, _ = case(name)
    found = curvature_at(network, z, X, root, "kron")
    assert isinstance(found, WeightSpace)
    factors = network.kronecker_factors(network.tangents(z, X), root)
    blocks = [torch.kron(A, B) / c + torch.eye(A.shape[0] * B.shape[0]).double() for A, B, c in factors]
    expected = torch.block_diag(*blocks)
    torch.testing.assert_close(found.precision.dense(), expected)
    torch.testing.assert_close(found.log_det, torch.logdet(expected))
    J = network.jacobian(network.tangents(z, X_TEST))[0].reshape(2, 3 * network.num_outputs, -1)
    ours = covariance(network, found, z, X_TEST)
    torch.testing.assert_close(ours, J @ torch.linalg.solve(expected, J.transpose(-1, -2)), rtol=1e-8, atol=1e-9)


def test_kronecker_curvature_of_one_layer_is_the_full_one(linear: SimpleNamespace) -> None:
    """One linear layer under Gaussian noise with a variance per output: the product is exact."""
    head = LinearHead(lambda X: torch.cat([X, torch.ones_like(X[..., :1])], -1), 2, 3, 3)
    X, root = points(7), NOISE.rsqrt().expand(7, 3)
    z = torch.zeros(1, head.num_params).double()
    full, kron = (curvature_at(head, z, X, root, s) for s in ("full", "kron"))
    torch.testing.assert_close(kron.log_det, full.log_det)
    torch.testing.assert_close(covariance(head, kron, z, X_TEST), covariance(head, full, z, X_TEST), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("structure", curvature.STRUCTURES)
def test_curvature_added_in_parts(structure: str) -> None:
    """At one and the same mode, three and two rows are five; of Kronecker factors too, which are averaged."""
    network, z, X, root, _ = case("categorical", 30)
    first = curvature_at(network, z, X[:20], root[:20], structure)
    assert isinstance(first, WeightSpace)
    both = add_curvature(network, first, z, X[20:], root[20:], structure)
    once = curvature_at(network, z, X, root, structure)
    assert isinstance(once, WeightSpace)
    torch.testing.assert_close(both.precision.dense(), once.precision.dense(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("structure", [*curvature.STRUCTURES, "rows"])
@pytest.mark.parametrize("name", ["gaussian", "categorical"])
def test_samples_have_the_inverse_precision_as_covariance(name: str, structure: str, linear: SimpleNamespace) -> None:
    """Every entry of the covariance of twenty thousand weight samples, to within Monte Carlo error; with a full root too."""
    network, z, X, root, _ = case(name, 2 if structure == "rows" else 12, widths=(2,))
    found = curvature_at(network, z, X, root, "full" if structure == "rows" else structure)
    assert isinstance(found, FunctionSpace) == (structure == "rows")
    deltas = found.sample(network, 20_000, torch.Generator().manual_seed(3), z)
    if isinstance(found, WeightSpace):
        precision = found.precision.dense()
    else:
        rows = torch.cat(list(curvature.white_rows(network, z, X, root)))
        precision = torch.eye(network.num_params).double() + rows.T @ rows
    linear.assert_samples(deltas, torch.zeros(network.num_params).double(), torch.linalg.inv(precision))


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    network, z, X, root, _ = case("categorical", 30)
    whole = {s: curvature_at(network, z, X, root, s) for s in curvature.STRUCTURES}
    monkeypatch.setattr(curvature, "_ENTRIES", 4 * network.num_params * network.num_outputs)
    for structure, expected in whole.items():
        torch.testing.assert_close(curvature_at(network, z, X, root, structure).log_det, expected.log_det)


@pytest.mark.parametrize("n", [0, 3, 30])
@pytest.mark.parametrize("structure", curvature.STRUCTURES)
def test_saved_and_restored(structure: str, n: int, tmp_path: Path) -> None:
    network, z, X, root, _ = case("categorical", max(n, 1))
    found = curvature_at(network, z, X, root, structure) if n else curvature.no_curvature(network, z)
    save_tree(tmp_path / "curvature", found.tree())
    again = curvature_from_tree(network, z, load_tree(tmp_path / "curvature"))
    torch.testing.assert_close(covariance(network, again, z, X_TEST), covariance(network, found, z, X_TEST))
    with pytest.raises(StateError, match="unknown"):
        curvature_from_tree(network, z, {"kind": "banded"})


@pytest.mark.parametrize("structure", [*curvature.STRUCTURES, "rows", "nothing"])
def test_as_an_operator_on_weights(structure: str) -> None:
    network, z, X, root, precision = case("categorical", 4 if structure == "rows" else 30)
    if structure == "nothing":
        found: curvature.Curvature = curvature.no_curvature(network, z)
        precision = torch.eye(network.num_params).double()
    else:
        found = curvature_at(network, z, X, root, "full" if structure == "rows" else structure)
    operator = curvature.precision_of(network, z, found)
    torch.testing.assert_close(operator.log_det, found.log_det, rtol=1e-9, atol=1e-9)
    if structure in ("full", "rows", "nothing"):
        torch.testing.assert_close(operator.dense(), precision, rtol=1e-9, atol=1e-9)


def test_without_data_there_is_the_prior() -> None:
    network, z, _, _, _ = case("gaussian")
    nothing = curvature.no_curvature(network, z)
    J = network.jacobian(network.tangents(z, X_TEST))[0].reshape(2, 6, -1)
    torch.testing.assert_close(covariance(network, nothing, z, X_TEST), J @ J.transpose(-1, -2))
    assert float(nothing.log_det) == 0.0
    assert nothing.sample(network, 3, torch.Generator().manual_seed(0), z).shape == (3, network.num_params)
