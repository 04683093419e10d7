"""Cyclical stochastic gradient Hamiltonian Monte Carlo, all chains on one axis (Zhang et al. 2020).

The step size follows ``h_k^2 = h_0^2 / 2 (cos(pi r_k) + 1)``, ``r_k`` in [0, 1) the position within the cycle. The first share
of a cycle has no noise: large steps run to a mode, perhaps another one than the last cycle's. Then noise comes in, and states
towards the end of the cycle are kept.

With velocity ``v`` in units of ``M^{-1/2}`` and friction ``C`` per step (their ``alpha``):

    v' = (1 - C) v + h_k M^{-1} grad log p(z, D) + N(0, 2 C T M^{-1}),    z' = z + h_k v'

The velocity is not scaled by the step size, so that it stays at temperature ``T`` while steps shrink. The temperature is one
unless it is set: the reference experiments on images divide it by the number of training images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from seqbdl.inference.chains import ChainResult, Record, Target, check_stable, lowest
from seqbdl.inference.gibbs import Gibbs
from seqbdl.inference.log_joint import minibatches
from seqbdl.inference.metrics import Metric
from seqbdl.inference.sghmc import step_and_friction


@dataclass(frozen=True)
class CSGHMCSettings:
    """Attributes:
    cycles: How many, ``M``.
    steps: Of a cycle.
    exploration: Share of a cycle without noise.
    samples: States kept of every chain and cycle, evenly over the last half of the steps with noise.
    learning_rate: First step size of a cycle, ``h_0``; ``None``: ``caution`` over the root of the largest eigenvalue of
        ``M^{-1} H`` at the start; with mini-batches at most what keeps their noise at a tenth of ours.
    friction: ``C``, the share of the velocity that a step loses; ``None``: as in :mod:`seqbdl.inference.sghmc`, for the first
        step of a cycle.
    caution: Of automatic first steps: radians of the fastest oscillation; at 2 they would be unstable.
    batch_size: Rows per step; ``None``: all.
    temperature: ``T`` of the steps with noise.
    """

    cycles: int = 3
    steps: int = 60
    exploration: float = 0.25
    samples: int = 4
    learning_rate: float | None = None
    friction: float | None = None
    caution: float = 0.8
    batch_size: int | None = None
    temperature: float = 1.0

    def step_factor(self, k: int) -> float:
        """``h_k / h_0`` of step ``k``, from 0, of a cycle."""
        return math.sqrt(0.5 * (math.cos(math.pi * k / self.steps) + 1))

    @property
    def first_noisy(self) -> int:
        """The first step of a cycle that has noise."""
        return math.ceil(self.exploration * self.steps)

    @property
    def kept(self) -> frozenset[int]:
        """Steps of a cycle after which states are kept."""
        middle = 0.5 * (self.first_noisy + self.steps)
        return frozenset(round(middle + (self.steps - middle) * (i + 1) / self.samples) - 1 for i in range(self.samples))


def csghmc(
    target: Target,
    start: Tensor,
    metric: Metric,
    generator: torch.Generator,
    settings: CSGHMCSettings = CSGHMCSettings(),
    gibbs: Gibbs | None = None,
) -> ChainResult:
    """Sample a log density in cycles.

    Args:
        target: The log density.
        start: ``S x P``.
        metric: ``M``.
        generator: Source of randomness: momenta, noise and batches.
        settings: Lengths and steps.
        gibbs: Hyperparameters to be drawn whenever a state is kept; it then defines the target.

    Raises:
        DivergedError: A chain has exploded: the step size was too large.
    """
    hyper = None if gibbs is None else gibbs.begin(start, generator)
    base = metric
    if gibbs is not None and hyper is not None:
        target, metric = gibbs.target(hyper), gibbs.metric(base, hyper)
    T = settings.temperature
    first, C = step_and_friction(target, start, metric, generator, settings)
    z, record = start, Record(gibbs)
    batches = minibatches(target.num_rows, settings.batch_size, settings.cycles * settings.steps + 1, generator)
    value, gradient = target.value_and_gradient(z, batches[0])
    floor = lowest(value, z, target)
    for number in range(settings.cycles * settings.steps):
        k = number % settings.steps
        if k == 0 and number > 0 and gibbs is not None:  # other noise, other curvature
            first, C = step_and_friction(target, z, metric, generator, settings)
        h = settings.step_factor(k) * first[:, None]
        noisy = k >= settings.first_noisy
        if k == 0:
            v = torch.zeros_like(z)
        if k == settings.first_noisy:
            v = T**0.5 * metric.draw(z, generator)
        v = (1 - C) * v + h * metric.solve(gradient)
        if noisy:
            v = v + (2 * C * T).sqrt() * metric.draw(z, generator)
        z = z + h * v
        keep = k in settings.kept
        if keep and gibbs is not None and hyper is not None:
            hyper = gibbs.draw(z, hyper, generator)
            target, before, metric = gibbs.target(hyper), metric, gibbs.metric(base, hyper)
            if metric is not before:  # momenta belong to masses
                v = T**0.5 * metric.draw(z, generator)
        value, gradient = target.value_and_gradient(z, batches[number + 1])
        if keep:
            check_stable(value, floor, number + 1, first)
            record.add(z, gradient, hyper, kinetic=(1 - 0.5 * C[:, 0]) * metric.square(v) / z.shape[1])
    return record.result(first)
