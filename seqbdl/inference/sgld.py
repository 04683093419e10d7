"""Stochastic gradient Langevin dynamics, all chains on one axis (Welling and Teh 2011).

The convention for the step size ``e``: ``z' = z + e M^{-1} grad log p(z, D) + N(0, 2 e T M^{-1})``, gradients of sums over the
data (Welling and Teh write ``e / 2`` for our ``e``). At temperature ``T`` = 1 the noise is that of the exact posterior up to
the discretization: on ``N(0, 1)`` the stationary variance is ``1 / (1 - e / 2)``. Mini-batches add theirs, a share of
``e N / (2 |B|)`` in the directions that the data determine.

``M`` is constant: the identity, the diagonal or the whole of the Gauss-Newton matrix (:mod:`seqbdl.inference.metrics`).
Preconditioned SGLD (Li et al. 2016) instead takes ``M = 1e-5 + sqrt(V)`` with ``V`` a running mean of squared gradients per
row; here ``V`` is frozen after warm-up, so that the term with its derivative, which they leave out, vanishes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from seqbdl.inference.chains import ChainResult, Record, Target, batch_share, check_stable, largest_curvature, lowest
from seqbdl.inference.gibbs import Gibbs
from seqbdl.inference.log_joint import minibatches
from seqbdl.inference.metrics import DiagonalMetric, Metric


@dataclass(frozen=True)
class SGLDSettings:
    """Attributes:
    warmup: Steps thrown away.
    samples: States kept of every chain.
    thinning: Steps from one to the next.
    learning_rate: Step size ``e``; ``None``: ``caution`` over the largest eigenvalue of ``M^{-1} H`` at the start, and
        over ``N / |B|``.
    caution: Of automatic steps: 0.2 is excess variance of a tenth in the direction of the largest curvature, and as much
        from mini-batches.
    batch_size: Rows per step; ``None``: all.
    temperature: ``T``; below one the posterior is colder than Bayes' rule has it.
    rmsprop: Decay of the running mean of preconditioned SGLD, such as 0.99; ``None``: ``M`` as handed in.
    """

    warmup: int = 40
    samples: int = 8
    thinning: int = 8
    learning_rate: float | None = None
    caution: float = 0.2
    batch_size: int | None = None
    temperature: float = 1.0
    rmsprop: float | None = None


def sgld(
    target: Target,
    start: Tensor,
    metric: Metric,
    generator: torch.Generator,
    settings: SGLDSettings = SGLDSettings(),
    gibbs: Gibbs | None = None,
) -> ChainResult:
    """Sample a log density without rejections.

    Args:
        target: The log density.
        start: ``S x P``.
        metric: ``M``.
        generator: Source of randomness: noise and batches.
        settings: Lengths and steps.
        gibbs: Hyperparameters to be drawn whenever a state is kept (and every ``thinning`` steps of warm-up); it then defines
            the target.

    Raises:
        DivergedError: A chain has exploded: the step size was too large.
    """
    hyper = None if gibbs is None else gibbs.begin(start, generator)
    base = metric
    if gibbs is not None and hyper is not None:
        target, metric = gibbs.target(hyper), gibbs.metric(base, hyper)
    total = settings.warmup + settings.samples * settings.thinning
    batches = minibatches(target.num_rows, settings.batch_size, total + 1, generator)
    z = start
    value, gradient = target.value_and_gradient(z, batches[0])
    floor = lowest(value, z, target)
    squares = (gradient / max(1, target.num_rows)).square()
    if settings.rmsprop is not None:
        metric = base = DiagonalMetric(1e-5 + squares.sqrt())
    if settings.learning_rate is None:
        curvature = largest_curvature(target, z, metric, generator)
        step = settings.caution * batch_share(target, settings.batch_size) / curvature
    else:
        step = torch.full_like(z[:, 0], settings.learning_rate)
    rate, record = step[:, None], Record(gibbs)
    for number in range(1, total + 1):
        if settings.rmsprop is not None and number <= settings.warmup:
            squares = torch.lerp((gradient / max(1, target.num_rows)).square(), squares, settings.rmsprop)
            metric = base = DiagonalMetric(1e-5 + squares.sqrt())
        z = z + rate * metric.solve(gradient) + (2 * settings.temperature * rate).sqrt() * metric.draw(z, generator)
        keep = (number - settings.warmup) % settings.thinning == 0
        if keep and gibbs is not None and hyper is not None:
            hyper = gibbs.draw(z, hyper, generator)
            target, metric = gibbs.target(hyper), gibbs.metric(base, hyper)
        value, gradient = target.value_and_gradient(z, batches[number])
        if keep:
            check_stable(value, floor, number, step)
        if keep and number > settings.warmup:
            record.add(z, gradient, hyper)
    return record.result(step)
