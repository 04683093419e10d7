"""How far features should be fitted before a last layer is put on them: what predicts held-out rows best.

Features fitted to the data make a last layer overconfident, they have seen the targets. So networks go only a share of the way
from their random start to the fit (0: random features, 1: the fitted network).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

SHARES = (0.0, 0.125, 0.25, 0.5, 1.0)
_FOLDS = 3
_MIN_ROWS = 10  # fewer cannot be split


def choose_share(num_rows: int, seed: int, device: torch.device, scores: Callable[[Tensor, Tensor], Sequence[float]]) -> float:
    """The share with the largest score over all folds; ties to the smaller; 0 for too few rows to split.

    Args:
        num_rows: ``n``.
        seed: Of the order of the rows.
        device: Of the indices.
        scores: From indices of training and held-out rows to one score per entry of :data:`SHARES`.
    """
    if num_rows < _MIN_ROWS:
        return 0.0
    order = torch.randperm(num_rows, generator=torch.Generator().manual_seed(seed)).to(device)
    totals = [0.0] * len(SHARES)
    for test in order.chunk(_FOLDS):
        fold = scores(order[~torch.isin(order, test)], test)
        totals = [total + score for total, score in zip(totals, fold, strict=True)]
    return SHARES[max(range(len(SHARES)), key=lambda i: (totals[i], -i))]
