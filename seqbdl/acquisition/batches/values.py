"""Selections of points whose outcomes are real values, and those by features, whatever the outcomes are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from seqbdl.acquisition import gaussian_scores
from seqbdl.acquisition.batches import distances, gaussian, linear
from seqbdl.acquisition.batches.batch import Batch
from seqbdl.acquisition.batches.context import PoolContext
from seqbdl.acquisition.batches.ranking import rank
from seqbdl.errors import InvalidOptionError


def random(context: PoolContext) -> Batch:
    level = torch.rand(context.rules.size, generator=context.generator, dtype=torch.float64).to(context.pool.device)
    return rank(level, replace(context.rules, cost=None))


def predictive_variance(context: PoolContext, *, sampling: str | None = None, beta: float = 1.0) -> Batch:
    scores = gaussian_scores.predictive_variance(context.variances(), context.noise(context.pool))
    return rank(scores, context.rules, sampling, beta, context.generator)


def epistemic_variance(context: PoolContext, *, sampling: str | None = None, beta: float = 1.0) -> Batch:
    return rank(context.variances(), context.rules, sampling, beta, context.generator)


def predictive_entropy(context: PoolContext, *, sampling: str | None = None, beta: float = 1.0) -> Batch:
    scores = gaussian_scores.gaussian_entropy(context.variances(), context.noise(context.pool))
    return rank(scores, context.rules, sampling, beta, context.generator)


def bald(default: str | None = None) -> Callable[..., Batch]:
    """BALD of Gaussian predictions, with a sampling when none is asked for."""

    def select(context: PoolContext, *, sampling: str | None = default, beta: float = 1.0) -> Batch:
        scores = gaussian_scores.gaussian_bald(context.variances(), context.positive_noise(context.pool))
        return rank(scores, context.rules, sampling, beta, context.generator)

    return select


def batch_bald(context: PoolContext) -> Batch:
    return _max_det(context)


def epig(context: PoolContext, *, sampling: str | None = None, beta: float = 1.0) -> Batch:
    assert context.targets is not None
    rules, noise = context.rules, context.positive_noise(context.pool)
    cross, there = context.covariance(context.targets), context.target_variances()
    target_noise = context.positive_noise(context.targets)
    if sampling is not None:
        scores = gaussian_scores.gaussian_epig(context.variances(), there, cross, noise, target_noise, context.target_weights)
        return _with_notes(rank(scores, rules, sampling, beta, context.generator), _bias_note(context))
    batch = gaussian.gaussian_epig_batch(
        context.kernel(),
        cross,
        there,
        rules.batch_size,
        noise,
        target_noise,
        context.generator,
        target_weights=context.target_weights,
        pending=rules.pending,
        exclude=rules.excluded,
        cost=rules.cost,
    )
    return _with_notes(batch, _bias_note(context))


def nipv(context: PoolContext) -> Batch:
    assert context.targets is not None
    rules = context.rules
    return gaussian.variance_reduction_batch(
        context.kernel(),
        context.covariance(context.targets),
        rules.batch_size,
        context.positive_noise(context.pool),
        context.generator,
        target_weights=context.target_weights,
        pending=rules.pending,
        exclude=rules.excluded,
        cost=rules.cost,
    )


def max_det(context: PoolContext, *, space: str = "posterior", sketch_dim: int | None = 512, sigma: float = 1e-3) -> Batch:
    if space == "posterior":
        return _max_det(context)
    given = context.space(space, sketch_dim, sigma).conditioned()
    rules = context.rules
    noise = context.positive_noise(context.pool) if given.noise is None else given.noise
    batch = gaussian.max_det(
        given.pool,
        rules.batch_size,
        noise,
        context.generator,
        pending=rules.pending,
        exclude=rules.excluded,
        cost=rules.cost,
    )
    return _with_notes(batch, given.notes)


def bait(
    context: PoolContext,
    *,
    space: str = "auto",
    backward: bool = True,
    sketch_dim: int | None = 512,
    sigma: float = 1e-3,
) -> Batch:
    given = context.space(space, sketch_dim, sigma).conditioned()
    rules = context.rules
    batch = linear.bait(
        given.pool,
        rules.batch_size,
        context.positive_noise(context.pool) if given.noise is None else given.noise,
        context.generator,
        targets=given.everywhere,
        backward=backward,
        pending=rules.pending,
        exclude=rules.excluded,
        cost=rules.cost,
    )
    return _with_notes(batch, given.notes)


def frank_wolfe(context: PoolContext, *, space: str = "auto", sketch_dim: int | None = 512, sigma: float = 1e-3) -> Batch:
    given = context.space(space, sketch_dim, sigma).conditioned()
    rules = context.rules
    batch = linear.frank_wolfe(
        given.pool, rules.batch_size, context.generator, pending=rules.pending, exclude=rules.excluded, cost=rules.cost
    )
    return _with_notes(batch, given.notes)


def by_distance(method: Callable[..., Batch]) -> Callable[..., Batch]:
    """A selection that spreads out in a feature space, with the training inputs as centres."""

    def select(context: PoolContext, *, space: str = "auto", sketch_dim: int | None = 512) -> Batch:
        given = context.space(space, sketch_dim, sigma=1.0)
        rules = context.rules
        batch = method(
            given.pool,
            rules.batch_size,
            context.generator,
            centres=given.train,
            pending=rules.pending,
            exclude=rules.excluded,
            cost=rules.cost,
        )
        return _with_notes(batch, given.notes)

    return select


k_centre = by_distance(distances.k_centre)
kmeans_plus_plus = by_distance(distances.kmeans_plus_plus)
lcmd = by_distance(distances.lcmd)


def _max_det(context: PoolContext) -> Batch:
    rules = context.rules
    return gaussian.max_det(
        context.kernel(),
        rules.batch_size,
        context.noise(context.pool),
        context.generator,
        pending=rules.pending,
        exclude=rules.excluded,
        cost=rules.cost,
    )


def _bias_note(context: PoolContext) -> tuple[str, ...]:
    particles = context.num_particles()
    if particles is None:
        return ()
    if particles < 2:
        raise InvalidOptionError("the posterior has a single particle; EPIG needs two or more")
    bias = gaussian_scores.draws_epig_bias(particles)
    return (f"moments of {particles} particles: scores are too large by up to {bias:.2g} nats in expectation",)


def _with_notes(batch: Batch, notes: tuple[str, ...]) -> Batch:
    status = replace(batch.status, notes=(*notes, *batch.status.notes))
    return replace(batch, status=status)
