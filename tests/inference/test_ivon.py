"""Variational online Newton where its fixed point is known."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from seqbdl.errors import InvalidOptionError
from seqbdl.inference.ivon import IVONSettings, ivon
from seqbdl.inference.log_joint import LogJoint
from seqbdl.likelihoods import get_likelihood
from seqbdl.networks import LinearHead
from seqbdl.posteriors.mean_field import MeanField
from seqbdl.priors import GaussianPrior, get_prior

GAUSSIAN = get_likelihood("gaussian")


def affine(X: Tensor) -> Tensor:
    return torch.cat([X, torch.ones_like(X[..., :1])], -1)


def regression(linear: SimpleNamespace, m: int = 1, n: int = 8) -> SimpleNamespace:
    """Bayesian linear regression on a linear head."""
    problem = linear.problem(n, m=m)
    network = LinearHead(affine, 2, 3, m)
    joint = LogJoint(network, GAUSSIAN, GaussianPrior(), problem.X, problem.Y, problem.variance)
    return SimpleNamespace(joint=joint, J=linear.jacobian(network, problem.X), X=problem.X)


def exact(J: Tensor, joint: LogJoint, prior: MeanField, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """The mean of the posterior, and the diagonal of its precision."""
    rows = joint.noise.flatten() * temperature
    weight = prior.sd[0].pow(-2)
    precision = weight.diag() + J.T @ (J / rows[:, None])
    return torch.linalg.solve(precision, weight * prior.mean[0] + J.T @ (joint.Y.flatten() / rows)), precision.diagonal()


def standard(num_params: int, components: int = 1) -> MeanField:
    zeros = torch.zeros(components, num_params, dtype=torch.float64)
    return MeanField(zeros, torch.ones_like(zeros))


SETTINGS = IVONSettings(steps=500, learning_rate=0.3, num_samples=32)


@pytest.mark.parametrize("m", [1, 2])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_linear_regression(linear: SimpleNamespace, m: int, temperature: float) -> None:
    """Sums over the data, a standard normal prior: the scales of the effective sample size and of the decay are right."""
    problem = regression(linear, m)
    mean, precision = exact(problem.J, problem.joint, standard(3 * m), temperature)
    start = MeanField(torch.zeros(2, 3 * m).double(), torch.full((2, 3 * m), 0.5).double())
    q = ivon(problem.joint, start, torch.Generator().manual_seed(0), replace(SETTINGS, temperature=temperature))
    # Opposite draws make the gradient in the means exact here. A Hessian estimate from 32 pairs has a relative error of about
    # 1/sqrt(32) where weights are correlated; its running mean over 50 steps one of 1/40 in the precision, half that in the sd.
    assert ((q.mean - mean).abs() * precision.sqrt()).max() < 1e-3
    assert (q.sd * precision.sqrt() - 1).abs().max() < 0.04


def test_the_memory_of_the_precision(linear: SimpleNamespace) -> None:
    """``h`` goes the share ``1 - beta2^steps`` of its way: with the published 0.99999, for runs of a million steps, next to
    nothing of it."""
    problem = regression(linear)
    start = MeanField(torch.zeros(1, 3).double(), torch.full((1, 3), 0.9).double())
    q = ivon(problem.joint, start, torch.Generator().manual_seed(0), replace(SETTINGS, beta2=0.99999, learning_rate=0.01))
    begin, end = start.sd.pow(-2), exact(problem.J, problem.joint, standard(3))[1]
    expected = begin + (1 - 0.99999**500) * (end - begin)
    # The mean of 500 * 64 estimates, each of relative error of order 1.
    torch.testing.assert_close(q.sd.pow(-2), expected, rtol=0.03, atol=0)
    assert (q.sd * end.sqrt()).min() > 3.0  # far too wide


def test_posterior_as_prior(linear: SimpleNamespace) -> None:
    """An earlier posterior, mean and precision, is the prior of new rows."""
    problem = regression(linear)
    old = MeanField(torch.tensor([[0.4, -1.0, 0.2]]).double(), torch.tensor([[0.3, 1.5, 0.05]]).double())
    joint = replace(problem.joint, prior=old.as_prior())
    mean, precision = exact(problem.J, joint, old)
    q = ivon(joint, MeanField(old.mean, 0.7 * old.sd), torch.Generator().manual_seed(0), SETTINGS)
    assert ((q.mean - mean).abs() * precision.sqrt()).max() < 1e-3
    assert (q.sd * precision.sqrt() - 1).abs().max() < 0.04


def test_mini_batches(linear: SimpleNamespace) -> None:
    """Gradients of a batch stand for all rows: the precision is that of all."""
    problem = regression(linear, n=32)
    mean, precision = exact(problem.J, problem.joint, standard(3))
    settings = replace(SETTINGS, batch_size=8, learning_rate=0.1)
    start = MeanField(mean[None], torch.full((1, 3), 0.2).double())
    q = ivon(problem.joint, start, torch.Generator().manual_seed(0), settings)
    # A quarter of the rows: gradients at the mean with the spread of about the posterior's sd times sqrt(4), averaged over a
    # tenth of the steps.
    assert ((q.mean - mean).abs() * precision.sqrt()).max() < 0.5
    assert (q.sd * precision.sqrt() - 1).abs().max() < 0.1


def test_wild_estimates_keep_the_precision_positive(linear: SimpleNamespace) -> None:
    problem = regression(linear)
    settings = IVONSettings(steps=200, learning_rate=0.01, beta2=0.5)
    start = MeanField(torch.zeros(64, 3).double(), torch.full((64, 3), 0.999).double())
    q = ivon(problem.joint, start, torch.Generator().manual_seed(0), settings)
    assert bool(q.sd.isfinite().all())
    assert bool((q.sd > 0).all())


def test_steps_can_be_clipped(linear: SimpleNamespace) -> None:
    problem = regression(linear)
    start = MeanField(torch.full((1, 3), 100.0).double(), torch.full((1, 3), 0.5).double())
    settings = IVONSettings(steps=10, learning_rate=0.1, clip=0.5)
    q = ivon(problem.joint, start, torch.Generator().manual_seed(0), settings)
    assert (q.mean - start.mean).abs().max() <= 10 * 0.1 * 0.5 + 1e-12


def test_what_it_cannot_do_is_refused(linear: SimpleNamespace) -> None:
    joint = replace(regression(linear).joint, prior=get_prior("laplace"))
    with pytest.raises(InvalidOptionError, match="Gaussian prior"):
        ivon(joint, standard(3), torch.Generator())
    for bad in ({"steps": 0}, {"learning_rate": -1.0}, {"temperature": 0.0}, {"beta1": 1.0}, {"beta2": 1.0}, {"num_samples": 0}):
        with pytest.raises(InvalidOptionError):
            IVONSettings(**bad)
