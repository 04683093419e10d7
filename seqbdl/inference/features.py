"""Random features: finite-dimensional function draws whose covariance is the kernel's, exactly in expectation."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def squared_exponential(U1: Tensor, U2: Tensor) -> Tensor:
    """``exp(-|u - u'|^2 / 2)``, ``... x q1 x q2`` for ``U1: ... x q1 x F`` and ``U2: ... x q2 x F``."""
    cross = U1 @ U2.transpose(-1, -2)
    distance = U1.square().sum(-1, keepdim=True) + U2.square().sum(-1).unsqueeze(-2) - 2 * cross
    return torch.exp(-0.5 * distance.clamp_min(0.0))


def fourier_draw(
    feature_map: Callable[[Tensor], Tensor],
    num_outputs: int,
    feature_dim: int,
    n: int,
    num_frequencies: int,
    generator: torch.Generator,
    like: Tensor,
) -> Callable[[Tensor], Tensor]:
    """Draws from Gaussian processes with the kernel :func:`squared_exponential` of features (Rahimi and Recht 2007).

    Every draw owns its frequencies, so that the covariance of the draws is the kernel's without a bias that all draws
    share.

    Args:
        feature_map: ``N x d -> m x N x F``.
        num_outputs: ``m``.
        feature_dim: ``F``.
        n: Number of draws.
        num_frequencies: Per draw.
        generator: Source of randomness.
        like: A tensor on the right device.

    Returns:
        ``batch x q x d -> n x batch x q x m``.
    """

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(like.device)

    frequencies = normal(n, num_outputs, feature_dim, num_frequencies)
    cosine = normal(n, num_outputs, num_frequencies, 1) / math.sqrt(num_frequencies)
    sine = normal(n, num_outputs, num_frequencies, 1) / math.sqrt(num_frequencies)

    def evaluate(X: Tensor) -> Tensor:
        angles = feature_map(X.reshape(-1, X.shape[-1])) @ frequencies  # n x m x N x frequencies
        values = (angles.cos() @ cosine + angles.sin() @ sine).squeeze(-1)
        return values.transpose(-1, -2).reshape(n, *X.shape[:-1], num_outputs)

    return evaluate
