"""``sghmc``: stochastic gradient Hamiltonian Monte Carlo."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from seqbdl.errors import InvalidOptionError
from seqbdl.inference.chains import ChainResult
from seqbdl.inference.gibbs import Gibbs
from seqbdl.inference.log_joint import LogJoint
from seqbdl.inference.metrics import DiagonalMetric, Metric, diagonal_metric, gauss_newton_metric
from seqbdl.inference.sghmc import SGHMCSettings, sghmc
from seqbdl.surrogates.stochastic_gradient import StochasticGradientSurrogate


class SGHMCSurrogate(StochasticGradientSurrogate):
    """Langevin steps with momenta on (mini-batch) gradients, without rejections (Chen et al. 2014); see
    :mod:`seqbdl.inference.sghmc`.

    Args:
        warmup: Steps thrown away.
        samples: States kept of every chain.
        thinning: Steps from one to the next.
        friction: Share of the velocity that a step loses.
        preconditioner: Beside those of every sampler ``"adaptive"``, scale-adapted SGHMC (Springenberg et al. 2016), whose
            diagonal is learned during warm-up, and ``"identity"``: they need thousands of steps where the noise is small.
    """

    name = "sghmc"
    preconditioners: ClassVar[tuple[str, ...]] = ("auto", "gauss-newton", "diagonal", "adaptive", "identity")

    def __init__(
        self, *args: Any, warmup: int = 40, samples: int = 8, thinning: int = 8, friction: float = 0.3, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._require_counts(samples, warmup=warmup, samples=samples, thinning=thinning)
        if not 0 < friction <= 1:
            raise InvalidOptionError(f"friction={friction} is the share of the velocity that a step loses, in (0, 1]")
        self.warmup, self.samples, self.thinning, self.friction = warmup, samples, thinning, friction

    def _chains(self, joint: LogJoint, gibbs: Gibbs | None, start: Tensor, dense: bool, share: float) -> ChainResult:
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
        metric: Metric
        if dense:
            metric = gauss_newton_metric(joint, start, self.generator)
        elif self.preconditioner in ("auto", "diagonal"):
            metric = diagonal_metric(joint, start, self.generator)
        else:
            metric = DiagonalMetric(torch.ones_like(start[0]))
        return sghmc(joint, start, metric, self.generator, settings, gibbs)
