"""``ekf``: the extended Kalman filter over a network's weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from seqbdl.errors import InvalidOptionError
from seqbdl.inference import ekf
from seqbdl.inference.recursion import Belief
from seqbdl.surrogates.filter import FilterSurrogate


class EKFSurrogate(FilterSurrogate):
    """A belief over all weights with their whole covariance, ``P x P``, moved row by row by the extended Kalman filter
    (Singhal and Wu 1989); exact on linear models. Networks are small by default because of the ``P x P``.

    Args:
        covariance: ``"full"``; or only the diagonal, ``"diagonal-decoupled"`` or ``"diagonal-variational"`` (see
            :mod:`seqbdl.inference.ekf`), linear in the number of weights, whose function spreads are crude.
    """

    name = "ekf"
    carries = "the mean and the covariance of all weights"

    def __init__(self, *args: Any, covariance: str = "full", **kwargs: Any) -> None:
        if covariance not in ekf.COVARIANCES:
            raise InvalidOptionError(f"covariance={covariance!r} must be one of {', '.join(ekf.COVARIANCES)}")
        self._covariance = covariance
        super().__init__(*args, **kwargs)

    def _prior_belief(self, mean: Tensor) -> Belief:
        return ekf.prior_belief(mean, self.initial_covariance, self._covariance)

    def _belief_tree(self) -> dict[str, Any]:
        return ekf.belief_tree(self._belief)

    def _belief_of(self, tree: Mapping[str, Any]) -> Belief:
        return ekf.belief_from_tree(tree)
