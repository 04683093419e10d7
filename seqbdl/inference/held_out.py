"""Choosing what no evidence chooses: a few folds of held-out rows, and the density that a mixture of functions gives them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from seqbdl.likelihoods import Likelihood

HELD_OUT_ROWS = 60
"""Rows that folds together hold out, at least, where there are so many."""
SHARE = 0.1
SLACK = 0.5


def folds(
    num_rows: int, generator: torch.Generator, share: float = SHARE, most: int = 10, least: int = 1
) -> list[tuple[Tensor, Tensor]]:
    """Indices of training and of held-out rows, one pair per fold.

    A fold holds out a share of the rows, one at least; there are as few folds as hold out :data:`HELD_OUT_ROWS` rows
    together, so that large data pay for one more fit only.

    Args:
        num_rows: ``N``.
        generator: Orders the rows.
        share: Of the rows, per fold.
        most: Folds at most.
        least: Folds at least, where rows suffice.

    Returns:
        At least one pair, or none for a single row.
    """
    if num_rows < 2:
        return []
    size = max(1, round(share * num_rows))
    count = min(most, num_rows // size, max(least, math.ceil(HELD_OUT_ROWS / size)))
    order = torch.randperm(num_rows, generator=generator)
    pairs = []
    for fold in range(count):
        held = order[fold * size : (fold + 1) * size]
        pairs.append((torch.cat([order[: fold * size], order[(fold + 1) * size :]]), held))
    return pairs


def mixture_log_density(likelihood: Likelihood, f: Tensor, Y: Tensor, noise: Tensor) -> Tensor:
    """``log (1 / S) sum_s p(y_n | f_s(x_n))``: every row by itself under the mixture of functions.

    Args:
        likelihood: Of an observation.
        f: ``... x S x n x l`` latent values.
        Y: ``n x t``.
        noise: ``n x m`` noise variances.

    Returns:
        ``... x n``; where the mixture gives a row no density, or NaN, ``-inf``.
    """
    each = likelihood.log_prob(f, Y, noise)
    density = each.logsumexp(-2) - math.log(f.shape[-3])
    return torch.where(density.isnan(), torch.full_like(density, -torch.inf), density)


def first_good(densities: Tensor) -> int:
    """The first option whose held-out density is within :data:`SLACK` standard errors of the best.

    Options come in the order of preference, such as from tempered little to tempered much. The standard error is that of
    the difference, row by row, so that no single surprising row decides (Breiman et al. 1984, with a whole one, which of
    few rows is too timid where overconfidence is costly).

    Args:
        densities: ``options x rows`` log-densities.
    """
    best = int(densities.sum(-1).argmax())
    for option in range(best):
        loss = densities[best] - densities[option]
        if bool(loss.isfinite().all()) and float(loss.sum()) <= SLACK * float(loss.std()) * math.sqrt(loss.shape[0]):
            return option
    return best
