"""Rows of equal inputs as one row: finite arms and repeated measurements cost what their distinct inputs cost.

A network has one value per input, so that curvatures there add up, ``R R^T = sum_i R_i R_i^T``; nothing is approximated.
"""

from __future__ import annotations

import torch
from torch import Tensor


def distinct_rows(X: Tensor, root: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Distinct inputs and the roots of the summed curvature there.

    Args:
        X: ``n x d``.
        root: ``S x n x l`` (diagonal), or ``S x n x l x l``.

    Returns:
        ``r x d`` inputs, ``S x r x l (x l)`` roots, and the place of every row among the inputs, ``n``; all as they were where
        no two rows are equal.
    """
    inputs, place = torch.unique(X, dim=0, return_inverse=True)
    r = inputs.shape[0]
    if r == X.shape[0]:
        return X, root, torch.arange(r, device=X.device)
    if root.dim() == 3:
        return inputs, root.new_zeros(root.shape[0], r, root.shape[-1]).index_add_(1, place, root.square()).sqrt_(), place
    curvature = root @ root.mT
    levels, axes = torch.linalg.eigh(torch.zeros_like(curvature[:, :r]).index_add_(1, place, curvature))
    return inputs, axes * levels.clamp_min(0.0).sqrt().unsqueeze(-2), place
