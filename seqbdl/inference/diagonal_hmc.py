"""Hamiltonian Monte Carlo for any log density, many chains at once: leapfrog with a diagonal mass matrix.

In whitened weights and with the diagonal of the Gauss-Newton matrix as mass, trajectories of a quarter turn of the prior mix
the functions of networks with small noise within tens of samples; the Gauss-Newton matrix of where a chain starts
(:mod:`seqbdl.inference.hmc`) fits such a network only near there. Every chain has its own step size by dual averaging; masses are
estimated in Stan's growing windows from all chains together, about each chain's own mean; the number of leapfrog steps is
jittered and the same for all chains, so that every evaluation is one batched call. A trajectory that leaves the finite
numbers is rejected.

References: R. Neal, "MCMC using Hamiltonian dynamics", 2011; M. Hoffman and A. Gelman, "The No-U-Turn sampler", JMLR 2014.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from seqbdl.inference.chains import ChainResult, Record, Target, jittered_steps, largest_curvature, metropolis
from seqbdl.inference.gibbs import Gibbs
from seqbdl.inference.metrics import DiagonalMetric, Metric
from seqbdl.inference.step_size import DualAveraging, Moments, window_ends


@dataclass(frozen=True)
class DiagonalHMCSettings:
    """Attributes:
    warmup: Trajectories that adapt step sizes and masses and are thrown away; masses from 20 on.
    samples: Trajectories after that.
    trajectory: Mean length in radians, of the directions that only a prior of unit scale determines (Izmailov et al. 2021)
        or, once masses are adapted, of all: a quarter turn forgets the start fastest.
    target_acceptance: What dual averaging aims at.
    initial_step: First step size; ``None``: half of what is stable for the largest curvature at the start, which high
        dimensions accept about nine times in ten.
    max_steps: Leapfrog steps per trajectory at most.
    adapt_mass: Whether to estimate masses from the chains; they start from the metric that is handed in.
    """

    warmup: int = 100
    samples: int = 50
    trajectory: float = 0.5 * math.pi
    target_acceptance: float = 0.8
    initial_step: float | None = None
    max_steps: int = 100
    adapt_mass: bool = True


def diagonal_hmc(
    target: Target,
    start: Tensor,
    generator: torch.Generator,
    settings: DiagonalHMCSettings = DiagonalHMCSettings(),
    gibbs: Gibbs | None = None,
    metric: Metric | None = None,
) -> ChainResult:
    """Sample any log density.

    Args:
        target: The log density.
        start: ``S x P``.
        generator: Source of randomness.
        settings: Lengths and adaptation.
        gibbs: Hyperparameters to be drawn between trajectories; it then defines the target.
        metric: First mass matrix; the identity by default.
    """
    hyper = None if gibbs is None else gibbs.begin(start, generator)
    base = DiagonalMetric(torch.ones_like(start[0]), additive=True) if metric is None else metric
    metric = base
    if gibbs is not None and hyper is not None:
        target, metric = gibbs.target(hyper), gibbs.metric(base, hyper)
    z = start
    value, gradient = target.value_and_gradient(z)
    if settings.initial_step is None:
        first = largest_curvature(target, z, metric, generator).clamp_min(1e-12).rsqrt()
    else:
        first = torch.full_like(value, settings.initial_step)
    steps = DualAveraging.begin(first, multiple=1.0)
    windows = window_ends(settings.warmup) if settings.adapt_mass else []
    moments, adapted = Moments.begin(z), False
    record, acceptance, divergences = Record(gibbs), torch.zeros_like(value), 0
    for iteration in range(settings.warmup + settings.samples):
        warm = iteration < settings.warmup
        step = (steps.log_step if warm else steps.smooth).exp()
        length = settings.trajectory * (1.0 if adapted else math.sqrt(metric.typical))
        v = metric.draw(z, generator)
        energy = 0.5 * metric.square(v) - value
        full, half = step[:, None], 0.5 * step[:, None]
        new_z, new_value, new_gradient = z, value, gradient
        for _ in range(jittered_steps(length, step, settings.max_steps, generator)):
            v = v + half * metric.solve(new_gradient)
            new_z = new_z + full * v
            new_value, new_gradient = target.value_and_gradient(new_z)
            v = v + half * metric.solve(new_gradient)
        accept, probability, diverged = metropolis(0.5 * metric.square(v) - new_value - energy, generator)
        move = accept[:, None]
        z, value, gradient = (
            torch.where(move, new_z, z),
            torch.where(accept, new_value, value),
            torch.where(move, new_gradient, gradient),
        )
        if warm:
            steps = steps.update(probability, settings.target_acceptance)
            if windows and windows[0] <= iteration < windows[-1]:
                moments = moments.update(z)
                if iteration + 1 in windows[1:]:
                    metric = base = DiagonalMetric(1.0 / moments.variance())
                    moments, adapted = Moments.begin(z), True
                    steps = DualAveraging.begin(steps.smooth.exp())
        else:
            acceptance = acceptance + probability / settings.samples
            divergences += diverged
        if gibbs is not None and hyper is not None:
            hyper = gibbs.draw(z, hyper, generator)
            target, metric = gibbs.target(hyper), gibbs.metric(base, hyper)
            value, gradient = target.value_and_gradient(z)
        if not warm:
            record.add(z, gradient, hyper)
    return record.result(steps.smooth.exp(), acceptance, divergences)
