"""Gaussian processes on inducing inputs: sums over data in whitened coordinates.

With ``L = chol K_zz`` and ``A = L^{-1} K_zx`` the process is ``f(x) = A(x)^T v + rest``, ``v ~ N(0, I)``. Rows that say ``y =
f + e``, ``e ~ N(0, D)``, or that are worth such an observation, enter two sums and nothing else::

    Phi = A D^{-1} A^T,    b = A D^{-1} y,    q(v) = N((I + Phi)^{-1} b, (I + Phi)^{-1})

which is the collapsed posterior of Titsias (2009) and, after new rows, its exact continuation: sums do not care in how many
calls the rows came. Whitened sums stay accurate where ``K_zz`` is nearly singular.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from seqbdl.posteriors.joint_gaussian import safe_cholesky
from seqbdl.posteriors.kernel_conditioning import KernelConditioning


@dataclass(frozen=True)
class InducingSums:
    """``g`` outputs on ``P`` inducing inputs.

    Attributes:
        factor: ``L``, ``g' x P x P`` with ``g'`` 1 or ``g``.
        phi: ``g x P x P``.
        b: ``g x P``.
        constant: ``g``, what the bound on the log evidence holds beside ``phi`` and ``b``.
    """

    factor: Tensor
    phi: Tensor
    b: Tensor
    constant: Tensor

    def tree(self) -> dict[str, Tensor]:
        """For saving."""
        return dict(self.__dict__)

    @property
    def precision_factor(self) -> Tensor:
        """``chol(I + Phi)``, ``g x P x P``."""
        return safe_cholesky(self.phi + torch.eye(self.phi.shape[-1]).to(self.phi))

    def mean(self, precision_factor: Tensor) -> Tensor:
        """``E[v]``, ``g x P``."""
        return torch.cholesky_solve(self.b.unsqueeze(-1), precision_factor).squeeze(-1)

    @property
    def bound(self) -> Tensor:
        """Titsias' bound on the log evidence of Gaussian rows, ``g``."""
        factor = self.precision_factor
        white = torch.linalg.solve_triangular(factor, self.b.unsqueeze(-1), upper=False).squeeze(-1)
        log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        trace = self.phi.diagonal(dim1=-2, dim2=-1).sum(-1)
        return self.constant - log_det + 0.5 * white.square().sum(-1) + 0.5 * trace

    def draw(self, white: Tensor) -> Tensor:
        """``v ~ q`` from standard normals ``... x g x P``."""
        factor = self.precision_factor
        spread = torch.linalg.solve_triangular(factor.transpose(-1, -2), white.unsqueeze(-1), upper=True).squeeze(-1)
        return self.mean(factor) + spread

    def conditioning(self) -> KernelConditioning:
        """The form in which predictions are made: ``a`` and ``W`` of :mod:`seqbdl.posteriors.kernel_conditioning`."""
        eigenvalues, vectors = torch.linalg.eigh(0.5 * (self.phi + self.phi.transpose(-1, -2)))
        eigenvalues = eigenvalues.clamp_min(0.0)
        eye = torch.eye(self.factor.shape[-1]).to(self.factor).expand_as(self.factor)
        rotated = vectors.transpose(-1, -2) @ torch.linalg.solve_triangular(self.factor, eye, upper=False)  # Q^T L^{-1}
        mean = ((vectors.transpose(-1, -2) @ self.b.unsqueeze(-1)).squeeze(-1) / (1 + eigenvalues)).unsqueeze(-1)
        weights = (rotated.transpose(-1, -2) @ mean).squeeze(-1)
        rows = torch.zeros_like(weights)
        whitener = (eigenvalues / (1 + eigenvalues)).sqrt().unsqueeze(-1) * rotated
        return KernelConditioning(weights, whitener, rows, torch.ones_like(rows), None, None, self.bound)


