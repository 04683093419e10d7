"""Step sizes by dual averaging, and when to re-estimate masses (Hoffman and Gelman 2014; Stan's windows)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

GAMMA, T0, KAPPA = 0.05, 10.0, 0.75


@dataclass(frozen=True)
class DualAveraging:
    """One step size per chain.

    Attributes:
        log_step: ``S``, what to use next while adapting.
        smooth: ``S``, what to use once adaptation has ended.
        error: ``S`` running mean of target minus acceptance.
        centre: ``S``, where log steps are drawn to.
        count: Updates so far.
    """

    log_step: Tensor
    smooth: Tensor
    error: Tensor
    centre: Tensor
    count: int = 0

    @classmethod
    def begin(cls, step: Tensor, multiple: float = 10.0) -> DualAveraging:
        """From first steps ``S``; ``multiple`` times them is what log steps are drawn to."""
        log_step = step.log()
        return cls(log_step, log_step.clone(), torch.zeros_like(log_step), log_step + math.log(multiple))

    def update(self, acceptance: Tensor, target: float, limit: float = math.inf) -> DualAveraging:
        """After a trajectory of every chain.

        Args:
            acceptance: ``S`` probabilities.
            target: What they should be.
            limit: Largest step.
        """
        count = self.count + 1
        weight = 1.0 / (count + T0)
        error = (1 - weight) * self.error + weight * (target - acceptance)
        log_step = self.centre - math.sqrt(count) / GAMMA * error
        if math.isfinite(limit):
            log_step = log_step.clamp_max(math.log(limit))
        share = count**-KAPPA
        return DualAveraging(log_step, share * log_step + (1 - share) * self.smooth, error, self.centre, count)


@dataclass(frozen=True)
class Moments:
    """Running means of every chain, and squares about them, for variances pooled over chains.

    Attributes:
        mean: ``S x P``.
        squares: ``P`` sums over chains of squared deviations from the chain's own mean. Chains in different modes then do
            not inflate what one mode is wide.
        count: States of each chain.
    """

    mean: Tensor
    squares: Tensor
    count: int = 0

    @classmethod
    def begin(cls, z: Tensor) -> Moments:
        return cls(torch.zeros_like(z), torch.zeros_like(z[0]))

    def update(self, z: Tensor) -> Moments:
        """With states ``S x P`` (Welford 1962)."""
        count = self.count + 1
        before = z - self.mean
        mean = self.mean + before / count
        return Moments(mean, self.squares + (before * (z - mean)).sum(0), count)

    def variance(self) -> Tensor:
        """``P``, drawn to 1e-3 as in Stan: ``n / (n + 5) var + 1e-3 * 5 / (n + 5)``."""
        n = self.mean.shape[0] * max(self.count - 1, 1)
        return (self.squares / n) * (n / (n + 5.0)) + 1e-3 * 5.0 / (n + 5.0)


def window_ends(warmup: int) -> list[int]:
    """After how many warm-up iterations masses are re-estimated: Stan's first 75 iterations and last 50 adapt step sizes
    only, windows of 25, 50, 100, ... between them; shares of 15 % and 10 % where the warm-up is too short for that.

    Returns:
        Increasing numbers; the first is where the first window begins, each other one where a window ends. Empty when the
        warm-up is shorter than 20.
    """
    if warmup < 20:
        return []
    first, last, size = (75, 50, 25) if warmup >= 150 else (int(0.15 * warmup), int(0.1 * warmup), 0)
    end = warmup - last
    ends = [first]
    while size and ends[-1] + 3 * size < end:  # a window, and room for one of twice its size
        ends.append(ends[-1] + size)
        size *= 2
    return [*ends, end]
