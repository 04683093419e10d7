"""What the samplers share: the density they see, what they return, and how fast they may go."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from seqbdl.errors import DivergedError
from seqbdl.inference.gibbs import Gibbs, Hyper
from seqbdl.inference.metrics import Metric, normals

DIVERGENCE = 1000.0
"""Energy error from which on a trajectory counts as divergent."""


class Target(Protocol):
    """A log density of many chains at once, such as a :class:`seqbdl.inference.log_joint.LogJoint`."""

    @property
    def num_rows(self) -> int:
        """Rows that mini-batches index."""

    def value_and_gradient(self, z: Tensor, index: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``S`` and ``S x P`` of ``z: S x P``; unbiased estimates on the rows ``index``."""


@dataclass(frozen=True)
class ChainResult:
    """What a sampler returns.

    Attributes:
        z: ``samples x S x P`` states after warm-up.
        noise: ``samples x S x m`` multiples of the noise variances, where they were sampled; else ``None``.
        precision: ``samples x S x G`` prior precisions of the layers, where they were sampled; else ``None``.
        step_size: ``S``.
        acceptance: ``S`` mean acceptance probabilities after warm-up; ``None`` where nothing is ever rejected.
        divergences: Trajectories after warm-up, over all chains, whose energy error was above 1000 or not finite.
        kinetic: ``samples x S`` instantaneous kinetic temperatures ``v^T M v / P`` (times ``1 - C / 2`` where a step of friction
        ``C`` alone would make them too large by that); ``None`` where momenta are not simulated on.
        configurational: ``samples x S`` instantaneous configurational temperatures ``z . grad U / P``.
    """

    z: Tensor
    noise: Tensor | None
    precision: Tensor | None
    step_size: Tensor
    acceptance: Tensor | None
    divergences: int
    kinetic: Tensor | None
    configurational: Tensor


@dataclass
class Record:
    """States of all chains after warm-up, as they come; :meth:`result` stacks them."""

    gibbs: Gibbs | None
    z: list[Tensor] = field(default_factory=list)
    configurational: list[Tensor] = field(default_factory=list)
    kinetic: list[Tensor] = field(default_factory=list)
    hyper: list[Hyper] = field(default_factory=list)

    def add(self, z: Tensor, gradient: Tensor, hyper: Hyper | None, kinetic: Tensor | None = None) -> None:
        """States ``S x P``, gradients of ``log p`` there, hyperparameters, instantaneous kinetic temperatures ``S``."""
        self.z.append(z)
        self.configurational.append(configurational(z, gradient))
        if hyper is not None:
            self.hyper.append(hyper)
        if kinetic is not None:
            self.kinetic.append(kinetic)

    def result(self, step_size: Tensor, acceptance: Tensor | None = None, divergences: int = 0) -> ChainResult:
        """Everything after the last sample."""
        gibbs = self.gibbs
        return ChainResult(
            z=torch.stack(self.z),
            noise=torch.stack([h.noise for h in self.hyper]) if gibbs is not None and gibbs.noise is not None else None,
            precision=torch.stack([h.precision for h in self.hyper])
            if gibbs is not None and gibbs.precision is not None
            else None,
            step_size=step_size,
            acceptance=acceptance,
            divergences=divergences,
            kinetic=torch.stack(self.kinetic) if self.kinetic else None,
            configurational=torch.stack(self.configurational),
        )


def metropolis(error: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, int]:
    """Accept or reject by the energy errors of trajectories, ``S``; errors that are not finite are rejected.

    Returns:
        Which chains move, their acceptance probabilities, and how many trajectories diverged.
    """
    error = torch.where(error.isfinite(), error, torch.full_like(error, torch.inf))
    probability = (-error).clamp_max(0.0).exp()
    uniform = torch.rand(error.shape, generator=generator, dtype=torch.float64).to(error)
    return uniform < probability, probability, int((error > DIVERGENCE).sum())


def jittered_steps(trajectory: float, step: Tensor, most: int, generator: torch.Generator) -> int:
    """Steps of the next trajectory, the same for all chains: a uniform share in [0.6, 1] of ``trajectory`` over the median of
    the step sizes ``S``. Without the jitter trajectories may close on themselves (Neal 2011)."""
    share = 0.6 + 0.4 * float(torch.rand(1, generator=generator, dtype=torch.float64))
    return max(1, min(most, round(share * trajectory / float(step.median()))))


def lowest(value: Tensor, z: Tensor, target: Target) -> Tensor:
    """Log densities, ``S``, that chains ``z: S x P`` which began at ``value`` do not fall to unless they explode: far below
    what weights and rows at temperature one could lose."""
    return value - DIVERGENCE - 10.0 * (z.shape[1] + target.num_rows)


def check_stable(value: Tensor, floor: Tensor, number: int, step: Tensor) -> None:
    """Refuse chains that have exploded: nothing rejects what an unstable step does.

    Args:
        value: ``S`` log densities.
        floor: ``S``, see :func:`lowest`.
        number: Steps so far.
        step: ``S``.

    Raises:
        DivergedError: Names the first such chain.
    """
    lost = ~(value > floor)
    if bool(lost.any()):
        chain = int(lost.nonzero()[0, 0])
        raise DivergedError(
            f"chain {chain} exploded within {number} steps of learning_rate={float(step[chain]):.3g}; set a smaller one"
        )


def batch_share(target: Target, batch_size: int | None) -> float:
    """``|B| / N``, the share of the rows in a mini-batch."""
    return 1.0 if batch_size is None else min(1.0, batch_size / max(1, target.num_rows))


def configurational(z: Tensor, gradient: Tensor) -> Tensor:
    """``z . grad U / P`` from the gradient of ``log p``, ``S``: its mean is the temperature (Wenzel et al. 2020)."""
    return -(z * gradient).mean(-1)


def largest_curvature(
    target: Target, z: Tensor, metric: Metric, generator: torch.Generator, iterations: int = 8, max_rows: int = 1000
) -> Tensor:
    """The largest eigenvalue of ``M^{-1} H`` for every chain, ``S``, with ``H`` the Hessian of ``-log p`` at ``z``.

    Power iteration on differences of gradients, so any target will do; an underestimate by some percent.

    Args:
        target: What is sampled.
        z: ``S x P``, near where the chains will be.
        metric: ``M``.
        generator: Source of randomness.
        iterations: Of the power method.
        max_rows: Rows to look at, a random sample where there are more.
    """
    index = None
    if target.num_rows > max_rows:
        index = torch.randperm(target.num_rows, generator=generator)[:max_rows].to(z.device)
    v = normals(z.shape, generator, z)
    value = torch.ones_like(z[:, 0])
    for _ in range(iterations):
        v = v / metric.square(v).sqrt().unsqueeze(-1)
        reach = 1e-4 * (1 + z.norm(dim=-1, keepdim=True)) / v.norm(dim=-1, keepdim=True)
        ahead, behind = target.value_and_gradient(z + reach * v, index)[1], target.value_and_gradient(z - reach * v, index)[1]
        v = metric.solve((behind - ahead) / (2 * reach))
        value = metric.square(v).sqrt()
    return value
