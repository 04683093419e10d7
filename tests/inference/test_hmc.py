"""Hamiltonian Monte Carlo against closed forms and against quadrature."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from seqbdl.inference import metrics
from seqbdl.inference.chains import ChainResult
from seqbdl.inference.diagonal_hmc import DiagonalHMCSettings, diagonal_hmc
from seqbdl.inference.gibbs import Gibbs
from seqbdl.inference.hmc import HMCSettings, hmc
from seqbdl.inference.log_joint import LogJoint
from seqbdl.inference.metrics import gauss_newton_metric
from seqbdl.likelihoods import get_likelihood
from seqbdl.networks import ModuleNetwork, Network
from seqbdl.priors import PRIORS, get_prior

S = 250
SETTINGS = HMCSettings(warmup=40, samples=40)
EFFICIENCY = 0.3  # effective draws per draw, at least: half-way turns of the Gaussian flow have autocorrelation about a half


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def joint(
    network: Network, X: Tensor, Y: Tensor, variance: Tensor, likelihood: str = "gaussian", prior: str = "gaussian"
) -> LogJoint:
    return LogJoint(network, get_likelihood(likelihood), get_prior(prior), X, Y, variance)


def run(
    target: LogJoint,
    start: Tensor,
    settings: HMCSettings = SETTINGS,
    noise_prior: tuple[float, Tensor] | None = None,
    seed: int = 0,
) -> ChainResult:
    source = generator(seed)
    gibbs = None if noise_prior is None else Gibbs(target, noise_prior)
    return hmc(target, start, gauss_newton_metric(target, start, source), source, settings, gibbs)


def healthy(result: ChainResult) -> None:
    assert result.divergences == 0
    assert result.acceptance is not None
    assert 0.6 < float(result.acceptance.mean()) <= 1.0


@pytest.mark.parametrize("correlated", [False, True])
@pytest.mark.parametrize("m", [1, 2])
def test_linear_networks(m: int, correlated: bool, linear: SimpleNamespace) -> None:
    p = linear.problem(m=m, level=0.02, correlated=correlated)
    if correlated:
        deviations = p.covariance.diagonal().sqrt()
        assert float((p.covariance / torch.outer(deviations, deviations)).fill_diagonal_(0).abs().max()) > 0.5
    start = 5 * linear.normals(S, p.network.num_params)  # far from the posterior
    result = run(joint(p.network, p.X, p.Y, p.variance), start)
    healthy(result)
    assert result.z.shape == (40, S, p.network.num_params)
    linear.assert_samples(result.z.flatten(0, 1), p.mean, p.covariance, ess=40 * S * EFFICIENCY)
    assert result.noise is None  # known noise stays


def test_a_mass_matrix_of_few_rows_has_the_same_target(linear: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MAX_METRIC_ROWS", 3)
    p = linear.problem(level=0.3)
    result = run(joint(p.network, p.X, p.Y, p.variance), linear.normals(S, 3))
    healthy(result)
    linear.assert_samples(result.z.flatten(0, 1), p.mean, p.covariance, ess=40 * S * EFFICIENCY)


def test_without_data_there_is_the_prior(linear: SimpleNamespace) -> None:
    """One row with enormous noise."""
    p = linear.problem()
    huge = torch.full((1, 1), 1e8).double()
    result = run(joint(p.network, p.X[:1], p.Y[:1], huge), linear.normals(S, 3))
    linear.assert_samples(result.z.flatten(0, 1), torch.zeros(3).double(), torch.eye(3).double(), ess=40 * S * EFFICIENCY)


@pytest.mark.parametrize("m", [1, 2])
def test_noise_by_gibbs_has_its_exact_marginal(m: int, linear: SimpleNamespace) -> None:
    """Linear network, inverse-gamma noise: the weights integrate out, one quadrature per output gives the marginal."""
    p, shape = linear.problem(n=14, m=m, level=0.1), 3.0
    scale = torch.tensor([2.0, 5.0], dtype=torch.float64)[:m]
    start = p.mean + linear.normals(S, p.network.num_params) @ torch.linalg.cholesky(p.covariance).T
    result = run(joint(p.network, p.X, p.Y, p.variance), start, noise_prior=(shape, scale))
    healthy(result)
    multiples = result.noise  # samples x S x m
    assert multiples is not None
    grid = torch.linspace(-3.0, 6.0, 3000, dtype=torch.float64)  # log of the multiple
    J = p.J.unflatten(0, p.Y.shape)
    for i in range(m):
        inverse_gamma = -(shape + 1) * grid - scale[i] / grid.exp() + grid  # density of the logarithm
        marginal = (J[:, i] @ J[:, i].T) + torch.diag_embed(grid.exp()[:, None] * p.variance[:, i])
        likelihood = torch.distributions.MultivariateNormal(torch.zeros(14).double(), marginal).log_prob(p.Y[:, i])
        weight = (inverse_gamma + likelihood).softmax(0)
        mean = (weight * grid).sum()
        deviation = (weight * (grid - mean).square()).sum().sqrt()
        samples = multiples[..., i].log().flatten()
        ess = samples.numel() * EFFICIENCY
        assert abs(float(samples.mean() - mean)) < 4 * float(deviation) / ess**0.5
        assert abs(float(samples.std() / deviation) - 1) < 5 / ess**0.5  # heavier tails than normal


class Curve(nn.Module):
    """``tanh(2 w x)``, or ``a tanh(2 b x)``: posteriors that are far from Gaussian."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        outer = self.w[0] if self.w.shape[0] > 1 else 1.0
        return outer * torch.tanh(2 * self.w[-1] * x)


