"""LO-FI: a filter whose precision is diagonal plus low rank (Chang, Duran-Martin, Shestopaloff, Jones and Murphy 2023).

``Sigma^{-1} = diag(u) + W^T W`` with ``W: L x P``: memory and time linear in the number of weights. An update appends the
whitened rows of the Jacobian to ``W``, moves the mean with the gain of that UNTRUNCATED precision, and then keeps the ``L``
leading singular directions, found from the small Gram matrix ``W W^T``; the squares of what is dropped go to ``u``, so that the
diagonal of the precision is always exact (the spherical variant forgets them). While no more than ``L`` rows were seen nothing
is dropped, and on a linear model the filter is exact.

Of half a million weights everything that takes time is a pass over ``W``, of which an update needs four; Jacobians of single
rows stay outer products (:mod:`seqbdl.networks.jacobian_rows`). Small matrices are in double precision, ``W`` as it comes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from seqbdl.errors import InvalidOptionError
from seqbdl.inference.recursion import Belief, FilterSettings, Lift
from seqbdl.networks import JacobianRows
from seqbdl.networks.jacobian_rows import BLOCK
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
    spherical: Whether dropped directions are forgotten, instead of kept in ``u``.
    """

    mean: Tensor
    entries: Tensor
    factor: Tensor
    rank: int
    spherical: bool = False

    def seen(self, J: JacobianRows) -> tuple[Tensor, Lift]:
        # Woodbury: Sigma J^T = u^{-1} (J^T - W^T (I + W u^{-1} W^T)^{-1} W u^{-1} J^T)
        within, cross, gram = _grams(self.factor, J, self.entries)
        mixed = torch.cholesky_solve(cross, _cholesky_plus_identity(within))  # k x rows

        def lift(a: Tensor) -> Tensor:
            return (J.pull(a) - (mixed.to(a) @ a) @ self.factor) / self.entries

        return (gram - cross.T @ mixed).to(self.mean), lift

    def learned(self, A: JacobianRows, mean: Tensor) -> LowRankBelief:
        k = self.factor.shape[0]
        if k + A.num_rows <= self.rank:
            return replace(self, mean=mean, factor=torch.cat([self.factor, A.dense()]))
        within, cross, gram = _grams(self.factor, A)
        whole = torch.cat([torch.cat([within, cross], 1), torch.cat([cross.T, gram], 1)])
        vectors = torch.linalg.eigh(whole).eigenvectors.T[-self.rank :].to(mean)  # ascending: the last are kept
        old, new = vectors[:, :k], vectors[:, k:].contiguous()
        kept, entries = mean.new_empty(self.rank, mean.shape[0]), torch.empty_like(self.entries)
        for block in A.blocks(_columns(self.rank)):
            W, out = self.factor[:, block.part], kept[:, block.part]
            torch.mm(old, W, out=out)
            out += block.pull(new)
            if not self.spherical:
                # Rotations keep the squares of a column, so that what was dropped is what is missing; below zero is rounding.
                dropped = block.squares().add_(W.square().sum(0)).sub_(out.square().sum(0)).clamp_min_(0.0)
                torch.add(self.entries[block.part], dropped, out=entries[block.part])
        return replace(self, mean=mean, entries=self.entries if self.spherical else entries, factor=kept)

    def aged(self, settings: FilterSettings, centre: Tensor | None = None) -> LowRankBelief:
        gamma, q, alpha = settings.forgetting, settings.process_noise, settings.inflation
        origin = torch.zeros_like(self.mean) if centre is None else centre
        entries = 1 / (gamma**2 / self.entries + q)
        ratio = entries / self.entries
        inner = _cholesky_plus_identity(q * (self.factor * ratio) @ self.factor.T)
        factor = gamma * ratio * torch.linalg.solve_triangular(inner, self.factor, upper=False)
        mean = origin + gamma * (self.mean - origin)
        if alpha == 0.0:
            return replace(self, mean=mean, entries=entries, factor=factor)
        new, shrunk = entries / (1 + alpha), factor / (1 + alpha) ** 0.5
        if settings.inflation_kind != "simple":  # the precision moves towards the prior's, not towards 0
            new = new + alpha / (1 + alpha) / settings.prior_variance
        if settings.inflation_kind == "bayesian":  # and the mean with it: the power prior
            deviation = mean - origin
            pull = (entries * deviation + (factor @ deviation) @ factor) / (1 + alpha)
            mean = origin + LowRank(new, shrunk.T).solve(pull)
        return replace(self, mean=mean, entries=new, factor=shrunk)

    @cached_property
    def weights(self) -> GaussianWeights:
        return GaussianWeights(self.mean, LowRank(self.entries, self.factor.T))


def prior_belief(mean: Tensor, variance: float, rank: int, spherical: bool = False) -> LowRankBelief:
    """``N(mean, variance I)``.

    Args:
        mean: ``P``.
        variance: Of every weight.
        rank: ``L``, directions of the precision that are kept.
        spherical: Whether dropped directions are forgotten.

    Raises:
        InvalidOptionError: The rank or the variance is not positive.
    """
    if rank < 1:
        raise InvalidOptionError(f"rank={rank} must be at least 1")
    if not variance > 0.0:
        raise InvalidOptionError(f"variance={variance} must be positive")
    return LowRankBelief(mean, torch.full_like(mean, 1 / variance), mean.new_zeros(0, mean.shape[0]), rank, spherical)


def _columns(rows: int) -> int:
    """Of a block of so many rows that stays in the processor's cache."""
    return BLOCK * 10 // max(rows, 10)


def _grams(W: Tensor, J: JacobianRows, entries: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """``W U W^T``, ``W U J^T`` and ``J U J^T`` with ``U = diag(u)^{-1}``, in double precision; ``u = 1`` without ``entries``."""
    totals: list[Tensor] = []
    for block in J.blocks(_columns(W.shape[0])):
        part = W[:, block.part]
        inverse = None if entries is None else entries[block.part].reciprocal()
        scaled = part if inverse is None else part * inverse
        terms = [(scaled @ part.T).double(), block.against(scaled).double(), block.gram(inverse).double()]
        totals = [total.add_(term) for total, term in zip(totals, terms, strict=True)] if totals else terms
    return totals[0], totals[1], totals[2]


def _cholesky_plus_identity(gram: Tensor) -> Tensor:
    return safe_cholesky(gram + torch.eye(gram.shape[0]).to(gram))
