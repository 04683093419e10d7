"""Where outcomes come from: an environment or a function, behind one small interface."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import gymnasium
import numpy as np

from seqbdl.errors import InvalidOptionError, StateError


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation brought.

    Attributes:
        outcome: A number, a sequence or a mapping; see :meth:`seqbdl.loops.outcomes.OutcomeSpec.read`.
        constraints: Values of outcome constraints, feasible when at most 0; ``None`` without.
        Yvar: Known noise variances; ``None`` when unknown.
        true_value: The outcome without noise; ``None`` when unknown.
        failed: Whether there is no outcome.
        reason: Why.
        observation: What the next ask may look at.
        info: Everything an environment said.
    """

    outcome: Any = None
    constraints: Any = None
    Yvar: Any = None
    true_value: float | None = None
    failed: bool = False
    reason: str = ""
    observation: Any = None
    info: Mapping[str, Any] = field(default_factory=dict)


class Evaluator(Protocol):
    """Evaluates points, and remembers what a repetition of the run needs."""

    @property
    def optimal_value(self) -> float | None:
        """The best possible outcome, where known."""

    def start(self, seed: int | None) -> Any:
        """Begin; returns the first observation."""

    def evaluate(self, action: Any) -> Evaluation:
        """The outcome of one action."""

    def state_dict(self) -> dict[str, Any]:
        """What is random about the next evaluations, as a tree."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""


class EnvEvaluator:
    """An environment whose rewards are to be maximized.

    Args:
        env: A Gymnasium environment; ``info`` may hold ``outcomes``, ``constraints``, ``true_value``,
            ``noise_variance``, ``failed`` and ``reason``; of streams ``outcome``, which is told in place of the reward.
        to_action: From a loop's point to the environment's action.
        num_outcomes: How many outcomes the loop wants; with one it is the reward.
        known_noise: Whether to hand on the noise variances that the environment knows.
    """

    def __init__(
        self, env: gymnasium.Env[Any, Any], to_action: Callable[[Any], Any], num_outcomes: int, known_noise: bool
    ) -> None:
        self.env = env
        self.to_action = to_action
        self.num_outcomes = num_outcomes
        self.known_noise = known_noise
        self.observation: Any = None
        self._num_constraints = int(getattr(env.unwrapped, "num_constraints", 0) or 0)

    @property
    def optimal_value(self) -> float | None:
        value = getattr(self.env.unwrapped, "optimal_value", None)
        return None if value is None or self.num_outcomes > 1 else float(value)

    def start(self, seed: int | None) -> Any:
        observation, _ = self.env.reset(seed=seed)
        return observation

    def evaluate(self, action: Any) -> Evaluation:
        observation, reward, terminated, truncated, info = self.env.step(self.to_action(action))
        if terminated or truncated:
            observation, _ = self.env.reset()
        if bool(info.get("failed", False)):
            reason = str(info.get("reason", "failed"))
            return Evaluation(failed=True, reason=reason, observation=observation, info=info)
        outcome: Any = info.get("outcome", float(reward))  # streams say more than a number
        if self.num_outcomes > 1:
            if "outcomes" not in info:
                raise InvalidOptionError("the environment reports no info['outcomes']; use a loop with num_outcomes=1")
            outcome = np.asarray(info["outcomes"], dtype=np.float64)
        noise = info.get("noise_variance") if self.known_noise else None
        return Evaluation(
            outcome=outcome,
            constraints=info.get("constraints") if self._num_constraints else None,
            Yvar=None if noise is None else np.asarray(noise, dtype=np.float64),
            true_value=info.get("true_value"),
            observation=observation,
            info=info,
        )

    def state_dict(self) -> dict[str, Any]:
        state = self.env.unwrapped.np_random.bit_generator.state
        tree: dict[str, Any] = {"np_random": json.dumps(state, default=_listed)}
        if hasattr(self.env.unwrapped, "get_position"):  # a stream goes on where it was
            tree["position"] = json.dumps(self.env.unwrapped.get_position(), default=_listed)
        return tree

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        stored = json.loads(state["np_random"])
        generator = self.env.unwrapped.np_random.bit_generator
        if stored.get("bit_generator") != generator.state["bit_generator"]:
            raise StateError(f"the checkpoint belongs to an environment with another generator ({stored.get('bit_generator')})")
        generator.state = stored
        if "position" in state:
            self.observation = self.env.unwrapped.set_position(json.loads(state["position"]))  # type: ignore[attr-defined]
            generator.state = stored


class FunctionEvaluator:
    """A function of a point.

    Args:
        function: Returns an outcome; see :meth:`seqbdl.loops.outcomes.OutcomeSpec.read`.
        convert: From a loop's point to the function's argument.
        on_error: ``"record"`` makes a failed trial of an exception, ``"raise"`` lets it through.
    """

    optimal_value: float | None = None

    def __init__(self, function: Callable[[Any], Any], convert: Callable[[Any], Any], on_error: str) -> None:
        self.function = function
        self.convert = convert
        self.on_error = on_error

    def start(self, seed: int | None) -> Any:
        return None

    def evaluate(self, action: Any) -> Evaluation:
        try:
            outcome = self.function(self.convert(action))
        except Exception as error:
            if self.on_error == "raise":
                raise
            return Evaluation(failed=True, reason=f"{type(error).__name__}: {error}")
        if inspect.iscoroutine(outcome):
            outcome.close()
            raise InvalidOptionError("the objective is a coroutine function; wrap it with asyncio.run")
        if outcome is None:
            return Evaluation(failed=True, reason="the objective returned None")
        return Evaluation(outcome=outcome)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        return None


def _listed(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    raise StateError(f"the generator's state holds a {type(value).__name__}")
