"""Heads per task: every product of the linearization against autograd, heads left alone, rows of no task refused."""

from __future__ import annotations

import pytest
import torch
from torch.func import jacrev

import seqbdl
from seqbdl.errors import InvalidDataError, InvalidOptionError, UnknownNameError
from seqbdl.networks import MultiHeadMLP
from seqbdl.networks.local_noise import flipout, local_reparameterization
from seqbdl.surrogates.network_prior import NetworkBuilder

HEADS = 3


def setting(branches: int = 1, outputs: int = 2, seed: int = 0) -> tuple[MultiHeadMLP, torch.Tensor, torch.Tensor]:
    builder = NetworkBuilder({"widths": (4, 3), "heads": HEADS}, 3, outputs, "erf")
    network = builder.build(builder.initial(), branches)
    assert isinstance(network, MultiHeadMLP)
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(2, network.num_params, generator=generator, dtype=torch.float64)
    X = torch.rand(7, 3, generator=generator, dtype=torch.float64)
    X[:, -1] = torch.tensor([0, 1, 2, 2, 0, 1, 0]) / (HEADS - 1)
    return network, z, X


@pytest.mark.parametrize("branches", [1, 2])
def test_products_of_the_linearization(branches: int) -> None:
    network, z, X = setting(branches)
    J = torch.stack([jacrev(lambda w: network.forward(w[None], X)[0])(member) for member in z])
    here = network.tangents(z, X)
    torch.testing.assert_close(here.values, network.forward(z, X))
    torch.testing.assert_close(network.jacobian(here), J)
    v = torch.randn_like(z)
    torch.testing.assert_close(network.jvp(here, v), torch.einsum("snmp,sp->snm", J, v))
    alpha = torch.randn(2, 7, 2, dtype=torch.float64)
    pulled = torch.einsum("snmp,snm->sp", J, alpha)
    torch.testing.assert_close(network.vjp(here, alpha), pulled)
    values, back = network.pullback(z, X)
    torch.testing.assert_close(values, here.values)
    torch.testing.assert_close(back(alpha), pulled)
    flat = J.flatten(1, 2)
    torch.testing.assert_close(network.tangent_kernel(here, here), flat @ flat.transpose(-1, -2))
    variance = torch.rand_like(z)
    torch.testing.assert_close(network.linear_variance(here, variance), (J.square() * variance[:, None, None]).sum(-1))
    one, root = network.tangents(z[:1], X), torch.randn(7, 2, 3, dtype=torch.float64)
    expected = (root.transpose(-1, -2) @ J[0]).square().sum((0, 1))
    torch.testing.assert_close(network.row_squares(one, root), expected)
    torch.testing.assert_close(network.row_squares(one, root[..., 0]), (root[..., 0].unsqueeze(-1) * J[0]).square().sum((0, 1)))


def test_batches_single_precision_and_noise_per_datum() -> None:
    network, z, X = setting()
    assert network.forward(z, X.reshape(7, 1, 3)).shape == (2, 7, 1, 2)
    single = network.forward(z.float(), X.float())
    torch.testing.assert_close(single.double(), network.forward(z, X), rtol=1e-5, atol=1e-5)
    for propagate in (local_reparameterization, flipout):
        drawn = propagate(network, z, torch.zeros_like(z), X, torch.Generator().manual_seed(0))
        torch.testing.assert_close(drawn, network.forward(z, X))


def test_rows_of_a_task_leave_other_heads_alone() -> None:
    network, z, X = setting(branches=2)
    rows = X[X[:, -1] == 0.5]
    active = network.active_weights(rows)
    moved = network.pullback(z, rows)[1](torch.ones(2, len(rows), 2, dtype=torch.float64)) != 0
    assert bool((moved.any(0) == active).all())
    shared = network.num_params - 2 * HEADS * 2 * 4
    assert int(active.sum()) == shared + 2 * 2 * 4
    features = network.hidden(z, X)
    assert features.shape == (2, 7, HEADS * 2 * 4)
    assert bool((features[:, 0, 2 * 4 :] == 0).all())  # of task 0, in the first place


def test_refusals() -> None:
    network, z, X = setting()
    X[3, -1] = 0.3
    with pytest.raises(InvalidDataError, match="row 3"):
        network.forward(z, X)
    with pytest.raises(UnknownNameError):
        NetworkBuilder({"width": (4,), "heads": 2}, 3, 1, "erf")
    with pytest.raises(InvalidOptionError, match="last input"):
        NetworkBuilder({"widths": (4,), "heads": 2}, 1, 1, "erf")
    with pytest.raises(InvalidOptionError, match="heads"):
        MultiHeadMLP((4,), torch.ones(2), torch.ones(1), torch.ones(2), heads=1)
    with pytest.raises(InvalidOptionError, match="task"):
        MultiHeadMLP((4,), torch.ones(1), torch.ones(1), torch.ones(2))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mfvi", {"num_components": 1, "num_members": 4, "anchor_share": 0.0, "steps": 60}),
        ("ekf", {}),
        ("laplace", {"structure": "diag"}),
        ("last-layer-laplace", {"num_networks": 1}),
        ("mc-dropout", {"num_members": 4, "steps": 60, "rate": 0.1}),
        ("ensemble", {"num_members": 3}),
    ],
)
def test_any_surrogate_takes_heads(name: str, options: dict[str, object]) -> None:
    """Two tasks that contradict each other: heads tell them apart, and a prediction depends on the task."""
    bounds = torch.tensor([[-1.0, 0.0], [1.0, 1.0]])
    generator = torch.Generator().manual_seed(0)
    x = 2 * torch.rand(40, 1, generator=generator, dtype=torch.float64) - 1
    task = (torch.arange(40) % 2).double().unsqueeze(-1)
    X, Y = torch.cat([x, task], 1), torch.where(task == 0, 3 * x, -3 * x) + 0.05 * torch.randn_like(x)
    model = seqbdl.make_surrogate(name, 2, bounds=bounds, network={"widths": (16,), "heads": 2}, **options).fit(X, Y)
    error = (model.predict(X).mean - Y).square().mean().sqrt()
    assert float(error) < 0.8  # one function of x alone would have 1.7
