"""Stein variational gradient descent (Liu and Wang 2016): in weights, in the last layer, or in function space.

``phi_i = 1/S sum_j [k(x_j, x_i) d log p(x_j | y) / d x_j + d k(x_j, x_i) / d x_j]``.

With fewer particles than dimensions their spread collapses: of a standard normal in 50 dimensions 20 particles keep a twentieth
of the variance (Ba et al. 2022). In the space of weights that is a matter of course; the last layer has fewer, and in function
space a metric and a factor on the repulsion keep the spread (see :mod:`seqbdl.inference.repulsion`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqbdl.inference.adam import AdamSettings, adam
from seqbdl.inference.function_space import FunctionPosterior, move_functions
from seqbdl.inference.log_joint import LogJoint
from seqbdl.inference.repulsion import median_kernel, svgd_multiple


def svgd_direction(x: Tensor, score: Tensor, Ax: Tensor, dimension: Tensor | float | None = None) -> Tensor:
    """``phi``, ``S x D``.

    Args:
        x: ``S x D`` particles.
        score: ``S x D``, of the target.
        Ax: ``S x D``, the particles times the metric of the kernel.
        dimension: In which the target varies: scale the repulsion so that particles of the target's shape and spread stay as wide
            as they are; ``None``: do not.
    """
    kernel = median_kernel(x, Ax)
    repulsion = kernel.repulsion if dimension is None else svgd_multiple(kernel, x, Ax, dimension) * kernel.repulsion
    return (kernel.matrix @ score + repulsion) / x.shape[0]


def svgd_functions(
    posterior: FunctionPosterior,
    z: Tensor,
    generator: torch.Generator,
    settings: AdamSettings,
    num_inputs: int = 32,
    normalize: bool = True,
) -> Tensor:
    """Particles in function space, ``S x P``; arguments as of :func:`move_functions` and :func:`svgd_direction`."""

    def direction(x: Tensor, score: Tensor, Ax: Tensor, dimension: Tensor) -> Tensor:
        return svgd_direction(x, score, Ax, dimension if normalize else None)

    return move_functions(posterior, z, direction, settings, num_inputs, generator)


def svgd_weights(
    log_joint: LogJoint,
    z: Tensor,
    generator: torch.Generator,
    settings: AdamSettings,
    index: Tensor | None = None,
    precision: Tensor | None = None,
    normalize: bool = False,
) -> Tensor:
    """Particles in the space of whitened weights, or of some of them, ``S x P``.

    Args:
        log_joint: Of weights and data.
        z: ``S x P`` where to begin.
        generator: Orders mini-batches.
        settings: Steps, rate, rows per step.
        index: ``k`` weights that move; ``None``: all.
        precision: ``k x k`` metric of the kernel; ``None``: the identity.
        normalize: Scale the repulsion, see :func:`svgd_direction`; for metrics that are the target's precision.
    """

    def gradient(z: Tensor, rows: Tensor | None) -> Tensor:
        _, score = log_joint.value_and_gradient(z, rows)
        x, s = (z, score) if index is None else (z[:, index], score[:, index])
        phi = svgd_direction(x, s, x if precision is None else x @ precision, x.shape[1] if normalize else None)
        return -phi if index is None else torch.zeros_like(z).index_copy(1, index, -phi)

    return adam(gradient, z, log_joint.num_rows, settings, generator)
