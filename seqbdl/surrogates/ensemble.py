"""``ensemble``: deep ensembles, trained to convergence from independent starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from seqbdl.errors import InvalidOptionError
from seqbdl.inference.gauss_newton import GaussNewtonSettings, minimize
from seqbdl.inference.observations import Labels, Observations, Squares
from seqbdl.surrogates.network_prior import standard_normal
from seqbdl.surrogates.particle import ParticleSurrogate


class EnsembleSurrogate(ParticleSurrogate):
    """``S`` networks from independent random starts, each fitted to the data (Lakshminarayanan et al. 2017).

    Members are fitted by Gauss-Newton in the dual, each to the solution nearest its own start: what gradient descent
    from that start converges to for wide networks (He et al. 2020), at a tenth of the cost. Scales of the start and
    the noise come from the evidence of the infinite-width limit.

    Args:
        randomize_targets: Give every member its own noise on the targets, which makes the members exact posterior
            samples when the network is linear (randomize-then-optimize); without it the spread is smaller where data
            are.
        max_iterations: Gauss-Newton steps per fit.
    """

    name = "ensemble"
    carries = "every member, and the function values it had at up to `memory` old rows"
    update_tolerance = 1.0

    def __init__(
        self, *args: Any, num_members: int = 16, randomize_targets: bool = False, max_iterations: int = 30, **kwargs: Any
    ) -> None:
        super().__init__(*args, num_members=num_members, **kwargs)
        if max_iterations < 1:
            raise InvalidOptionError(f"max_iterations={max_iterations} must be at least 1")
        self.randomize_targets = randomize_targets
        self.settings = GaussNewtonSettings(max_iterations=max_iterations)
        self._starts = self._z

    def _infer(self, X: Tensor, Y: Tensor, variance: Tensor, warm: bool) -> tuple[Tensor, Tensor]:
        # The starts stay the same from fit to fit, so that members keep their identity; a warm fit begins where it ended.
        starts = self._starts.to(X.device)
        begin = self._z if warm and self._z.shape == starts.shape else starts
        seen = self._observe(Y, variance)
        result = minimize(self._network, X, seen, starts, begin, self.settings)
        if warm and bool((result.loss > seen.misfit(self._network.forward(starts, X))).any()):
            # A start that has become bad: begin again where the loss is larger from there.
            result = minimize(self._network, X, seen, starts, starts, self.settings)
        return result.z, X.new_zeros(self.num_members)

    def _absorb(self, X: Tensor, Y: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        return self._pull(self._z, X, self._observe(Y, variance), self.settings), self._log_weights

    def _observe(self, Y: Tensor, variance: Tensor) -> Observations:
        if self._lik.name != "gaussian":
            return Labels(self._lik, Y, variance)
        return Squares(self._targets(Y, variance), variance)

    def _targets(self, Y: Tensor, variance: Tensor) -> Tensor:
        if not self.randomize_targets:
            return Y.unsqueeze(0)
        white = standard_normal(self.num_members, *Y.shape, generator=self.generator, like=Y)
        return Y + variance.sqrt() * (white - white.mean(0))

    def _own_state(self) -> dict[str, Any]:
        return {"starts": self._starts}

    def _set_own_state(self, state: Mapping[str, Any]) -> None:
        self._starts = state["starts"]
