"""Bayesian linear regression written as networks, with its posterior in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from seqbdl.networks import ModuleNetwork, Network


@dataclass(frozen=True)
class LinearProblem:
    """A linear network over whitened weights, data, and the dense posterior.

    Attributes:
        network: ``f(x) = J(x) z``.
        X: ``n x d``.
        Y: ``n x m``.
        variance: ``n x m``, every entry its own.
        J: ``(n m) x P``.
        mean: ``P`` posterior mean under a standard normal prior.
        covariance: ``P x P``.
        log_evidence: Log marginal likelihood.
    """

    network: Network
    X: Tensor
    Y: Tensor
    variance: Tensor
    J: Tensor
    mean: Tensor
    covariance: Tensor
    log_evidence: Tensor


def jacobian(network: Network, X: Tensor) -> Tensor:
    """``(N m) x P``, column by column: the network is linear, so unit vectors give its Jacobian."""
    eye = torch.eye(network.num_params, dtype=torch.float64)
    return network.forward(eye, X).flatten(1).T


def conditioned(J: Tensor, Y: Tensor, variance: Tensor, alpha: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, covariance and log evidence of ``z ~ N(0, I / alpha)``, the plain way."""
    rows, y = variance.flatten(), Y.flatten()
    precision = alpha * torch.eye(J.shape[1], dtype=torch.float64) + J.T @ (J / rows[:, None])
    covariance = torch.linalg.inv(precision)
    marginal = J @ J.T / alpha + torch.diag(rows)
    evidence = torch.distributions.MultivariateNormal(torch.zeros_like(y), marginal).log_prob(y)
    return covariance @ (J.T @ (y / rows)), covariance, evidence


def linear_problem(n: int = 8, d: int = 2, m: int = 1, level: float = 0.05, correlated: bool = False) -> LinearProblem:
    """``correlated``: inputs nearly on a line, so that weights are strongly correlated in the posterior."""
    generator = torch.Generator().manual_seed(0)
    X = torch.rand(n, d, generator=generator, dtype=torch.float64)
    if correlated:
        X[:, 1:] = X[:, :1] + 0.02 * X[:, 1:]
    Y = X.sum(-1, keepdim=True) * 2 - 1 + torch.arange(m) + 0.3 * torch.randn(n, m, generator=generator, dtype=torch.float64)
    variance = level * (0.5 + torch.rand(n, m, generator=generator, dtype=torch.float64))
    network = ModuleNetwork(nn.Linear(d, m), d, m)
    J = jacobian(network, X)
    return LinearProblem(network, X, Y, variance, J, *conditioned(J, Y, variance))


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_samples(samples: Tensor, mean: Tensor, covariance: Tensor, ess: float | None = None, width: float = 4.5) -> None:
    """First and second moments of ``samples: n x P`` are those of the Gaussian, to within ``width`` Monte Carlo errors.

    Args:
        samples: ``n x P``.
        mean: ``P``.
        covariance: ``P x P``.
        ess: Effective number of samples; ``n`` by default.
        width: In standard errors; entries are many, hence not 3.
    """
    n = samples.shape[0] if ess is None else ess
    diagonal = covariance.diagonal()
    error = (samples.mean(0) - mean).abs() / (diagonal / n).sqrt()
    assert float(error.max()) < width, f"mean is off by {float(error.max()):.1f} standard errors"
    spread = ((diagonal[:, None] * diagonal + covariance.square()) / n).sqrt()
    error = (samples.T.cov() - covariance).abs() / spread
    assert float(error.max()) < width, f"covariance is off by {float(error.max()):.1f} standard errors"


@pytest.fixture(scope="session")
def linear() -> SimpleNamespace:
    """The functions of this file, for tests that cannot import one another."""
    return SimpleNamespace(
        problem=linear_problem, jacobian=jacobian, conditioned=conditioned, normals=normals, assert_samples=assert_samples
    )
