"""Cyclical SGHMC: the schedule, the part without noise, moments in closed form, known posteriors."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from seqbdl.errors import DivergedError
from seqbdl.inference.csghmc import CSGHMCSettings, csghmc
from seqbdl.inference.gibbs import Gibbs
from seqbdl.inference.log_joint import LogJoint
from seqbdl.inference.metrics import DiagonalMetric, gauss_newton_metric
from seqbdl.likelihoods import get_likelihood
from seqbdl.priors import get_prior

S = 4000
SETTINGS = CSGHMCSettings(cycles=2, steps=50, exploration=0.4, samples=3, learning_rate=0.5, friction=0.2)


@dataclass(frozen=True)
class Normal:
    """``N(0, 1)`` in every coordinate."""

    num_rows: int = 0

    def value_and_gradient(self, z: Tensor, index: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return -0.5 * z.square().sum(-1), -z


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def unit(P: int) -> DiagonalMetric:
    return DiagonalMetric(torch.ones(P).double())


def test_schedule() -> None:
    """Zhang et al.: ``alpha_k = alpha_0 / 2 (cos(pi mod(k - 1, K / M) / (K / M)) + 1)``, of which ours is the root."""
    for k in (1, 2, 20, 50):
        expected = 0.5 * (math.cos(math.pi * ((k - 1) % 50) / 50) + 1)
        assert math.isclose(SETTINGS.step_factor(k - 1) ** 2, expected, abs_tol=1e-12)
    assert SETTINGS.first_noisy == 20
    assert sorted(SETTINGS.kept) == [39, 44, 49]  # evenly over the last half of the steps with noise
    assert CSGHMCSettings().temperature == 1.0


def moments(settings: CSGHMCSettings, h: float) -> list[float]:
    """Variances on ``N(0, 1)`` at the steps that are kept, from a start of variance one."""
    covariance = torch.diag(torch.tensor([1.0, 0.0])).double()
    kept, C = [], 0.0 if settings.friction is None else settings.friction
    for _ in range(settings.cycles):
        for k in range(settings.steps):
            step = h * settings.step_factor(k)
            if k in (0, settings.first_noisy):
                covariance = torch.diag(torch.tensor([float(covariance[0, 0]), 0.0 if k == 0 else settings.temperature])).double()
            A = torch.tensor([[1 - step * step, step * (1 - C)], [-step, 1 - C]]).double()
            fresh = 2 * C * settings.temperature if k >= settings.first_noisy else 0.0
            covariance = A @ covariance @ A.T + fresh * torch.tensor([[step * step, step], [step, 1.0]]).double()
            if k in settings.kept:
                kept.append(float(covariance[0, 0]))
    return kept


@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_variances_are_those_of_the_recursion(temperature: float, linear: SimpleNamespace) -> None:
    settings = replace(SETTINGS, temperature=temperature)
    result = csghmc(Normal(), linear.normals(S, 2), unit(2), source(), settings)
    assert result.z.shape == (6, S, 2)
    expected = moments(settings, 0.5)
    for z, variance in zip(result.z, expected, strict=True):
        linear.assert_samples(z, torch.zeros(2).double(), variance * torch.eye(2).double())
    assert all(abs(variance / temperature - 1) < 0.1 for variance in expected)


def test_exploration_has_no_noise(linear: SimpleNamespace) -> None:
    """All of a cycle but its last step: chains from one start differ by what that step adds."""
    settings = CSGHMCSettings(cycles=1, steps=50, exploration=0.98, samples=1, learning_rate=0.5, friction=0.2)
    z = csghmc(Normal(), torch.ones(S, 1).double(), unit(1), source(), settings).z[-1]
    step = 0.5 * settings.step_factor(49)
    expected = step * ((1 - 0.2) ** 2 + 2 * 0.2) ** 0.5  # fresh velocity of temperature one, and noise of friction
    assert abs(float(z.std()) / expected - 1) < 4.5 * (0.5 / S) ** 0.5


@pytest.mark.parametrize("m", [1, 2])
def test_linear_networks(m: int, linear: SimpleNamespace) -> None:
    p = linear.problem(m=m, level=0.3)
    target = LogJoint(p.network, get_likelihood("gaussian"), get_prior("gaussian"), p.X, p.Y, p.variance)
    start = p.mean + linear.normals(S, p.network.num_params) @ torch.linalg.cholesky(p.covariance).T
    metric = gauss_newton_metric(target, start, source())
    settings = replace(SETTINGS, cycles=1, steps=100, samples=1)
    result = csghmc(target, start, metric, source(), settings)
    # In the metric of the posterior every direction is N(0, 1).
    linear.assert_samples(result.z[-1], p.mean, moments(settings, 0.5)[-1] * p.covariance)


def test_automatic_steps_and_sampled_noise(linear: SimpleNamespace) -> None:
    p = linear.problem(n=14, level=0.3)
    target = LogJoint(p.network, get_likelihood("gaussian"), get_prior("gaussian"), p.X, p.Y, p.variance)
    start = p.mean + linear.normals(50, 3) @ torch.linalg.cholesky(p.covariance).T
    settings = CSGHMCSettings(cycles=2, steps=60, samples=2)
    metric = gauss_newton_metric(target, start, source())
    fixed = csghmc(target, start, metric, source(), settings)
    torch.testing.assert_close(fixed.step_size, torch.full((50,), settings.caution).double(), rtol=1e-6, atol=0)
    free = csghmc(target, start, metric, source(), settings, Gibbs(target, (3.0, 2 * torch.ones(1).double())))
    assert free.noise is not None
    assert free.noise.shape == (4, 50, 1)
    assert float(free.noise.std()) > 0
    assert float(free.step_size.std()) > 0  # of the second cycle, under other noise


def test_too_large_steps_are_refused(linear: SimpleNamespace) -> None:
    with pytest.raises(DivergedError, match="learning_rate=4"):
        csghmc(Normal(), linear.normals(4, 2), unit(2), source(), replace(SETTINGS, learning_rate=4.0, friction=0.01))


def test_same_seed_same_chains(linear: SimpleNamespace) -> None:
    state = torch.get_rng_state()
    first, second = (csghmc(Normal(), linear.normals(4, 3), unit(3), source(1), SETTINGS) for _ in range(2))
    assert torch.equal(first.z, second.z)
    assert torch.equal(state, torch.get_rng_state())
