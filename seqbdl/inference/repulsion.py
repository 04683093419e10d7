"""What interacting particles feel of one another: kernels with the median bandwidth, and estimates of their own density's score.

Particles are vectors ``x_i``, ``S x D``; kernels are ``k_ij = exp(-|x_i - x_j|^2_A / h)`` in a metric ``A``, a positive matrix
that enters by its products ``A x_i`` alone. The bandwidth is ``h = median |x_i - x_j|^2_A / log(S + 1)`` (Liu and Wang 2016), a
constant to all gradients. With ``A`` the precision of a Gaussian target this is the kernel in coordinates in which the target is
white (Wang et al. 2019, matrix-valued kernels).

Few particles in many dimensions know little about the score of their density: every estimate falls short, and the particles
collapse (Ba et al. 2022, for SVGD). One thing is known of the score of any density, however: ``E[-score(x) . (x - mean)] = D``
(Stein's identity; ``D`` is the dimension in which the density varies, which may be less than the number of coordinates).
:func:`stein_multiple` and :func:`svgd_multiple` are the factors on the repulsion that make it true.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from seqbdl.errors import UnknownNameError

ESTIMATORS = ("kde", "sge", "ssge")
_RIDGE = 0.01  # of the Stein gradient estimator
_SPECTRUM = 0.95  # share of the kernel's trace that the spectral estimator keeps


@dataclass(frozen=True)
class Kernel:
    """The kernel between all particles.

    Attributes:
        matrix: ``S x S``, ``k``.
        repulsion: ``S x D``, ``R_i = sum_j d k_ji / d x_j = 2 / h sum_j k_ij A (x_i - x_j)``: away from the others.
    """

    matrix: Tensor
    repulsion: Tensor


def median_kernel(x: Tensor, Ax: Tensor) -> Kernel:
    """The kernel of particles.

    Args:
        x: ``S x D``.
        Ax: ``S x D``, the particles times the metric.
    """
    products = x @ Ax.T
    norms = products.diagonal()
    squares = (norms[:, None] + norms - 2 * products).clamp_min(0.0)
    S = x.shape[0]
    pairs = torch.triu_indices(S, S, 1, device=x.device)
    h = squares[pairs[0], pairs[1]].median() / math.log(S + 1)
    h = h.clamp_min(torch.finfo(x.dtype).tiny)  # equal particles: no distances, no repulsion
    matrix = torch.exp(-squares / h)
    repulsion = (2 / h) * (matrix.sum(1, keepdim=True) * Ax - matrix @ Ax)
    return Kernel(matrix, repulsion)


def minus_score(kernel: Kernel, estimator: str) -> Tensor:
    """Minus the score of the particles' density at the particles, ``S x D``.

    Args:
        kernel: Of the particles.
        estimator: ``"kde"``: of the kernel density estimate (D'Angelo and Fortuin 2021). ``"sge"``: the Stein gradient estimator,
            ``(k + 0.01 I)^{-1} R`` (Li and Turner 2018). ``"ssge"``: its inverse by the leading eigenvectors (Shi et al. 2018).

    Raises:
        UnknownNameError: There is no estimator of that name.
    """
    k, R = kernel.matrix, kernel.repulsion
    if estimator == "kde":
        return R / k.sum(1, keepdim=True)
    if estimator == "sge":
        result: Tensor = torch.linalg.solve(k + _RIDGE * torch.eye(k.shape[0]).to(k), R)
        return result
    if estimator == "ssge":
        values, vectors = torch.linalg.eigh(k)
        keep = _leading(values)
        return vectors[:, keep] @ ((vectors[:, keep].T @ R) / values[keep, None])
    raise UnknownNameError("estimator", estimator, list(ESTIMATORS))


def spectral_score(points: Tensor, samples: Tensor) -> Tensor:
    """The score of the density that samples come from, at other points, by the spectral Stein gradient estimator (Shi et al.
    2018); ``T x D``.

    Args:
        points: ``T x D``.
        samples: ``M x D``.
    """
    squares = torch.cdist(samples, samples).square()
    M = samples.shape[0]
    pairs = torch.triu_indices(M, M, 1, device=samples.device)
    h = squares[pairs[0], pairs[1]].median()
    k = torch.exp(-squares / h)
    values, vectors = torch.linalg.eigh(k)
    keep = _leading(values)
    repulsion = (2 / h) * (k.sum(1, keepdim=True) * samples - k @ samples)
    coefficients = -(vectors[:, keep].T @ repulsion) / values[keep, None]  # J x D, of the eigenfunctions at unit norm
    features = torch.exp(-torch.cdist(points, samples).square() / h) @ (vectors[:, keep] / values[keep])
    return features @ coefficients


def _leading(values: Tensor) -> Tensor:
    """Indices of the largest eigenvalues (given ascending) that make up most of the trace."""
    total = values.clamp_min(0).flip(0).cumsum(0)
    count = int((total < _SPECTRUM * total[-1]).sum()) + 1
    return torch.arange(values.shape[0] - count, values.shape[0], device=values.device)


def stein_multiple(minus: Tensor, x: Tensor, dimension: Tensor | float) -> Tensor:
    """The factor with which ``minus`` has ``sum_i minus_i . (x_i - mean) = (S - 1) D``, what minus the score of the particles'
    density has on average.

    Args:
        minus: ``S x n``, a multiple of minus the score.
        x: ``S x n``.
        dimension: ``D``.
    """
    return _quotient((x.shape[0] - 1) * dimension, (minus * (x - x.mean(0))).sum())


def svgd_multiple(kernel: Kernel, x: Tensor, Ax: Tensor, dimension: Tensor | float) -> Tensor:
    """The factor on SVGD's repulsion at which it is in balance with the smoothed score of the Gaussian that has the metric's
    shape and the particles' spread.

    Args:
        kernel: Of the particles.
        x: ``S x n``.
        Ax: ``S x n``.
        dimension: ``D`` in which the Gaussian varies.
    """
    c, Ac = x - x.mean(0), Ax - Ax.mean(0)
    spread = (c * Ac).sum() / ((x.shape[0] - 1) * dimension)  # one when the particles are as wide as the metric says
    smoothed = ((kernel.matrix @ Ac) * c).sum()
    return _quotient(smoothed, spread * (kernel.repulsion * c).sum())


def _quotient(a: Tensor | float, b: Tensor) -> Tensor:
    """``a / b``, one where the particles coincide."""
    one = torch.ones_like(b)
    return torch.where(b > 0, a / torch.where(b > 0, b, one), one)
