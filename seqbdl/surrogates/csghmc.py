"""``csghmc``: cyclical stochastic gradient Hamiltonian Monte Carlo."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from seqbdl.errors import InvalidOptionError
from seqbdl.inference.chains import ChainResult
from seqbdl.inference.csghmc import CSGHMCSettings, csghmc
from seqbdl.inference.gibbs import Gibbs
from seqbdl.inference.log_joint import LogJoint
from seqbdl.inference.metrics import Metric
from seqbdl.surrogates.stochastic_gradient import StochasticGradientSurrogate


class CSGHMCSurrogate(StochasticGradientSurrogate):
    """Cycles that run to a mode without noise and then sample around it (Zhang et al. 2020); see
    :mod:`seqbdl.inference.csghmc`. The temperature of the sampling is 1 unless you set it; the reference experiments are
    colder.

    Args:
        cycles: How many, of every chain.
        steps: Of a cycle.
        exploration: Share of a cycle without noise.
        samples: States kept of every chain and cycle; ``None``: as many as ``num_members`` needs.
        friction: Share of the velocity that a step loses; ``None``: one per radian of a prior of unit scale.
    """

    name = "csghmc"

    def __init__(
        self,
        *args: Any,
        cycles: int = 2,
        steps: int = 300,
        exploration: float = 0.2,
        samples: int | None = None,
        friction: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        samples = self._states_per_chain(samples, parts=max(1, cycles), cycles=cycles, steps=steps)
        if friction is not None and not 0 < friction <= 1:
            raise InvalidOptionError(f"friction={friction} is the share of the velocity that a step loses, in (0, 1]")
        if not 0 <= exploration < 1:
            raise InvalidOptionError(f"exploration={exploration} is a share of the cycle, in [0, 1)")
        self._cycle = CSGHMCSettings(cycles=cycles, steps=steps, exploration=exploration, samples=samples, friction=friction)
        if len(self._cycle.kept) < samples:
            raise InvalidOptionError(
                f"samples={samples}: the sampling part of a cycle of steps={steps} is too short; raise steps"
            )

    def _chains(self, joint: LogJoint, gibbs: Gibbs | None, start: Tensor, metric: Metric, share: float) -> ChainResult:
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

        return csghmc(joint, start, metric, self.generator, settings, gibbs)
