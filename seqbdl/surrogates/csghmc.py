"""``csghmc``: cyclical stochastic gradient Hamiltonian Monte Carlo."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from seqbdl.errors import InvalidOptionError
from seqbdl.inference.chains import ChainResult
from seqbdl.inference.csghmc import CSGHMCSettings, csghmc
from seqbdl.inference.gibbs import Gibbs
from seqbdl.inference.log_joint import LogJoint
from seqbdl.inference.metrics import Metric, diagonal_metric, gauss_newton_metric
from seqbdl.surrogates.stochastic_gradient import StochasticGradientSurrogate


class CSGHMCSurrogate(StochasticGradientSurrogate):
    """Cycles that run to a mode without noise and then sample around it (Zhang et al. 2020); see
    :mod:`seqbdl.inference.csghmc`. The temperature of the sampling is 1 unless you set it; the reference experiments are
    colder.

    Args:
        cycles: How many, of every chain.
        steps: Of a cycle.
        exploration: Share of a cycle without noise.
        samples: States kept of every chain and cycle.
        friction: Share of the velocity that a step loses.
    """

    name = "csghmc"

    def __init__(
        self,
        *args: Any,
        cycles: int = 2,
        steps: int = 60,
        exploration: float = 0.25,
        samples: int = 2,
        friction: float = 0.3,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._require_counts(cycles * samples, cycles=cycles, samples=samples, steps=steps)
        if not 0 < friction <= 1:
            raise InvalidOptionError(f"friction={friction} is the share of the velocity that a step loses, in (0, 1]")
        if not 0 <= exploration < 1:
            raise InvalidOptionError(f"exploration={exploration} is a share of the cycle, in [0, 1)")
        self._cycle = CSGHMCSettings(cycles=cycles, steps=steps, exploration=exploration, samples=samples, friction=friction)
        if len(self._cycle.kept) < samples:
            raise InvalidOptionError(
                f"samples={samples}: the sampling part of a cycle of steps={steps} is too short; raise steps"
            )

    def _chains(self, joint: LogJoint, gibbs: Gibbs | None, start: Tensor, dense: bool, share: float) -> ChainResult:
        settings = CSGHMCSettings(
            cycles=self._cycle.cycles,
            steps=self._cycle.steps,
            exploration=self._cycle.exploration,
            samples=self._cycle.samples,
            friction=self._cycle.friction,
            learning_rate=self.learning_rate,
            caution=CSGHMCSettings.caution * share,
            batch_size=self.batch_size,
            temperature=self.temperature,
        )

        def metric_at(z: Tensor) -> Metric:
            return gauss_newton_metric(joint, z, self.generator) if dense else diagonal_metric(joint, z, self.generator)

        return csghmc(joint, start, metric_at, self.generator, settings, gibbs)
