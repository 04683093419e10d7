"""Mean-field variational inference where its optimum is known."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from seqbdl.errors import InvalidOptionError
from seqbdl.inference.log_joint import LogJoint
from seqbdl.inference.mfvi import ESTIMATORS, MFVISettings, elbo, mfvi
from seqbdl.likelihoods import get_likelihood
from seqbdl.networks import MLP, LinearHead
from seqbdl.posteriors.mean_field import MeanField, antithetic_normals
from seqbdl.priors import GaussianPrior, get_prior

GAUSSIAN = get_likelihood("gaussian")


def affine(X: Tensor) -> Tensor:
    return torch.cat([X, torch.ones_like(X[..., :1])], -1)


def regression(linear: SimpleNamespace, m: int = 1, n: int = 8) -> SimpleNamespace:
    """Bayesian linear regression on a linear head, and its exact posterior precision."""
    problem = linear.problem(n, m=m)
    network = LinearHead(affine, 2, 3, m)
    J = linear.jacobian(network, problem.X)
    mean, covariance, evidence = linear.conditioned(J, problem.Y, problem.variance)
    joint = LogJoint(network, GAUSSIAN, GaussianPrior(), problem.X, problem.Y, problem.variance)
    A = torch.linalg.inv(covariance)
    return SimpleNamespace(joint=joint, J=J, mean=mean, A=A, covariance=covariance, log_evidence=evidence)


def start_near(mean: Tensor, components: int = 1) -> MeanField:
    """Some 0.3 off, as wide as that."""
    off = torch.full((components, mean.shape[-1]), 0.3, dtype=torch.float64)
    return MeanField(mean + off, off)


def orthogonal(targets: list[float]) -> tuple[LogJoint, Tensor]:
    """Four rows of -1 and 1 in orthogonal columns: weights stay uncorrelated, so that the exact posterior is mean-field. And its
    Jacobian, ``4 x 3``."""
    X = torch.tensor([[1, 1, 1], [1, 0, 1], [1, 1, 0], [1, 0, 0]], dtype=torch.float64)
    Y = torch.tensor(targets, dtype=torch.float64)[:, None]
    network = LinearHead(lambda points: 2 * points - 1, 3, 3, 1)
    return LogJoint(network, GAUSSIAN, GaussianPrior(), X, Y, torch.full_like(Y, 0.1)), 2 * X - 1


EXACT = MFVISettings(steps=400, learning_rate=0.1, estimator="weights", num_samples=100)


@pytest.mark.parametrize("m", [1, 2])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_linear_regression(linear: SimpleNamespace, m: int, temperature: float) -> None:
    """The exact posterior mean, and the inverse of the diagonal of the exact precision as variance."""
    problem = regression(linear, m)
    rows = problem.joint.noise.flatten() * temperature
    precision = torch.eye(3 * m, dtype=torch.float64) + problem.J.T @ (problem.J / rows[:, None])
    mean = torch.linalg.solve(precision, problem.J.T @ (problem.joint.Y.flatten() / rows))
    sd = precision.diagonal().rsqrt()
    settings = replace(EXACT, temperature=temperature)
    q = mfvi(problem.joint, start_near(mean, 2), torch.Generator().manual_seed(0), settings)
    # Opposite draws make the gradient in the means exact here. In the log sd it has a relative error of about 1/sqrt(200), of
    # which the decaying steps leave less than half.
    assert ((q.mean - mean).abs() / sd).max() < 1e-3
    assert (q.sd / sd - 1).abs().max() < 0.04


def test_the_bound_of_linear_regression(linear: SimpleNamespace) -> None:
    """``log Z - ELBO(q*) = (sum log diag A - log det A) / 2`` for the best mean-field Gaussian, ``A`` the exact precision."""
    problem = regression(linear)
    A = problem.A
    q = MeanField(problem.mean[None], A.diagonal().rsqrt()[None])
    gap = 0.5 * (A.diagonal().log().sum() - torch.logdet(A))
    n = 4000
    value = elbo(problem.joint, q, n, torch.Generator().manual_seed(0))
    # The quadratic form z^T (A - I) z / 2 that is averaged has this variance; pairs of draws share it.
    G = (A - torch.eye(A.shape[0])) * q.sd[0] * q.sd[0][:, None]
    error = (0.5 * G.square().sum() / (n / 2)).sqrt()
    assert (value - (problem.log_evidence - gap)).abs() < 4.5 * error
    worse = MeanField(q.mean, 1.5 * q.sd)
    assert elbo(problem.joint, worse, n, torch.Generator().manual_seed(0)) < value - 4.5 * error


def test_posterior_as_prior() -> None:
    """Where the posterior is mean-field, data in two portions are worth the data at once."""
    (first, J), (second, _) = orthogonal([0.5, -0.4, 1.0, 0.3]), orthogonal([0.7, -0.2, 0.8, 0.1])
    generator = torch.Generator().manual_seed(0)
    start = start_near(J.T @ first.Y[:, 0] / 0.1 / (1 + 4 / 0.1))
    old = mfvi(first, start, generator, EXACT)
    new = mfvi(replace(second, prior=old.as_prior()), old, generator, EXACT)
    precision = 1 + 8 / 0.1
    mean = J.T @ (first.Y + second.Y)[:, 0] / 0.1 / precision
    assert ((new.mean[0] - mean).abs() * precision**0.5).max() < 0.02  # the first portion's 4 % of the sd, shrunk by half
    assert (new.sd[0] * precision**0.5 - 1).abs().max() < 0.04


def test_without_data_the_prior_comes_back() -> None:
    joint, _ = orthogonal([0.0] * 4)
    prior = MeanField(torch.tensor([[1.0, -2.0, 0.5]]).double(), torch.tensor([[0.2, 3.0, 1.0]]).double())
    joint = replace(joint, prior=prior.as_prior(), X=joint.X[:0], Y=joint.Y[:0], noise=joint.noise[:0])
    q = mfvi(joint, MeanField(prior.mean + prior.sd, 0.3 * prior.sd), torch.Generator().manual_seed(0), EXACT)
    torch.testing.assert_close(q.mean, prior.mean, rtol=0, atol=1e-3)
    torch.testing.assert_close(q.sd, prior.sd, rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", ["laplace", "student-t", "horseshoe"])
def test_other_priors_against_quadrature(name: str) -> None:
    """One weight, one row: the bound by quadrature, its maximum by Nelder-Mead."""
    network = LinearHead(lambda points: points, 1, 1, 1)
    X, Y = torch.ones(1, 1, dtype=torch.float64), torch.full((1, 1), 2.0, dtype=torch.float64)
    joint = LogJoint(network, GAUSSIAN, get_prior(name), X, Y, torch.full((1, 1), 0.2, dtype=torch.float64))
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(200))

    def negative_bound(theta: np.ndarray) -> float:
        m, s = theta[0], np.exp(theta[1])
        z = (m + s * nodes)[:, None]
        inside = joint(z)
        return -float((weights * inside).sum() / weights.sum() + np.log(s))

    best = minimize(negative_bound, [1.5, -1.0], method="Nelder-Mead", options={"xatol": 1e-5, "fatol": 1e-8}).x
    q = mfvi(joint, MeanField(Y.clone(), Y / 4), torch.Generator().manual_seed(0), EXACT)
    sd = float(np.exp(best[1]))
    assert abs(float(q.mean) - best[0]) < 0.05 * sd
    assert abs(float(q.sd) / sd - 1) < 0.05


def test_estimators_agree() -> None:
    """All three climb the same bound: from the same start they end within the noise of their estimates of it."""
    generator = torch.Generator().manual_seed(0)
    ones = torch.ones(3, dtype=torch.float64)
    network = MLP((6,), ones[:2], ones[:1], ones[:2])
    X = torch.rand(12, 2, generator=generator, dtype=torch.float64)
    Y = torch.sin(4 * X[:, :1])
    joint = LogJoint(network, GAUSSIAN, GaussianPrior(), X, Y, torch.full_like(Y, 0.05))
    start = MeanField(
        torch.randn(4, network.num_params, generator=generator, dtype=torch.float64), 0.3 * torch.ones(4, 25).double()
    )
    bounds = []
    for estimator in ESTIMATORS:
        q = mfvi(joint, start, torch.Generator().manual_seed(1), MFVISettings(400, 0.05, estimator=estimator, num_samples=2))
        bounds.append(elbo(joint, q, 500, torch.Generator().manual_seed(2)))
    before = elbo(joint, start, 500, torch.Generator().manual_seed(2))
    for bound in bounds:
        assert (bound > before + 10).all()
        assert (bound - bounds[0]).abs().max() < 0.1 * (bound - before).min()
    batched = mfvi(joint, start, torch.Generator().manual_seed(1), MFVISettings(400, 0.05, batch_size=6))
    assert (elbo(joint, batched, 500, torch.Generator().manual_seed(2)) > before + 10).all()


def test_draws_have_the_joint_covariance_of_the_posterior(linear: SimpleNamespace) -> None:
    """Three inputs, two outputs: weights are drawn once per function, so that distant inputs are correlated as they should."""
    problem = regression(linear, m=2)
    network, q = problem.joint.network, MeanField(problem.mean[None], problem.A.diagonal().rsqrt()[None])
    X = torch.tensor([[0.0, 1.0], [1.0, 0.9], [0.5, 0.1]], dtype=torch.float64)
    J = linear.jacobian(network, X)
    white = antithetic_normals(20_000, *q.mean.shape, torch.Generator().manual_seed(0), q.mean)[::2]
    values = network.forward(q.draws(white), X).flatten(1)
    linear.assert_samples(values, J @ q.mean[0], (J * q.sd[0].square()) @ J.T)


def test_bad_settings_are_refused(linear: SimpleNamespace) -> None:
    for bad in ({"steps": 0}, {"learning_rate": 0.0}, {"temperature": 0.0}, {"num_samples": 0}, {"estimator": "exact"}):
        with pytest.raises(InvalidOptionError):
            MFVISettings(**bad)
    with pytest.raises(InvalidOptionError, match="weights"):
        mfvi(regression(linear).joint, start_near(torch.zeros(3)), torch.Generator(), MFVISettings())
    assert MFVISettings().temperature == 1.0  # never silently another
