"""SGHMC, plain and scale-adapted: exact noise, the bias of its steps in closed form, known posteriors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from scipy.linalg import solve_discrete_lyapunov
from torch import Tensor, nn

from seqbdl.errors import DivergedError
from seqbdl.inference.gibbs import Gibbs
from seqbdl.inference.log_joint import LogJoint
from seqbdl.inference.metrics import DiagonalMetric, gauss_newton_metric
from seqbdl.inference.sghmc import GradientScale, SGHMCSettings, sghmc
from seqbdl.likelihoods import get_likelihood
from seqbdl.networks import ModuleNetwork
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


def stationary(h: float, friction: float, noise: float) -> Tensor:
    """Covariance of position and velocity on ``N(0, 1)`` under ``v' = (1 - C) v - h z + N(0, noise)``, ``z' = z + h v'``."""
    A = torch.tensor([[1 - h * h, h * (1 - friction)], [-h, 1 - friction]], dtype=torch.float64)
    Q = noise * torch.tensor([[h * h, h], [h, 1.0]], dtype=torch.float64)
    return torch.as_tensor(solve_discrete_lyapunov(A.numpy(), Q.numpy()))


@pytest.mark.parametrize(("step", "friction"), [(0.05, 0.05), (0.3, 0.3), (0.6, 0.1)])
def test_stationary_moments_are_those_of_the_discretization(step: float, friction: float, linear: SimpleNamespace) -> None:
    settings = SGHMCSettings(warmup=round(8 / step + 8 / friction), samples=1, thinning=1, learning_rate=step, friction=friction)
    result = sghmc(Normal(), linear.normals(S, 2), unit(2), source(), settings)
    exact = stationary(step, friction, 2 * friction)
    linear.assert_samples(result.z[-1], torch.zeros(2).double(), exact[0, 0] * torch.eye(2).double())
    assert result.kinetic is not None
    kinetic = (1 - 0.5 * friction) * float(exact[1, 1])
    assert abs(float(result.kinetic.mean()) - kinetic) < 4.5 * kinetic / S**0.5  # chi-squared, two degrees of freedom
    if step == 0.05:
        assert abs(float(exact[0, 0]) - 1) < 0.01
        assert abs(kinetic - 1) < 0.01


def test_defaults_sample_at_temperature_one(linear: SimpleNamespace) -> None:
    settings = SGHMCSettings(warmup=60)
    assert settings.temperature == 1.0
    result = sghmc(Normal(), linear.normals(S, 2), unit(2), source(), settings)
    torch.testing.assert_close(result.step_size, torch.full((S,), settings.caution).double(), rtol=1e-6, atol=0)
    exact = float(stationary(settings.caution, settings.caution, 2 * settings.caution)[0, 0])  # friction of a radian per radian
    linear.assert_samples(result.z[-1], torch.zeros(2).double(), exact * torch.eye(2).double())
    cold = sghmc(Normal(), linear.normals(S, 2), unit(2), source(), replace(settings, temperature=0.01))
    linear.assert_samples(cold.z[-1], torch.zeros(2).double(), 0.01 * exact * torch.eye(2).double())


@pytest.mark.parametrize("lr", [0.03, 0.1])
def test_scale_adapted_form_has_its_papers_noise(lr: float, linear: SimpleNamespace) -> None:
    """Masses near one are learned on ``N(0, 1)``; ``- h^4`` makes the variance smaller: 0.99 and 0.90."""
    settings = SGHMCSettings(
        warmup=100,
        samples=1,
        thinning=round(6 / lr / 0.05**0.5),
        learning_rate=lr,
        friction=0.05,
        gradient_noise=1.0,
        adaptive=True,
    )
    result = sghmc(Normal(), linear.normals(S, 2), unit(2), source(), settings)
    exact = float(stationary(lr, 0.05, 2 * 0.05 - lr**2)[0, 0])
    assert abs(exact - {0.03: 0.99, 0.1: 0.90}[lr]) < 0.01
    spread = float(result.z[-1].var())
    # Masses are mean squares over chains and steps: off by a few percent, which the variance does not see.
    assert abs(spread / exact - 1) < 4.5 * (2 / (2 * S)) ** 0.5 + 0.01


