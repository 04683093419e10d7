"""Elliptical slice sampling (Murray, Adams and MacKay 2010): no step size, no gradient, many chains at once.

Target: ``L(z) N(z; mean, S S^T)``. From ``z`` a chain draws ``v ~ N(mean, S S^T)``, a level ``log L(z) + log u`` and an angle,
and looks for a point above the level on the ellipse ``mean + (z - mean) cos t + (v - mean) sin t``; an angle that fails shrinks
the bracket around ``t = 0``, where the chain stands and which is always accepted in the end. Every chain has its own bracket;
chains that have found their point wait while the others are evaluated together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from seqbdl.errors import InvalidDataError, InvalidOptionError, ShapeError

_MAX_SHRINKS = 200
"""A bracket that shrank so often is narrower than rounding: the log-likelihood answers differently at the same point."""


@dataclass(frozen=True)
class SliceSettings:
    """Attributes:
    warmup: Transitions thrown away.
    samples: Draws kept per chain.
    thin: Transitions per draw kept.
    """

    warmup: int = 50
    samples: int = 50
    thin: int = 1

    def __post_init__(self) -> None:
        if self.warmup < 0 or self.samples < 1 or self.thin < 1:
            raise InvalidOptionError(
                f"warmup={self.warmup} must be at least 0, samples={self.samples} and thin={self.thin} at least 1"
            )


@dataclass(frozen=True)
class SliceResult:
    """Attributes:
    draws: ``samples x C x r``, the layout that convergence diagnostics take.
    log_likelihood: ``samples x C``.
    evaluations: Of the log-likelihood, summed over chains.
    """

    draws: Tensor
    log_likelihood: Tensor
    evaluations: int


def elliptical_slice(
    log_likelihood: Callable[[Tensor, Tensor], Tensor],
    start: Tensor,
    mean: Tensor,
    root: Tensor,
    generator: torch.Generator,
    settings: SliceSettings = SliceSettings(),
) -> SliceResult:
    """Sample ``L(z) N(z; mean, S S^T)``.

    Args:
        log_likelihood: Of points ``C' x r`` and the chains ``C'`` (indices) that stand there, ``C'``, for targets that differ
            from chain to chain; may be ``-inf``, and NaN counts as that.
        start: ``C x r``, one row per chain, each with a finite log-likelihood.
        mean: ``r``, of the prior.
        root: ``r``, the prior's standard deviations, or ``r x r``, a square root of its covariance.
        generator: Source of randomness.
        settings: How many draws.

    Raises:
        ShapeError: ``mean`` or ``root`` does not fit ``start``.
        InvalidDataError: A chain starts where the log-likelihood is not finite, or it changes from call to call.
    """
    C, r = start.shape
    if mean.shape != (r,) or root.shape not in ((r,), (r, r)):
        raise ShapeError(
            f"start is chains x {r}; mean {tuple(mean.shape)} must be {(r,)} and root {tuple(root.shape)} {(r,)} or {(r, r)}"
        )
    z, level = start, _finite(log_likelihood(start, torch.arange(C, device=start.device)))
    if not bool(level.isfinite().all()):
        chain = int((~level.isfinite()).nonzero()[0, 0])
        raise InvalidDataError(f"start in row {chain} has log-likelihood {float(level[chain])}; start where it is finite")
    evaluations = C
    draws, values = [], []
    for step in range(settings.warmup + settings.samples * settings.thin):
        z, level, used = _transition(log_likelihood, z, level, mean, root, generator)
        evaluations += used
        if step >= settings.warmup and (step - settings.warmup + 1) % settings.thin == 0:
            draws.append(z)
            values.append(level)
    return SliceResult(torch.stack(draws), torch.stack(values), evaluations)


def _transition(
    log_likelihood: Callable[[Tensor, Tensor], Tensor],
    z: Tensor,
    level: Tensor,
    mean: Tensor,
    root: Tensor,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, int]:
    """One step of every chain: the new points, their log-likelihoods, and how many evaluations it took."""
    C, r = z.shape

    def uniform(n: int) -> Tensor:
        return torch.rand(n, generator=generator, dtype=torch.float64).to(z)

    white = torch.randn(C, r, generator=generator, dtype=torch.float64).to(z)
    across = white * root if root.dim() == 1 else white @ root.T  # C x r, around the mean
    along = z - mean
    height = level + uniform(C).log()
    angle = 2 * math.pi * uniform(C)
    low, high = angle - 2 * math.pi, angle.clone()
    new_z, new_level = z.clone(), level.clone()
    open_chains = torch.arange(C, device=z.device)
    evaluations = 0
    for _ in range(_MAX_SHRINKS):
        t = angle[open_chains].unsqueeze(-1)
        proposal = mean + along[open_chains] * t.cos() + across[open_chains] * t.sin()
        found = _finite(log_likelihood(proposal, open_chains))
        evaluations += open_chains.shape[0]
        above = found > height[open_chains]
        new_z[open_chains[above]], new_level[open_chains[above]] = proposal[above], found[above]
        open_chains = open_chains[~above]
        if open_chains.shape[0] == 0:
            return new_z, new_level, evaluations
        failed = angle[open_chains]
        low[open_chains] = torch.where(failed < 0, failed, low[open_chains])
        high[open_chains] = torch.where(failed < 0, high[open_chains], failed)
        width = high[open_chains] - low[open_chains]
        angle[open_chains] = low[open_chains] + width * uniform(open_chains.shape[0])
    raise InvalidDataError(
        f"log_likelihood changes from call to call: after {_MAX_SHRINKS} shrinks chain {int(open_chains[0])} has found no point "
        "as good as its own; it must be a deterministic function"
    )


def _finite(log_likelihood: Tensor) -> Tensor:
    """NaN counts as impossible."""
    return torch.where(log_likelihood.isnan(), torch.full_like(log_likelihood, -torch.inf), log_likelihood)
