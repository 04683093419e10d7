"""Passes with noise per datum: every row by itself is distributed as under weight draws, and rows share no noise."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from seqbdl.networks import MLP
from seqbdl.networks.local_noise import flipout, local_reparameterization


def problem(activation: str = "erf") -> tuple[MLP, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    ones = torch.ones(3, dtype=torch.float64)
    network = MLP((4, 3), ones[:2], ones[:2] * 2, ones, 2, activation, branches=2)
    mean = torch.randn(1, network.num_params, generator=generator, dtype=torch.float64)
    sd = 0.05 + torch.rand(1, network.num_params, generator=generator, dtype=torch.float64)
    X = torch.rand(3, 2, generator=generator, dtype=torch.float64)
    return network, mean, sd, torch.cat([X, X[:1]])  # the last row repeats the first


@pytest.mark.parametrize("activation", ["erf", "relu"])
@pytest.mark.parametrize("propagate", [local_reparameterization, flipout])
def test_rows_are_distributed_as_under_weight_draws(activation: str, propagate: type[object]) -> None:
    network, mean, sd, X = problem(activation)
    n = 20_000
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(n, network.num_params, generator=generator, dtype=torch.float64)
    whole = network.forward(mean + sd * noise, X)
    values = propagate(network, mean.expand(n, -1), sd.expand(n, -1), X, generator)  # type: ignore[call-arg]
    assert isinstance(values, Tensor)
    for power in (1, 2, 3):
        a, b = values**power, whole**power
        error = (a.mean(0) - b.mean(0)).abs() / ((a.var(0) + b.var(0)) / n).sqrt()
        assert error.max() < 4.5, f"moment {power} is off by {float(error.max()):.1f} standard errors"
    # Equal rows have equal values under one weight draw; here their noise differs, which is what makes gradients quiet.
    first, last = values[:, 0], values[:, -1]
    correlation = ((first - first.mean(0)) * (last - last.mean(0))).mean(0) / (first.std(0) * last.std(0))
    assert (correlation.abs() < (4.5 / n**0.5 if propagate is local_reparameterization else 0.9)).all()
    torch.testing.assert_close(whole[:, 0], whole[:, -1])


@pytest.mark.parametrize("propagate", [local_reparameterization, flipout])
def test_without_spread_it_is_the_network(propagate: type[object]) -> None:
    network, mean, sd, X = problem()
    values = propagate(network, mean, 0 * sd, X, torch.Generator().manual_seed(0))  # type: ignore[call-arg]
    torch.testing.assert_close(values, network.forward(mean, X))


@pytest.mark.parametrize("propagate", [local_reparameterization, flipout])
def test_gradients_reach_means_and_spreads(propagate: type[object]) -> None:
    network, mean, sd, X = problem()
    m, s = mean.requires_grad_(True), sd.requires_grad_(True)
    values = propagate(network, m, s, X, torch.Generator().manual_seed(0))  # type: ignore[call-arg]
    assert isinstance(values, Tensor)
    for gradient in torch.autograd.grad(values.square().sum(), (m, s)):
        assert bool(gradient.isfinite().all())
        assert (gradient != 0).double().mean() > 0.9
