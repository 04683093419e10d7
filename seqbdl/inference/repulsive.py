"""Repulsive ensembles: the gradient flow of the Kullback-Leibler divergence, by particles (D'Angelo and Fortuin 2021).

``phi_i = d log p(x_i | y) / d x_i - d log q(x_i) / d x_i`` with ``q`` the particles' own density, in the space of weights or of
function values at a batch of inputs. Sums over the data, so that repulsion and data are weighed as Bayes' rule says.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from seqbdl.inference.adam import AdamSettings, adam
from seqbdl.inference.function_space import FunctionPosterior, move_functions
from seqbdl.inference.log_joint import LogJoint
from seqbdl.inference.repulsion import median_kernel, minus_score, stein_multiple


def repulsive_direction(x: Tensor, score: Tensor, Ax: Tensor, estimator: str = "kde", normalize: bool = True) -> Tensor:
    """``phi``, ``S x D``.

    Args:
        x: ``S x D`` particles.
        score: ``S x D``, of the target.
        Ax: ``S x D``, the particles times the metric.
        estimator: Of the particles' own score (see :func:`seqbdl.inference.repulsion.minus_score`).
        normalize: Scale that estimate to fulfil Stein's identity; otherwise few particles collapse in many dimensions.
    """
    repulsion = minus_score(median_kernel(x, Ax), estimator)
    return score + (stein_multiple(repulsion, x) * repulsion if normalize else repulsion)


def repulsive_functions(
    posterior: FunctionPosterior,
    z: Tensor,
    generator: torch.Generator,
    settings: AdamSettings,
    num_inputs: int = 32,
    estimator: str = "kde",
    normalize: bool = True,
) -> Tensor:
    """The ensemble in function space, ``S x P``; arguments as of :func:`move_functions` and :func:`repulsive_direction`."""

    def direction(x: Tensor, score: Tensor, Ax: Tensor) -> Tensor:
        return repulsive_direction(x, score, Ax, estimator, normalize)

    return move_functions(posterior, z, direction, settings, num_inputs, generator)


def repulsive_weights(
    log_joint: LogJoint,
    z: Tensor,
    generator: torch.Generator,
    settings: AdamSettings,
    estimator: str = "kde",
    normalize: bool = False,
) -> Tensor:
    """The ensemble in the space of whitened weights, ``S x P``.

    Args:
        log_joint: Of weights and data.
        z: ``S x P`` where to begin.
        generator: Orders mini-batches.
        settings: Steps, rate, rows per step.
        estimator: As of :func:`repulsive_direction`.
        normalize: As there; the metric is the identity, so that the spread of directions about which the data say much would
            come out too large.
    """
    return adam(_ascent(log_joint, estimator, normalize), z, log_joint.num_rows, settings, generator)


def _ascent(log_joint: LogJoint, estimator: str, normalize: bool) -> Callable[[Tensor, Tensor | None], Tensor]:
    def gradient(z: Tensor, rows: Tensor | None) -> Tensor:
        _, score = log_joint.value_and_gradient(z, rows)
        return -repulsive_direction(z, score, z, estimator, normalize)

    return gradient
