"""The network linearized at its start: linear in the weights, with the network's own derivatives there."""

from __future__ import annotations

import torch

from seqbdl.networks import MLP, TangentNetwork


def tangent(outputs: int = 2) -> tuple[TangentNetwork, MLP, torch.Tensor]:
    ones = torch.ones(3, dtype=torch.float64)
    network = MLP((5, 4), ones, 1.3 * ones[:2], 0.7 * ones, num_outputs=outputs)
    start = torch.randn(1, network.num_params, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return TangentNetwork(network, start), network, start


X = torch.rand(6, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
STEP = torch.randn(2, 54, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def test_values_are_linear_and_tangent() -> None:
    linear, network, start = tangent()
    assert network.num_params == STEP.shape[1]
    assert float(linear.forward(start, X).abs().max()) == 0.0
    once, twice = linear.forward(start + STEP, X), linear.forward(start + 2 * STEP, X)
    torch.testing.assert_close(twice, 2 * once)
    small = 1e-6
    change = (network.forward(start + small * STEP, X) - network.forward(start - small * STEP, X)) / (2 * small)
    torch.testing.assert_close(once, change, rtol=1e-6, atol=1e-7)
    assert linear.forward(start, X.reshape(2, 3, 3)).shape == (1, 2, 3, 2)


def test_derivatives_do_not_depend_on_the_weights() -> None:
    linear, network, start = tangent()
    here, there = linear.tangents(start, X), linear.tangents(start + STEP[:1], X)
    assert torch.equal(linear.jacobian(here), linear.jacobian(there))
    torch.testing.assert_close(linear.jacobian(here), network.jacobian(network.tangents(start, X)))
    values, back = linear.pullback(start + STEP[:1], X)
    cotangent = torch.ones_like(values)
    torch.testing.assert_close(values, there.values)
    torch.testing.assert_close(back(cotangent), linear.vjp(there, cotangent))


def test_rescaled_is_the_same_function() -> None:
    linear, _, start = tangent()
    factors = torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64)
    scaled = linear.rescaled(factors)
    assert isinstance(scaled, TangentNetwork)
    z = start + STEP[:1]
    torch.testing.assert_close(scaled.forward(z / factors[linear.group_of_weights(z)], X), linear.forward(z, X))
