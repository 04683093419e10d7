"""Function-space variational inference: moments, divergences, the ascent, and posteriors known in closed form."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from seqbdl.errors import InvalidOptionError
from seqbdl.inference.fsvi import FSVISettings, FunctionPrior, fsvi, fsvi_bound, function_moments, function_variances
from seqbdl.inference.infinite_width import default_scales, kernel
from seqbdl.inference.log_joint import LogJoint
from seqbdl.likelihoods import get_likelihood
from seqbdl.networks import MLP, LinearHead, Network
from seqbdl.posteriors.mean_field import MeanField
from seqbdl.priors import GaussianPrior

GAUSSIAN = get_likelihood("gaussian")
TINY = torch.tensor(1e-8, dtype=torch.float64)


def affine(X: Tensor) -> Tensor:
    return torch.cat([X, torch.ones_like(X[..., :1])], -1)


def regression(linear: SimpleNamespace, m: int, n: int = 8) -> SimpleNamespace:
    """Bayesian linear regression on a linear head, whose function prior at all rows is that of its weights."""
    problem = linear.problem(n, m=m)
    network = LinearHead(affine, 2, 3, m)
    joint = LogJoint(network, GAUSSIAN, GaussianPrior(), problem.X, problem.Y, problem.variance)
    J = linear.jacobian(network, problem.X)
    mean, covariance, evidence = linear.conditioned(J, problem.Y, problem.variance)
    phi = affine(problem.X)
    prior = FunctionPrior.of(problem.X, torch.zeros(1, n, m).double(), (phi @ phi.T)[None, None], TINY)
    return SimpleNamespace(joint=joint, J=J, mean=mean, covariance=covariance, log_evidence=evidence, prior=prior)


def small_network(seed: int = 0) -> tuple[Network, MeanField, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ones = torch.ones(3, dtype=torch.float64)
    network = MLP((8,), ones[:2] * 4, ones[:1], ones[:2], 2)
    mean = torch.randn(2, network.num_params, generator=generator, dtype=torch.float64)
    sd = 0.1 + torch.rand(2, network.num_params, generator=generator, dtype=torch.float64)
    return network, MeanField(mean, sd), torch.rand(3, 2, generator=generator, dtype=torch.float64)


def test_function_moments_are_those_of_weight_draws(linear: SimpleNamespace) -> None:
    """Three points, two outputs. Only the last layer varies, in which the network is linear: moments are exact, and a
    covariance that were added twice would show."""
    network, q, X = small_network()
    last = torch.zeros(network.num_params, dtype=torch.float64)
    last[-(8 + 1) * 2 :] = 1.0
    q = MeanField(q.mean, q.sd * last)
    mean, covariance = function_moments(network, q, X)
    n = 20_000
    white = torch.randn(2 * n, network.num_params, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    values = network.forward(q.draws(white), X).unflatten(0, (n, 2))  # draws x components x points x outputs
    for k in range(2):
        for output in range(2):
            linear.assert_samples(values[:, k, :, output], mean[k, :, output], covariance[k, output])
    marginal_mean, marginal_variance = function_variances(network, q, X)
    torch.testing.assert_close(marginal_mean, mean)
    torch.testing.assert_close(marginal_variance, covariance.diagonal(dim1=-2, dim2=-1).transpose(-1, -2))


def test_linearized_draws_have_the_joint_covariance(linear: SimpleNamespace) -> None:
    """All weights vary, three points and two outputs, cross-covariances between outputs included."""
    network, q, X = small_network()
    one = MeanField(q.mean[:1], q.sd[:1])
    n = 20_000
    white = torch.randn(n, network.num_params, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    tangents = network.tangents(one.mean, X)
    values = tangents.values + network.jvp(tangents, one.offsets(white))
    J = network.jacobian(tangents)[0].flatten(0, 1)
    linear.assert_samples(values.flatten(1), tangents.values.flatten(), (J * one.sd[0].square()) @ J.T)


def test_the_divergence_is_summed_over_outputs() -> None:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(2, 2, 2, 4, 4, generator=generator, dtype=torch.float64)
    covariance, other = root @ root.transpose(-1, -2)
    mean = torch.randn(2, 2, 4, 2, generator=generator, dtype=torch.float64)
    nugget = torch.tensor(0.1, dtype=torch.float64)
    prior = FunctionPrior.of(torch.zeros(4, 1).double(), mean[0], covariance, nugget)
    eye = 0.1 * torch.eye(4, dtype=torch.float64)
    q, p = (MultivariateNormal(mu.transpose(-1, -2), matrix + eye) for mu, matrix in ((mean[1], other), (mean[0], covariance)))
    torch.testing.assert_close(prior.kl(mean[1], other), kl_divergence(q, p).sum(-1))
    pull = torch.linalg.solve(covariance + eye, (mean[1] - mean[0]).transpose(-1, -2)[..., None])[..., 0]
    torch.testing.assert_close(prior.pull(mean[1]), pull.transpose(-1, -2))


@pytest.mark.parametrize("m", [1, 2])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_linear_regression(linear: SimpleNamespace, m: int, temperature: float) -> None:
    """The function prior at the rows determines that of the weights, so the optimum is the weight-space one: the exact mean, and
    the inverse diagonal of the exact precision. Nothing is sampled."""
    problem = regression(linear, m)
    rows = problem.joint.noise.flatten() * temperature
    precision = torch.eye(3 * m, dtype=torch.float64) + problem.J.T @ (problem.J / rows[:, None])
    mean = torch.linalg.solve(precision, problem.J.T @ (problem.joint.Y.flatten() / rows))
    start = MeanField(mean[None] + 0.2, torch.full((1, 3 * m), 0.5).double())
    settings = FSVISettings(rounds=1, steps=600, learning_rate=0.05, variance_steps=300, temperature=temperature)
    q = fsvi(problem.joint, problem.prior, start, torch.Generator(), settings)
    # What is left: the nugget (1e-8 of a prior of order 1), and the tails of two descents.
    torch.testing.assert_close(q.mean[0], mean, rtol=0, atol=1e-3)
    torch.testing.assert_close(q.sd[0], precision.diagonal().rsqrt(), rtol=1e-3, atol=0)
    if temperature == 1.0:
        gap = 0.5 * (precision.diagonal().log().sum() - torch.logdet(precision))
        torch.testing.assert_close(fsvi_bound(problem.joint, problem.prior, q)[0], problem.log_evidence - gap, rtol=0, atol=1e-3)


def test_posterior_as_prior(linear: SimpleNamespace) -> None:
    """The function moments of the old posterior at stored points carry all that it knew of the weights."""
    problem = regression(linear, 1)
    old = MeanField(torch.tensor([[0.4, -1.0, 0.2]]).double(), torch.tensor([[0.3, 0.9, 0.05]]).double())
    network, points = problem.joint.network, problem.joint.X
    carried = FunctionPrior.of(points, *function_moments(network, old, points), TINY)
    weight = old.sd[0].pow(-2)
    rows = problem.joint.noise.flatten()
    precision = weight.diag() + problem.J.T @ (problem.J / rows[:, None])
    mean = torch.linalg.solve(precision, weight * old.mean[0] + problem.J.T @ (problem.joint.Y.flatten() / rows))
    settings = FSVISettings(rounds=1, steps=600, learning_rate=0.05, variance_steps=300)
    q = fsvi(problem.joint, carried, old, torch.Generator(), settings)
    torch.testing.assert_close(q.mean[0], mean, rtol=0, atol=2e-3)
    torch.testing.assert_close(q.sd[0], precision.diagonal().rsqrt(), rtol=2e-3, atol=0)


def nonlinear(likelihood: str = "gaussian") -> tuple[LogJoint, FunctionPrior, MeanField]:
    network, q, _ = small_network()
    generator = torch.Generator().manual_seed(1)
    X = torch.rand(10, 2, generator=generator, dtype=torch.float64)
    kind = get_likelihood(likelihood)
    Y = torch.cat([torch.sin(4 * X[:, :1]), X[:, 1:]], 1) if kind.has_noise else (X > 0.5).double()[:, : kind.num_targets(2)]
    joint = LogJoint(network, kind, GaussianPrior(), X, Y, torch.full((10, 2), 0.1, dtype=torch.float64))
    points = torch.cat([X, torch.rand(6, 2, generator=generator, dtype=torch.float64)])
    K = kernel(default_scales(2, 1, 1), points, points)
    prior = FunctionPrior.of(points, torch.zeros(1, 16, 2).double(), K.unsqueeze(0), 1e-4 * K.diagonal(dim1=-2, dim2=-1).mean())
    return joint, prior, q


def test_variance_steps_only_climb() -> None:
    """Each maximizes a lower bound that touches the objective."""
    joint, prior, q = nonlinear()
    q = MeanField(q.mean, q.sd.clamp_max(1.0))
    still = FSVISettings(rounds=1, steps=1, learning_rate=1e-12, variance_steps=1)
    bound = fsvi_bound(joint, prior, q)
    for _ in range(12):
        q = fsvi(joint, prior, q, torch.Generator(), still)
        new = fsvi_bound(joint, prior, q)
        assert (new > bound - 1e-6 * bound.abs()).all()
        bound = new


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli", "poisson", "categorical"])
def test_it_climbs(likelihood: str) -> None:
    joint, prior, q = nonlinear(likelihood)
    after = fsvi(joint, prior, q, torch.Generator())
    assert (fsvi_bound(joint, prior, after) > fsvi_bound(joint, prior, q) + 1.0).all()
    batched = fsvi(joint, prior, q, torch.Generator().manual_seed(0), FSVISettings(batch_size=5))
    assert (fsvi_bound(joint, prior, batched) > fsvi_bound(joint, prior, q) + 1.0).all()


def test_the_bound_is_one() -> None:
    """Below the evidence of the Gaussian process that is the prior, nugget included; more context points never raise it."""
    joint, prior, q = nonlinear()
    q = fsvi(joint, prior, q, torch.Generator(), FSVISettings(steps=300, learning_rate=0.05))
    K = (prior.factor @ prior.factor.transpose(-1, -2))[0, 0, :10, :10]  # nugget included; the first ten points are the rows
    evidence = sum(
        MultivariateNormal(torch.zeros(10).double(), K + joint.noise[:, c].diag()).log_prob(joint.Y[:, c]) for c in range(2)
    )
    bound = fsvi_bound(joint, prior, q)
    assert (bound < evidence).all()
    factor = torch.linalg.cholesky(K)[None, None]
    fewer = replace(prior, points=prior.points[:10], mean=prior.mean[:, :10], factor=factor)
    assert (fsvi_bound(joint, fewer, q) >= bound - 1e-8).all()
    assert (fsvi_bound(joint, fewer, q) < evidence).all()


def test_no_weight_gets_wider_than_its_prior() -> None:
    joint, prior, q = nonlinear()
    wide = MeanField(q.mean, 5 * q.sd)
    assert fsvi(joint, prior, wide, torch.Generator()).sd.max() <= 1.0


def test_bad_settings_are_refused() -> None:
    for bad in ({"rounds": 0}, {"steps": 0}, {"variance_steps": 0}, {"learning_rate": 0.0}, {"temperature": 0.0}):
        with pytest.raises(InvalidOptionError):
            FSVISettings(**bad)
