"""Stochastic gradient Langevin dynamics: exact noise, the bias of its steps, known posteriors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from seqbdl.errors import DivergedError
from seqbdl.inference.gibbs import Gibbs
from seqbdl.inference.log_joint import LogJoint
from seqbdl.inference.metrics import DiagonalMetric, gauss_newton_metric
from seqbdl.inference.sgld import SGLDSettings, sgld
from seqbdl.likelihoods import get_likelihood
from seqbdl.priors import PRIORS, get_prior

S = 4000


@dataclass(frozen=True)
class Normal:
    """``N(0, 1)`` in every coordinate."""

    num_rows: int = 0

    def value_and_gradient(self, z: Tensor, index: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return -0.5 * z.square().sum(-1), -z


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def joint(p: SimpleNamespace, prior: str = "gaussian") -> LogJoint:
    return LogJoint(p.network, get_likelihood("gaussian"), get_prior(prior), p.X, p.Y, p.variance)


def unit(P: int) -> DiagonalMetric:
    return DiagonalMetric(torch.ones(P).double())


@pytest.mark.parametrize("step", [0.05, 0.5])
def test_stationary_variance_is_that_of_the_discretization(step: float, linear: SimpleNamespace) -> None:
    settings = SGLDSettings(warmup=round(8 / step), samples=1, thinning=1, learning_rate=step)
    result = sgld(Normal(), linear.normals(S, 2), unit(2), source(), settings)
    exact = 1 / (1 - 0.5 * step)
    linear.assert_samples(result.z[-1], torch.zeros(2).double(), exact * torch.eye(2).double())


def test_defaults_sample_at_temperature_one(linear: SimpleNamespace) -> None:
    """A published package's default noise was 1 % of what Langevin's equation has."""
    settings = SGLDSettings()
    assert settings.temperature == 1.0
    result = sgld(Normal(), linear.normals(S, 2), unit(2), source(), settings)
    torch.testing.assert_close(result.step_size, torch.full((S,), settings.caution).double(), rtol=1e-6, atol=0)
    exact = 1 / (1 - 0.5 * settings.caution)
    linear.assert_samples(result.z[-1], torch.zeros(2).double(), exact * torch.eye(2).double())
    cold = sgld(Normal(), linear.normals(S, 2), unit(2), source(), replace(settings, temperature=0.01))
    linear.assert_samples(cold.z[-1], torch.zeros(2).double(), 0.01 * exact * torch.eye(2).double())


@pytest.mark.parametrize("m", [1, 2])
@pytest.mark.parametrize("dense", [False, True])
def test_linear_networks(m: int, dense: bool, linear: SimpleNamespace) -> None:
    p = linear.problem(m=m, level=0.3)
    target, P = joint(p), p.network.num_params
    start = 2 * linear.normals(S, P)
    metric = gauss_newton_metric(target, start, source()) if dense else DiagonalMetric(torch.linalg.inv(p.covariance).diagonal())
    settings = SGLDSettings(warmup=400, samples=1, thinning=1, learning_rate=0.05)
    result = sgld(target, start, metric, source(), settings)
    # z' - c = (I - e M^-1 H)(z - c) + N(0, 2 e M^-1) has the stationary covariance (H - e/2 H M^-1 H)^-1.
    H = torch.linalg.inv(p.covariance)
    M = H if dense else torch.diag(H.diagonal())
    covariance = torch.linalg.inv(H - 0.025 * H @ torch.linalg.inv(M) @ H)
    linear.assert_samples(result.z[-1], p.mean, covariance)


def test_divergence_from_the_posterior_falls_with_the_steps(linear: SimpleNamespace) -> None:
    p = linear.problem(level=0.3)
    target, start = joint(p), 4 + linear.normals(S, 3)
    metric = gauss_newton_metric(target, start, source())
    posterior = torch.distributions.MultivariateNormal(p.mean, p.covariance)
    divergences = []
    for steps in (1, 10, 30, 100):
        z = sgld(target, start, metric, source(), SGLDSettings(steps, 1, 1, learning_rate=0.05)).z[-1]
        ours = torch.distributions.MultivariateNormal(z.mean(0), z.T.cov())
        divergences.append(float(torch.distributions.kl_divergence(ours, posterior)))
    assert divergences == sorted(divergences, reverse=True)
    assert divergences[-1] < 0.01


@pytest.mark.parametrize("prior", PRIORS)
def test_without_data_there_is_the_prior(prior: str, linear: SimpleNamespace) -> None:
    """Nothing is divided by the number of weights or rows."""
    p = linear.problem()
    target = replace(joint(p, prior), X=p.X[:0], Y=p.Y[:0], noise=p.variance[:0])
    start = get_prior(prior).sample(S, 3, source(5), p.X)
    gibbs = Gibbs(target) if prior == "horseshoe" else None
    metric = DiagonalMetric(torch.ones(3).double(), additive=True)
    result = sgld(target, start, metric, source(), SGLDSettings(warmup=100, samples=1, thinning=20, learning_rate=0.02), gibbs)
    levels = torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9], dtype=torch.float64)
    exact = get_prior(prior).sample(400_000, 1, source(9), p.X).quantile(levels)
    below = (result.z[-1].flatten()[:, None] < exact).double().mean(0)
    # Steps of 0.02 make the variance one percent too large: a shift of these shares by 0.0025 at most.
    assert bool(((below - levels).abs() < 0.0025 + 4.5 * (levels * (1 - levels) / (3 * S)).sqrt()).all())


def test_minibatches_have_the_same_target(linear: SimpleNamespace) -> None:
    p, chains, step = linear.problem(level=3.0), 1000, 0.01
    target, start = joint(p), linear.normals(chains, 3)
    metric = gauss_newton_metric(target, start, source())
    settings = SGLDSettings(warmup=600, samples=1, thinning=1, batch_size=2, learning_rate=step)
    z = sgld(target, start, metric, source(), settings).z[-1]
    # Batches of a quarter of the rows add at most e N / (2 |B|) of the posterior's variance, times squared residuals. All
    # chains see the same batches: what the residuals of their mean add moves them together, the rest each by itself.
    share = 0.5 * step * 4
    residual = float(((p.Y - p.network.forward(p.mean[None], p.X)[0]).square() / p.variance).max())
    deviation = p.covariance.diagonal().sqrt()
    assert bool(((z.mean(0) - p.mean).abs() < 4.5 * deviation * (1 / chains + share * residual) ** 0.5).all())
    error = (z.T.cov() - p.covariance) / torch.outer(deviation, deviation)
    assert float(error.abs().max()) < 4.5 * (2 / chains) ** 0.5 + share + 0.5 * step


def test_preconditioned_form_freezes_its_masses(linear: SimpleNamespace) -> None:
    """RMSprop's masses; a step size in units of them; the posterior up to the bias of the steps."""
    p = linear.problem(level=0.3)
    target, start = joint(p), p.mean + linear.normals(S, 3) @ torch.linalg.cholesky(p.covariance).T
    settings = SGLDSettings(warmup=200, samples=1, thinning=300, rmsprop=0.99, caution=0.05)
    result = sgld(target, start, unit(3), source(), settings)
    linear.assert_samples(result.z[-1], p.mean, p.covariance, width=4.5 + 0.025 * (S / 2) ** 0.5)


def test_too_large_steps_are_refused(linear: SimpleNamespace) -> None:
    with pytest.raises(DivergedError, match=r"learning_rate=2\.5"):
        sgld(Normal(), linear.normals(4, 2), unit(2), source(), SGLDSettings(learning_rate=2.5))


def test_same_seed_same_chains(linear: SimpleNamespace) -> None:
    p, state = linear.problem(), torch.get_rng_state()
    settings = SGLDSettings(warmup=5, samples=3, thinning=2, batch_size=3, learning_rate=0.01)
    gibbs = Gibbs(joint(p), (3.0, torch.ones(1).double()))
    first, second = (sgld(joint(p), linear.normals(4, 3), unit(3), source(1), settings, gibbs) for _ in range(2))
    assert torch.equal(first.z, second.z)
    assert first.noise is not None
    assert second.noise is not None
    assert torch.equal(first.noise, second.noise)
    assert torch.equal(state, torch.get_rng_state())
