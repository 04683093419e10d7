"""Networks against dense Jacobians by autograd, the slow way."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from seqbdl.errors import InvalidOptionError
from seqbdl.networks import MLP, HeadedNetwork, ModuleNetwork, Network, RelativeNetwork
from seqbdl.networks.activations import ACTIVATIONS, activate, activation_slope

D = 3


def make_mlp(widths: tuple[int, ...] = (5, 4), m: int = 2, activation: str = "erf", d: int = D) -> MLP:
    generator = torch.Generator().manual_seed(7)

    def positive(n: int) -> Tensor:
        return 0.5 + torch.rand(n, generator=generator, dtype=torch.float64)

    return MLP(widths, positive(d), positive(len(widths)), positive(len(widths) + 1), m, activation)


class Reshaping(nn.Module):
    """A small convolution: rows become images, and features rows again."""

    def __init__(self, m: int = 2) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 2, 2)
        self.head = nn.Linear(2 * (D - 1), m)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.conv(x.unsqueeze(1))).flatten(1))
        return out


NETWORKS: dict[str, Callable[[], Network]] = {
    "one layer": lambda: make_mlp((6,), 1),
    "two layers, two outputs": lambda: make_mlp((5, 4), 2),
    "three layers, relu": lambda: make_mlp((4, 5, 3), 2, "relu"),
    "leaky": lambda: make_mlp((5,), 3, "leaky_relu"),
    "linear module": lambda: ModuleNetwork(nn.Linear(D, 2), D, 2),
    "conv module": lambda: ModuleNetwork(Reshaping(), D, 2),
    "headed module": lambda: HeadedNetwork(nn.Sequential(nn.Linear(D, 5), nn.Tanh()), D, 2),
    "nested module": lambda: ModuleNetwork(nn.Sequential(nn.Linear(D, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 1)), D, 1),
}


def points(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weights(network: Network, S: int, seed: int = 1) -> Tensor:
    return torch.randn(S, network.num_params, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense_jacobian(network: Network, z: Tensor, X: Tensor) -> Tensor:
    """``S x N x m x P``, one weight vector at a time, by autograd through ``forward``."""
    rows = []
    for member in z:
        jacobian = torch.autograd.functional.jacobian(lambda w: network.forward(w.unsqueeze(0), X)[0], member)
        rows.append(jacobian)
    return torch.stack(rows)


@pytest.mark.parametrize("name", NETWORKS)
def test_tangents_equal_dense_jacobians(name: str) -> None:
    network, X = NETWORKS[name](), points(6, D)
    X2, z = points(4, D, seed=3), weights(network, 3)
    J, J2 = dense_jacobian(network, z, X), dense_jacobian(network, z, X2)
    first, second = network.tangents(z, X), network.tangents(z, X2)
    torch.testing.assert_close(first.values, network.forward(z, X), rtol=0, atol=1e-12)
    flat, flat2 = J.flatten(1, 2), J2.flatten(1, 2)
    torch.testing.assert_close(network.tangent_kernel(first, second), flat @ flat2.mT, rtol=1e-10, atol=1e-10)
    v = weights(network, 3, seed=5)
    torch.testing.assert_close(network.jvp(first, v), torch.einsum("snmp,sp->snm", J, v), rtol=1e-10, atol=1e-10)
    alpha = torch.randn(first.values.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    torch.testing.assert_close(network.vjp(first, alpha), torch.einsum("snmp,snm->sp", J, alpha), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(network.jacobian(first), J, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(Network.jacobian(network, first), J, rtol=1e-10, atol=1e-10)  # by pullbacks, for networks to come


@pytest.mark.parametrize("name", NETWORKS)
def test_one_linearization_serves_many_directions(name: str) -> None:
    """``S = 1`` tangents broadcast against ``S' > 1`` vectors."""
    network, X = NETWORKS[name](), points(5, D)
    z, v = weights(network, 1), weights(network, 4, seed=5)
    J = dense_jacobian(network, z, X)[0]
    tangents = network.tangents(z, X)
    torch.testing.assert_close(network.jvp(tangents, v), torch.einsum("nmp,sp->snm", J, v), rtol=1e-10, atol=1e-10)
    alpha = torch.randn(4, 5, network.num_outputs, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    torch.testing.assert_close(network.vjp(tangents, alpha), torch.einsum("nmp,snm->sp", J, alpha), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
@pytest.mark.parametrize("name", NETWORKS)
def test_gram_of_every_batch_element(name: str, batch: tuple[int, ...]) -> None:
    network, q = NETWORKS[name](), 2
    X, z = points(*batch, q, D), weights(network, 2)
    gram = network.tangent_gram(network.tangents(z, X), torch.Size(batch), q)
    size = q * network.num_outputs
    assert gram.shape == (2, *batch, size, size)
    flat_gram, flat_X = gram.reshape(2, -1, size, size), X.reshape(-1, q, D)
    for i, block in enumerate(flat_X):
        rows = dense_jacobian(network, z, block).flatten(1, 2)
        torch.testing.assert_close(flat_gram[:, i], rows @ rows.mT, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", [n for n in NETWORKS if "module" not in n or n == "headed module"])
def test_hidden_layer_times_head_is_the_network(name: str) -> None:
    network, X = NETWORKS[name](), points(2, 4, D)
    z, m = weights(network, 3), network.num_outputs
    if isinstance(network, MLP):
        fan_in = network.widths[-1]
        head = z[:, -(fan_in + 1) * m :].reshape(3, fan_in + 1, m)  # weights, then biases
    else:
        assert isinstance(network, HeadedNetwork)
        fan_in = network.num_features
        W = z[:, -(fan_in + 1) * m : -m].reshape(3, m, fan_in)  # PyTorch stores outputs first
        head = torch.cat([W.transpose(-1, -2), z[:, -m:].reshape(3, 1, m)], 1)
    values = torch.einsum("sbqf,sfm->sbqm", network.hidden(z, X), head)
    torch.testing.assert_close(values, network.forward(z, X), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NETWORKS)
def test_relative_to_a_start(name: str) -> None:
    """``f(x; z) - f(x; a)`` vanishes at ``a``, and has the Jacobian of the network."""
    network, X, z, start = NETWORKS[name](), points(2, 3, D), weights(NETWORKS[name](), 3), weights(NETWORKS[name](), 1, seed=6)
    relative = RelativeNetwork(network, start)
    torch.testing.assert_close(relative.forward(start, X), torch.zeros(1, 2, 3, network.num_outputs).double())
    expected = network.forward(z, X) - network.forward(start, X)
    torch.testing.assert_close(relative.forward(z, X), expected, rtol=1e-12, atol=1e-12)
    rows, flat = X.reshape(-1, D), expected.flatten(1, 2)
    tangents, plain = relative.tangents(z, rows), network.tangents(z, rows)
    torch.testing.assert_close(tangents.values, flat, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(relative.jacobian(tangents), network.jacobian(plain))
    torch.testing.assert_close(relative.tangent_kernel(tangents, tangents), network.tangent_kernel(plain, plain))
    torch.testing.assert_close(
        relative.tangent_gram(tangents, torch.Size([2]), 3), network.tangent_gram(plain, torch.Size([2]), 3)
    )
    values, back = relative.pullback(z, rows)
    torch.testing.assert_close(values, flat, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(back(flat), network.vjp(plain, flat), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(relative.vjp(tangents, flat), network.vjp(plain, flat))
    torch.testing.assert_close(relative.jvp(tangents, z), network.jvp(plain, z))
    torch.testing.assert_close(relative.hidden(z, X), network.hidden(z, X))


def test_forward_mode_of_modules() -> None:
    network = ModuleNetwork(Reshaping(), D, 2)
    X, z, v = points(4, D), weights(network, 1), weights(network, 3, seed=4)
    expected = network.jvp(network.tangents(z, X), v)
    torch.testing.assert_close(network.jvp_at(z, X, v), expected, rtol=1e-10, atol=1e-10)


@settings(max_examples=15, deadline=None)
@given(
    widths=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    m=st.integers(1, 3),
    d=st.integers(1, 4),
    S=st.integers(1, 3),
    batch=st.lists(st.integers(1, 3), max_size=2),
    q=st.integers(1, 4),
)
def test_shapes(widths: list[int], m: int, d: int, S: int, batch: list[int], q: int) -> None:
    network = make_mlp(tuple(widths), m, d=d)
    X, z = points(*batch, q, d), weights(network, S)
    N = math.prod(batch) * q
    assert network.forward(z, X).shape == (S, *batch, q, m)
    assert network.hidden(z, X).shape == (S, *batch, q, widths[-1] + 1)
    tangents = network.tangents(z, X)
    assert tangents.values.shape == (S, N, m)
    assert network.tangent_kernel(tangents, tangents).shape == (S, N * m, N * m)
    # A member's values do not depend on who stands beside it.
    torch.testing.assert_close(network.forward(z[:1], X)[0], network.forward(z, X)[0], rtol=1e-12, atol=1e-12)


def test_values_are_those_of_the_same_network_written_in_torch() -> None:
    network, X, z = make_mlp((5, 4), 2, "relu"), points(7, D), weights(make_mlp((5, 4), 2, "relu"), 1)
    s, u, v = (
        0.5 + torch.rand(n, generator=g, dtype=torch.float64) for g in [torch.Generator().manual_seed(7)] for n in (3, 2, 3)
    )
    sizes, offset, h = [D, 5, 4, 2], 0, (2 * X - 1) * s.sqrt()
    scales = [1.0, float((u[0] / 5).sqrt()), float((u[1] / 4).sqrt())]
    for layer in range(3):
        a, b = sizes[layer], sizes[layer + 1]
        W, bias = z[0, offset : offset + a * b].reshape(a, b), z[0, offset + a * b : offset + a * b + b]
        offset += a * b + b
        h = scales[layer] * (h if layer == 0 else torch.relu(h)) @ W + v[layer].sqrt() * bias
    assert offset == network.num_params
    torch.testing.assert_close(network.forward(z, X)[0], h, rtol=1e-12, atol=1e-12)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lift, self.attention, self.head = nn.Linear(1, 4), nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.lift(x.unsqueeze(-1))
        out: Tensor = self.head(self.attention(tokens, tokens, tokens, need_weights=False)[0].mean(1))
        return out


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(nn.Linear(D, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 1)),
        nn.Sequential(nn.Linear(D, 4), nn.Unflatten(1, (2, 2)), nn.LayerNorm((2, 2)), nn.Flatten(), nn.SiLU(), nn.Linear(4, 1)),
        nn.Sequential(nn.Linear(D, 4), nn.RMSNorm(4), nn.Softmax(-1), nn.Linear(4, 1)),
        nn.Sequential(nn.Linear(D, 4), nn.Unflatten(1, (2, 2)), nn.GroupNorm(2, 2), nn.Flatten(), nn.GELU(), nn.Linear(4, 1)),
        Attention(),
    ],
)
def test_gradients_of_jacobians_in_the_inputs(module: nn.Module) -> None:
    """What acquisition functions on linearized networks follow. PyTorch's own LayerNorm gets it wrong without an error."""
    network = ModuleNetwork(module, D, 1)
    z, X = weights(network, 2), points(2, D).requires_grad_(True)
    copied = network.forward(z[:1], X.detach())
    torch.testing.assert_close(copied[0], by_hand(module, network, z[0], X.detach()), rtol=1e-9, atol=1e-9)
    assert torch.autograd.gradcheck(lambda x: network.tangents(z, x).parts.square().sum(), (X,), eps=1e-5, atol=1e-4)


def by_hand(module: nn.Module, network: ModuleNetwork, z: Tensor, X: Tensor) -> Tensor:
    """The user's module itself, with whitened weights written into a copy."""
    twin, offset = copy.deepcopy(module).double().eval(), 0
    with torch.no_grad():
        for p in twin.parameters():
            scale = 1.0 if p.dim() == 1 else p[0].numel() ** -0.5
            p.copy_(scale * z[offset : offset + p.numel()].reshape(p.shape))
            offset += p.numel()
        out: Tensor = twin(2 * X - 1)
    return out


def test_prior_of_module_weights_has_the_declared_scale() -> None:
    network = ModuleNetwork(nn.Linear(D, 1), D, 1, scale=2.0)
    X = points(1, D)
    J = dense_jacobian(network, weights(network, 1), X)[0, 0, 0]
    expected = 4.0 * ((2 * X - 1).square().sum() / D + 1.0)  # scale^2 (|x|^2 / fan_in + bias)
    torch.testing.assert_close(J.square().sum(), expected, rtol=1e-12, atol=0)


def test_a_module_is_never_changed() -> None:
    module = nn.Sequential(nn.Linear(D, 4), nn.Dropout(0.5), nn.Tanh(), nn.Linear(4, 1))
    module.train()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    network = ModuleNetwork(module, D, 1)
    z, X = weights(network, 2), points(5, D)
    first, second = network.forward(z, X), network.forward(z, X)
    network.tangents(z, X)
    assert torch.equal(first, second)  # dropout is off
    assert module.training
    assert all(p.dtype == torch.float32 and p.grad is None for p in module.parameters())
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Sequential(nn.Linear(D, 2), nn.BatchNorm1d(2), nn.Linear(2, 1)), "BatchNorm1d"),
        (nn.Tanh(), "no parameters"),
        (nn.Linear(D, 2), "must map N x d"),
    ],
)
def test_modules_that_cannot_work_are_refused(module: nn.Module, message: str) -> None:
    with pytest.raises(InvalidOptionError, match=message):
        ModuleNetwork(module, D, 1)


@pytest.mark.parametrize("widths", [(), (0,), (3, -1)])
def test_bad_widths_are_refused(widths: tuple[int, ...]) -> None:
    with pytest.raises(InvalidOptionError, match="widths"):
        make_mlp(widths)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_slopes_are_derivatives(activation: str) -> None:
    z = torch.linspace(-3.05, 3.0, 40, dtype=torch.float64).requires_grad_(True)
    (slope,) = torch.autograd.grad(activate(z, activation).sum(), z)
    torch.testing.assert_close(activation_slope(z.detach(), activation), slope, rtol=1e-10, atol=1e-12)


def test_erf_stands_for_tanh() -> None:
    z = torch.linspace(-5, 5, 1001, dtype=torch.float64)
    assert float((activate(z, "erf") - z.tanh()).abs().max()) < 0.045


def test_extractors_give_rows_of_features() -> None:
    with pytest.raises(InvalidOptionError, match="as an extractor it must map N x d to N x F"):
        HeadedNetwork(nn.Unflatten(1, (1, D)), D, 1)
