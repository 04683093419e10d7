"""Bi-Lipschitz features: residual blocks whose branches are contractions (spectral normalization).

``z <- z + c V^T phi(U^T z + a)`` with spectral norms of ``U`` and ``V`` at most 1, ``phi`` of slope at most 1 and ``c < 1``
stretches every distance by a factor between ``1 - c`` and ``1 + c``: features neither collapse distinct inputs nor tear close
ones apart (Liu et al. 2020; van Amersfoort et al. 2021). ``V = 0`` is the identity.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from seqbdl.networks.activations import activate

COEFFICIENT = 0.95


def initial_blocks(dim: int, widths: Sequence[int], generator: torch.Generator) -> dict[str, Tensor]:
    """Weights of one block per width, which begin as the identity.

    Args:
        dim: ``F``, of the features.
        widths: Units inside each block.
        generator: Of ``U`` and ``a``.
    """
    weights = {}
    for block, width in enumerate(widths):
        directions = torch.randn(dim, width, generator=generator, dtype=torch.float64)
        weights[f"U{block}"] = directions / torch.linalg.matrix_norm(directions, 2)
        weights[f"a{block}"] = torch.randn(width, generator=generator, dtype=torch.float64)
        weights[f"V{block}"] = torch.zeros(width, dim, dtype=torch.float64)
    return weights


def residual_features(weights: dict[str, Tensor], z: Tensor, activation: str = "erf") -> Tensor:
    """Through all blocks, ``... x F`` to ``... x F``."""
    for block in range(sum(name.startswith("U") for name in weights)):
        U, V = contraction(weights[f"U{block}"]), contraction(weights[f"V{block}"])
        z = z + COEFFICIENT * activate(z @ U + weights[f"a{block}"], activation) @ V
    return z


def contraction(matrix: Tensor) -> Tensor:
    """The matrix divided by its spectral norm where that is above 1.

    The norm is differentiated through the leading singular vectors alone: ``u^T W v`` (Miyato et al. 2018).
    """
    with torch.no_grad():
        left, _, right = torch.linalg.svd(matrix.detach(), full_matrices=False)
    norm = left[:, 0] @ matrix @ right[0]
    return matrix / norm.clamp_min(1.0)
