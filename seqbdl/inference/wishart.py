"""Wishart distributions of any rank, and the generalized singular Wishart posterior (Ober and Aitchison 2021).

``G = (L A)(L A)^T`` with ``L L^T = Sigma`` and ``A`` lower-trapezoidal, ``P x min(P, nu)``. Bartlett: ``A_jj^2 ~ Gamma((nu - j +
1) / 2, 1/2)`` and ``A_ij ~ N(0, 1)`` below make ``G ~ Wishart(Sigma, nu)``, of rank ``nu`` where ``nu < P``. With other
gammas and normals it is a posterior of the same support.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Bartlett:
    """Distribution of ``A``, rank ``r = min(P, nu)``.

    Attributes:
        shape: ``r``, of the gamma of each squared diagonal entry.
        rate: ``r``.
        mean: ``P x r``, of the entries below the diagonal; others are not read.
        sd: ``P x r``.
    """

    shape: Tensor
    rate: Tensor
    mean: Tensor
    sd: Tensor

    @property
    def rank(self) -> int:
        return self.shape.shape[-1]


def prior_bartlett(P: int, nu: float, like: Tensor) -> Bartlett:
    """That of ``Wishart(Sigma, nu)``; below ``P`` degrees of freedom ``nu`` is a whole number."""
    rank = min(P, int(nu))
    shape = 0.5 * (nu - torch.arange(rank).to(like))
    zeros = like.new_zeros(P, rank)
    return Bartlett(shape, torch.full_like(shape, 0.5), zeros, zeros + 1.0)


def draw(q: Bartlett, n: int, generator: torch.Generator) -> Tensor:
    """``A``, ``n x P x r``, differentiable in the parameters."""
    P = q.mean.shape[0]
    gamma = torch._standard_gamma(q.shape.expand(n, -1).cpu().contiguous(), generator).to(q.shape) / q.rate
    white = torch.randn(n, *q.mean.shape, generator=generator, dtype=torch.float64).to(q.mean)
    below = (q.mean + q.sd * white).tril(-1)
    diagonal = gamma.clamp_min(1e-30).sqrt()
    return below + torch.nn.functional.pad(torch.diag_embed(diagonal), (0, 0, 0, P - q.rank))


def log_posterior(A: Tensor, log_diagonal: Tensor, q: Bartlett, detach: bool = False) -> Tensor:
    """``log Q(G)`` of ``G = (L A)(L A)^T``, ``n``.

    Args:
        A: ``n x P x r``.
        log_diagonal: ``n x P``, logarithms of the diagonal of ``L``.
        q: Of ``A``.
        detach: Leave out the gradient through the parameters of ``q`` themselves, whose expectation is zero: less noise.
    """
    P, r = q.mean.shape
    shape, rate, mean, sd = (v.detach() if detach else v for v in (q.shape, q.rate, q.mean, q.sd))
    diagonal = A.diagonal(dim1=-2, dim2=-1)
    log_diag = diagonal.log()
    gammas = shape * rate.log() - torch.lgamma(shape) + 2 * (shape - 1) * log_diag - rate * diagonal.square()
    normals = -0.5 * ((A - mean) / sd).square() - sd.log() - 0.5 * math.log(2 * math.pi)
    below = torch.ones(P, r).to(A).tril(-1)
    j = torch.arange(1, r + 1).to(A)
    every = torch.arange(1, P + 1).to(A).clamp_max(r)
    jacobian = ((P - j) * log_diag).sum(-1) + ((P - j + 1) * log_diagonal[..., :r]).sum(-1) + (every * log_diagonal).sum(-1)
    # The density of A_jj^2 is taken as it is: the map from A_jj^2 costs a factor of A_jj less than that from A_jj.
    return gammas.sum(-1) + (normals * below).sum((-2, -1)) - jacobian


def log_wishart(image: Tensor, nu: float, factor: Tensor) -> Tensor:
    """``log Wishart(G; Sigma, nu)`` of ``G = F F^T``, ``n``; of the first columns of ``G`` where ``nu < P``.

    Args:
        image: ``F = L A``, ``n x P x r``, lower-trapezoidal.
        nu: Degrees of freedom; a whole number below ``P``.
        factor: ``chol Sigma``, ``n x P x P``.
    """
    P, r = image.shape[-2:]
    white = torch.linalg.solve_triangular(factor, image, upper=False)
    log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    log_det_G = 2 * image.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)  # of the leading r x r block
    constant = -0.5 * nu * P * math.log(2) - _log_multigamma(0.5 * nu, r)
    if r < P:
        constant = constant + 0.5 * nu * (nu - P) * math.log(math.pi)
    return constant - 0.5 * nu * log_det + 0.5 * (nu - P - 1) * log_det_G - 0.5 * white.square().sum((-2, -1))


def _log_multigamma(a: float, p: int) -> float:
    return 0.25 * p * (p - 1) * math.log(math.pi) + sum(math.lgamma(a - 0.5 * j) for j in range(p))
