"""``subnetwork-laplace``: a full-covariance posterior over some of the weights, the rest fixed at the mode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from seqbdl.errors import InvalidOptionError
from seqbdl.inference import laplace
from seqbdl.inference.curvature import gauss_newton_diagonal
from seqbdl.networks import ModuleNetwork, Network, masked
from seqbdl.surrogates.laplace import LaplaceSurrogate

SUBSETS = ("influence", "variance", "magnitude", "random")


class SubnetworkLaplaceSurrogate(LaplaceSurrogate):
    """``laplace`` of a subnetwork (Daxberger et al. 2021): all weights go to the mode, then the full Gauss-Newton curvature of
    a few makes the posterior.

    The fixed weights count as known, so it is more certain than ``laplace``, and its evidence is that of the subnetwork given
    the rest: comparable between subnetworks of one mode, not with other surrogates.

    Args:
        num_weights: How many weights are uncertain; all if there are fewer.
        subset: Which. ``"influence"``: those whose marginal variance under a diagonal Laplace posterior makes the largest
            variance of the function, ``mean (df/dz)^2 var(z)`` over the rows. ``"variance"``: of the largest marginal variance
            itself, the published choice; with scales of the prior that differ between layers these are weights that the
            function hardly sees, and the posterior is overconfident. ``"magnitude"``: the largest at the mode; ``"random"``; a
            boolean mask of all weights; or names of a module's parameters or submodules.
    """

    name = "subnetwork-laplace"
    carries = "the mode of all weights and the posterior over some: exactly at up to `memory` rows, or as a matrix"

    def __init__(
        self, *args: Any, num_weights: int = 1024, subset: str | Sequence[str] | Tensor = "influence", **kwargs: Any
    ) -> None:
        self._index: Tensor | None = None
        self._base: Tensor | None = None
        super().__init__(*args, **{"num_branches": 1, **kwargs})
        if num_weights < 1:
            raise InvalidOptionError(f"num_weights={num_weights} must be at least 1")
        if isinstance(subset, str) and subset not in SUBSETS:
            raise InvalidOptionError(
                f"subset={subset!r}: one of {', '.join(SUBSETS)}, a boolean mask, or a list of names of a module's parameters"
            )
        self.num_weights = num_weights
        self.subset = subset
        self._mask = None if isinstance(subset, str) else self._given(subset)

    def _given(self, subset: Sequence[str] | Tensor) -> Tensor:
        """A mask of all weights, ``P`` booleans, that the user described."""
        plain = self._builder.build(self._prior, self.num_branches)
        if not isinstance(subset, Tensor):
            if not isinstance(plain, ModuleNetwork):
                raise InvalidOptionError(f"subset={subset!r}: only the parameters of a module have names; hand in a mask")
            return plain.mask(subset)
        if subset.dtype != torch.bool or subset.shape != (plain.num_params,) or not bool(subset.any()):
            raise InvalidOptionError(f"subset: a mask holds {plain.num_params} booleans, at least one of them true")
        return subset

    def _build(self) -> Network:
        whole = super()._build()
        if self._index is None or self._base is None:
            return whole
        return masked(whole, self._base, self._index)

    def _fit(self, X: Tensor, Y: Tensor, noise: Tensor | None) -> None:
        self._index = self._base = None
        super()._fit(X, Y, noise)
        with torch.no_grad():
            whole, z = self._network, self._laplace.z
            rows = self._rows(X, Y, noise)
            self._index, self._base = self._choose(whole, rows, z), z
            self._network = masked(whole, z, self._index)
            centre = self._whitened_start() if self.centre == "start" else torch.zeros_like(z)
            pick = self._index.to(z.device)
            self._laplace = laplace.laplace_at(self._network, rows, z[:, pick], centre[:, pick], self.structure)

    def _choose(self, network: Network, rows: laplace.Rows, z: Tensor) -> Tensor:
        """Sorted indices of the uncertain weights."""
        if self._mask is not None:
            return self._mask.nonzero().flatten()
        k = min(self.num_weights, z.shape[1])
        if self.subset == "random":
            return torch.randperm(z.shape[1], generator=self.generator)[:k].sort().values
        if self.subset == "magnitude":
            score = z[0].abs()
        else:
            f = network.forward(z, rows.X)[0]
            score = 1 / (1 + gauss_newton_diagonal(network, z, rows.X, rows.root(f)))
            if self.subset == "influence":
                score = score * gauss_newton_diagonal(network, z, rows.X, torch.ones_like(f))
        return score.topk(k).indices.sort().values.cpu()

    def _get_state(self) -> dict[str, Any]:
        return {**super()._get_state(), "index": self._index, "base": self._base}

    def _set_state(self, state: Mapping[str, Any]) -> None:
        self._index, self._base = state["index"], state["base"]
        super()._set_state(state)
