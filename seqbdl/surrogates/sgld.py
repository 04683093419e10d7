"""``sgld``: stochastic gradient Langevin dynamics."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from seqbdl.inference.chains import ChainResult
from seqbdl.inference.gibbs import Gibbs
from seqbdl.inference.log_joint import LogJoint
from seqbdl.inference.metrics import DiagonalMetric, Metric, diagonal_metric, gauss_newton_metric
from seqbdl.inference.sgld import SGLDSettings, sgld
from seqbdl.surrogates.stochastic_gradient import StochasticGradientSurrogate


class SGLDSurrogate(StochasticGradientSurrogate):
    """Langevin steps on (mini-batch) gradients, without rejections (Welling and Teh 2011); see :mod:`seqbdl.inference.sgld`
    for the convention of the step size and its bias.

    Args:
        warmup: Steps thrown away.
        samples: States kept of every chain.
        thinning: Steps from one to the next.
        preconditioner: Beside those of every sampler ``"rmsprop"``, which is preconditioned SGLD (Li et al. 2016), and
            ``"identity"``, plain SGLD: they need thousands of steps where the noise is small.
    """

    name = "sgld"
    preconditioners: ClassVar[tuple[str, ...]] = ("auto", "gauss-newton", "diagonal", "rmsprop", "identity")

    def __init__(self, *args: Any, warmup: int = 40, samples: int = 8, thinning: int = 8, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._require_counts(samples, warmup=warmup, samples=samples, thinning=thinning)
        self.warmup, self.samples, self.thinning = warmup, samples, thinning

    def _chains(self, joint: LogJoint, gibbs: Gibbs | None, start: Tensor, dense: bool, share: float) -> ChainResult:
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
        metric: Metric
        if dense:
            metric = gauss_newton_metric(joint, start, self.generator)
        elif self.preconditioner in ("auto", "diagonal"):
            metric = diagonal_metric(joint, start, self.generator)
        else:
            metric = DiagonalMetric(torch.ones_like(start[0]))
        return sgld(joint, start, metric, self.generator, settings, gibbs)
