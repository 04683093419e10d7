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
        scale = self.entries.rsqrt()
        low, rows = self.factor * scale, J * scale
        cross = low @ rows.T
        mixed = torch.cholesky_solve(cross, _cholesky_plus_identity(low @ low.T))  # k x rows

        def lift(a: Tensor) -> Tensor:
            return (a @ J - (mixed @ a) @ self.factor) / self.entries

        return rows @ rows.T - cross.T @ mixed, lift

    def learned(self, A: Tensor, mean: Tensor) -> LowRankBelief:
        k = self.factor.shape[0]
        if k + A.shape[0] <= self.rank:
            return LowRankBelief(mean, self.entries, torch.cat([self.factor, A]), self.rank)
        cross = self.factor @ A.T
        gram = torch.cat([torch.cat([self.factor @ self.factor.T, cross], 1), torch.cat([cross.T, A @ A.T], 1)])
        vectors = torch.linalg.eigh(gram).eigenvectors.T  # ascending: the last L are kept
        rotated = torch.addmm(vectors[:, :k] @ self.factor, vectors[:, k:], A)
        dropped, kept = rotated[: -self.rank], rotated[-self.rank :]
        return LowRankBelief(mean, self.entries + dropped.square().sum(0), kept.clone(), self.rank)

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


def _cholesky_plus_identity(gram: Tensor) -> Tensor:
    return safe_cholesky(gram + torch.eye(gram.shape[0]).to(gram))
