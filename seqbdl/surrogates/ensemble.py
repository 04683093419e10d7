"""``ensemble``: deep ensembles, trained to convergence from independent starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from seqbdl.inference.anchored import anchored_ensemble
from seqbdl.inference.members import Held, better_start
from seqbdl.inference.observations import Labels
from seqbdl.surrogates.fitted_ensemble import FittedEnsemble


class AnchoredMembers(FittedEnsemble):
    """Members that stay near their own starts, which are draws from the prior: what the starts mean is the subclass's.

    Args:
        randomize_targets: Give every member its own noise on the targets (for labels and counts, its counterpart: see
            :mod:`seqbdl.inference.randomize`).
    """

    def __init__(self, *args: Any, randomize_targets: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.randomize_targets = randomize_targets
        self._starts = self._z

    def _infer(self, X: Tensor, Y: Tensor, variance: Tensor, warm: bool) -> tuple[Tensor, Tensor]:
        # The starts stay the same from fit to fit, so that members keep their identity; a warm fit begins where it ended.
        starts = self._starts.to(X.device)
        begin = starts
        if warm and self._z.shape == starts.shape:
            begin = better_start(self._network, X, Labels(self._lik, Y, variance), starts, self._z.to(X.device), starts)
        return self._anchored(X, Y, variance, starts, begin, None), X.new_zeros(self.num_members)

    def _absorb(self, X: Tensor, Y: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        return self._anchored(X, Y, variance, self._z, self._z, self._held(self._z)), self._log_weights

    def _anchored(self, X: Tensor, Y: Tensor, variance: Tensor, anchors: Tensor, start: Tensor, held: Held | None) -> Tensor:
        return anchored_ensemble(
            self._network,
            X,
            Y,
            variance,
            self._lik,
            anchors,
            start,
            self.generator,
            self.settings,
            self.randomize_targets,
            held=held,
        )

    def _own_state(self) -> dict[str, Any]:
        return {"starts": self._starts}

    def _set_own_state(self, state: Mapping[str, Any]) -> None:
        self._starts = state["starts"]


class EnsembleSurrogate(AnchoredMembers):
    """``S`` networks from independent random starts, each fitted to the data (Lakshminarayanan et al. 2017).

    Every member goes to the solution nearest its own start: what gradient descent from that start converges to for wide
    networks (He et al. 2020). Gauss-Newton in the dual takes a tenth of the cost of gradient descent; ``fit="adam"`` descends
    by mini-batches. With ``likelihood="heteroscedastic"`` the networks predict their noise as well, as in the original.
    Scales of the start and the noise come from the evidence of the infinite-width limit.

    Args:
        randomize_targets: Give every member its own noise on the targets, which makes this ``anchored-ensemble``; without it
            the spread is smaller where data are.
    """

    name = "ensemble"
