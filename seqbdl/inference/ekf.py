"""Extended Kalman filters over weights: the whole covariance, or only its diagonal.

Update and predict as in :mod:`seqbdl.inference.recursion`. Of the two diagonal filters, the fully decoupled one (Puskorius and
Feldkamp 1991) keeps the marginal variances of the exact update, ``s_i - s_i^2 (A^T S^{-1} A)_ii`` with ``S = I + A Sigma A^T``;
the variational one (Chang et al. 2022) adds the diagonal of the curvature to the precision, ``1 / (1 / s_i + (A^T A)_ii)``,
which is what minimizes the divergence of a factorized Gaussian. ``A`` are whitened rows of the Jacobian.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from seqbdl.errors import InvalidOptionError
from seqbdl.inference.recursion import Belief, FilterSettings, Lift
from seqbdl.networks import JacobianRows
from seqbdl.posteriors.gaussian_weights import GaussianWeights
from seqbdl.posteriors.joint_gaussian import safe_cholesky
from seqbdl.posteriors.operators import Dense, Diagonal, Inverse

COVARIANCES = ("full", "diagonal-decoupled", "diagonal-variational")


@dataclass(frozen=True)
class DenseBelief(Belief):
    """Attributes:
    mean: ``P``.
    covariance: ``P x P``.
    """

    mean: Tensor
    covariance: Tensor

    def seen(self, J: JacobianRows) -> tuple[Tensor, Lift]:
        half = J.dense() @ self.covariance
        return half @ J.dense().T, lambda a: a @ half

    def covariance_of(self, J: Tensor) -> Tensor:
        return J @ self.covariance @ J.mT  # without the factor that draws of weights need

    def learned(self, A: JacobianRows, mean: Tensor) -> DenseBelief:
        rows = A.dense()
        half = rows @ self.covariance
        factor = safe_cholesky(half @ rows.T + torch.eye(rows.shape[0]).to(rows))
        white = torch.linalg.solve_triangular(factor, half, upper=False)
        return DenseBelief(mean, self.covariance - white.T @ white)  # symmetric to the last bit

    def aged(self, settings: FilterSettings, centre: Tensor | None = None) -> DenseBelief:
        covariance = settings.forgetting**2 * self.covariance
        covariance.diagonal().add_(settings.process_noise)
        return DenseBelief(_aged_mean(self.mean, settings, centre), (1 + settings.inflation) * covariance)

    @cached_property
    def weights(self) -> GaussianWeights:
        return GaussianWeights(self.mean, Inverse(Dense.of(self.covariance)))


@dataclass(frozen=True)
class DiagonalBelief(Belief):
    """Attributes:
    mean: ``P``.
    variance: ``P``.
    variational: Which of the two updates.
    """

    mean: Tensor
    variance: Tensor
    variational: bool

    def seen(self, J: JacobianRows) -> tuple[Tensor, Lift]:
        half = J.dense() * self.variance
        return half @ J.dense().T, lambda a: a @ half

    def learned(self, A: JacobianRows, mean: Tensor) -> DiagonalBelief:
        rows = A.dense()
        if self.variational:
            return DiagonalBelief(mean, 1 / (1 / self.variance + rows.square().sum(0)), True)
        half = rows * self.variance
        factor = safe_cholesky(half @ rows.T + torch.eye(rows.shape[0]).to(rows))
        white = torch.linalg.solve_triangular(factor, half, upper=False)
        return DiagonalBelief(mean, self.variance - white.square().sum(0), False)

    def aged(self, settings: FilterSettings, centre: Tensor | None = None) -> DiagonalBelief:
        variance = (1 + settings.inflation) * (settings.forgetting**2 * self.variance + settings.process_noise)
        return DiagonalBelief(_aged_mean(self.mean, settings, centre), variance, self.variational)

    @cached_property
    def weights(self) -> GaussianWeights:
        return GaussianWeights(self.mean, Inverse(Diagonal(self.variance)))


def prior_belief(mean: Tensor, variance: float, covariance: str = "full") -> DenseBelief | DiagonalBelief:
    """``N(mean, variance I)``.

    Args:
        mean: ``P``.
        variance: Of every weight.
        covariance: One of :data:`COVARIANCES`.

    Raises:
        InvalidOptionError: There is no such covariance, or the variance is not positive.
    """
    if covariance not in COVARIANCES:
        raise InvalidOptionError(f"covariance={covariance!r} must be one of {', '.join(COVARIANCES)}")
    if not variance > 0.0:
        raise InvalidOptionError(f"variance={variance} must be positive")
    if covariance == "full":
        return DenseBelief(mean, variance * torch.eye(mean.shape[0]).to(mean))
    return DiagonalBelief(mean, torch.full_like(mean, variance), covariance == "diagonal-variational")


def belief_tree(belief: Belief) -> dict[str, Any]:
    """Tensors and plain values, for saving."""
    if isinstance(belief, DiagonalBelief):
        return {"mean": belief.mean, "variance": belief.variance, "variational": belief.variational}
    assert isinstance(belief, DenseBelief)
    return {"mean": belief.mean, "covariance": belief.covariance}


def belief_from_tree(tree: Mapping[str, Any]) -> DenseBelief | DiagonalBelief:
    """Restore :func:`belief_tree`."""
    if "variance" in tree:
        return DiagonalBelief(tree["mean"], tree["variance"], tree["variational"])
    return DenseBelief(tree["mean"], tree["covariance"])


def _aged_mean(mean: Tensor, settings: FilterSettings, centre: Tensor | None) -> Tensor:
    if settings.inflation_kind != "simple":
        raise InvalidOptionError(f"inflation_kind={settings.inflation_kind!r} is of LO-FI; covariances inflate simply")
    if centre is None:
        return settings.forgetting * mean
    return centre + settings.forgetting * (mean - centre)
