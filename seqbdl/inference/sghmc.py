"""Stochastic gradient Hamiltonian Monte Carlo, all chains on one axis (Chen et al. 2014), and its scale-adapted form.

With step size ``h``, friction ``C`` per step, velocity ``v`` and a constant mass matrix ``M``:

    v' = (1 - C) v + h M^{-1} grad log p(z, D) + N(0, T (2 C - h^2 b T) M^{-1}),    z' = z + h v'

with gradients of sums over the data, and ``b`` an estimate of the variance of their noise in units of ``M`` (Chen et al. write
``h a`` for our ``C``). On ``N(0, 1)`` the stationary variance is one up to terms of the order of ``C`` and ``h^2``.

The scale-adapted form (Springenberg et al. 2016) learns a diagonal ``M = sqrt(V)`` during warm-up, with ``V`` a running mean
of squared gradients over a length that adapts, and freezes it afterwards; warm-up is counted in steps. Its noise variance in
units of ``z`` is ``2 h^2 C V^{-1/2} - h^4 b``, at least zero: ``b = 1`` takes all of ``V`` for noise of mini-batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from seqbdl.inference.chains import ChainResult, Record, Target, batch_share, check_stable, largest_curvature, lowest
from seqbdl.inference.gibbs import Gibbs
from seqbdl.inference.log_joint import minibatches
from seqbdl.inference.metrics import DiagonalMetric, Metric


@dataclass(frozen=True)
class SGHMCSettings:
    """Attributes:
    warmup: Steps thrown away.
    samples: States kept of every chain.
    thinning: Steps from one to the next.
    learning_rate: Step size ``h``; ``None``: ``caution`` over the root of the largest eigenvalue of ``M^{-1} H`` at the
        start (and where ``M`` freezes); with mini-batches at most what keeps their noise at a tenth of ours.
    friction: ``C``, the share of the velocity that a step loses; ``None``: one radian's worth per radian of the directions
        that only a prior of unit scale determines, and at least 0.1 with mini-batches, which heat what is not damped.
    caution: Of automatic steps: radians of the fastest oscillation; at 2 they would be unstable.
    batch_size: Rows per step; ``None``: all.
    temperature: ``T``.
    gradient_noise: ``b``; zero is exact for full batches, and leaves the noise of mini-batches on top.
    adaptive: Learn the diagonal of ``M`` during warm-up (Springenberg et al. 2016).
    """

    warmup: int = 40
    samples: int = 8
    thinning: int = 8
    learning_rate: float | None = None
    friction: float | None = None
    caution: float = 0.6
    batch_size: int | None = None
    temperature: float = 1.0
    gradient_noise: float = 0.0
    adaptive: bool = False


class Momentum(Protocol):
    """Settings of steps with momenta, of this file and of the cyclical form."""

    @property
    def learning_rate(self) -> float | None: ...
    @property
    def friction(self) -> float | None: ...
    @property
    def caution(self) -> float: ...
    @property
    def batch_size(self) -> int | None: ...


@dataclass(frozen=True)
class GradientScale:
    """Running means of gradients and their squares over a length ``tau`` that adapts (Springenberg et al. 2016), all chains
    together.

    Attributes:
        tau: ``P``.
        mean: ``P``.
        squares: ``P``, ``V``.
    """

    tau: Tensor
    mean: Tensor
    squares: Tensor

    @classmethod
    def begin(cls, gradient: Tensor) -> GradientScale:
        """From the first gradient ``S x P``."""
        return cls(torch.ones_like(gradient[0]), gradient.mean(0), gradient.square().mean(0) + 1e-16)

    def update(self, gradient: Tensor) -> GradientScale:
        tau = self.tau + 1.0 - self.tau * self.mean.square() / self.squares
        mean = self.mean + (gradient.mean(0) - self.mean) / tau
        squares = self.squares + (gradient.square().mean(0) - self.squares) / tau
        return GradientScale(tau, mean, squares)

    def metric(self) -> DiagonalMetric:
        return DiagonalMetric(self.squares.sqrt())


def sghmc(
    target: Target,
    start: Tensor,
    metric: Metric,
    generator: torch.Generator,
    settings: SGHMCSettings = SGHMCSettings(),
    gibbs: Gibbs | None = None,
) -> ChainResult:
    """Sample a log density with momenta and without rejections.

    Args:
        target: The log density.
        start: ``S x P``.
        metric: ``M`` (of the adaptive form: not used).
        generator: Source of randomness: momenta, noise and batches.
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
    scale = GradientScale.begin(gradient)
    if settings.adaptive:
        metric = base = scale.metric()
    step, C = step_and_friction(target, z, metric, generator, settings)
    T = settings.temperature
    v, record = T**0.5 * metric.draw(z, generator), Record(gibbs)
    for number in range(1, total + 1):
        if settings.adaptive and number <= settings.warmup:
            scale = scale.update(gradient)
            metric = base = scale.metric()
            if number == settings.warmup:
                step, C = step_and_friction(target, z, metric, generator, settings)
        h = step[:, None]
        noise = _noise_variance(step, C, metric, settings)
        v = (1 - C) * v + h * metric.solve(gradient) + noise.sqrt() * metric.draw(z, generator)
        z = z + h * v
        keep = (number - settings.warmup) % settings.thinning == 0
        if keep and gibbs is not None and hyper is not None:
            hyper = gibbs.draw(z, hyper, generator)
            target, before, metric = gibbs.target(hyper), metric, gibbs.metric(base, hyper)
            if metric is not before:  # momenta belong to masses
                v = T**0.5 * metric.draw(z, generator)
        value, gradient = target.value_and_gradient(z, batches[number])
        if keep:
            check_stable(value, floor, number, step)
        if keep and number > settings.warmup:
            record.add(z, gradient, hyper, kinetic=(1 - 0.5 * C[:, 0]) * metric.square(v) / z.shape[1])
    return record.result(step)


def step_and_friction(
    target: Target, z: Tensor, metric: Metric, generator: torch.Generator, settings: Momentum
) -> tuple[Tensor, Tensor]:
    """Step sizes ``S`` and frictions per step ``S x 1``: those that were set, or automatic ones."""
    share = batch_share(target, settings.batch_size)
    if settings.learning_rate is not None:
        step = torch.full_like(z[:, 0], settings.learning_rate)
    else:
        step = settings.caution * largest_curvature(target, z, metric, generator).rsqrt()
    if settings.friction is not None:
        friction = torch.full_like(step, settings.friction)
    else:
        friction = (step / metric.typical**0.5).clamp(0.1 if share < 1.0 else 0.0, 1.0)
    if settings.learning_rate is None and share < 1.0:  # the noise of mini-batches: h^2 lambda N / |B| over 2 C
        step = torch.minimum(step, step / settings.caution * (0.2 * friction * share).sqrt())
    return step, friction.unsqueeze(-1)


def _noise_variance(step: Tensor, friction: Tensor, metric: Metric, settings: SGHMCSettings) -> Tensor:
    """Of what a step adds to the velocities, in units of ``M^{-1}``: ``S x 1`` or ``S x P``."""
    fresh, h = 2 * friction * settings.temperature, step.unsqueeze(-1)
    if settings.adaptive and isinstance(metric, DiagonalMetric):
        return (fresh - settings.gradient_noise * h.square() * metric.mass).clamp_min(0.0)
    return (fresh - settings.gradient_noise * (h * settings.temperature).square()).clamp_min(0.0)
