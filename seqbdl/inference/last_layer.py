"""Bayesian linear regression on features with unknown noise: the normal-inverse-gamma posterior, batch and recursive.

``y = phi(x)^T w + e``, ``e ~ N(0, s2 r)`` with known relative variances ``r``, ``w | s2 ~ N(0, s2 / alpha I)``, ``s2 ~
InvGamma(a0, b0)``, one ``s2`` per output. With ``A = alpha I + Phi^T R^{-1} Phi``: ``m = A^{-1} Phi^T R^{-1} y``, ``a
= a0 + n/2`` and ``b = b0 + 1/2 (y - Phi m_old)^T (R + Phi A_old^{-1} Phi^T)^{-1} (y - Phi m_old)``: a sum of squares,
never a difference of large numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from seqbdl.posteriors.joint_gaussian import safe_cholesky


@dataclass(frozen=True)
class LastLayer:
    """Attributes:
    mean: ``F x m`` weights.
    factor: ``F x F`` lower Cholesky factor of the unit-noise precision ``A``.
    a: Scalar shape of the noise posterior.
    b: ``m`` scales of the noise posterior.
    log_evidence: ``m``.
    """

    mean: Tensor
    factor: Tensor
    a: Tensor
    b: Tensor
    log_evidence: Tensor

    @property
    def noise(self) -> Tensor:
        """Posterior mean of the noise variance, ``m``."""
        return self.b / (self.a - 1)


def prior_last_layer(num_features: int, alpha: float, a0: float, b0: Tensor) -> LastLayer:
    """No rows yet; ``b0: m``."""
    eye = torch.eye(num_features).to(b0)
    zeros = b0.new_zeros(num_features, b0.shape[0])
    return LastLayer(zeros, math.sqrt(alpha) * eye, b0.new_tensor(a0), b0, torch.zeros_like(b0))


def absorb(state: LastLayer, features: Tensor, Y: Tensor, relative: Tensor) -> LastLayer:
    """Add rows; the result does not depend on how they are split into calls.

    Args:
        state: What was known.
        features: ``n x F``.
        Y: ``n x m``.
        relative: ``n`` noise variances relative to ``s2``.
    """
    n = features.shape[0]
    scaled = features / relative.unsqueeze(-1)
    precision = state.factor @ state.factor.T + features.T @ scaled
    factor = safe_cholesky(precision)
    surprise = Y - features @ state.mean  # n x m
    spread = torch.linalg.solve_triangular(state.factor, features.T, upper=False)  # F x n
    predictive = safe_cholesky(torch.diag(relative) + spread.T @ spread)
    white = torch.linalg.solve_triangular(predictive, surprise, upper=False)
    mean = state.mean + torch.cholesky_solve(scaled.T @ surprise, factor)
    a = state.a + 0.5 * n
    b = state.b + 0.5 * white.square().sum(0)
    log_evidence = state.log_evidence + (
        torch.lgamma(a)
        - torch.lgamma(state.a)
        + state.a * state.b.log()
        - a * b.log()
        - predictive.diagonal().log().sum()
        - 0.5 * n * math.log(2 * math.pi)
    )
    return LastLayer(mean, factor, a, b, log_evidence)


def tempered(state: LastLayer, prior: LastLayer, share: float) -> LastLayer:
    """The power prior ``q^b p0^(1 - b)``, again normal-inverse-gamma: natural parameters mix.

    Args:
        state: ``q``.
        prior: ``p0``.
        share: ``b``.
    """
    old, base = state.factor @ state.factor.T, prior.factor @ prior.factor.T
    factor = safe_cholesky(share * old + (1 - share) * base)
    gap = state.mean - prior.mean
    pulled = torch.cholesky_solve(share * (old @ gap), factor)
    # b + m^T A m / 2 mixes; what is left of b is a sum of nonnegative terms
    between = ((1 - share) * (base @ gap) * pulled).sum(0).clamp_min(0.0)
    b = share * state.b + (1 - share) * prior.b + 0.5 * between
    return LastLayer(prior.mean + pulled, factor, share * state.a + (1 - share) * prior.a, b, state.log_evidence)


def tune_precision(features: Tensor, Y: Tensor, relative: Tensor, a0: float, b0: Tensor) -> float:
    """The prior precision ``alpha`` that maximizes the evidence, on a grid, from one eigendecomposition of ``Phi
    Phi^T``.

    A log-normal hyper-prior around 1 (log sd 6) decides where the data do not.
    """
    root = relative.rsqrt().unsqueeze(-1)
    eigenvalues, vectors = torch.linalg.eigh((root * features) @ (root * features).T)
    rotated = vectors.T @ (root * Y)  # n x m
    log_alpha = torch.linspace(math.log(1e-9), math.log(1e4), 400).to(Y)
    variance = 1 + eigenvalues.clamp_min(0.0) / log_alpha.exp().unsqueeze(-1)  # grid x n
    b = b0 + 0.5 * (rotated.square() / variance.unsqueeze(-1)).sum(1)  # grid x m
    evidence = -(a0 + 0.5 * Y.shape[0]) * b.log().sum(-1) - 0.5 * Y.shape[1] * variance.log().sum(-1)
    return float(log_alpha[(evidence - 0.5 * (log_alpha / 6.0).square()).argmax()].exp())
