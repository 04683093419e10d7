"""Batches that spread out in a feature space: k-centre, k-means++, BADGE and LCMD.

Centres are points known already, such as training inputs, then pending points, then the picks. Where every point that can be
chosen lies on a centre, picks are made at random, and the status says so.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from seqbdl.acquisition._pool_inputs import VALUES_AT_ONCE, check_generator, check_log_probs, check_matrix
from seqbdl.acquisition.batches.batch import Batch, Indices, Picking, PoolRules, pool_rules
from seqbdl.acquisition.batches.kernels import PoolKernel, stacked
from seqbdl.errors import UnknownNameError

FIRST = ("largest-norm", "uniform")
_SAME = 1e-12  # of the largest squared norm: squared distances below this are rounding


class Nearest:
    """The squared distance of every pool point to its nearest centre, and which centre that is.

    Args:
        kernel: On ``R`` rows, the first ``size`` of which are the pool.
        size: ``N``.
    """

    def __init__(self, kernel: PoolKernel, size: int) -> None:
        self._kernel, self._size = kernel, size
        self.squared = torch.full((size,), math.inf, dtype=torch.float64, device=kernel.diagonal.device)
        self.centre = torch.full((size,), -1, dtype=torch.long, device=kernel.diagonal.device)
        self.num_centres = 0
        self._floor = _SAME * float(kernel.diagonal.max())

    def add(self, rows: Tensor) -> None:
        """Make these rows centres, a block of them at a time; a point stays with the older of two equally near ones."""
        if rows.numel() == 0:
            return
        several = max(1, VALUES_AT_ONCE // self._kernel.size)
        for part in rows.split(several):
            squared, which = self._kernel.squared_distances(part)[: self._size].min(-1)
            squared = torch.where(squared > self._floor, squared, 0.0)
            nearer = squared < self.squared
            self.squared = torch.where(nearer, squared, self.squared)
            self.centre = torch.where(nearer, which + self.num_centres, self.centre)
            self.num_centres += part.shape[0]


def k_centre(
    features: Tensor,
    batch_size: int,
    generator: torch.Generator,
    *,
    centres: Tensor | None = None,
    pending: Indices = None,
    exclude: Indices = None,
    cost: Tensor | None = None,
) -> Batch:
    """Farthest first: each pick is the point farthest from all centres (core-set, max-dist).

    Sener and Savarese, "Active learning for convolutional neural networks: a core-set approach", ICLR 2018; Gonzalez 1985.
    Increments are distances to the nearest centre; the first one without centres is the largest norm.

    Args:
        features: ``N x D`` of the pool.
        batch_size: ``q``.
        generator: For picks at random where no distance is left.
        centres: ``n x D`` features of points known already.
        pending: Indices asked for; centres too.
        exclude: Indices never to choose, or a mask.
        cost: ``N`` positive costs; points are ranked by distance for a unit of cost.
    """
    kernel, rules = _inputs(features, centres, batch_size, pending, exclude, cost)
    picking, near = _begin(kernel, rules, generator)
    while not picking.done:
        index, distance = _farthest(picking, near, kernel)
        picking.take(index, distance)
        near.add(torch.tensor([index], device=kernel.diagonal.device))
    return picking.batch(joint=False)


def kmeans_plus_plus(
    features: Tensor,
    batch_size: int,
    generator: torch.Generator,
    *,
    centres: Tensor | None = None,
    first: str = "largest-norm",
    pending: Indices = None,
    exclude: Indices = None,
    cost: Tensor | None = None,
) -> Batch:
    """Points sampled in proportion to the squared distance from all centres (Arthur and Vassilvitskii 2007).

    Args:
        features: ``N x D`` of the pool.
        batch_size: ``q``.
        generator: Of the samples.
        centres: ``n x D`` features of points known already.
        first: Without centres: ``"largest-norm"``, or ``"uniform"`` as in k-means++ itself.
        pending: Indices asked for; centres too.
        exclude: Indices never to choose, or a mask.
        cost: ``N`` positive costs; probabilities are divided by them.
    """
    kernel, rules = _inputs(features, centres, batch_size, pending, exclude, cost)
    return _sample_apart(kernel, rules, generator, first)


def badge(
    log_probs: Tensor,
    features: Tensor,
    batch_size: int,
    generator: torch.Generator,
    *,
    first: str = "largest-norm",
    pending: Indices = None,
    exclude: Indices = None,
    cost: Tensor | None = None,
) -> Batch:
    """k-means++ on the gradients that each point would give the last layer if its likeliest class were its label.

    Ash, Zhang, Krishnamurthy, Langford and Agarwal, "Deep batch active learning by diverse, uncertain gradient lower bounds",
    ICLR 2020. The gradient is ``(p - e) (x) h``; only its inner products are needed, and it is never formed.

    Args:
        log_probs: ``n x N x C``; the mean prediction counts.
        features: ``N x F``, what the last layer sees.
        batch_size: ``q``.
        generator: Of the samples.
        first: ``"largest-norm"``, as in the authors' code, or ``"uniform"``, as in k-means++.
        pending: Indices asked for; centres too.
        exclude: Indices never to choose, or a mask.
        cost: ``N`` positive costs; probabilities are divided by them.
    """
    residual = label_residuals(log_probs)
    hidden = check_matrix("features", features, rows=residual.shape[0])
    rules = pool_rules(hidden.shape[0], batch_size, pending, exclude, cost, hidden.device)
    return spread_gradients(hidden, residual, rules, generator, first)


def lcmd(
    features: Tensor,
    batch_size: int,
    generator: torch.Generator,
    *,
    centres: Tensor | None = None,
    pending: Indices = None,
    exclude: Indices = None,
    cost: Tensor | None = None,
) -> Batch:
    """Largest cluster, maximum distance: of the cluster with the largest sum of squared distances, the farthest point.

    Holzmüller, Zaverkin, Kästner and Steinwart, "A framework and benchmark for deep batch active learning for regression",
    JMLR 2023. Every point belongs to its nearest centre. Points that cannot be chosen do not count for their cluster.
    Increments are distances to the nearest centre; the first one without centres is the largest norm.

    Args:
        features: ``N x D`` of the pool.
        batch_size: ``q``.
        generator: For picks at random where no distance is left.
        centres: ``n x D`` features of the training points, as the authors recommend.
        pending: Indices asked for; centres too.
        exclude: Indices never to choose, or a mask.
        cost: ``N`` positive costs; within the cluster, points are ranked by distance for a unit of cost.
    """
    kernel, rules = _inputs(features, centres, batch_size, pending, exclude, cost)
    picking, near = _begin(kernel, rules, generator)
    while not picking.done:
        allowed: Tensor | None = None
        if near.num_centres:
            squared = torch.where(picking.open, near.squared, 0.0)
            sums = squared.new_zeros(near.num_centres).index_add(0, near.centre, squared)
            allowed = near.centre == int(sums.argmax())
        index, distance = _farthest(picking, near, kernel, allowed)
        picking.take(index, distance)
        near.add(torch.tensor([index], device=kernel.diagonal.device))
    return picking.batch(joint=False)


def spread_gradients(
    features: Tensor,
    residual: Tensor | None,
    rules: PoolRules,
    generator: torch.Generator,
    first: str = "largest-norm",
    notes: tuple[str, ...] = (),
) -> Batch:
    """k-means++ under checked rules on ``features (x) residual``, never formed; on the features themselves without residual."""
    kernel = PoolKernel.of_features(features) if residual is None else PoolKernel.of_outer_products(features, residual)
    return _sample_apart(kernel, rules, generator, first, notes)


def label_residuals(log_probs: Tensor) -> Tensor:
    """Mean prediction less the indicator of its most probable class, ``N x C``: the gradient of the logits at that label.

    Args:
        log_probs: ``n x N x C``.
    """
    values = check_log_probs("log_probs", log_probs)
    mean = values.double().logsumexp(0).softmax(-1)
    return mean - torch.nn.functional.one_hot(mean.argmax(-1), mean.shape[-1])


def _inputs(
    features: Tensor, centres: Tensor | None, batch_size: int, pending: Indices, exclude: Indices, cost: Tensor | None
) -> tuple[PoolKernel, PoolRules]:
    rows = stacked(features, centres)
    rules = pool_rules(features.shape[0], batch_size, pending, exclude, cost, rows.device)
    return PoolKernel.of_features(rows), rules


def _begin(kernel: PoolKernel, rules: PoolRules, generator: torch.Generator) -> tuple[Picking, Nearest]:
    picking = Picking(rules, check_generator(generator, "a choice between equal points"))
    near = Nearest(kernel, rules.size)
    near.add(torch.arange(rules.size, kernel.size, device=kernel.diagonal.device))
    near.add(rules.pending)
    return picking, near


def _farthest(picking: Picking, near: Nearest, kernel: PoolKernel, allowed: Tensor | None = None) -> tuple[int, float]:
    """The point that is farthest from its centre, and how far; at random where none is apart from its centre."""
    squared = near.squared if near.num_centres else kernel.diagonal[: picking.rules.size]
    distances = squared.sqrt()
    if allowed is not None:
        distances = torch.where(allowed, distances, 0.0)
    if not bool((distances[picking.open] > 0).any()):
        return picking.at_random(), 0.0
    index = picking.best(distances)
    return index, float(distances[index])


def _sample_apart(
    kernel: PoolKernel, rules: PoolRules, generator: torch.Generator, first: str, notes: tuple[str, ...] = ()
) -> Batch:
    if first not in FIRST:
        raise UnknownNameError("first pick", first, list(FIRST))
    picking, near = _begin(kernel, rules, generator)
    while not picking.done:
        if near.num_centres == 0 and first == "largest-norm":
            index, distance = _farthest(picking, near, kernel)
        else:
            index, distance = _apart(picking, near, generator)
        picking.take(index, distance)
        near.add(torch.tensor([index], device=kernel.diagonal.device))
    return picking.batch(joint=False, notes=notes)


def _apart(picking: Picking, near: Nearest, generator: torch.Generator) -> tuple[int, float]:
    squared = near.squared if near.num_centres else torch.ones_like(near.squared)
    weights = torch.where(picking.open, picking.rules.per_cost(squared), 0.0)
    cumulated = weights.cumsum(0)
    if not float(cumulated[-1]) > 0.0:
        return picking.at_random(), 0.0
    level = float(torch.rand(1, generator=generator, dtype=torch.float64, device=generator.device)) * float(cumulated[-1])
    index = int(torch.searchsorted(cumulated, level, right=True))
    index = min(index, int((weights > 0).nonzero()[-1]))  # a level within rounding of the sum
    return index, float(squared[index].sqrt()) if near.num_centres else 0.0
