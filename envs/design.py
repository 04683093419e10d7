"""Experiments to be designed: an action is a design, the answer is what was measured; the unknown is what made it.

Every problem brings the model that it simulates, `env.unwrapped.model`: `sample(n)` draws parameters from the prior, `simulate`
outcomes, and `log_prob(y, theta, design)` is the likelihood where there is one, vectorized over leading dimensions: parameters
`... x p`, designs `... x d`, outcomes `... x m`. A reset draws new true parameters, `env.unwrapped.truth`; a loop must not look
at them.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from seqbdl.envs.base import Array, DecisionEnv, Evaluation


class ExperimentModel(Protocol):
    """What an experiment of this package says about itself; most add `log_prior(theta)`, the log density of `... x p` with `-inf`
    outside the prior's support, and `log_prob(y, theta, design)`, `log p(y | theta, design)` of the broadcast leading dimensions.
    """

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """One for each entry of theta."""

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """`n x p` draws from the prior."""

    def simulate(self, theta: Tensor, design: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Outcomes, `... x m`, mostly `m = 1`."""


class DesignEnv(DecisionEnv):
    """An experiment with unknown parameters, repeated at one design after another.

    The reward of a step is the outcome itself, so that a loop learns of it; the score of a loop is what it knows in the end, not
    the sum of rewards. `reset(options={"truth": [...]})` fixes the true parameters.

    Args:
        model: What is simulated.
        action_space: `Box` of shape `(d,)`, or `Dict` of scalars.
        parameter_names: one name per entry of the design; a `Dict` brings its own.
        log_scale: one flag per entry.
        outcome_name: what is measured; several names where an outcome has several numbers.
    """

    def __init__(
        self,
        model: ExperimentModel,
        action_space: spaces.Space[Any],
        parameter_names: tuple[str, ...] = (),
        log_scale: tuple[bool, ...] = (),
        outcome_name: str | tuple[str, ...] = "outcome",
    ) -> None:
        names = (outcome_name,) if isinstance(outcome_name, str) else outcome_name
        super().__init__(action_space, parameter_names=parameter_names, log_scale=log_scale, outcome_names=names)
        self.model = model
        self.truth: Tensor | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Draw true parameters from the prior, or take those of `options["truth"]`."""
        observation, info = super().reset(seed=seed, options=options)
        names = self.model.parameter_names
        if options and "truth" in options:
            truth = torch.as_tensor(options["truth"], dtype=torch.float64)
            if truth.shape != (len(names),) or not bool(torch.isfinite(truth).all()):
                raise ValueError(f"truth: {options['truth']!r}; give one finite number for each of {', '.join(names)}.")
            self.truth = truth
        else:
            self.truth = self.model.sample(1, self._generator())[0]
        return observation, info

    def _generator(self) -> torch.Generator:
        # Everything random comes from np_random, so that its state is the state of the problem.
        return torch.Generator().manual_seed(int(self.np_random.integers(2**62)))

    def _evaluate(self, point: Any) -> Evaluation:
        if self.truth is None:
            raise ValueError("the experiment has no true parameters yet; call reset first.")
        values = list(point.values()) if isinstance(point, dict) else point
        design = torch.as_tensor(np.asarray(values, dtype=np.float64))
        outcome = self.model.simulate(self.truth, design, self._generator())
        return Evaluation(outcome.numpy().reshape(-1))