@pytest.mark.parametrize("size", [1, 2])
def test_nonlinear_posterior_against_quadrature(size: int, linear: SimpleNamespace) -> None:
    network = ModuleNetwork(Curve(size), 1)
    X = torch.tensor([[0.2], [0.9], [1.0]], dtype=torch.float64)
    Y = torch.tensor([[-0.3], [0.9], [0.7]], dtype=torch.float64)
    variance = torch.full_like(Y, 0.15)
    axis = torch.linspace(-6, 6, 4001 if size == 1 else 301, dtype=torch.float64)
    z = torch.cartesian_prod(*[axis] * size).reshape(-1, size)
    log_joint = -0.5 * ((Y - network.forward(z, X)).square() / variance).sum((-1, -2)) - 0.5 * z.square().sum(-1)
    weight = log_joint.softmax(0)
    settings = HMCSettings(warmup=60, samples=60)
    chains = 300
    result = run(joint(network, X, Y, variance), linear.normals(chains, size), settings)
    healthy(result)
    X_test = torch.tensor([[0.0], [0.4], [0.6], [0.95]], dtype=torch.float64)
    # Function values and their squares: (a, b) and (-a, -b) are one function, and a chain does not cross.
    exact, ours = network.forward(z, X_test)[..., 0], network.forward(result.z.flatten(0, 1), X_test)[..., 0]
    mean = weight @ exact
    variance_exact = weight @ (exact - mean).square()
    fourth = weight @ (exact - mean).pow(4)
    # Autocorrelation measured on the chains: variance of the chain means.
    chain_means = ours.reshape(settings.samples, chains, -1).mean(0)
    error = chain_means.std(0) / chains**0.5
    assert bool(((ours.mean(0) - mean).abs() < 4.5 * error).all())
    ess = (variance_exact / error.square()).clamp_max(settings.samples * chains)
    spread_error = ((fourth - variance_exact.square()) / ess).sqrt()
    assert bool(((ours.var(0) - variance_exact).abs() < 4.5 * spread_error).all())


def test_same_seed_same_chains(linear: SimpleNamespace) -> None:
    p, start = linear.problem(), linear.normals(4, 3)
    settings, prior = HMCSettings(warmup=3, samples=3), (3.0, torch.ones(1).double())
    state = torch.get_rng_state()
    first, second = (run(joint(p.network, p.X, p.Y, p.variance), start, settings, prior, seed=1) for _ in range(2))
    assert torch.equal(first.z, second.z)
    assert first.noise is not None
    assert second.noise is not None
    assert torch.equal(first.noise, second.noise)
    assert torch.equal(state, torch.get_rng_state())


def test_lost_chains_are_counted_and_stay_finite(linear: SimpleNamespace) -> None:
    network = ModuleNetwork(nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 1)), 2)
    p = linear.problem(level=1e-9)
    settings = HMCSettings(warmup=2, samples=3, initial_step=1.5)
    result = run(joint(network, p.X, p.Y, p.variance), 3 * linear.normals(6, network.num_params), settings)
    assert bool(result.z.isfinite().all())
    assert result.divergences > 0


@pytest.mark.parametrize("prior", [name for name in PRIORS if name != "horseshoe"])  # that one is sampled with its scales
def test_logistic_regression_against_quadrature(prior: str, linear: SimpleNamespace) -> None:
    """Two weights: a likelihood whose curvature falls away from the mode, and priors that are not the reference's."""
    network = ModuleNetwork(nn.Linear(1, 1), 1)
    X = torch.linspace(0, 1, 12, dtype=torch.float64)[:, None]
    Y = (X > 0.4).double()
    Y[8] = 0.0
    target = joint(network, X, Y, torch.ones_like(Y), "bernoulli", prior)
    axis = torch.linspace(-15, 25, 801, dtype=torch.float64)
    z = torch.cartesian_prod(axis, axis)
    weight = target(z).softmax(0)
    mean = weight @ z
    covariance = (z - mean).T @ ((z - mean) * weight[:, None])
    start = mean + linear.normals(S, 2) @ torch.linalg.cholesky(covariance).T
    result = run(target, start, HMCSettings(warmup=40, samples=60))
    healthy(result)
    chains = result.z.mean(0)
    assert bool(((chains.mean(0) - mean).abs() < 4 * chains.std(0) / S**0.5).all())
    products = ((result.z - mean)[..., :, None] * (result.z - mean)[..., None, :]).mean(0)
    assert bool(((products.mean(0) - covariance).abs() < 4 * products.std(0) / S**0.5).all())


@pytest.mark.parametrize("likelihood", ["heteroscedastic", "categorical", "poisson"])
def test_other_likelihoods_agree_with_the_plain_sampler(likelihood: str, linear: SimpleNamespace) -> None:
    """Linear networks with as many outputs as the likelihood has latents; two samplers, one posterior."""
    latents = {"heteroscedastic": 2, "categorical": 3, "poisson": 1}[likelihood]
    network = ModuleNetwork(nn.Linear(1, latents), 1, latents)
    X = torch.linspace(0, 1, 10, dtype=torch.float64)[:, None]
    Y = (3 * X).floor().clamp_max(2.0)
    target = joint(network, X, Y, torch.full_like(Y, 0.3), likelihood)
    start = 0.5 * linear.normals(S, network.num_params)
    ours = run(target, start, HMCSettings(warmup=60, samples=40)).z
    plain = diagonal_hmc(target, start, generator(1), DiagonalHMCSettings(warmup=60, samples=40)).z
    for moment in (1, 2):
        a, b = ours.pow(moment).mean(0), plain.pow(moment).mean(0)
        error = ((a.var(0) + b.var(0)) / S).sqrt()
        assert bool(((a.mean(0) - b.mean(0)).abs() < 4.5 * error).all())
