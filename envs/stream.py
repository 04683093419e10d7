"""Streams: a chunk of inputs is shown, predictions are scored, the outcomes are revealed, and the next chunk comes.

The observation is the chunk of inputs, the action says what is predicted for it, the reward is the mean log score, and
`info["outcome"]` holds what there is to learn: `Y`, and, for judging only, `task`, `changed` (whether this chunk is the first
of its task) and `last` (whether it is the last one).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

Array = npt.NDArray[np.float64]
_LEAST = 1e-12  # the probability of an outcome that was ruled out counts as this
_SMALLEST_SD = 1e-6


@dataclass(frozen=True)
class Task:
    """One stationary part of a stream.

    Args:
        X: `(n, d)` inputs in their order.
        Y: `(n, 1)` outcomes; class indices from 0, or numbers.
        test_X: `(k, d)` held-out inputs; none when `k` is 0.
        test_Y: `(k, 1)`.
    """

    X: Array
    Y: Array
    test_X: Array
    test_Y: Array


class StreamEnv(gymnasium.Env[Array, Any]):
    """Tasks one after the other, chunk by chunk; a subclass says what they are (`_tasks`).

    An action holds, for every row of the chunk, nonnegative class weights `(chunk, C)` (rows are normalized) or mean and standard
    deviation `(chunk, 2)`. The episode ends with the stream. `reset(seed=)` draws the tasks anew.

    Args:
        input_dim: `d`.
        num_classes: `C`; `None`: real outcomes.
        chunk: rows per step; rows at the end of a task that do not fill a chunk are left out.
        bounds: smallest and largest value of every input, `(2, d)`; `None`: not known.
    """

    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(self, input_dim: int, num_classes: int | None, chunk: int = 1, bounds: Array | None = None) -> None:
        if chunk < 1:
            raise ValueError(f"chunk: {chunk}; give a number of rows of at least 1.")
        self.input_dim, self.num_classes, self.chunk = input_dim, num_classes, chunk
        self.render_mode: str | None = None
        self.bounds = bounds
        low, high = (-np.inf, np.inf) if bounds is None else np.repeat(bounds[:, None], chunk, axis=1)
        self.observation_space = spaces.Box(low, high, (chunk, input_dim), np.float64)
        if num_classes is None:
            least = np.tile([-np.inf, _SMALLEST_SD], (chunk, 1))
            self.action_space: spaces.Space[Any] = spaces.Box(least, np.inf, (chunk, 2), np.float64)
        else:
            self.action_space = spaces.Box(0.0, 1.0, (chunk, num_classes), np.float64)
        self.tasks: list[Task] = []
        self._places: list[tuple[int, int]] = []
        self._step = 0
        self._drawn_from: dict[str, Any] = {}

    @abstractmethod
    def _tasks(self) -> list[Task]:
        """The tasks of an episode; randomness from `self.np_random`."""

    @property
    def num_steps(self) -> int:
        """Chunks in the stream; 0 before the first `reset`."""
        return len(self._places)

    @property
    def changes(self) -> list[int]:
        """Steps at which a new task begins, the first one left out."""
        return [i for i, (_, start) in enumerate(self._places) if start == 0 and i > 0]

    def test_set(self, task: int) -> tuple[Array, Array]:
        """Held-out inputs `(k, d)` and outcomes `(k, 1)` of a task."""
        return self.tasks[task].test_X, self.tasks[task].test_Y

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Draw the tasks and show the first chunk.

        Raises:
            ValueError: a task has fewer rows than `chunk`.
        """
        super().reset(seed=seed)
        self._drawn_from = dict(self.np_random.bit_generator.state)
        self._draw()
        self._step = 0
        return self._observation(), self._told()

    def _draw(self) -> None:
        tasks = self._tasks()
        for t, task in enumerate(tasks):
            if (rows := len(task.X)) < self.chunk:
                raise ValueError(
                    f"chunk: {self.chunk}; task {t} has only {rows} rows and would not be shown; give at most {rows}."
                )
        self.tasks = tasks
        self._places = [
            (t, start) for t, task in enumerate(self.tasks) for start in range(0, len(task.X) - self.chunk + 1, self.chunk)
        ]

    def step(self, action: Any) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Score predictions of the chunk that was shown, reveal its outcomes, show the next chunk.

        Raises:
            ValueError: when the action has another shape, is not finite, negative, or names no positive spread.
        """
        if self._step >= len(self._places):
            raise ValueError("step: the stream has ended or not begun; call reset.")
        t, start = self._places[self._step]
        Y = self.tasks[t].Y[start : start + self.chunk]
        reward = float(self._log_scores(self._checked(action), Y).mean())
        last = self._step + 1 == len(self._places) or self._places[self._step + 1][0] != t
        outcome = {"Y": Y.copy(), "task": t, "changed": start == 0, "last": last}
        self._step += 1
        ended = self._step == len(self._places)
        observation = np.zeros((self.chunk, self.input_dim)) if ended else self._observation()
        return observation, reward, ended, False, {"outcome": outcome, **({} if ended else self._told())}

    def _told(self) -> dict[str, Any]:
        """What the stream says of the chunk that it shows, beside its inputs."""
        return {}

    def _observation(self) -> Array:
        t, start = self._places[self._step]
        return self.tasks[t].X[start : start + self.chunk].copy()

    def _checked(self, action: Any) -> Array:
        values = np.asarray(action, dtype=np.float64)
        shape = self.action_space.shape
        if values.shape != shape:
            raise ValueError(f"action: shape {values.shape}; give an array of shape {shape}.")
        bad = ~np.isfinite(values).all(axis=1)
        bad |= (values[:, 1] < _SMALLEST_SD) if self.num_classes is None else (values < 0).any(axis=1) | (values.sum(axis=1) <= 0)
        if bad.any():
            what = (
                "a mean and a positive standard deviation" if self.num_classes is None else "nonnegative weights of the classes"
            )
            raise ValueError(f"action: row {int(np.flatnonzero(bad)[0])} is {values[bad][0]}; give {what}.")
        return values

    def _log_scores(self, action: Array, Y: Array) -> Array:
        if self.num_classes is None:
            z = (Y[:, 0] - action[:, 0]) / action[:, 1]
            return np.asarray(-0.5 * z**2 - np.log(action[:, 1]) - 0.5 * np.log(2 * np.pi))
        probs = action / action.sum(axis=1, keepdims=True)
        return np.asarray(np.log(np.maximum(probs[np.arange(len(Y)), Y[:, 0].astype(int)], _LEAST)))

    def get_position(self) -> dict[str, Any]:
        """Where the stream is: plain values from which `set_position` continues."""
        return {"step": self._step, "drawn_from": self._drawn_from}

    def set_position(self, position: dict[str, Any]) -> Array:
        """Draw the same tasks again and go to the same step; returns the observation there."""
        self.np_random.bit_generator.state = position["drawn_from"]
        self._drawn_from = position["drawn_from"]
        self._draw()
        self._step = int(position["step"])
        return np.zeros((self.chunk, self.input_dim)) if self._step == len(self._places) else self._observation()


class PiecewiseRegressionEnv(StreamEnv):
    """A sine of one input whose amplitude, frequency and phase are drawn anew at known times.

    Args:
        num_tasks: segments.
        length: rows per segment.
        noise: standard deviation of the noise.
        chunk: rows per step.
    """

    def __init__(self, num_tasks: int = 4, length: int = 100, noise: float = 0.1, chunk: int = 1) -> None:
        if num_tasks < 1 or length < chunk or not noise > 0:
            raise ValueError(
                f"num_tasks={num_tasks}, length={length}, noise={noise}: a segment needs a chunk, the noise is positive."
            )
        super().__init__(1, None, chunk)
        self.num_tasks, self.length, self.noise = num_tasks, length, noise

    def _tasks(self) -> list[Task]:
        rng, tasks = self.np_random, []
        for _ in range(self.num_tasks):
            size, frequency, phase = rng.uniform(0.5, 2.0), rng.uniform(1.0, 3.0), rng.uniform(0, 2 * np.pi)
            X = rng.uniform(-1.0, 1.0, (self.length + 100, 1))
            Y = size * np.sin(frequency * X + phase) + self.noise * rng.standard_normal(X.shape)
            tasks.append(Task(X[: self.length], Y[: self.length], X[self.length :], Y[self.length :]))
        return tasks


class DriftingLinearEnv(StreamEnv):
    """A linear function whose coefficients walk at random: of a linear model with the same drift, the Kalman filter is exact.

    Args:
        dim: inputs, standard normal; there is no constant.
        length: rows.
        drift: standard deviation of every coefficient's step per row; they begin standard normal.
        noise: standard deviation of the noise.
        chunk: rows per step.
    """

    def __init__(self, dim: int = 3, length: int = 500, drift: float = 0.05, noise: float = 0.1, chunk: int = 1) -> None:
        if dim < 1 or length < chunk or drift < 0 or not noise > 0:
            raise ValueError(f"dim={dim}, length={length}, drift={drift}, noise={noise}: counts and the noise are positive.")
        super().__init__(dim, None, chunk)
        self.length, self.drift, self.noise = length, drift, noise

    def _tasks(self) -> list[Task]:
        rng = self.np_random
        w = rng.standard_normal(self.input_dim) + self.drift * rng.standard_normal((self.length, self.input_dim)).cumsum(axis=0)
        X = rng.standard_normal((self.length, self.input_dim))
        Y = (X * w).sum(axis=1, keepdims=True) + self.noise * rng.standard_normal((self.length, 1))
        return [Task(X, Y, X[:0], Y[:0])]
