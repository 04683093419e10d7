"""LO-FI: a filter whose precision is diagonal plus low rank (Chang, Duran-Martin, Shestopaloff, Jones and Murphy 2023).

``Sigma^{-1} = diag(u) + W^T W`` with ``W: L x P``: memory and time linear in the number of weights. An update appends the
whitened rows of the Jacobian to ``W``, moves the mean with the gain of that UNTRUNCATED precision, and then keeps the ``L``
leading singular directions, found from the small Gram matrix ``W W^T``; the squares of what is dropped go to ``u``, so that the
diagonal of the precision is always exact. While no more than ``L`` rows were seen nothing is dropped, and on a linear model
the filter is exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from seqbdl.errors import InvalidOptionError
from seqbdl.inference.recursion import Belief, FilterSettings, Lift
from seqbdl.posteriors.gaussian_weights import GaussianWeights
from seqbdl.posteriors.joint_gaussian import safe_cholesky
from seqbdl.posteriors.operators import LowRank

_BLOCK = 8192  # weights


@dataclass(frozen=True)
class LowRankBelief(Belief):
    """Attributes:
    mean: ``P``.
    entries: ``P``, ``u``.
    factor: ``k x P`` with ``k <= L``, ``W``.
    rank: ``L``.
    """

    mean: Tensor
    entries: Tensor
    factor: Tensor
    rank: int

    def seen(self, J: Tensor) -> tuple[Tensor, Lift]:
        # Woodbury: Sigma J^T = u^{-1} (J^T - W^T (I + W u^{-1} W^T)^{-1} W u^{-1} J^T)
        k = self.factor.shape[0]
        gram = _gram(self.factor, J, self.entries)
        cross = gram[:k, k:]
        mixed = torch.cholesky_solve(cross, _cholesky_plus_identity(gram[:k, :k]))  # k x rows

        def lift(a: Tensor) -> Tensor:
            return (a @ J - (mixed.to(a) @ a) @ self.factor) / self.entries

        return (gram[k:, k:] - cross.T @ mixed).to(J), lift

    def learned(self, A: Tensor, mean: Tensor) -> LowRankBelief:
        k = self.factor.shape[0]
        if k + A.shape[0] <= self.rank:
            return LowRankBelief(mean, self.entries, torch.cat([self.factor, A]), self.rank)
        vectors = torch.linalg.eigh(_gram(self.factor, A)).eigenvectors.T[-self.rank :].to(A)  # ascending: the last are kept
        kept, entries = A.new_empty(self.rank, A.shape[1]), torch.empty_like(self.entries)
        for part in _blocks(A.shape[1]):
            both = torch.cat([self.factor[:, part], A[:, part]])
            torch.mm(vectors, both, out=kept[:, part])
            # Rotations keep the squares of a column, so that what was dropped is what is missing; below zero is rounding.
            dropped = both.square_().sum(0).sub_(kept[:, part].square().sum(0)).clamp_min_(0.0)
            entries[part] = dropped.add_(self.entries[part])
        return LowRankBelief(mean, entries, kept, self.rank)

    def aged(self, settings: FilterSettings, centre: Tensor | None = None) -> LowRankBelief:
        gamma, q, alpha = settings.forgetting, settings.process_noise, settings.inflation
        origin = torch.zeros_like(self.mean) if centre is None else centre
        entries = 1 / (gamma**2 / self.entries + q)
        ratio = entries / self.entries
        inner = _cholesky_plus_identity(q * (self.factor * ratio) @ self.factor.T)
        factor = gamma * ratio * torch.linalg.solve_triangular(inner, self.factor, upper=False)
        mean = origin + gamma * (self.mean - origin)
        return LowRankBelief(mean, entries / (1 + alpha), factor / (1 + alpha) ** 0.5, self.rank)

    @cached_property
    def weights(self) -> GaussianWeights:
        return GaussianWeights(self.mean, LowRank(self.entries, self.factor.T))


def prior_belief(mean: Tensor, variance: float, rank: int) -> LowRankBelief:
    """``N(mean, variance I)``.

    Args:
        mean: ``P``.
        variance: Of every weight.
        rank: ``L``, directions of the precision that are kept.

    Raises:
        InvalidOptionError: The rank or the variance is not positive.
    """
    if rank < 1:
        raise InvalidOptionError(f"rank={rank} must be at least 1")
    if not variance > 0.0:
        raise InvalidOptionError(f"variance={variance} must be positive")
    return LowRankBelief(mean, torch.full_like(mean, 1 / variance), mean.new_zeros(0, mean.shape[0]), rank)


def _blocks(size: int) -> list[slice]:
    """Of weights: what is read of a block stays in the processor's cache while it is used."""
    return [slice(start, start + _BLOCK) for start in range(0, size, _BLOCK)]


def _gram(first: Tensor, second: Tensor, entries: Tensor | None = None) -> Tensor:
    """``V diag(u)^{-1} V^T`` of the rows of both, in double precision; ``entries``: ``u``, by default 1."""
    total = torch.zeros(first.shape[0] + second.shape[0], first.shape[0] + second.shape[0], dtype=torch.float64).to(first.device)
    for part in _blocks(first.shape[1]):
        both = torch.cat([first[:, part], second[:, part]])
        if entries is not None:
            both *= entries[part].rsqrt()
        total += both @ both.T
    return total


def _cholesky_plus_identity(gram: Tensor) -> Tensor:
    return safe_cholesky(gram + torch.eye(gram.shape[0]).to(gram))
