"""Gaussian processes conditioned on data: exact while the data are few, then sums over a basis that stays.

Every posterior here has the form::

    mean(x) = m(x) + k(x, Z) a,        cov(x, x') = k(x, x') - k(x, Z) W^T W k(Z, x')

Exact (Z = the data, D the noise variances): ``W = chol(K + D)^{-1}``, ``a = (K + D)^{-1} r``.
Sparse (Z = a basis, ``Phi = K_zx D^{-1} K_xz``, ``b = K_zx D^{-1} r`` summed over the data, the collapsed posterior of
Titsias 2009): ``a = (K + Phi)^{-1} b`` and ``W^T W = K^{-1} - (K + Phi)^{-1}``. The sums absorb new rows in time that
does not depend on how many were absorbed before, and in any order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from seqbdl.posteriors.joint_gaussian import safe_cholesky


@dataclass(frozen=True)
class KernelConditioning:
    """The data's part of the posterior; ``g`` groups of independent outputs, ``r`` rows each.

    Attributes:
        weights: ``a``, ``g x r``.
        whitener: ``W``, ``g x k x r``.
        residual: ``y - m(Z)``, ``g x r`` (exact form; zeros once sparse).
        noise: ``D``, ``g x r`` (exact form; ones once sparse).
        phi: ``g x r x r`` in the sparse form, else ``None``.
        b: ``g x r`` in the sparse form, else ``None``.
        log_evidence: ``g``: log density of the data so far under the prior; of the conditional predictions, once
            sparse.
    """

    weights: Tensor
    whitener: Tensor
    residual: Tensor
    noise: Tensor
    phi: Tensor | None
    b: Tensor | None
    log_evidence: Tensor

    @property
    def num_rows(self) -> int:
        return self.weights.shape[-1]

    def tree(self) -> dict[str, Tensor | None]:
        """For saving."""
        return dict(self.__dict__)


def empty(groups: int, like: Tensor) -> KernelConditioning:
    """The prior: no rows."""
    vector = like.new_zeros(groups, 0)
    return KernelConditioning(vector, like.new_zeros(groups, 0, 0), vector, vector, None, None, like.new_zeros(groups))


def condition_exact(K: Tensor, residual: Tensor, noise: Tensor) -> KernelConditioning:
    """Condition on all rows at once, O(r^3).

    Args:
        K: ``g x r x r`` prior covariance of the rows.
        residual: ``g x r`` observed minus prior mean.
        noise: ``g x r`` noise variances.
    """
    factor = safe_cholesky(K + torch.diag_embed(noise))
    eye = torch.eye(K.shape[-1], dtype=K.dtype, device=K.device).expand_as(K)
    whitener = torch.linalg.solve_triangular(factor, eye, upper=False)
    white = (whitener @ residual.unsqueeze(-1)).squeeze(-1)
    weights = (whitener.transpose(-1, -2) @ white.unsqueeze(-1)).squeeze(-1)
    log_evidence = (
        -0.5 * white.square().sum(-1)
        - factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        - 0.5 * K.shape[-1] * math.log(2 * math.pi)
    )
    return KernelConditioning(weights, whitener, residual, noise, None, None, log_evidence)


def append_exact(
    state: KernelConditioning, K_new: Tensor, K_cross: Tensor, residual: Tensor, noise: Tensor
) -> KernelConditioning:
    """Add rows to an exact state by the block Cholesky factor, O(r^2 k).

    Args:
        state: The state of ``r`` rows.
        K_new: ``g x k x k`` prior covariance of the new rows.
        K_cross: ``g x k x r`` prior covariance of new and old rows.
        residual: ``g x k``.
        noise: ``g x k``.
    """
    projected = K_cross @ state.whitener.transpose(-1, -2)  # g x k x r
    corner = safe_cholesky(K_new + torch.diag_embed(noise) - projected @ projected.transpose(-1, -2))
    eye = torch.eye(corner.shape[-1], dtype=corner.dtype, device=corner.device).expand_as(corner)
    inverse = torch.linalg.solve_triangular(corner, eye, upper=False)
    lower = -inverse @ projected @ state.whitener
    top = torch.cat([state.whitener, torch.zeros_like(lower).transpose(-1, -2)], -1)
    whitener = torch.cat([top, torch.cat([lower, inverse], -1)], -2)
    all_residual = torch.cat([state.residual, residual], -1)
    white = (whitener @ all_residual.unsqueeze(-1)).squeeze(-1)
    weights = (whitener.transpose(-1, -2) @ white.unsqueeze(-1)).squeeze(-1)
    new = white[..., state.num_rows :]
    log_evidence = state.log_evidence + (
        -0.5 * new.square().sum(-1)
        - corner.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        - 0.5 * corner.shape[-1] * math.log(2 * math.pi)
    )
    all_noise = torch.cat([state.noise, noise], -1)
    return KernelConditioning(weights, whitener, all_residual, all_noise, None, None, log_evidence)


def absorb_sparse(
    state: KernelConditioning, K_basis: Tensor, K_new: Tensor, K_cross: Tensor, residual: Tensor, noise: Tensor
) -> KernelConditioning:
    """Add rows while the basis stays; exact in the sums, Nystroem error for what the basis cannot express.

    Args:
        state: The state on a basis of ``r`` rows; an exact state is first rewritten as sums.
        K_basis: ``g x r x r`` prior covariance of the basis.
        K_new: ``g x k x k`` of the new rows.
        K_cross: ``g x k x r`` of new rows and basis.
        residual: ``g x k``.
        noise: ``g x k``.
    """
    if state.phi is None or state.b is None:
        scaled = K_basis / state.noise.unsqueeze(-2)
        phi, b = scaled @ K_basis, (scaled @ state.residual.unsqueeze(-1)).squeeze(-1)
    else:
        phi, b = state.phi, state.b
    predictive = K_new - K_cross @ (state.whitener.transpose(-1, -2) @ (state.whitener @ K_cross.transpose(-1, -2)))
    surprise = residual - (K_cross @ state.weights.unsqueeze(-1)).squeeze(-1)
    corner = safe_cholesky(predictive + torch.diag_embed(noise))
    white = torch.linalg.solve_triangular(corner, surprise.unsqueeze(-1), upper=False).squeeze(-1)
    log_evidence = state.log_evidence + (
        -0.5 * white.square().sum(-1)
        - corner.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        - 0.5 * corner.shape[-1] * math.log(2 * math.pi)
    )
    scaled = K_cross / noise.unsqueeze(-1)
    phi = phi + K_cross.transpose(-1, -2) @ scaled
    b = b + (scaled.transpose(-1, -2) @ residual.unsqueeze(-1)).squeeze(-1)
    factor = safe_cholesky(K_basis)
    white_phi = torch.linalg.solve_triangular(factor, phi, upper=False)
    white_phi = torch.linalg.solve_triangular(factor, white_phi.transpose(-1, -2), upper=False)
    eigenvalues, vectors = torch.linalg.eigh(0.5 * (white_phi + white_phi.transpose(-1, -2)))
    eigenvalues = eigenvalues.clamp_min(0.0)
    eye = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device).expand_as(factor)
    rotated = vectors.transpose(-1, -2) @ torch.linalg.solve_triangular(factor, eye, upper=False)  # Q^T L^{-1}
    whitener = (eigenvalues / (1 + eigenvalues)).sqrt().unsqueeze(-1) * rotated
    shrunk = rotated / (1 + eigenvalues).sqrt().unsqueeze(-1)
    weights = (shrunk.transpose(-1, -2) @ (shrunk @ b.unsqueeze(-1))).squeeze(-1)
    rows = torch.zeros_like(weights)
    return KernelConditioning(weights, whitener, rows, torch.ones_like(rows), phi, b, log_evidence)
