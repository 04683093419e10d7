"""``sghmc``: stochastic gradient Hamiltonian Monte Carlo."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from seqbdl.errors import InvalidOptionError
from seqbdl.inference.chains import ChainResult
from seqbdl.inference.gibbs import Gibbs
from seqbdl.inference.log_joint import LogJoint
from seqbdl.inference.metrics import DiagonalMetric, Metric
from seqbdl.inference.sghmc import SGHMCSettings, sghmc
from seqbdl.surrogates.stochastic_gradient import StochasticGradientSurrogate


class SGHMCSurrogate(StochasticGradientSurrogate):
    """Langevin steps with momenta on (mini-batch) gradients, without rejections (Chen et al. 2014); see
    :mod:`seqbdl.inference.sghmc`.

    Args:
        warmup: Steps thrown away.
        samples: States kept of every chain; ``None``: as many as ``num_members`` needs.
        thinning: Steps from one to the next.
        friction: Share of the velocity that a step loses; ``None``: one per radian of a prior of unit scale.
        preconditioner: Beside those of every sampler ``"adaptive"``, scale-adapted SGHMC (Springenberg et al. 2016), whose
            diagonal is learned during warm-up, and ``"identity"``: they need thousands of steps where the noise is small.
    """

    name = "sghmc"
    preconditioners: ClassVar[tuple[str, ...]] = ("auto", "gauss-newton", "diagonal", "adaptive", "identity")

    def __init__(
        self,
        *args: Any,
        warmup: int = 200,
        samples: int | None = None,
        thinning: int = 100,
        friction: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.samples = self._states_per_chain(samples, warmup=warmup, thinning=thinning)
        if friction is not None and not 0 < friction <= 1:
            raise InvalidOptionError(f"friction={friction} is the share of the velocity that a step loses, in (0, 1]")
        self.warmup, self.thinning, self.friction = warmup, thinning, friction

    def _chains(self, joint: LogJoint, gibbs: Gibbs | None, start: Tensor, metric: Metric, share: float) -> ChainResult:
        settings = SGHMCSettings(
            warmup=self.warmup,
            samples=self.samples,
            thinning=self.thinning,
            learning_rate=self.learning_rate,
            friction=self.friction,
            caution=SGHMCSettings.caution * share,
            batch_size=self.batch_size,
            temperature=self.temperature,
            adaptive=self.preconditioner == "adaptive",
        )
        return sghmc(joint, start, metric, self.generator, settings, gibbs)

    def _metric(self, joint: LogJoint, start: Tensor, dense: bool) -> Metric:
        if self.preconditioner in ("adaptive", "identity"):
            return DiagonalMetric(torch.ones_like(start[0]), additive=True)
        return super()._metric(joint, start, dense)
