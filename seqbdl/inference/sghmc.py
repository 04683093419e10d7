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

import torch
from torch import Tensor

from seqbdl.inference.chains import ChainResult, Record, Target, batch_share, check_finite, largest_curvature
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
    friction: ``C``, the share of the velocity that a step loses.
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
    friction: float = 0.05
    caution: float = 0.3
    batch_size: int | None = None
    temperature: float = 1.0
    gradient_noise: float = 0.0
    adaptive: bool = False

    def first_step(self, target: Target, z: Tensor, metric: Metric, generator: torch.Generator) -> Tensor:
        """The step size of every chain, ``S``."""
        if self.learning_rate is not None:
            return torch.full_like(z[:, 0], self.learning_rate)
        share = batch_share(target, self.batch_size)
        limit = self.caution if share == 1.0 else min(self.caution, (0.2 * self.friction * share) ** 0.5)
        return limit * largest_curvature(target, z, metric, generator).rsqrt()

    def noise(self, step: Tensor, metric: Metric, z: Tensor, generator: torch.Generator) -> Tensor:
        """What a step adds to the velocities, ``S x P``."""
        fresh = 2 * self.friction * self.temperature
        white = metric.draw(z, generator)
        if self.adaptive and isinstance(metric, DiagonalMetric):
            lost = self.gradient_noise * step.square()[:, None] * metric.mass  # over M^{-1}, the variance of the draw
            return (fresh - lost).clamp_min(0.0).sqrt() * white
        return (fresh - self.gradient_noise * (step * self.temperature).square()).clamp_min(0.0).sqrt()[:, None] * white


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
        DivergedError: A chain has left the finite numbers: the step size was too large.
    """
    hyper = None if gibbs is None else gibbs.begin(start)
    if gibbs is not None and hyper is not None:
        target = gibbs.target(hyper)
    total = settings.warmup + settings.samples * settings.thinning
    batches = minibatches(target.num_rows, settings.batch_size, total + 1, generator)
    z, gradient = start, target.value_and_gradient(start, batches[0])[1]
    scale = GradientScale.begin(gradient)
    if settings.adaptive:
        metric = scale.metric()
    step = settings.first_step(target, z, metric, generator)
    T, C = settings.temperature, settings.friction
    v, record = T**0.5 * metric.draw(z, generator), Record(gibbs)
    for number in range(1, total + 1):
        if settings.adaptive and number <= settings.warmup:
            scale = scale.update(gradient)
            metric = scale.metric()
            if number == settings.warmup:
                step = settings.first_step(target, z, metric, generator)
        h = step[:, None]
        v = (1 - C) * v + h * metric.solve(gradient) + settings.noise(step, metric, z, generator)
        z = z + h * v
        keep = (number - settings.warmup) % settings.thinning == 0
        if keep:
            check_finite(z, number, step)
            if gibbs is not None and hyper is not None:
                hyper = gibbs.draw(z, hyper, generator)
                target = gibbs.target(hyper)
        gradient = target.value_and_gradient(z, batches[number])[1]
        if keep and number > settings.warmup:
            record.add(z, gradient, hyper, kinetic=(1 - 0.5 * C) * metric.square(v) / z.shape[1])
    return record.result(step)
