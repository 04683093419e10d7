"""Batches from scores of single points: the best ones, or a sample that favours them.

A. Kirsch, S. Farquhar, P. Atighehchian, A. Jesson, F. Branchaud-Charron and Y. Gal, "Stochastic batch acquisition: a simple
baseline for deep active learning", TMLR 2023. The ``q`` best points are often alike. Adding Gumbel noise to the (log) scores
samples without replacement, in proportion to powers of the scores, at no cost.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from seqbdl.acquisition._pool_inputs import check_generator, check_vector
from seqbdl.acquisition.batches.batch import Batch, BatchStatus, Indices, Picking, PoolRules, pool_rules
from seqbdl.errors import InvalidDataError, InvalidOptionError, UnknownNameError

SAMPLINGS = ("power", "softmax", "soft-rank")


def top_batch(
    scores: Tensor, batch_size: int, *, pending: Indices = None, exclude: Indices = None, cost: Tensor | None = None
) -> Batch:
    """The points with the largest scores, which ignores how much they tell about one another.

    Args:
        scores: ``N``, larger is better.
        batch_size: ``q``.
        pending: Indices asked for already; not chosen again.
        exclude: Indices never to choose, or a mask.
        cost: ``N`` positive costs; points are ranked by score for a unit of cost.
    """
    scores, rules = _inputs(scores, batch_size, pending, exclude, cost)
    return rank(scores, rules)


def stochastic_batch(
    scores: Tensor,
    batch_size: int,
    generator: torch.Generator,
    *,
    sampling: str = "power",
    beta: float = 1.0,
    pending: Indices = None,
    exclude: Indices = None,
    cost: Tensor | None = None,
) -> Batch:
    """A sample without replacement that favours large scores.

    Args:
        scores: ``N``, larger is better.
        batch_size: ``q``.
        generator: Of the Gumbel noise.
        sampling: ``"power"``: probabilities in proportion to ``scores ** beta`` (scores of zero or less are never sampled);
            ``"softmax"``: to ``exp(beta * scores)``; ``"soft-rank"``: to ``rank ** -beta``, the best having rank 1.
        beta: How strongly; 0 is uniform, infinity would be :func:`top_batch`.
        pending: Indices asked for already; not chosen again.
        exclude: Indices never to choose, or a mask.
        cost: ``N`` positive costs; in place of a score stands the score for a unit of cost.

    Raises:
        UnknownNameError: No such sampling.
    """
    scores, rules = _inputs(scores, batch_size, pending, exclude, cost)
    return rank(scores, rules, sampling, beta, generator)


def rank(
    scores: Tensor,
    rules: PoolRules,
    sampling: str | None = None,
    beta: float = 1.0,
    generator: torch.Generator | None = None,
    notes: tuple[str, ...] = (),
) -> Batch:
    """:func:`top_batch` (``sampling=None``) or :func:`stochastic_batch` of checked scores under checked rules."""
    if sampling is not None and sampling not in SAMPLINGS:
        raise UnknownNameError("sampling", sampling, list(SAMPLINGS))
    if not 0.0 <= beta < math.inf:
        raise InvalidOptionError(f"beta={beta}; give a number of 0 or more")
    bad = scores.isnan() & rules.allowed
    if bool(bad.any()):
        raise InvalidDataError(f"the score is NaN at point {int(bad.nonzero()[0])}; check the predictions there")
    values = torch.where(rules.allowed, rules.per_cost(scores), -torch.inf)
    if sampling is None:
        order = values.argsort(descending=True, stable=True)[: rules.batch_size]
        return Batch(order, scores[order], scores[order], BatchStatus(notes=notes))
    noise = _gumbel(scores, check_generator(generator, f"{sampling} sampling"))
    keys = torch.where(rules.allowed, _log_weights(values, sampling, beta) + noise, -torch.inf)
    order = keys.argsort(descending=True, stable=True)
    order = order[: min(rules.batch_size, int((keys > -torch.inf).sum()))]
    missing = rules.batch_size - order.shape[0]
    picking = Picking(rules, generator)
    for index in order.tolist():
        picking.take(index, float(scores[index]))
    for _ in range(missing):
        index = picking.at_random()
        picking.take(index, float(scores[index]))
    if missing:
        notes = (*notes, f"only {order.shape[0]} points have a positive score")
    return picking.batch(joint=False, notes=notes)


def _inputs(scores: Tensor, batch_size: int, pending: Indices, exclude: Indices, cost: Tensor | None) -> tuple[Tensor, PoolRules]:
    vector = check_vector("scores", scores)
    return vector, pool_rules(vector.shape[0], batch_size, pending, exclude, cost, vector.device)


def _log_weights(values: Tensor, sampling: str, beta: float) -> Tensor:
    """Logarithms of what sampling probabilities are in proportion to, ``N``."""
    if sampling == "power":
        return torch.where(values > 0, beta * values.clamp_min(1e-300).log(), -torch.inf)
    if sampling == "softmax":
        return beta * torch.where(values > -torch.inf, values, 0.0)
    order = values.argsort(descending=True, stable=True)
    ranks = torch.empty_like(values)
    ranks[order] = torch.arange(1, values.shape[0] + 1, dtype=values.dtype, device=values.device)
    return -beta * ranks.log()


def _gumbel(like: Tensor, generator: torch.Generator) -> Tensor:
    waiting = torch.empty(like.shape[0], dtype=torch.float64, device=generator.device).exponential_(generator=generator)
    return -waiting.clamp_min(1e-300).log().to(like.device)
