"""``ensemble-plus``: ensembles with randomized prior functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from seqbdl.errors import InvalidOptionError, UnknownNameError
from seqbdl.inference.infinite_width import kernel
from seqbdl.inference.members import Held, better_start
from seqbdl.inference.observations import Labels
from seqbdl.inference.randomize import BOOTSTRAPS, bootstrap_weights
from seqbdl.inference.randomized_priors import CENTRES, ensemble_plus, measured_deviation, starts, with_prior_functions
from seqbdl.networks import FrozenSum, Network
from seqbdl.surrogates.fitted_ensemble import FittedEnsemble


class EnsemblePlusSurrogate(FittedEnsemble):
    """``S`` networks, each with a frozen random network added to it (Osband et al. 2018).

    Away from data a member returns to its own prior function, so that the spread there is the prior's whatever the optimizer did.

    Args:
        prior_scale: Multiple of the frozen network.
        calibrate: Whether ``prior_scale`` counts standard deviations of the prior: the frozen networks' spread is measured on the
            inputs and scaled to that of the function prior (for a module: to the outcomes' standard deviation). Otherwise the
            frozen networks' outputs are multiplied by it as they are.
        decay: Precision of the trained weights, in units of their prior's; ``None``: ``1 / prior_scale^2`` when calibrated, else
            1.
        centre: What the trained weights decay to: their ``"start"``, the trained part being read relative to its values there,
            or ``"zero"``, as in the original.
        bootstrap: Random weights of rows, member by member: ``"none"``, ``"bernoulli"``, or ``"exponential"``.
        randomize_targets: Noise on the targets of every member; ``None``: unless there is a bootstrap.
    """

    name = "ensemble-plus"

    def __init__(
        self,
        *args: Any,
        prior_scale: float = 1.0,
        calibrate: bool = True,
        decay: float | None = None,
        centre: str = "start",
        bootstrap: str = "none",
        randomize_targets: bool | None = None,
        **kwargs: Any,
    ) -> None:
        if not prior_scale > 0 or (decay is not None and not decay > 0):
            raise InvalidOptionError(f"prior_scale={prior_scale} and decay={decay} must be positive")
        if bootstrap not in BOOTSTRAPS:
            raise UnknownNameError("bootstrap", bootstrap, list(BOOTSTRAPS))
        if centre not in CENTRES:
            raise UnknownNameError("centre", centre, list(CENTRES))
        self.prior_scale, self.calibrate, self.centre, self.bootstrap = prior_scale, calibrate, centre, bootstrap
        self.decay = decay if decay is not None else prior_scale**-2 if calibrate else 1.0
        self.randomize_targets = bootstrap == "none" if randomize_targets is None else randomize_targets
        self._multiple = prior_scale  # of the frozen networks as they are
        super().__init__(*args, **kwargs)
        self._starts, self._anchors = starts(self._sum, centre, self.num_members, self.generator, self._z)
        self._z = self._anchors

    @property
    def _sum(self) -> FrozenSum:
        assert isinstance(self._network, FrozenSum)
        return self._network

    def _build_network(self) -> Network:
        return with_prior_functions(super()._build_network(), self._multiple, self.centre)

    def _calibrated(self, X: Tensor) -> float:
        if not self.calibrate:
            return self.prior_scale
        wanted = 1.0
        if self._builder.widths is not None:
            scales = self._prior.scales.to(X)
            points = X[:256].unsqueeze(-2)  # each by itself
            wanted = float(kernel(scales, points, points, self._builder.activation).mean().sqrt())
        generator = torch.Generator().manual_seed(self.seed)
        return self.prior_scale * wanted / max(measured_deviation(self._sum.trained, X, generator), 1e-6)

    def _infer(self, X: Tensor, Y: Tensor, variance: Tensor, warm: bool) -> tuple[Tensor, Tensor]:
        self._multiple = self._calibrated(X)
        self._network = self._build_network()
        start, anchors = self._starts.to(X.device), self._anchors.to(X.device)
        if warm:
            start = better_start(self._network, X, Labels(self._lik, Y, variance), anchors, self._z.to(X.device), start)
        return self._learn(X, Y, variance, anchors, start, None), X.new_zeros(self.num_members)

    def _absorb(self, X: Tensor, Y: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        return self._learn(X, Y, variance, self._z, self._z, self._held(self._z)), self._log_weights

    def _learn(self, X: Tensor, Y: Tensor, variance: Tensor, anchors: Tensor, start: Tensor, held: Held | None) -> Tensor:
        return ensemble_plus(
            self._sum,
            X,
            Y,
            variance,
            self._lik,
            anchors,
            start,
            self.generator,
            self.settings,
            self.randomize_targets,
            self.decay,
            bootstrap_weights(self.bootstrap, self.num_members, X.shape[0], self.generator, X),
            held,
        )

    def _own_state(self) -> dict[str, Any]:
        return {"starts": self._starts, "anchors": self._anchors, "multiple": self._multiple}

    def _set_own_state(self, state: Mapping[str, Any]) -> None:
        self._starts, self._anchors, self._multiple = state["starts"], state["anchors"], float(state["multiple"])
        self._network = self._build_network()
