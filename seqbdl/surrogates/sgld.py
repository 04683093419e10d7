"""``sgld``: stochastic gradient Langevin dynamics."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from seqbdl.inference.chains import ChainResult
from seqbdl.inference.gibbs import Gibbs
from seqbdl.inference.log_joint import LogJoint
from seqbdl.inference.metrics import DiagonalMetric, Metric
from seqbdl.inference.sgld import SGLDSettings, sgld
from seqbdl.surrogates.stochastic_gradient import StochasticGradientSurrogate


class SGLDSurrogate(StochasticGradientSurrogate):
    """Langevin steps on (mini-batch) gradients, without rejections (Welling and Teh 2011); see :mod:`seqbdl.inference.sgld`
    for the convention of the step size and its bias. Where the noise is small, steps are so short that chains stay near their
    starts: hence many chains.

    Args:
        warmup: Steps thrown away.
        samples: States kept of every chain; ``None``: as many as ``num_members`` needs.
        thinning: Steps from one to the next.
        preconditioner: Beside those of every sampler ``"rmsprop"``, which is preconditioned SGLD (Li et al. 2016), and
            ``"identity"``, plain SGLD: they need thousands of steps where the noise is small.
    """

    name = "sgld"
    usual_chains = 32
    preconditioners: ClassVar[tuple[str, ...]] = ("auto", "gauss-newton", "diagonal", "rmsprop", "identity")

    def __init__(self, *args: Any, warmup: int = 100, samples: int | None = None, thinning: int = 50, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.samples = self._states_per_chain(samples, warmup=warmup, thinning=thinning)
        self.warmup, self.thinning = warmup, thinning

    def _chains(self, joint: LogJoint, gibbs: Gibbs | None, start: Tensor, metric: Metric, share: float) -> ChainResult:
        settings = SGLDSettings(
            warmup=self.warmup,
            samples=self.samples,
            thinning=self.thinning,
            learning_rate=self.learning_rate,
            caution=SGLDSettings.caution * share,
            batch_size=self.batch_size,
            temperature=self.temperature,
            rmsprop=0.99 if self.preconditioner == "rmsprop" else None,
        )
        return sgld(joint, start, metric, self.generator, settings, gibbs)

    def _metric(self, joint: LogJoint, start: Tensor, dense: bool) -> Metric:
        if self.preconditioner in ("rmsprop", "identity"):
            return DiagonalMetric(torch.ones_like(start[0]), additive=True)
        return super()._metric(joint, start, dense)
