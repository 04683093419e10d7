"""What ``repulsive-ensemble`` and ``svgd`` share: members that start as posterior samples, and move as interacting particles."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from seqbdl.errors import InvalidOptionError, UnknownNameError
from seqbdl.inference.adam import AdamSettings
from seqbdl.inference.function_prior import FunctionPrior, KernelPrior, SampledPrior
from seqbdl.inference.function_space import FunctionPosterior
from seqbdl.inference.log_joint import LogJoint
from seqbdl.surrogates.ensemble import AnchoredMembers


class InteractingSurrogate(AnchoredMembers):
    """``S`` networks that are drawn to the posterior and pushed from one another.

    They begin as randomize-then-optimize samples (see ``anchored-ensemble``), so that few steps are left: long descents from
    random starts are not needed. Scales of the prior and the noise come from the evidence of the infinite-width limit.

    In function space the prior is the Gaussian process of the infinitely wide network; for a module it is estimated from
    ``prior_draws`` networks with weights from the prior.

    ``update`` holds every member by the values that it had at remembered rows, as an ensemble does, and lets the particles move
    on under the likelihood of the remembered and of the new rows.

    Args:
        space: Where particles see one another, one of :attr:`spaces`.
        num_inputs: In function space: random inputs beside the rows, at every step.
        prior_draws: Networks that stand for the function prior of a module.
        normalize: Scale the repulsion so that the particles' spread is the posterior's on average (see
            :mod:`seqbdl.inference.repulsion`); ``False``: as published, which collapses. It needs a metric, which the space of
            all weights has not: there nothing is scaled.
        steps: Of Adam, by interacting particles.
        learning_rate: Of the first step; it falls to zero along a half cosine.
        batch_size: Rows per step.
        max_iterations: Gauss-Newton steps of the start.
    """

    spaces: ClassVar[tuple[str, ...]] = ("function", "weight")
    carries = "every member, its function values at up to `memory` old rows, and these rows for further moves"
    update_tolerance = 1.0

    def __init__(
        self,
        *args: Any,
        space: str = "function",
        num_inputs: int = 32,
        prior_draws: int = 100,
        normalize: bool = True,
        steps: int = 100,
        learning_rate: float = 5e-3,
        batch_size: int = 256,
        max_iterations: int = 30,
        randomize_targets: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, max_iterations=max_iterations, randomize_targets=randomize_targets, **kwargs)
        if space not in self.spaces:
            raise UnknownNameError("space", space, list(self.spaces))
        if num_inputs < 0 or steps < 0:
            raise InvalidOptionError(f"num_inputs={num_inputs} and steps={steps} must not be negative")
        if prior_draws < 2 or batch_size < 1:
            raise InvalidOptionError(f"prior_draws={prior_draws} must be at least 2 and batch_size={batch_size} at least 1")
        if not learning_rate > 0:
            raise InvalidOptionError(f"learning_rate={learning_rate} must be positive")
        self.space, self.num_inputs, self.prior_draws, self.normalize = space, num_inputs, prior_draws, normalize
        self.moves = AdamSettings(steps=steps, learning_rate=learning_rate, batch_size=batch_size)

    def _infer(self, X: Tensor, Y: Tensor, variance: Tensor, warm: bool) -> tuple[Tensor, Tensor]:
        z, log_weights = super()._infer(X, Y, variance, warm)
        return self._move(X, Y, variance, z), log_weights

    def _absorb(self, X: Tensor, Y: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        z, log_weights = super()._absorb(X, Y, variance)
        return self._move(*self._with_memory(X, Y, variance), z), log_weights

    def _with_memory(self, X: Tensor, Y: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Remembered rows and new ones."""
        old_X, old_Y, old_variance = self._memory
        return torch.cat([old_X, X]), torch.cat([old_Y, Y]), torch.cat([old_variance, variance])

    @abstractmethod
    def _move(self, X: Tensor, Y: Tensor, variance: Tensor, z: Tensor) -> Tensor:
        """Particles ``S x P`` after steps from ``z`` under all these rows."""

    def _row_weights(self, variance: Tensor) -> Tensor | None:
        """How many rows each speaks for; of likelihoods without noise ``variance`` says it."""
        return None if self._lik.has_noise else variance[:, 0].reciprocal()

    def _log_joint(self, X: Tensor, Y: Tensor, variance: Tensor) -> LogJoint:
        return LogJoint(self._network, self._lik, self._weight_prior, X, Y, variance, self._row_weights(variance))

    def _function_posterior(self, X: Tensor, Y: Tensor, variance: Tensor) -> FunctionPosterior:
        weights = self._row_weights(variance)
        weights = X.new_ones(X.shape[0]) if weights is None else weights
        return FunctionPosterior(self._network, self._lik, self._function_prior(X), X, Y, variance, weights)

    def _function_prior(self, like: Tensor) -> FunctionPrior:
        if self._builder.widths is not None:
            return KernelPrior(self._prior.scales.to(like), self._builder.activation)
        return SampledPrior.of(self._network, self._weight_prior, self.prior_draws, self.generator, like)
