"""Repulsive ensembles: Bayesian linear regression recovered, in function space and in weights, and what collapses."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from seqbdl.inference.adam import AdamSettings
from seqbdl.inference.function_prior import Moments
from seqbdl.inference.function_space import FunctionPosterior
from seqbdl.inference.log_joint import LogJoint
from seqbdl.inference.repulsive import repulsive_direction, repulsive_functions, repulsive_weights
from seqbdl.likelihoods import get_likelihood
from seqbdl.networks import Network
from seqbdl.priors import GaussianPrior

GAUSSIAN = get_likelihood("gaussian")
MOVES = AdamSettings(steps=400, learning_rate=0.2)
X_TEST = torch.tensor([[0.1, 0.9], [0.5, 0.5], [0.9, 0.0]], dtype=torch.float64)


class LinearPrior:
    """The function prior of a linear network."""

    def __init__(self, linear: SimpleNamespace, network: Network) -> None:
        self._linear, self._network = linear, network

    def at(self, X: Tensor, f: Tensor) -> tuple[Tensor, Moments]:
        m = self._network.num_outputs
        J = self._linear.jacobian(self._network, X).unflatten(0, (-1, m)).transpose(0, 1)  # m x B x P
        moments = Moments.of(J @ J.transpose(-1, -2), 1e-6)
        return -(f.unsqueeze(-2) @ moments.precision).squeeze(-2), moments


def posterior(linear: SimpleNamespace, m: int = 1) -> tuple[SimpleNamespace, FunctionPosterior]:
    problem = linear.problem(8, m=m)
    prior = LinearPrior(linear, problem.network)
    ones = torch.ones(8, dtype=torch.float64)
    return problem, FunctionPosterior(problem.network, GAUSSIAN, prior, problem.X, problem.Y, problem.variance, ones)


def start(n: int, P: int) -> Tensor:
    return torch.randn(n, P, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def moments(linear: SimpleNamespace, problem: SimpleNamespace, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of functions at three inputs (and all outputs): errors of the mean in standard deviations, covariances relative to them,
    of the particles and exact."""
    J = linear.jacobian(problem.network, X_TEST)
    covariance = J @ problem.covariance @ J.T
    deviation = covariance.diagonal().sqrt()
    f = problem.network.forward(z, X_TEST).flatten(1)
    scale = deviation[:, None] * deviation
    return (f.mean(0) - J @ problem.mean) / deviation, f.T.cov() / scale, covariance / scale


@pytest.mark.parametrize(("estimator", "tolerance"), [("kde", 0.05), ("sge", 0.05), ("ssge", 0.2)])
def test_linear_regression_in_function_space(linear: SimpleNamespace, estimator: str, tolerance: float) -> None:
    """Sixteen particles have the joint moments at three inputs: spread does not collapse."""
    problem, target = posterior(linear)
    z = repulsive_functions(target, start(16, 3), torch.Generator().manual_seed(0), MOVES, 8, estimator)
    mean, covariance, exact = moments(linear, problem, z)
    assert float(mean.abs().max()) < 0.1
    assert float((covariance - exact).abs().max()) < tolerance


def test_joint_moments_of_two_outputs(linear: SimpleNamespace) -> None:
    problem, target = posterior(linear, m=2)
    z = repulsive_functions(target, start(40, 6), torch.Generator().manual_seed(0), MOVES, 8)
    mean, covariance, exact = moments(linear, problem, z)
    assert covariance.shape == (6, 6)
    assert float(mean.abs().max()) < 0.1
    assert float((covariance - exact).abs().max()) < 0.15


def test_without_scaling_functions_collapse(linear: SimpleNamespace) -> None:
    problem, target = posterior(linear)
    z = repulsive_functions(target, start(16, 3), torch.Generator().manual_seed(0), MOVES, 8, normalize=False)
    assert float(moments(linear, problem, z)[1].diagonal().max()) < 0.8


def test_linear_regression_in_weights(linear: SimpleNamespace) -> None:
    """A hundred particles in three dimensions: the Stein gradient estimator recovers nine tenths of the variance."""
    problem = linear.problem(8)
    joint = LogJoint(problem.network, GAUSSIAN, GaussianPrior(), problem.X, problem.Y, problem.variance)
    z = repulsive_weights(joint, start(100, 3), torch.Generator().manual_seed(0), MOVES, "sge")
    mean, covariance, exact = moments(linear, problem, z)
    assert float(mean.abs().max()) < 0.1
    assert float((covariance - exact).abs().max()) < 0.2
    assert float(covariance.diagonal().min()) > 0.8


def test_few_particles_in_many_weights_collapse() -> None:
    """Twenty particles under a standard normal in 50 dimensions; scaled by Stein's identity they keep its spread."""
    spreads = []
    for dimension in (None, 50):
        x = start(20, 50)
        for _ in range(400):
            x = x + 0.05 * repulsive_direction(x, -x, x, dimension=dimension)
        spreads.append(float(x.var(0).mean()))
    assert spreads[0] < 0.3
    assert abs(spreads[1] - 1.0) < 0.02