def no_rows(factor: Tensor, groups: int) -> InducingSums:
    """The prior, given ``L: g' x P x P``."""
    P = factor.shape[-1]
    zeros = factor.new_zeros(groups, P)
    return InducingSums(factor, factor.new_zeros(groups, P, P), zeros, factor.new_zeros(groups))


def with_inputs(sums: InducingSums, A: Tensor, corner: Tensor) -> InducingSums:
    """The same posterior on more inducing inputs: in whitened coordinates old sums stay as they are, beside zeros.

    Args:
        sums: On ``P`` inducing inputs.
        A: ``g' x P x k``, :func:`project` of the kernel with the new ones.
        corner: ``g' x k x k``, the factor of what the old ones leave of their covariance.
    """
    k, pad = A.shape[-1], torch.nn.functional.pad
    top = torch.cat([sums.factor, torch.zeros_like(A)], -1)
    factor = torch.cat([top, torch.cat([A.transpose(-1, -2), corner], -1)], -2)
    return InducingSums(factor, pad(sums.phi, (0, k, 0, k)), pad(sums.b, (0, k)), sums.constant)


def project(factor: Tensor, cross: Tensor) -> Tensor:
    """``A = L^{-1} K_zx``, ``g' x P x n``."""
    return torch.linalg.solve_triangular(factor, cross, upper=False)


def add_gaussian(sums: InducingSums, A: Tensor, diagonal: Tensor, residual: Tensor, noise: Tensor) -> InducingSums:
    """Absorb rows with Gaussian noise.

    Args:
        sums: So far.
        A: ``g' x P x n``, :func:`project`.
        diagonal: ``g' x n``, prior variances ``k(x, x)``.
        residual: ``g x n``, outcomes less the prior mean.
        noise: ``g x n`` variances.
    """
    scaled = A / noise.unsqueeze(-2)
    constant = residual.square() / noise + noise.log() + math.log(2 * math.pi) + diagonal / noise
    return replace(
        sums,
        phi=sums.phi + scaled @ A.transpose(-1, -2),
        b=sums.b + (scaled @ residual.unsqueeze(-1)).squeeze(-1),
        constant=sums.constant - 0.5 * constant.sum(-1),
    )


def best_noise(A: Tensor, diagonal: Tensor, residual: Tensor, held: int, log_prior: Callable[[Tensor], Tensor]) -> Tensor:
    """The noise variance of every output under which the other rows predict the last ``held`` ones best, ``g``; the kernel stands
    still.

    The bound on the evidence would take for noise what the inducing inputs cannot explain; a prediction counts that as variance
    of its own. One eigendecomposition of ``A A^T``, after which a value costs a product of ``held x P``.

    Args:
        A: ``P x n``, :func:`project`.
        diagonal: ``n``, prior variances.
        residual: ``g x n``, outcomes less the prior mean.
        held: How many rows.
        log_prior: Of the logarithms of noise variances, ``values`` to ``values``.
    """
    seen, unseen = A[:, :-held], A[:, -held:]
    eigenvalues, vectors = torch.linalg.eigh(seen @ seen.mT)
    eigenvalues = eigenvalues.clamp_min(0.0).unsqueeze(-1)
    b, image = vectors.mT @ (seen @ residual[:, :-held].mT), unseen.mT @ vectors  # P x g, held x P
    logs = torch.linspace(math.log(1e-7), math.log(10.0), 300).to(A)
    noise = logs.exp()  # values
    shrunk = 1 / (eigenvalues + noise)  # P x values
    missed = (diagonal[-held:] - unseen.square().sum(0)).clamp_min(0.0).unsqueeze(-1)
    total = missed + image.square() @ (noise * shrunk) + noise  # held x values
    best = []
    for output in range(residual.shape[0]):
        error = residual[output, -held:].unsqueeze(-1) - image @ (b[:, output : output + 1] * shrunk)
        score = -0.5 * (error.square() / total + total.log()).sum(0) + log_prior(logs)
        best.append(noise[score.argmax()])
    return torch.stack(best)
