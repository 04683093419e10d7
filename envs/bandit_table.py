"""Bandits made of tables of labelled rows, and a wrapper that lets rewards come late."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt

from seqbdl.envs.bandit import Array, BanditEnv, _period

BUNDLED = ("breast_cancer", "digits", "iris", "wine")


class ClassificationBanditEnv(BanditEnv):
    """Classification as a bandit: an arm is a class, its reward is 1 for the row's class and 0 for another.

    Rows are shuffled when the problem begins, and once more whenever all were shown.

    Args:
        X: `(n, d)` numbers (an array or a data frame); rows with missing entries must be left out before.
        y: `n` class labels of any kind; arms are the sorted distinct ones, see `classes`.
        dataset: instead of a table, one of scikit-learn's bundled sets: `"breast_cancer"`, `"digits"`, `"iris"`, `"wine"`.
        standardize: columns to mean 0 and sd 1 (constant columns: 0).
        flip: the chance that a drawn reward is turned around: noise.
        change_every: rounds after which arms are dealt anew to the classes; `None`: never.
    """

    def __init__(
        self,
        X: Any = None,
        y: Any = None,
        dataset: str | None = None,
        standardize: bool = True,
        flip: float = 0.0,
        change_every: int | None = None,
    ) -> None:
        if (X is None) != (y is None) or (X is None) == (dataset is None):
            raise ValueError("X, y, dataset: give a table X with its labels y, or the name of a dataset.")
        if dataset is not None:
            X, y = _bundled(dataset)
        if not 0.0 <= flip < 0.5:
            raise ValueError(f"flip={flip}: it is a chance below a half.")
        self.X, self.classes, self._labels = _table(X, y, standardize)
        super().__init__(self.X.shape[1], len(self.classes))
        self.flip, self.change_every = flip, _period(change_every)

    def _start(self) -> None:
        self.problem = {
            "order": self.np_random.permutation(len(self.X)).astype(np.float64),
            "next": np.zeros(1),
            "arms": np.arange(float(self.num_arms)),
        }

    def _evolve(self) -> None:
        place = self.problem["next"] + 1
        if place[0] == len(self.X):
            place = np.zeros(1)
            self.problem["order"] = self.np_random.permutation(len(self.X)).astype(np.float64)
        self.problem["next"] = place
        if self.change_every is not None and self.round % self.change_every == 0:
            self.problem["arms"] = self.np_random.permutation(self.num_arms).astype(np.float64)

    @property
    def _row(self) -> int:
        return int(self.problem["order"][int(self.problem["next"][0])])

    def _context(self) -> Array:
        return self.X[self._row].copy()

    def _means(self, context: Array) -> Array:
        means = np.full(self.num_arms, self.flip)
        means[int(self.problem["arms"][self._labels[self._row]])] = 1.0 - self.flip
        return means

    def _rewards(self, context: Array, means: Array) -> Array:
        return (self.np_random.random(self.num_arms) < means).astype(np.float64)


class DelayedFeedback(gymnasium.Wrapper[Array, Any, Array, Any]):
    """Rewards of a bandit come later: `step` returns reward 0, and `info["arrived"]` lists `(round, reward)` of those that came
    (`info["outcome"]` is `None`: this round's is still to come).

    Args:
        env: a bandit.
        mean_delay: delays are geometric (1, 2, 3, ... further steps) with this mean, at least 1; they come out of order.
        seed: of the delays.
    """

    def __init__(self, env: gymnasium.Env[Array, Any], mean_delay: float = 10.0, seed: int = 0) -> None:
        if not isinstance(env.unwrapped, BanditEnv):
            raise ValueError(f"env: a {type(env.unwrapped).__name__}; give one of the bandits.")
        if not mean_delay >= 1.0:
            raise ValueError(f"mean_delay={mean_delay}: give a number of at least 1.")
        super().__init__(env)
        self.mean_delay, self._seed = float(mean_delay), seed
        self._begin()

    def _begin(self) -> None:
        self._rng = np.random.default_rng(self._seed)
        self._time = 0
        self._waiting: list[tuple[int, int, float]] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """As the bandit's; with a seed nothing is waited for any more."""
        if seed is not None:
            self._begin()
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Play an arm; its own reward comes with a later step, or from :meth:`flush`."""
        context, reward, terminated, truncated, info = self.env.step(action)
        self._time += 1
        arrived = [(number, value) for due, number, value in self._waiting if due <= self._time]
        self._waiting = [item for item in self._waiting if item[0] > self._time]
        delay = int(self._rng.geometric(1.0 / self.mean_delay))
        self._waiting.append((self._time + delay, int(info["round"]), float(reward)))
        return context, 0.0, terminated, truncated, {**info, "arrived": arrived, "outcome": None}

    def flush(self) -> list[tuple[int, float]]:
        """All rewards that have not come yet, `(round, reward)`; then none are waited for."""
        rest, self._waiting = [(number, value) for _, number, value in self._waiting], []
        return rest


def _bundled(name: str) -> tuple[Array, npt.NDArray[Any]]:
    if name not in BUNDLED:
        raise ValueError(f"dataset: {name!r}; the bundled ones are {', '.join(BUNDLED)}, or give X and y.")
    from sklearn import datasets

    X, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    return np.asarray(X, dtype=np.float64), np.asarray(y)


def _table(X: Any, y: Any, standardize: bool) -> tuple[Array, npt.NDArray[Any], npt.NDArray[np.int64]]:
    try:
        values = np.asarray(X, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"X: it holds something that is no number ({error}); encode categories first.") from error
    labels = np.asarray(y).reshape(-1)
    if values.ndim != 2 or len(values) != len(labels) or len(values) == 0:
        raise ValueError(f"X, y: shapes {values.shape} and {labels.shape}; give n rows of numbers and n labels.")
    bad = ~np.isfinite(values).all(axis=1)
    if bad.any():
        raise ValueError(f"X: row {int(np.flatnonzero(bad)[0])} has missing or infinite entries; leave such rows out.")
    classes, codes = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"y: all rows are of class {classes[0]!r}; a bandit needs at least two.")
    if standardize:
        spread = values.std(axis=0)
        values = (values - values.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    return values, classes, codes.astype(np.int64)
