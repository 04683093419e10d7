"""Stein variational gradient descent: linear regression recovered, and the collapse of its variance in many dimensions."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from seqbdl.inference.adam import AdamSettings, adam
from seqbdl.inference.function_prior import Moments
from seqbdl.inference.function_space import FunctionPosterior
from seqbdl.inference.log_joint import LogJoint
from seqbdl.inference.svgd import svgd_direction, svgd_functions, svgd_weights
from seqbdl.likelihoods import get_likelihood
from seqbdl.priors import GaussianPrior

GAUSSIAN = get_likelihood("gaussian")
MOVES = AdamSettings(steps=400, learning_rate=0.05)
X_TEST = torch.tensor([[0.1, 0.9], [0.5, 0.5], [0.9, 0.0]], dtype=torch.float64)


def start(n: int, P: int) -> Tensor:
    return torch.randn(n, P, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def moments(linear: SimpleNamespace, problem: SimpleNamespace, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of functions at three inputs (and all outputs), in exact standard deviations: mean, covariances, exact ones."""
    J = linear.jacobian(problem.network, X_TEST)
    covariance = J @ problem.covariance @ J.T
    deviation = covariance.diagonal().sqrt()
    f = problem.network.forward(z, X_TEST).flatten(1)
    scale = deviation[:, None] * deviation
    return (f.mean(0) - J @ problem.mean) / deviation, f.T.cov() / scale, covariance / scale


def log_joint(problem: SimpleNamespace) -> LogJoint:
    return LogJoint(problem.network, GAUSSIAN, GaussianPrior(), problem.X, problem.Y, problem.variance)


@pytest.mark.parametrize("m", [1, 2])
def test_linear_regression_in_function_space(linear: SimpleNamespace, m: int) -> None:
    problem = linear.problem(8, m=m)

    class LinearPrior:
        def at(self, X: Tensor, f: Tensor) -> tuple[Tensor, Moments]:
            J = linear.jacobian(problem.network, X).unflatten(0, (-1, m)).transpose(0, 1)
            found = Moments.of(J @ J.transpose(-1, -2), 1e-6)
            return -(f.unsqueeze(-2) @ found.precision).squeeze(-2), found

    ones = torch.ones(8, dtype=torch.float64)
    target = FunctionPosterior(problem.network, GAUSSIAN, LinearPrior(), problem.X, problem.Y, problem.variance, ones)
    z = svgd_functions(target, start(30, 3 * m), seeded(), MOVES, 8)
    mean, covariance, exact = moments(linear, problem, z)
    assert float(mean.abs().max()) < 0.15
    assert float((covariance - exact).abs().max()) < 0.25


def test_linear_regression_in_weights(linear: SimpleNamespace) -> None:
    """Thirty particles in the metric of the posterior; a hundred in the plain one keep nine tenths of the variance."""
    problem = linear.problem(8)
    precision = torch.linalg.inv(problem.covariance)
    z = svgd_weights(log_joint(problem), start(30, 3), seeded(), MOVES, precision=precision, normalize=True)
    mean, covariance, exact = moments(linear, problem, z)
    assert float(mean.abs().max()) < 0.15
    assert float((covariance - exact).abs().max()) < 0.25
    mean, covariance, exact = moments(linear, problem, svgd_weights(log_joint(problem), start(100, 3), seeded(), MOVES))
    assert float(mean.abs().max()) < 0.15
    assert float((covariance - exact).abs().max()) < 0.2
    assert bool((covariance.diagonal() < 1).all())


def test_weights_that_stay(linear: SimpleNamespace) -> None:
    problem, begin = linear.problem(8), start(10, 3)
    z = svgd_weights(log_joint(problem), begin, seeded(), MOVES, index=torch.tensor([2]))
    assert torch.equal(z[:, :2], begin[:, :2])
    assert bool((z[:, 2] != begin[:, 2]).all())


@pytest.mark.parametrize(("P", "expected"), [(1, 0.88), (5, 0.37), (50, 0.06)])
def test_the_variance_collapses_in_many_dimensions(P: int, expected: float) -> None:
    """Marginal variance of twenty particles under a standard normal: nothing is left of it when weights outnumber particles.
    Scaled, they keep it."""
    spreads = []
    for dimension in (None, P):

        def gradient(x: Tensor, rows: Tensor | None, dimension: int | None = dimension) -> Tensor:
            return -svgd_direction(x, -x, x, dimension)

        x = adam(gradient, start(20, P), 1, AdamSettings(steps=500, learning_rate=0.05), seeded())
        spreads.append(float(x.var(0, correction=0).mean()))
    assert abs(spreads[0] - expected) < 0.05
    assert abs(spreads[1] * 20 / 19 - 1.0) < 0.1
