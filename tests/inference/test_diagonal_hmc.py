"""Plain Hamiltonian Monte Carlo: any log density, adapted masses and steps, exact acceptance."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from seqbdl.inference.diagonal_hmc import DiagonalHMCSettings, diagonal_hmc
from seqbdl.inference.log_joint import LogJoint
from seqbdl.inference.metrics import DiagonalMetric, diagonal_metric
from seqbdl.likelihoods import get_likelihood
from seqbdl.networks import ModuleNetwork
from seqbdl.priors import PRIORS, get_prior

S = 250
SETTINGS = DiagonalHMCSettings(warmup=60, samples=30)


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@dataclass(frozen=True)
class Density:
    """A Gaussian of very different scales, or what ``cut`` makes of it."""

    precision: Tensor
    cut: float | None = None
    num_rows: int = 0

    def value_and_gradient(self, z: Tensor, index: Tensor | None = None) -> tuple[Tensor, Tensor]:
        value, gradient = -0.5 * (self.precision * z.square()).sum(-1), -self.precision * z
        if self.cut is not None:
            outside = (z > self.cut).any(-1)
            value = torch.where(outside, torch.nan, value)
            gradient = torch.where(outside[:, None], torch.nan, gradient)
        return value, gradient


def test_a_gaussian_of_many_scales(linear: SimpleNamespace) -> None:
    precision = torch.logspace(-2, 4, 7, dtype=torch.float64)
    start = linear.normals(S, 7) * precision.rsqrt()
    result = diagonal_hmc(Density(precision), start, source(), SETTINGS)
    assert result.divergences == 0
    assert result.acceptance is not None
    assert abs(float(result.acceptance.mean()) - 0.8) < 0.15
    assert float(result.step_size.min()) > 5 * 0.02  # masses were learned: without, steps above 0.02 are unstable
    linear.assert_samples(result.z.flatten(0, 1), torch.zeros(7).double(), torch.diag(1 / precision), ess=30 * S * 0.3)


def test_nan_is_rejected(linear: SimpleNamespace) -> None:
    """A half-space of NaN: the rest is a truncated normal."""
    settings = DiagonalHMCSettings(warmup=0, samples=30, initial_step=0.3)  # adaptation would shorten steps at the edge
    result = diagonal_hmc(Density(torch.ones(1).double(), cut=0.0), -linear.normals(2000, 1).abs(), source(), settings)
    assert bool(result.z.isfinite().all())
    assert float(result.z.max()) <= 0
    assert result.divergences > 0
    per_chain = result.z[..., 0].mean(0)
    assert abs(float(per_chain.mean()) + (2 / torch.pi) ** 0.5) < 4 * float(per_chain.std()) / 2000**0.5


@pytest.mark.parametrize("m", [1, 2])
def test_linear_networks(m: int, linear: SimpleNamespace) -> None:
    p = linear.problem(m=m)
    target = LogJoint(p.network, get_likelihood("gaussian"), get_prior("gaussian"), p.X, p.Y, p.variance)
    start = linear.normals(S, p.network.num_params)
    result = diagonal_hmc(target, start, source(), SETTINGS, metric=diagonal_metric(target, start, source()))
    linear.assert_samples(result.z.flatten(0, 1), p.mean, p.covariance, ess=30 * S * 0.3)


@pytest.mark.parametrize("prior", [name for name in PRIORS if name != "horseshoe"])  # that one is sampled with its scales
def test_logistic_regression_against_quadrature(prior: str, linear: SimpleNamespace) -> None:
    network = ModuleNetwork(nn.Linear(1, 1), 1)
    X = torch.linspace(0, 1, 12, dtype=torch.float64)[:, None]
    Y = (X > 0.4).double()
    Y[8] = 0.0
    target = LogJoint(network, get_likelihood("bernoulli"), get_prior(prior), X, Y, torch.ones_like(Y))
    axis = torch.linspace(-15, 25, 801, dtype=torch.float64)
    z = torch.cartesian_prod(axis, axis)
    weight = target(z).softmax(0)
    mean = weight @ z
    covariance = (z - mean).T @ ((z - mean) * weight[:, None])
    start = mean + linear.normals(S, 2) @ torch.linalg.cholesky(covariance).T
    result = diagonal_hmc(target, start, source(), replace(SETTINGS, samples=60))
    assert result.divergences == 0
    chains = result.z.mean(0)
    assert bool(((chains.mean(0) - mean).abs() < 4 * chains.std(0) / S**0.5).all())
    products = (result.z - mean)[..., :, None] * (result.z - mean)[..., None, :]
    spread = products.mean(0)
    assert bool(((spread.mean(0) - covariance).abs() < 4 * spread.std(0) / S**0.5).all())


def test_masses_that_are_not_adapted_stay(linear: SimpleNamespace) -> None:
    precision = torch.tensor([1.0, 1e4], dtype=torch.float64)
    settings = replace(SETTINGS, adapt_mass=False, max_steps=2000)
    known = diagonal_hmc(
        Density(precision), linear.normals(4, 2) * precision.rsqrt(), source(), settings, metric=DiagonalMetric(precision)
    )
    plain = diagonal_hmc(Density(precision), linear.normals(4, 2) * precision.rsqrt(), source(), settings)
    assert float(known.step_size.median()) > 20 * float(plain.step_size.median())


def test_same_seed_same_chains(linear: SimpleNamespace) -> None:
    precision, start = torch.ones(3).double(), linear.normals(4, 3)
    state = torch.get_rng_state()
    settings = replace(SETTINGS, warmup=25, samples=3)
    first, second = (diagonal_hmc(Density(precision), start, source(1), settings) for _ in range(2))
    assert torch.equal(first.z, second.z)
    assert torch.equal(state, torch.get_rng_state())
