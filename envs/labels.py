"""Pools to be labelled: an action picks a row of the pool, and the answer is its label.

What a learner may look at lies in `pool`, what it is judged by in `test_inputs` and `test_labels`. Classes are integers
from 0; a step answers them as numbers. Rows that are equal stay apart: asking for a repeat is the mistake to avoid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces

from seqbdl.envs.base import Array, DecisionEnv, Evaluation
from seqbdl.envs.data import load_sklearn, read_table

if TYPE_CHECKING:
    import pandas as pd


class LabelPoolEnv(DecisionEnv):
    """A pool whose labels are hidden until they are asked for.

    Args:
        pool: `(n, ...)` inputs; images and other shapes keep theirs.
        labels: `(n,)` labels of the pool: integers from 0 when `class_names` are given, numbers otherwise.
        test_inputs: `(k, ...)` inputs that a learner is judged by.
        test_labels: `(k,)`.
        class_names: one name per class; empty for real values.
        label_name: what is asked for.
        parameter_names: one name per input, in the order of the flattened row.

    The action is the index of a row of `pool`; the same row has the same label every time.
    """

    def __init__(
        self,
        pool: Any,
        labels: Any,
        test_inputs: Any,
        test_labels: Any,
        class_names: Sequence[str] = (),
        label_name: str = "label",
        parameter_names: Sequence[str] = (),
    ) -> None:
        self.class_names = tuple(map(str, class_names))
        self.pool, self._labels = self._checked("pool", pool, "labels", labels)
        self.test_inputs, self.test_labels = self._checked("test_inputs", test_inputs, "test_labels", test_labels)
        if self.pool.shape[1:] != self.test_inputs.shape[1:]:
            raise ValueError(f"test_inputs: rows of shape {self.test_inputs.shape[1:]}, those of pool {self.pool.shape[1:]}.")
        flat = self.pool.reshape(len(self.pool), -1)
        names = tuple(parameter_names) or tuple(f"x{i + 1}" for i in range(flat.shape[1]))
        if len(names) != flat.shape[1]:
            raise ValueError(f"parameter_names: {len(names)} names for {flat.shape[1]} inputs; give one for each.")
        super().__init__(spaces.Discrete(len(self.pool)), parameter_names=names, outcome_names=(label_name,), candidates=flat)

    @property
    def num_classes(self) -> int | None:
        """How many classes there are; `None` for real values."""
        return len(self.class_names) or None

    def _checked(self, name: str, inputs: Any, label_name: str, labels: Any) -> tuple[Array, Array]:
        x, y = np.asarray(inputs, dtype=np.float64), np.asarray(labels, dtype=np.float64)
        if x.ndim < 2 or not x.size:
            raise ValueError(f"{name}: shape {x.shape}; give n rows of at least one number, neither empty.")
        if y.shape != (len(x),):
            raise ValueError(f"{label_name}: shape {y.shape}; give one number for each of the {len(x)} rows of {name}.")
        bad = ~(np.isfinite(x.reshape(len(x), -1)).all(axis=1) & np.isfinite(y))
        if bad.any():
            raise ValueError(f"{name}: row {int(np.flatnonzero(bad)[0])} is not finite; drop or complete such rows.")
        if self.class_names:
            wrong = (y != np.round(y)) | (y < 0) | (y >= len(self.class_names))
            if wrong.any():
                row = int(np.flatnonzero(wrong)[0])
                raise ValueError(
                    f"{label_name}: row {row} is {y[row]:g}; classes are integers from 0 to {len(self.class_names) - 1}."
                )
        return x, y

    def _evaluate(self, point: int) -> Evaluation:
        return Evaluation(self._labels[[point]])


def split(size: int, test: int | float, seed: int) -> tuple[Any, Any]:
    """Row numbers of a pool and of a test set that have nothing in common.

    Args:
        size: rows in all.
        test: rows of the test set, or their share when it is below 1.
        seed: of the shuffle.
    """
    count = round(test * size) if test < 1 else int(test)
    if not 1 <= count < size:
        raise ValueError(f"test: {test} of {size} rows leave an empty pool or an empty test set.")
    order = np.random.default_rng(seed).permutation(size)
    return np.sort(order[count:]), np.sort(order[:count])


class SklearnLabelEnv(LabelPoolEnv):
    """A set that scikit-learn brings along: digits, iris, wine, breast cancer (classes) or diabetes (a number).

    Args:
        dataset: `"digits"`, `"iris"`, `"wine"`, `"breast_cancer"` or `"diabetes"`.
        test: rows of the test set, or their share.
        repeats: copies of each row of the pool.
        noise: standard deviation of the noise added once to every copy, where inputs have unit variance over the pool
            (all pixels of an image together).
        split_seed: of the split and of that noise.

    Digits are images, `(8, 8)`, with values from 0 to 1. Repeats with noise are how A. Kirsch, J. van Amersfoort and Y. Gal
    ("BatchBALD", NeurIPS 2019) showed that the best points one by one make a bad batch.
    """

    def __init__(
        self,
        dataset: str = "digits",
        test: int | float = 1 / 3,
        repeats: int = 1,
        noise: float = 0.0,
        split_seed: int = 0,
    ) -> None:
        if repeats < 1 or noise < 0:
            raise ValueError(f"repeats: {repeats}, noise: {noise}; copies are at least 1, a standard deviation at least 0.")
        inputs, labels, names = load_sklearn(dataset)
        images = dataset == "digits"
        if images:
            inputs = inputs.reshape(-1, 8, 8) / 16.0
        rows, held_out = split(len(inputs), test, split_seed)
        pool = np.concatenate([inputs[rows]] * repeats)
        if noise:
            spread = pool.std() if images else pool.std(axis=0)
            pool = pool + noise * spread * np.random.default_rng(split_seed + 1).standard_normal(pool.shape)
        real = dataset == "diabetes"
        classes = () if real else tuple(str(i) for i in range(int(labels.max()) + 1))
        super().__init__(
            pool,
            np.concatenate([labels[rows]] * repeats),
            inputs[held_out],
            labels[held_out],
            classes,
            "progression" if real else "class",
            names,
        )


class Friedman1LabelEnv(LabelPoolEnv):
    """Friedman's first function: ten uniform inputs of which five matter, with noise of unit variance.

    `10 sin(pi x1 x2) + 20 (x3 - 1/2)^2 + 10 x4 + 5 x5` (J. Friedman, "Multivariate adaptive regression splines", Annals of
    Statistics 1991).

    Args:
        size: rows of the pool.
        test: rows of the test set.
        noise: standard deviation of the noise in the labels.
        seed: of the rows and of the noise.
    """

    def __init__(self, size: int = 2000, test: int = 1000, noise: float = 1.0, seed: int = 0) -> None:
        if size < 1 or test < 1 or noise < 0:
            raise ValueError(f"size: {size}, test: {test}, noise: {noise}; both sets need rows, and a noise at least 0.")
        generator = np.random.default_rng(seed)
        x = generator.random((size + test, 10))
        y = 10 * np.sin(np.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2 + 10 * x[:, 3] + 5 * x[:, 4]
        y = y + noise * generator.standard_normal(len(x))
        super().__init__(x[:size], y[:size], x[size:], y[size:], (), "y")


class TableLabelEnv(LabelPoolEnv):
    """The user's own table, label known in every row, to find out what active learning would have saved.

    Args:
        table: a data frame, or the path of a comma-separated file with a header.
        target: the column of labels. Text, categories and booleans are classes; numbers are values unless `classes`.
        classes: whether numbers in `target` are classes; `None`: only what is no number is.
        features: the columns that are inputs; by default all others. They must be numbers.
        test: rows of the test set, or their share.
        split_seed: of the split.
    """

    def __init__(
        self,
        table: pd.DataFrame | str,
        target: str,
        classes: bool | None = None,
        features: Sequence[str] | None = None,
        test: int | float = 1 / 3,
        split_seed: int = 0,
    ) -> None:
        import pandas as pd

        frame, columns = read_table(table, target, features)
        if frame[target].isna().any():
            row = int(np.flatnonzero(frame[target].isna())[0])
            raise ValueError(f"table: {target!r} is empty in row {row}; drop rows without a label.")
        number = pd.api.types.is_numeric_dtype(frame[target]) and not pd.api.types.is_bool_dtype(frame[target])
        if classes is False and not number:
            raise ValueError(f"classes: False, but column {target!r} holds no numbers; leave it out.")
        names: list[str] = []
        labels = frame[target].to_numpy()
        if classes or (classes is None and not number):
            levels = sorted(frame[target].unique())
            names, labels = [str(level) for level in levels], np.array([levels.index(value) for value in labels])
        rows, held_out = split(len(frame), test, split_seed)
        x, y = frame[columns].to_numpy(dtype=np.float64), np.asarray(labels, dtype=np.float64)
        super().__init__(x[rows], y[rows], x[held_out], y[held_out], names, str(target), [str(column) for column in columns])
