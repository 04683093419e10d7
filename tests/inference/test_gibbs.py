"""Conditionals of hyperparameters against their densities, and the horseshoe against its marginal."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import torch
from scipy import stats
from torch import Tensor, nn

from seqbdl.inference.diagonal_hmc import DiagonalHMCSettings, diagonal_hmc
from seqbdl.inference.gibbs import Gibbs, Hyper, LayerPrior
from seqbdl.inference.log_joint import LogJoint
from seqbdl.inference.metrics import DiagonalMetric, diagonal_metric
from seqbdl.likelihoods import get_likelihood
from seqbdl.networks import ModuleNetwork
from seqbdl.priors import get_prior

S = 4000


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def joint(p: SimpleNamespace, prior: str = "gaussian", weights: Tensor | None = None) -> LogJoint:
    return LogJoint(p.network, get_likelihood("gaussian"), get_prior(prior), p.X, p.Y, p.variance, weights)


def test_noise_given_weights_is_inverse_gamma(linear: SimpleNamespace) -> None:
    p = linear.problem(m=2)
    weights = torch.linspace(0.5, 2.0, 8, dtype=torch.float64)
    z = linear.normals(1, p.network.num_params).expand(S, -1)
    gibbs = Gibbs(joint(p, weights=weights), noise=(3.0, torch.tensor([2.0, 4.0]).double()))
    draws = gibbs.draw(z, gibbs.begin(z, source()), source()).noise
    residual = (p.Y - p.network.forward(z[:1], p.X)[0]).square() / p.variance
    for i, scale in enumerate((2.0, 4.0)):
        expected = stats.invgamma(3.0 + 0.5 * float(weights.sum()), scale=scale + 0.5 * float((weights * residual[:, i]).sum()))
        assert stats.kstest(draws[:, i].numpy(), expected.cdf).pvalue > 1e-3


def test_precisions_given_weights_are_gamma(linear: SimpleNamespace) -> None:
    network = ModuleNetwork(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)), 2)
    p = linear.problem()
    gibbs = Gibbs(replace(joint(p), network=network), precision=(2.0, 3.0))
    z = linear.normals(1, network.num_params).expand(S, -1)
    hyper = gibbs.draw(z, gibbs.begin(z, source()), source())
    sizes = [6, 3, 3, 1]
    for g, part in enumerate(z[0].split(sizes)):
        expected = stats.gamma(2.0 + 0.5 * sizes[g], scale=1 / (3.0 + 0.5 * float(part.square().sum())))
        assert stats.kstest(hyper.precision[:, g].numpy(), expected.cdf).pvalue > 1e-3
    prior = gibbs.target(hyper).prior
    assert isinstance(prior, LayerPrior)
    torch.testing.assert_close(prior.precision, hyper.precision.repeat_interleave(torch.tensor(sizes), 1))
    normal = torch.distributions.Normal(0.0, prior.precision.rsqrt())
    torch.testing.assert_close(prior.log_prob(z), normal.log_prob(z).sum(-1))
    leaf = z.clone().requires_grad_(True)
    torch.testing.assert_close(prior.score(z), torch.autograd.grad(prior.log_prob(leaf).sum(), leaf)[0])


def test_precisions_and_weights_together(linear: SimpleNamespace) -> None:
    """A linear network whose weights integrate out: one quadrature over the precision of each of two groups."""
    p = linear.problem(level=0.3)
    gibbs = Gibbs(joint(p), precision=(2.0, 2.0))
    settings = DiagonalHMCSettings(warmup=40, samples=40)
    result = diagonal_hmc(gibbs.joint, linear.normals(250, 3), source(), settings, gibbs)
    assert result.precision is not None
    grid = torch.linspace(-6.0, 4.0, 201, dtype=torch.float64)
    weight, bias = torch.meshgrid(grid, grid, indexing="ij")
    scales = torch.stack([weight, weight, bias], -1).exp().rsqrt()  # two weights and a bias
    J = p.J * scales[..., None, :]
    marginal = J @ J.transpose(-1, -2) + torch.diag(p.variance.flatten())
    likelihood = torch.distributions.MultivariateNormal(torch.zeros(8).double(), marginal).log_prob(p.Y.flatten())
    log_prior = 2.0 * (weight + bias) - 2.0 * (weight.exp() + bias.exp())  # densities of the logarithms
    mass = (likelihood + log_prior).flatten().softmax(0)
    for g, values in enumerate((weight.flatten(), bias.flatten())):
        mean = float(mass @ values)
        deviation = float((mass @ (values - mean).square()).sqrt())
        chain_means = result.precision[..., g].log().mean(0)
        error = float(chain_means.std()) / 250**0.5
        assert error < 0.1 * deviation
        assert abs(float(chain_means.mean()) - mean) < 4 * error


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.w * x


def test_the_horseshoe_by_its_scales_is_the_horseshoe(linear: SimpleNamespace) -> None:
    network = ModuleNetwork(Line(), 1)
    X, Y = torch.tensor([[1.0], [0.9]]).double(), torch.tensor([[1.1], [0.4]]).double()
    target = LogJoint(network, get_likelihood("gaussian"), get_prior("horseshoe"), X, Y, torch.full_like(Y, 0.5))
    chains = 400
    base = diagonal_metric(target, linear.normals(chains, 1), source())
    settings = DiagonalHMCSettings(warmup=60, samples=60, adapt_mass=False)
    result = diagonal_hmc(target, linear.normals(chains, 1), source(), settings, Gibbs(target), base)
    assert result.divergences == 0
    logs = torch.linspace(-25, 4, 6000, dtype=torch.float64)  # of |z|: the density has a logarithmic pole at 0
    middle = torch.cat([-logs.exp(), logs.exp()])
    squares = (Y - middle * (2 * X - 1)).square().sum(0)  # over twice the noise variance, which is one
    mass = (get_prior("horseshoe").log_prob(middle[:, None]) - squares + torch.cat([logs, logs])).softmax(0)
    for name, function in (("mean", lambda z: z), ("small", lambda z: (z.abs() < 0.1).double()), ("square", torch.square)):
        exact = float(mass @ function(middle))
        per_chain = function(result.z[..., 0]).mean(0)
        error = float(per_chain.std()) / chains**0.5
        assert abs(float(per_chain.mean()) - exact) < 4 * error, name


def test_masses_follow_the_precisions(linear: SimpleNamespace) -> None:
    p = linear.problem()
    gibbs = Gibbs(joint(p, "horseshoe"))
    base = DiagonalMetric(torch.tensor([3.0, 2.0, 5.0]).double(), additive=True)
    hyper = Hyper(torch.ones(2, 1), torch.ones(2, 2), torch.tensor([[1.0, 4.0, 0.5], [2.0, 2.0, 2.0]]).double())
    metric = gibbs.metric(base, hyper)
    assert isinstance(metric, DiagonalMetric)
    torch.testing.assert_close(metric.mass, torch.tensor([[3.0, 5.0, 4.5], [4.0, 3.0, 6.0]]).double())
    learned = DiagonalMetric(base.mass)
    assert gibbs.metric(learned, hyper) is learned  # not a sum with the prior
    assert Gibbs(joint(p), noise=(3.0, torch.ones(1))).metric(base, hyper) is base
    assert math.isclose(metric.typical, float((metric.mass / hyper.local).median()))  # type: ignore[operator]
