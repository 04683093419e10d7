"""Hamiltonian Monte Carlo for networks, all chains on one axis, preconditioned by the Gauss-Newton matrix.

Target: ``U(z) = -log p(D | z) - log p(z)`` for any likelihood and prior of whitened weights. Noise and prior scales may be
drawn by their exact conditionals between trajectories (:mod:`seqbdl.inference.gibbs`).

Every chain has the constant mass matrix ``M = I + J^T L J`` of the network linearized where the chain starts
(:mod:`seqbdl.inference.metrics`). The Hamiltonian is split (Shahbaba et al. 2014; Beskos et al. 2011) into the Gaussian
``1/2 (z - c)^T M (z - c) + 1/2 v^T M v``, whose exact flow is a rotation of ``(z - c, v)``, and the remainder, which kicks
``v``. So the step size is limited by what is not Gaussian alone, neither by the number of weights nor by the smallness of
the noise; on a linear network with a Gaussian prior every trajectory of a quarter turn is an independent exact draw.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from seqbdl.inference.chains import ChainResult, Record, Target, jittered_steps, metropolis
from seqbdl.inference.gibbs import Gibbs
from seqbdl.inference.metrics import GaussNewtonMetric
from seqbdl.inference.step_size import DualAveraging


@dataclass(frozen=True)
class HMCSettings:
    """Attributes:
    warmup: Trajectories that adapt the step size and are thrown away.
    samples: Trajectories after that.
    trajectory: Mean length, in radians of the Gaussian rotation; a quarter turn forgets the start fastest.
    target_acceptance: What dual averaging aims at (Hoffman and Gelman 2014).
    initial_step: First step size, radians.
    max_steps: Steps per trajectory at most.
    """

    warmup: int = 12
    samples: int = 8
    trajectory: float = 0.5 * math.pi
    target_acceptance: float = 0.8
    initial_step: float = 0.4
    max_steps: int = 24


def hmc(
    target: Target,
    start: Tensor,
    metric: GaussNewtonMetric,
    generator: torch.Generator,
    settings: HMCSettings = HMCSettings(),
    gibbs: Gibbs | None = None,
) -> ChainResult:
    """Sample the weights, and hyperparameters where ``gibbs`` says so.

    Args:
        target: Log density of whitened weights.
        start: ``S x P``.
        metric: Mass matrix and centre of the Gaussian part, of every chain.
        generator: Source of randomness.
        settings: Lengths and adaptation.
        gibbs: Hyperparameters to be drawn between trajectories; it then defines the target.
    """
    hyper = None if gibbs is None else gibbs.begin(start, generator)
    if gibbs is not None and hyper is not None:
        target = gibbs.target(hyper)

    def evaluate(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log density ``S``, its gradient, and the kick ``-(M^{-1} grad U - (z - c))``, ``S x P``."""
        value, gradient = target.value_and_gradient(z)
        return value, gradient, metric.solve(gradient) + (z - metric.centre)

    z = start
    value, gradient, kick = evaluate(z)
    steps = DualAveraging.begin(torch.full_like(value, settings.initial_step), multiple=2.0)
    record, acceptance, divergences = Record(gibbs), torch.zeros_like(value), 0
    for iteration in range(settings.warmup + settings.samples):
        warm = iteration < settings.warmup
        step = (steps.log_step if warm else steps.smooth).exp()
        v = metric.draw(z, generator)
        energy = 0.5 * metric.square(v) - value
        cos, sin, half = step.cos()[:, None], step.sin()[:, None], 0.5 * step[:, None]
        new_z, new_value, new_gradient, new_kick = z, value, gradient, kick
        for _ in range(jittered_steps(settings.trajectory, step, settings.max_steps, generator)):
            v = v + half * new_kick
            offset = new_z - metric.centre
            new_z, v = metric.centre + cos * offset + sin * v, cos * v - sin * offset
            new_value, new_gradient, new_kick = evaluate(new_z)
            v = v + half * new_kick
        accept, probability, diverged = metropolis(0.5 * metric.square(v) - new_value - energy, generator)
        move = accept[:, None]
        z, value = torch.where(move, new_z, z), torch.where(accept, new_value, value)
        gradient, kick = torch.where(move, new_gradient, gradient), torch.where(move, new_kick, kick)
        if warm:
            steps = steps.update(probability, settings.target_acceptance, limit=0.5 * math.pi)
        else:
            acceptance = acceptance + probability / settings.samples
            divergences += diverged
        if gibbs is not None and hyper is not None:
            hyper = gibbs.draw(z, hyper, generator)
            target = gibbs.target(hyper)
            value, gradient, kick = evaluate(z)
        if not warm:
            record.add(z, gradient, hyper)
    return record.result(steps.smooth.exp(), acceptance, divergences)
