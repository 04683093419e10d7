"""What every decision problem shares: attributes, the checking of actions, and what `step` answers.

A problem says where it can be evaluated (`action_space`) and what one evaluation returns (`_evaluate`). Everything is
oriented to be maximized, and every random number comes from `self.np_random`, so that storing the state of that
generator stores the problem.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

Array = npt.NDArray[np.float64]
Point = Array | dict[str, float | int] | int

# A point computed from the unit cube may miss a bound by rounding; within this share of the range it is moved onto it.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation of a problem found.

    Args:
        outcomes: `m` observed objectives, each to be maximized.
        true_value: the reward without noise, where it is known.
        constraints: `k` values, feasible when `<= 0`.
        noise_variance: `m` variances of the noise in `outcomes`, where they are known.
        failure: why there is no outcome; `None` when there is one.
        extra: further entries of `info`.
    """

    outcomes: Array
    true_value: float | None = None
    constraints: Array | None = None
    noise_variance: Array | None = None
    failure: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


class DecisionEnv(gymnasium.Env[Array, Any]):
    """A stateless decision problem: choose a point, see a noisy outcome, choose again.

    `step` never ends an episode. Its observation is the last outcome (`m`; zeros after `reset` and after a failure),
    its reward the objective, or the mean of the objectives when there are several: loops for several objectives read
    `info["outcomes"]`.

    Args:
        action_space: `Box` of shape `(d,)` in natural units, `Dict` of scalar `Box` and `Discrete`, or `Discrete` for a
            pool of candidates.
        parameter_names: one name per parameter; a `Dict` space brings its own.
        log_scale: one flag per parameter: best searched on a logarithmic scale.
        categories: names of the options of each categorical parameter.
        outcome_names: one name per objective.
        num_constraints: the length of `info["constraints"]`.
        optimal_value: the best noise-free reward, where it is known.
        ref_point: `m` values that a hypervolume is measured from, for several objectives.
        failure_reward: the finite reward of a failed evaluation.
    """

    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(
        self,
        action_space: spaces.Space[Any],
        *,
        parameter_names: Sequence[str] = (),
        log_scale: Sequence[bool] = (),
        categories: Mapping[str, Sequence[str]] | None = None,
        outcome_names: Sequence[str] = ("objective",),
        num_constraints: int = 0,
        optimal_value: float | None = None,
        ref_point: Array | None = None,
        candidates: Array | None = None,
        failure_reward: float = 0.0,
    ) -> None:
        self.action_space = action_space
        if isinstance(action_space, spaces.Dict):
            parameter_names = tuple(action_space.spaces)
        self.parameter_names: tuple[str, ...] = tuple(parameter_names)
        self.log_scale: tuple[bool, ...] = tuple(log_scale) or (False,) * len(self.parameter_names)
        self.categories: dict[str, tuple[str, ...]] = {k: tuple(v) for k, v in (categories or {}).items()}
        self.outcome_names: tuple[str, ...] = tuple(outcome_names)
        self.num_outcomes: int = len(self.outcome_names)
        self.num_constraints: int = num_constraints
        self.optimal_value: float | None = optimal_value
        self.ref_point: Array | None = ref_point
        self.candidates: Array | None = candidates
        self.failure_reward: float = failure_reward
        self.render_mode: str | None = None
        shape = (self.num_outcomes,)
        self.observation_space = spaces.Box(-np.inf, np.inf, shape, np.float64)

    @abstractmethod
    def _evaluate(self, point: Any) -> Evaluation:
        """The outcome at a checked point: an array `(d,)`, a dictionary of numbers, or the index of a candidate."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Seed the noise when `seed` is given; the problem itself has nothing to reset."""
        super().reset(seed=seed)
        return np.zeros(self.num_outcomes), {}

    def step(self, action: Any) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Evaluate one point.

        Args:
            action: a member of `action_space`; array-likes and Python numbers are accepted too.

        Raises:
            ValueError: when the action has the wrong shape, leaves the bounds, or is not a number.
        """
        result = self._evaluate(self.check_action(action))
        info: dict[str, Any] = dict(result.extra)
        outcomes = np.asarray(result.outcomes, dtype=np.float64)
        info["outcomes"] = outcomes.copy()
        info["true_value"] = result.true_value
        info["noise_variance"] = result.noise_variance
        info["failed"] = result.failure is not None
        if self.num_constraints and result.constraints is not None:
            info["constraints"] = np.asarray(result.constraints, dtype=np.float64).copy()
        if result.failure is not None:
            info["reason"] = result.failure
            return np.zeros(self.num_outcomes), self.failure_reward, False, False, info
        return outcomes.copy(), float(outcomes.mean()), False, False, info

    def failure(self, reason: str, **extra: Any) -> Evaluation:
        """An evaluation without an outcome: all `NaN`, and the reason."""
        constraints = np.full(self.num_constraints, np.nan) if self.num_constraints else None
        return Evaluation(np.full(self.num_outcomes, np.nan), None, constraints, None, reason, extra)

    def check_action(self, action: Any) -> Point:
        """The action as an array `(d,)`, a dictionary of numbers or an index; `ValueError` when it is none of them."""
        space = self.action_space
        if isinstance(space, spaces.Dict):
            return self._check_mapping(action, space)
        if isinstance(space, spaces.Discrete):
            return check_integer("action", action, space)
        if isinstance(space, spaces.Box):
            return check_vector(action, space, self.parameter_names)
        raise TypeError(f"action_space: {type(space).__name__} is not one of Box, Dict and Discrete.")

    def _check_mapping(self, action: Any, space: spaces.Dict) -> dict[str, float | int]:
        if not isinstance(action, Mapping):
            raise ValueError(f"action: a {type(action).__name__}; give a dictionary with keys {list(space.spaces)}.")
        missing = [name for name in space.spaces if name not in action]
        unknown = [name for name in action if name not in space.spaces]
        if missing or unknown:
            raise ValueError(f"action: keys missing {missing}, unknown {unknown}; the keys are {list(space.spaces)}.")
        point: dict[str, float | int] = {}
        for name, part in space.spaces.items():
            if isinstance(part, spaces.Discrete):
                point[name] = check_integer(f"action[{name!r}]", action[name], part)
            elif isinstance(part, spaces.Box):
                point[name] = check_scalar(f"action[{name!r}]", action[name], part)
        return point


def check_integer(name: str, value: Any, space: spaces.Discrete[Any]) -> int:
    """`value` as an integer of `space`."""
    low, high = int(space.start), int(space.start) + int(space.n) - 1
    number = _number(name, value)
    if number != round(number) or not low <= number <= high:
        raise ValueError(f"{name}: {value!r}; give an integer from {low} to {high}.")
    return int(number)


def check_scalar(name: str, value: Any, space: spaces.Box) -> float:
    """`value` as a number between the bounds of a scalar `space`."""
    low, high = float(space.low), float(space.high)
    number = _number(name, value)
    slack = ROUNDING * (high - low)
    if not low - slack <= number <= high + slack:
        raise ValueError(f"{name}: {number:g} is outside [{low:g}, {high:g}]; give a value between the bounds.")
    return min(max(number, low), high)


def check_vector(action: Any, space: spaces.Box, names: Sequence[str]) -> Array:
    """`action` as an array `(d,)` between the bounds of `space`."""
    try:
        values = np.asarray(action, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"action: {action!r} is not an array of numbers; give one of shape {space.shape}.") from error
    if values.shape != space.shape:
        raise ValueError(f"action: shape {values.shape}; give an array of shape {space.shape}.")
    slack = ROUNDING * (space.high - space.low)
    # Written so that NaN counts as outside.
    outside = ~((values >= space.low - slack) & (values <= space.high + slack))
    if outside.any():
        i = int(np.flatnonzero(outside)[0])
        name = f" ({names[i]})" if i < len(names) else ""
        raise ValueError(
            f"action: entry {i}{name} is {values[i]:g}, outside [{space.low[i]:g}, {space.high[i]:g}]; "
            "give a value between the bounds."
        )
    return np.clip(values, space.low, space.high)


def _number(name: str, value: Any) -> float:
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: {value!r} is not a number; give one number.") from error
    if array.size != 1:
        raise ValueError(f"{name}: shape {array.shape}; give one number.")
    number = float(array.reshape(()))
    if not np.isfinite(number):
        raise ValueError(f"{name}: {number}; give a finite number.")
    return number


def real(low: float, high: float) -> spaces.Box:
    """A scalar `Box` in natural units, for a `Dict` space."""
    return spaces.Box(low, high, (), np.float64)


def integer(low: int, high: int) -> spaces.Discrete[Any]:
    """The integers from `low` to `high`, both included, for a `Dict` space."""
    return spaces.Discrete(high - low + 1, start=low)


def mapping(parts: Mapping[str, spaces.Space[Any]]) -> spaces.Dict:
    """A `Dict` space that keeps the order of its parts (a plain dictionary would be sorted by name)."""
    return spaces.Dict(OrderedDict(parts))
