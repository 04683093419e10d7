"""What the samplers with stochastic gradients share: their options, and smaller steps where automatic ones explode."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import Tensor

from seqbdl.errors import DivergedError, InvalidOptionError
from seqbdl.inference.chains import ChainResult
from seqbdl.inference.gibbs import Gibbs
from seqbdl.inference.log_joint import LogJoint
from seqbdl.inference.metrics import Metric
from seqbdl.surrogates.sampler import SamplerSurrogate

_ATTEMPTS = 6


class StochasticGradientSurrogate(SamplerSurrogate):
    """Chains that never reject: their steps must be small enough.

    Args:
        learning_rate: Step size; ``None``: a share of what is stable for the largest curvature where the chains start, and
            half of that (up to five times) where chains explode.
        batch_size: Rows per step; ``None``: all.
        temperature: Of the posterior that the noise belongs to; 1 is Bayes' rule.
    """

    def __init__(
        self,
        *args: Any,
        learning_rate: float | None = None,
        batch_size: int | None = None,
        temperature: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if learning_rate is not None and not learning_rate > 0:
            raise InvalidOptionError(f"learning_rate={learning_rate} must be positive, or None to choose it")
        if batch_size is not None and batch_size < 1:
            raise InvalidOptionError(f"batch_size={batch_size} must be at least 1 row, or None for all")
        if not temperature >= 0:
            raise InvalidOptionError(f"temperature={temperature} must not be negative")
        self.learning_rate, self.batch_size, self.temperature = learning_rate, batch_size, temperature

    def _run(self, joint: LogJoint, gibbs: Gibbs | None, start: Tensor, metric: Metric) -> ChainResult:
        for attempt in range(_ATTEMPTS):
            try:
                return self._chains(joint, gibbs, start, metric, 0.5**attempt)
            except DivergedError:
                if self.learning_rate is not None or attempt == _ATTEMPTS - 1:
                    raise
        raise AssertionError

    @abstractmethod
    def _chains(self, joint: LogJoint, gibbs: Gibbs | None, start: Tensor, metric: Metric, share: float) -> ChainResult:
        """Sample; ``share`` multiplies automatic step sizes."""
