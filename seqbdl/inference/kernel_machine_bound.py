"""Deep kernel machines in mini-batches and for any likelihood: the Gram matrices follow the evidence lower bound.

As in :mod:`seqbdl.inference.kernel_machine`, with ``log P(Y | K_top)`` bounded on inducing inputs (see
:mod:`seqbdl.inference.inducing`). The divergences of the layers touch the inducing inputs only, so batches are unbiased.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from seqbdl.inference.gram import GramKernel, divergences, identity_roots, inducing_blocks, lower_logs, lower_root
from seqbdl.inference.inducing import BoundSettings, Parameters, train_bound
from seqbdl.inference.kernel_machine import Machine, clearly_better, log_hyper_prior
from seqbdl.likelihoods import Likelihood

MOST_HELD = 2000  # rows that choose nu, at most


def to_parameters(machine: Machine) -> Parameters:
    """Logarithms of scales and noise; ``T`` with the logarithm of its diagonal."""
    kernel = machine.kernel
    parts = {name: getattr(kernel.scales, name).log() for name in ("inputs", "weights", "biases")}
    return {**parts, "roots": lower_logs(kernel.roots), "noise": machine.noise.log()}


def to_kernel(parameters: Parameters, like: GramKernel) -> GramKernel:
    """The kernel of :func:`to_parameters`."""
    scales = replace(like.scales, **{name: parameters[name].exp() for name in ("inputs", "weights", "biases")})
    return replace(like, scales=scales, roots=lower_root(parameters["roots"]))


def train_machines_by_bound(
    start: Machine,
    X: Tensor,
    Y: Tensor,
    likelihood: Likelihood,
    noise: Tensor | None,
    nus: Sequence[float],
    generator: torch.Generator,
    settings: BoundSettings,
    share: float = 0.2,
) -> Machine:
    """The machine whose ``nu`` predicts held-out rows best, along falling ``nu``; one ``nu`` alone is taken as it is.

    Args:
        start: The infinitely wide network.
        X: ``n x d`` in the unit cube.
        Y: ``n x t``.
        likelihood: Of an observation.
        noise: Known variances, ``n x m`` or ``1 x m``; ``None``: learned where there is noise.
        nus: Falling.
        generator: Deals rows and batches.
        settings: Of the training, per ``nu``.
        share: Of the rows, held out.
    """
    n = X.shape[0]
    known = None if noise is None else noise.expand(n, -1)
    held = torch.randperm(n, generator=generator)[: min(MOST_HELD, int(share * n))].to(X.device)
    machines, densities = [], []
    machine = start
    for nu in nus:
        if not math.isinf(nu) and not machine.kernel.learned:
            roots = identity_roots(machine.kernel.scales.depth, machine.kernel.Z)
            machine = replace(machine, kernel=replace(machine.kernel, roots=roots))
        like = machine.kernel
        own = replace(settings, steps=0) if math.isinf(nu) else settings

        def blocks(parameters: Parameters, rows: Tensor, like: GramKernel = like) -> tuple[Tensor, Tensor, Tensor]:
            return inducing_blocks(to_kernel(parameters, like), rows)

        def penalty(parameters: Parameters, like: GramKernel = like, nu: float = nu) -> Tensor:
            kernel = to_kernel(parameters, like)
            free = parameters["noise"].exp() if noise is None and likelihood.has_noise else None
            return nu * divergences(kernel.roots).sum() - log_hyper_prior(kernel.scales, free)

        fit = train_bound(blocks, penalty, to_parameters(machine), X, Y, likelihood, known, held, generator, own)
        with torch.no_grad():
            kernel = to_kernel(fit.parameters, like)
        machine = Machine(kernel, fit.parameters["noise"].exp(), nu, fit.score)
        machines.append(machine)
        densities.append(fit.densities)
    if len(machines) == 1 or not held.numel():
        return machines[-1 if len(machines) == 1 else 0]
    density = torch.stack(densities)
    return machines[clearly_better(torch.where(density.isnan(), torch.full_like(density, -torch.inf), density))]
