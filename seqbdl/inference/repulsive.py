"""Repulsive ensembles: the gradient flow of the Kullback-Leibler divergence, by particles (D'Angelo and Fortuin 2021).

``phi_i = d log p(x_i | y) / d x_i - d log q(x_i) / d x_i`` with ``q`` the particles' own density, in the space of weights or of
function values at a batch of inputs. Sums over the data, so that repulsion and data are weighed as Bayes' rule says.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqbdl.inference.adam import AdamSettings, adam
from seqbdl.inference.function_space import FunctionPosterior, move_functions
from seqbdl.inference.log_joint import LogJoint
from seqbdl.inference.repulsion import median_kernel, minus_score, stein_multiple


def repulsive_direction(
    x: Tensor, score: Tensor, Ax: Tensor, estimator: str = "kde", dimension: Tensor | float | None = None
) -> Tensor:
    """``phi``, ``S x D``.

    Args:
        x: ``S x D`` particles.
        score: ``S x D``, of the target.
        Ax: ``S x D``, the particles times the metric.
        estimator: Of the particles' own score (see :func:`seqbdl.inference.repulsion.minus_score`).
        dimension: In which the target varies: scale that estimate to fulfil Stein's identity; ``None``: do not, so that few
            particles collapse in many dimensions.
    """
    repulsion = minus_score(median_kernel(x, Ax), estimator)
    return score + (repulsion if dimension is None else stein_multiple(repulsion, x, dimension) * repulsion)


def repulsive_functions(
    posterior: FunctionPosterior,
    z: Tensor,
    generator: torch.Generator,
    settings: AdamSettings,
    num_inputs: int = 32,
    estimator: str = "kde",
    normalize: bool = True,
) -> Tensor:
    """The ensemble in function space, ``S x P``; arguments as of :func:`move_functions` and :func:`repulsive_direction`;
    ``normalize``: scale the repulsion to fulfil Stein's identity."""

    def direction(x: Tensor, score: Tensor, Ax: Tensor, dimension: Tensor) -> Tensor:
        return repulsive_direction(x, score, Ax, estimator, dimension if normalize else None)

    return move_functions(posterior, z, direction, settings, num_inputs, generator)


def repulsive_weights(
    log_joint: LogJoint, z: Tensor, generator: torch.Generator, settings: AdamSettings, estimator: str = "kde"
) -> Tensor:
    """The ensemble in the space of whitened weights, ``S x P``. The kernel's metric is the identity, and the repulsion as it is:
    scaled, it would give directions about which the data say much too large a spread.

    Args:
        log_joint: Of weights and data.
        z: ``S x P`` where to begin.
        generator: Orders mini-batches.
        settings: Steps, rate, rows per step.
        estimator: As of :func:`repulsive_direction`.
    """

    def gradient(z: Tensor, rows: Tensor | None) -> Tensor:
        _, score = log_joint.value_and_gradient(z, rows)
        return -repulsive_direction(z, score, z, estimator)

    return adam(gradient, z, log_joint.num_rows, settings, generator)