def test_warmup_is_counted_in_steps_and_masses_freeze(linear: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A published package counts every tensor of the network, so that six of them end the warm-up six times too early."""
    network = ModuleNetwork(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1)), 2)
    assert network.num_groups == 6
    p, updates = linear.problem(), []
    update = GradientScale.update

    def counted(self: GradientScale, gradient: Tensor) -> GradientScale:
        updates.append(gradient)
        return update(self, gradient)

    monkeypatch.setattr(GradientScale, "update", counted)
    settings = SGHMCSettings(warmup=34, samples=3, thinning=5, adaptive=True, friction=0.05, learning_rate=1e-3)
    sghmc(replace(joint(p), network=network), linear.normals(4, network.num_params), unit(1), source(), settings)
    assert len(updates) == 34


def test_running_means_are_springenbergs() -> None:
    gradients = torch.randn(5, 1, 2, generator=source(), dtype=torch.float64)
    scale = GradientScale.begin(gradients[0])
    tau, g, V = torch.ones(2).double(), gradients[0, 0], gradients[0, 0].square()
    for gradient in gradients[1:, 0]:
        scale = scale.update(gradient[None])
        tau = tau + 1 - tau * g.square() / V
        g, V = g + (gradient - g) / tau, V + (gradient.square() - V) / tau
    torch.testing.assert_close(scale.squares, V)
    torch.testing.assert_close(scale.metric().mass, V.sqrt())


@pytest.mark.parametrize("m", [1, 2])
@pytest.mark.parametrize("metric", ["gauss-newton", "diagonal", "adaptive"])
def test_linear_networks(m: int, metric: str, linear: SimpleNamespace) -> None:
    p = linear.problem(m=m, level=0.3)
    target, P = joint(p), p.network.num_params
    start = p.mean + 2 * linear.normals(S, P) @ torch.linalg.cholesky(p.covariance).T
    H = torch.linalg.inv(p.covariance)
    mass = gauss_newton_metric(target, start, source()) if metric == "gauss-newton" else DiagonalMetric(H.diagonal())
    settings = SGHMCSettings(warmup=80, samples=1, thinning=80, friction=0.2, caution=0.2, adaptive=metric == "adaptive")
    result = sghmc(target, start, mass, source(), settings)
    # A step of 0.2 radians makes the variance of the fastest direction 1 / (1 - 0.04 / 4) at most, and a little by friction.
    linear.assert_samples(result.z[-1], p.mean, p.covariance, width=4.5 + 0.013 * (S / 2) ** 0.5)


@pytest.mark.parametrize("prior", PRIORS)
def test_without_data_there_is_the_prior(prior: str, linear: SimpleNamespace) -> None:
    """A published package divides the prior by the number of weights."""
    p = linear.problem()
    target = replace(joint(p, prior), X=p.X[:0], Y=p.Y[:0], noise=p.variance[:0])
    start = get_prior(prior).sample(S, 3, source(5), p.X)
    gibbs = Gibbs(target) if prior == "horseshoe" else None
    metric = DiagonalMetric(torch.ones(3).double(), additive=True)
    settings = SGHMCSettings(warmup=60, samples=1, thinning=10, learning_rate=0.1, friction=0.1)
    result = sghmc(target, start, metric, source(), settings, gibbs)
    levels = torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9], dtype=torch.float64)
    exact = get_prior(prior).sample(400_000, 1, source(9), p.X).quantile(levels)
    below = (result.z[-1].flatten()[:, None] < exact).double().mean(0)
    # Steps of 0.1 make the variance 0.3 percent too large: shares shift by 0.001 at most (more at a kink in the density).
    assert bool(((below - levels).abs() < 0.002 + 4.5 * (levels * (1 - levels) / (3 * S)).sqrt()).all())


def test_minibatches_take_smaller_steps(linear: SimpleNamespace) -> None:
    p = linear.problem(level=3.0)
    target, start = joint(p), linear.normals(1000, 3)
    metric = gauss_newton_metric(target, start, source())
    full = sghmc(target, start, metric, source(), SGHMCSettings(warmup=1, samples=1, thinning=1))
    z = sghmc(target, start, metric, source(), SGHMCSettings(warmup=200, samples=1, thinning=1, batch_size=2))
    torch.testing.assert_close(full.step_size, torch.full((1000,), 0.6).double(), rtol=1e-6, atol=0)
    # Friction of a radian per radian, 0.6; what batches may add to the noise is h^2 (N / |B|) / (2 C) = 0.1.
    torch.testing.assert_close(z.step_size, torch.full((1000,), (0.2 * 0.6 / 4) ** 0.5).double(), rtol=1e-6, atol=0)
    residual = float(((p.Y - p.network.forward(p.mean[None], p.X)[0]).square() / p.variance).max())
    deviation = p.covariance.diagonal().sqrt()
    assert bool(((z.z[-1].mean(0) - p.mean).abs() < 4.5 * deviation * (1 / 1000 + 0.1 * residual) ** 0.5).all())
    error = (z.z[-1].T.cov() - p.covariance) / torch.outer(deviation, deviation)
    assert float(error.abs().max()) < 4.5 * (2 / 1000) ** 0.5 + 0.1 + 0.02


def test_too_large_steps_are_refused(linear: SimpleNamespace) -> None:
    with pytest.raises(DivergedError, match=r"learning_rate=2\.5"):
        sghmc(Normal(), linear.normals(4, 2), unit(2), source(), SGHMCSettings(learning_rate=2.5, friction=0.1))


def test_same_seed_same_chains(linear: SimpleNamespace) -> None:
    p, state = linear.problem(), torch.get_rng_state()
    settings = SGHMCSettings(warmup=5, samples=3, thinning=2, batch_size=3, learning_rate=0.01, friction=0.1)
    first, second = (sghmc(joint(p), linear.normals(4, 3), unit(3), source(1), settings) for _ in range(2))
    assert torch.equal(first.z, second.z)
    assert torch.equal(state, torch.get_rng_state())
