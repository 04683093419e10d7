"""Replays of measured tables: each row of the table is an experiment that somebody ran, and an action picks one.

Rows with equal inputs are replicates of one candidate. A step draws one of them, so the noise is the laboratory's own;
the true value of a candidate is the mean of its replicates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces

from seqbdl.envs.base import Array, DecisionEnv, Evaluation
from seqbdl.envs.data import TABLES, load_sklearn, load_table, read_table

if TYPE_CHECKING:
    import pandas as pd


class PoolEnv(DecisionEnv):
    """A pool of measured candidates.

    Args:
        inputs: `(n, d)`, one row per measurement.
        measurements: `(n,)`.
        goal: `"maximize"` or `"minimize"` the measurement; the reward is turned accordingly.
        parameter_names: `d` names.
        outcome_name: what was measured.
        log_scale: `d` flags.

    The action is the index of a candidate, a row of `candidates`.
    """

    def __init__(
        self,
        inputs: Any,
        measurements: Any,
        goal: str = "maximize",
        parameter_names: Sequence[str] = (),
        outcome_name: str = "measurement",
        log_scale: Sequence[bool] = (),
    ) -> None:
        x, y = np.asarray(inputs, dtype=np.float64), np.asarray(measurements, dtype=np.float64)
        if x.ndim != 2 or not len(x) or not x.shape[1]:
            raise ValueError(f"inputs: shape {x.shape}; give a table of n rows and d columns, neither empty.")
        if y.shape != (len(x),):
            raise ValueError(f"measurements: shape {y.shape}; give one number for each of the {len(x)} rows.")
        bad = ~(np.isfinite(x).all(axis=1) & np.isfinite(y))
        if bad.any():
            raise ValueError(f"inputs: row {int(np.flatnonzero(bad)[0])} is not finite; drop or complete such rows.")
        if goal not in ("maximize", "minimize"):
            raise ValueError(f"goal: {goal!r}; give 'maximize' or 'minimize'.")
        names = tuple(parameter_names) or tuple(f"x{i + 1}" for i in range(x.shape[1]))
        if len(names) != x.shape[1]:
            raise ValueError(f"parameter_names: {len(names)} names for {x.shape[1]} columns; give one for each.")
        self.goal = goal
        candidates, group = np.unique(x, axis=0, return_inverse=True)
        order = np.argsort(group.reshape(-1), kind="stable")
        counts = np.bincount(group.reshape(-1))
        rewards = y if goal == "maximize" else -y
        self.replicates: list[Array] = list(np.split(rewards[order], np.cumsum(counts)[:-1]))
        self.true_values: Array = np.array([values.mean() for values in self.replicates])
        super().__init__(
            spaces.Discrete(len(candidates)),
            parameter_names=names,
            log_scale=log_scale,
            outcome_names=(outcome_name if goal == "maximize" else f"negative {outcome_name}",),
            optimal_value=float(self.true_values.max()),
            candidates=candidates,
        )

    def _evaluate(self, point: int) -> Evaluation:
        values = self.replicates[point]
        draw = values[self.np_random.integers(len(values))] if len(values) > 1 else values[0]
        return Evaluation(np.array([draw]), float(self.true_values[point]))


class TablePoolEnv(PoolEnv):
    """The user's own table as a pool.

    Args:
        table: a data frame, or the path of a comma-separated file with a header.
        target: the column that was measured.
        goal: `"maximize"` or `"minimize"` it.
        features: the columns that are inputs; by default all others. They must be numbers.
    """

    def __init__(
        self, table: pd.DataFrame | str, target: str, goal: str = "maximize", features: Sequence[str] | None = None
    ) -> None:
        import pandas as pd

        frame, columns = read_table(table, target, features)
        if not pd.api.types.is_numeric_dtype(frame[target]):
            raise ValueError(f"table: column {target!r} is not numeric; a measured outcome is a number.")
        super().__init__(
            frame[columns].to_numpy(dtype=np.float64),
            frame[target].to_numpy(dtype=np.float64),
            goal,
            [str(c) for c in columns],
            str(target),
        )


class MeasuredPoolEnv(PoolEnv):
    """A table that another package carries.

    Args:
        table: a key of `seqbdl.envs.data.TABLES`.

    Raises:
        ValueError: when the carrier is missing; the text is the command that installs it.
    """

    def __init__(self, table: str = "CrossedBarrel") -> None:
        inputs, measurements, columns = load_table(table)
        source = TABLES[table]
        log_scale = [name in source.log_scale for name in columns[:-1]]
        super().__init__(inputs, measurements, source.goal, columns[:-1], columns[-1], log_scale)


class DiabetesPoolEnv(PoolEnv):
    """scikit-learn's 442 diabetes patients as a pool: find those whose disease progressed most within a year."""

    def __init__(self) -> None:
        inputs, progression, names = load_sklearn("diabetes")
        super().__init__(inputs, progression, "maximize", names, "progression")
