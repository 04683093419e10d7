"""``lofi``: a filter over weights whose precision is diagonal plus low rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from seqbdl.errors import InvalidOptionError
from seqbdl.inference import lofi
from seqbdl.inference.recursion import Belief
from seqbdl.surrogates.filter import FilterSurrogate
from seqbdl.surrogates.network_prior import NetworkSpec


class LoFiSurrogate(FilterSurrogate):
    """A belief over all weights with precision ``diag(u) + W W^T`` (Chang et al. 2023): an update costs ``O(P (L + C)^2)`` and
    the belief ``O(P L)``, so that networks may be wide and streams long.

    Args:
        rank: ``L``, directions of the precision that are kept; exact on linear models while ``L`` is at least rows times
            outputs. The paper's filters of half a million weights use 10; small networks can afford more, and where rows
            outnumber it the spread away from data shrinks too far.
        spherical: Forget the directions that are dropped, instead of keeping the diagonal of the precision: the paper's other
            variant.
        inflation_kind: What ``inflation`` does: ``"simple"``, ``"hybrid"`` or ``"bayesian"``; see
            :class:`seqbdl.inference.recursion.FilterSettings`.
    """

    name = "lofi"
    carries = "the mean of all weights and a precision, diagonal plus rank L"

    def __init__(
        self,
        *args: Any,
        network: NetworkSpec = (32, 32),
        num_branches: int = 4,
        rank: int = 256,
        spherical: bool = False,
        inflation_kind: str = "simple",
        **kwargs: Any,
    ) -> None:
        if rank < 1:
            raise InvalidOptionError(f"rank={rank} must be at least 1")
        self.rank, self.spherical = rank, spherical
        super().__init__(*args, network=network, num_branches=num_branches, **kwargs)
        self.filter_settings = replace(
            self.filter_settings, inflation_kind=inflation_kind, prior_variance=self.initial_covariance
        )

    def _prior_belief(self, mean: Tensor) -> Belief:
        return lofi.prior_belief(mean, self.initial_covariance, self.rank, self.spherical)

    def _belief_tree(self) -> dict[str, Any]:
        assert isinstance(self._belief, lofi.LowRankBelief)
        return {"mean": self._belief.mean, "entries": self._belief.entries, "factor": self._belief.factor}

    def _belief_of(self, tree: Mapping[str, Any]) -> Belief:
        return lofi.LowRankBelief(tree["mean"], tree["entries"], tree["factor"], self.rank, self.spherical)
