"""A table as a stream: rows in their order, with earlier outcomes among the inputs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from seqbdl.envs.stream import Array, StreamEnv, Task


class TableStreamEnv(StreamEnv):
    """Your own rows, one after the other, as they came.

    Outcomes that follow one another are often alike, and then the forecast that the last one comes again is hard to beat.
    With `lags` a model sees what that forecast sees; with `difference` it predicts how far the outcome moves, so that a model
    that knows nothing yet makes that very forecast. Log scores of changes and of outcomes are on one scale.

    Args:
        X: `(n, d)` numbers (an array or a data frame) in the order of time.
        y: `n` numbers, or class labels.
        classes: whether `y` are labels; the classes are the sorted distinct ones, see `classes`.
        lags: so many earlier outcomes are inputs too, the last one first (labels: one column per class), after those of `X`; with
            one row per chunk only. The first `lags` rows are history.
        difference: the outcome is the change since the last one; the first row (more with `lags`) is history.
        changes: rows at which the world is known to have changed, for judging only; in the numbering of `X`.
        chunk: rows per step.
        bounds: smallest and largest value of every input, lags included, `(2, k)`; `None`: not known.
    """

    def __init__(
        self,
        X: Any,
        y: Any,
        classes: bool = False,
        lags: int = 0,
        difference: bool = False,
        changes: Sequence[int] = (),
        chunk: int = 1,
        bounds: Any = None,
    ) -> None:
        if lags < 0 or ((lags or difference) and chunk != 1):
            raise ValueError(f"lags={lags}, difference={difference}, chunk={chunk}: earlier outcomes need chunk=1.")
        if classes and difference:
            raise ValueError("difference: labels have none; give lags=1 for the last label.")
        inputs = _numbers("X", X)
        inputs = inputs[:, None] if inputs.ndim == 1 else inputs
        self.classes: npt.NDArray[Any] | None = None
        if classes:
            self.classes, codes = np.unique(np.asarray(y).reshape(-1), return_inverse=True)
            outcomes = codes.astype(np.float64)
        else:
            outcomes = _numbers("y", y).reshape(-1)
        if inputs.ndim != 2 or len(inputs) != len(outcomes):
            raise ValueError(f"X, y: shapes {inputs.shape} and {outcomes.shape}; give n rows of numbers and n outcomes.")
        self.lags, self.difference = lags, difference
        skipped = max(lags, int(difference))
        starts = [0, *sorted({int(row) - skipped for row in changes}), len(inputs) - skipped]
        if any(later - earlier < chunk for earlier, later in pairwise(starts)):
            raise ValueError(f"X, changes={tuple(changes)}: every part needs {chunk} rows or more, beside {skipped} of history.")
        shown = outcomes[:, None] if self.classes is None else np.eye(len(self.classes))[outcomes.astype(int)]
        past = [shown[skipped - k - 1 : len(shown) - k - 1] for k in range(lags)]
        now = np.concatenate([inputs[skipped:], *past], axis=1)
        then = outcomes[skipped - 1 : -1] if difference else 0.0
        Y = (outcomes[skipped:] - then)[:, None]
        self._parts = [Task(now[start:end], Y[start:end], now[:0], Y[:0]) for start, end in pairwise(starts)]
        limits = None if bounds is None else _numbers("bounds", bounds)
        if limits is not None and (limits.shape != (2, now.shape[1]) or not (limits[0] < limits[1]).all()):
            raise ValueError(f"bounds: shape {limits.shape}; give (2, {now.shape[1]}) with the smaller values first.")
        super().__init__(now.shape[1], None if self.classes is None else len(self.classes), chunk, limits)

    def _tasks(self) -> list[Task]:
        return self._parts


def _numbers(name: str, values: Any) -> Array:
    try:
        found = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: it holds something that is no number ({error}); encode categories first.") from error
    bad = ~np.isfinite(found.reshape(len(found), -1)).all(axis=1) if found.ndim else np.array([True])
    if bad.any():
        raise ValueError(f"{name}: row {int(np.flatnonzero(bad)[0])} has missing or infinite entries; leave such rows out.")
    return found
