"""Selections of points whose outcomes are classes."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from seqbdl.acquisition import pool_scores
from seqbdl.acquisition.batches import distances
from seqbdl.acquisition.batches.batch import Batch
from seqbdl.acquisition.batches.batchbald import batchbald
from seqbdl.acquisition.batches.context import PoolContext
from seqbdl.acquisition.batches.ranking import rank


def by_score(score: Callable[[Tensor], Tensor], default: str | None = None) -> Callable[..., Batch]:
    """A selection by a score of single points.

    Args:
        score: ``n x N x C`` log-probabilities to ``N``, larger is better.
        default: Sampling when none is asked for; ``None``: the best points.
    """

    def select(context: PoolContext, *, sampling: str | None = default, beta: float = 1.0) -> Batch:
        return rank(score(context.log_probs()), context.rules, sampling, beta, context.generator)

    return select


def certainty_less(log_probs: Tensor) -> Tensor:
    """One less the margin: large is uncertain, as a selection wants it."""
    return 1.0 - pool_scores.margin(log_probs)


def epig(context: PoolContext, *, sampling: str | None = None, beta: float = 1.0) -> Batch:
    scores = pool_scores.epig(context.log_probs(), context.target_log_probs(), context.target_weights)
    return rank(scores, context.rules, sampling, beta, context.generator)


def batch_bald(context: PoolContext, *, num_configurations: int = 10_000) -> Batch:
    rules = context.rules
    return batchbald(
        context.log_probs(),
        rules.batch_size,
        context.generator,
        num_configurations=num_configurations,
        pending=rules.pending,
        exclude=rules.excluded,
        cost=rules.cost,
    )


def badge(context: PoolContext, *, first: str = "largest-norm", sketch_dim: int | None = 512) -> Batch:
    features, residual, notes = context.gradient_space(sketch_dim)
    return distances.spread_gradients(features, residual, context.rules, context.generator, first, notes)
