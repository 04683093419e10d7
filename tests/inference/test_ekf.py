"""What is particular to the three covariances of the extended Kalman filter."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from seqbdl.errors import InvalidOptionError
from seqbdl.inference import ekf
from seqbdl.inference.recursion import Linearize, absorb
from seqbdl.likelihoods import get_likelihood
from seqbdl.networks import DenseRows

GAUSSIAN = get_likelihood("gaussian")


def fixed(J: Tensor) -> Linearize:
    """A linear model: ``J: n x P``."""
    return lambda w: ((J @ w).unsqueeze(-1), DenseRows(J))


def test_five_hundred_rows_one_by_one_equal_the_batch(linear: SimpleNamespace) -> None:
    J, noise = linear.normals(500, 12), torch.full((500, 1), 0.2).double()
    Y = J @ linear.normals(12, 1, seed=1) + noise.sqrt() * linear.normals(500, 1, seed=2)
    belief = ekf.prior_belief(torch.zeros(12).double(), 1.0)
    for i in range(500):
        rows = slice(i, i + 1)
        belief, _ = absorb(belief, fixed(J[rows]), GAUSSIAN, Y[rows], noise[rows])
    mean, covariance, _ = linear.conditioned(J, Y, noise)
    torch.testing.assert_close(belief.mean, mean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(belief.covariance, covariance, rtol=1e-8, atol=1e-12)
    assert torch.equal(belief.covariance, belief.covariance.T)


def test_the_decoupled_filter_keeps_marginal_variances_of_a_block(linear: SimpleNamespace) -> None:
    """From independent weights, the diagonal of the exact posterior covariance, and the exact mean."""
    J, Y, noise = linear.normals(5, 8), linear.normals(5, 1, seed=1), torch.full((5, 1), 0.3).double()
    mean, covariance, evidence = linear.conditioned(J, Y, noise)
    prior = ekf.prior_belief(torch.zeros(8).double(), 1.0, "diagonal-decoupled")
    belief, log_density = absorb(prior, fixed(J), GAUSSIAN, Y, noise)
    torch.testing.assert_close(belief.mean, mean)
    torch.testing.assert_close(belief.variance, covariance.diagonal())
    torch.testing.assert_close(log_density, evidence)


@pytest.mark.parametrize("block", [1, 2, 5])
def test_the_variational_filter_keeps_the_diagonal_of_the_precision(block: int, linear: SimpleNamespace) -> None:
    """However the rows are split: the factorized Gaussian nearest to the posterior of a linear model."""
    J, Y, noise = linear.normals(5, 8), linear.normals(5, 1, seed=1), torch.full((5, 1), 0.3).double()
    _, covariance, _ = linear.conditioned(J, Y, noise)
    belief = ekf.prior_belief(torch.zeros(8).double(), 1.0, "diagonal-variational")
    for rows in torch.arange(5).split(block):
        belief, _ = absorb(belief, fixed(J[rows]), GAUSSIAN, Y[rows], noise[rows])
    torch.testing.assert_close(belief.variance, 1 / torch.linalg.inv(covariance).diagonal())


@pytest.mark.parametrize("covariance", ekf.COVARIANCES)
def test_weights_have_the_moments_of_the_belief(covariance: str, linear: SimpleNamespace) -> None:
    """The sample covariance is that of the belief: factors are not applied transposed."""
    J, Y, noise = linear.normals(3, 6), linear.normals(3, 1, seed=1), torch.full((3, 1), 0.05).double()
    belief, _ = absorb(ekf.prior_belief(linear.normals(6), 2.0, covariance), fixed(J), GAUSSIAN, Y, noise)
    samples = belief.weights.sample(20_000, torch.Generator().manual_seed(0))
    linear.assert_samples(samples, belief.mean, belief.seen(DenseRows(torch.eye(6).double()))[0])


@pytest.mark.parametrize("covariance", ekf.COVARIANCES)
def test_trees_keep_beliefs(covariance: str, linear: SimpleNamespace) -> None:
    belief = ekf.prior_belief(linear.normals(6), 2.0, covariance)
    belief.weights.sample(1, torch.Generator().manual_seed(0))  # caches stay out of the tree
    restored = ekf.belief_from_tree(ekf.belief_tree(belief))
    assert type(restored) is type(belief)
    eye = DenseRows(torch.eye(6).double())
    assert torch.equal(restored.seen(eye)[0], belief.seen(eye)[0])
    assert torch.equal(restored.learned(eye, belief.mean).seen(eye)[0], belief.learned(eye, belief.mean).seen(eye)[0])


def test_bad_priors_are_refused() -> None:
    with pytest.raises(InvalidOptionError, match="diagonal-decoupled"):
        ekf.prior_belief(torch.zeros(2), 1.0, "diagonal")
    with pytest.raises(InvalidOptionError, match="positive"):
        ekf.prior_belief(torch.zeros(2), 0.0)
