"""Pools to be labelled: labels are those of the table, test rows are not in the pool, copies are noisy, bad tables refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pandas as pd
import pytest

import seqbdl.envs
from seqbdl.envs import LabelPoolEnv, TableLabelEnv
from seqbdl.envs.data import load_sklearn

assert seqbdl.envs  # registers the environments


def make(name: str, **options: Any) -> Any:
    return gymnasium.make(f"seqbdl/{name}-v0", **options).unwrapped


@pytest.mark.parametrize("name", ["digits", "iris", "wine", "breast_cancer", "diabetes"])
def test_pool_and_test_rows_are_the_table(name: str) -> None:
    env = make("Label" + {"breast_cancer": "BreastCancer"}.get(name, name.capitalize()))
    inputs, labels, names = load_sklearn(name)
    scale = 16.0 if name == "digits" else 1.0
    env.reset(seed=0)
    mine = [(*row.ravel(), env.step(i)[1]) for i, row in enumerate(env.pool)]
    mine += [(*row.ravel(), y) for row, y in zip(env.test_inputs, env.test_labels, strict=True)]
    theirs = [(*row, y) for row, y in zip(inputs / scale, labels.astype(float), strict=True)]
    assert sorted(mine) == sorted(theirs)
    assert env.parameter_names == names
    assert env.num_classes == (None if name == "diabetes" else len(set(labels.tolist())))


def test_repeats_are_noisy_copies_with_the_same_label() -> None:
    plain, repeated = make("LabelDigits"), make("LabelRepeatedDigits")
    n = len(plain.pool)
    assert repeated.pool.shape == (3 * n, 8, 8)
    noise = repeated.pool - np.concatenate([plain.pool] * 3)
    # 0.1 of the spread of the pixels; the standard error of a standard deviation of k values is a share 1 / sqrt(2 k)
    assert noise.std() / plain.pool.std() == pytest.approx(0.1, rel=4 / np.sqrt(2 * noise.size))
    assert not np.array_equal(noise[:n], noise[n : 2 * n])
    assert np.array_equal(repeated.test_inputs, plain.test_inputs)
    repeated.reset(seed=0)
    assert [repeated.step(5 + k * n)[1] for k in range(3)] == [plain.step(5)[1]] * 3


def test_friedman_is_its_formula_plus_noise_of_unit_variance() -> None:
    clean, noisy = make("LabelFriedman1", noise=0.0), make("LabelFriedman1")
    x = clean.test_inputs
    formula = 10 * np.sin(np.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2 + 10 * x[:, 3] + 5 * x[:, 4]
    assert clean.test_labels == pytest.approx(formula)
    residual = noisy.test_labels - clean.test_labels
    assert residual.std() == pytest.approx(1.0, abs=4 / np.sqrt(2 * len(residual)))


def test_a_table_of_the_user(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": range(12), "note": ["x"] * 12, "kind": ["cat", "dog", "cow"] * 4})
    path = tmp_path / "table.csv"
    frame.to_csv(path, index=False)
    for table in (frame, str(path)):
        env = make("LabelTable", table=table, target="kind", features=["a"], test=3)
        assert env.class_names == ("cat", "cow", "dog")
        env.reset(seed=0)
        names = [env.class_names[int(env.step(i)[1])] for i in range(9)]
        assert names == [frame["kind"][int(a)] for a in env.pool[:, 0]]
        assert not set(env.pool[:, 0]) & set(env.test_inputs[:, 0])
    assert TableLabelEnv(frame, "a", features=["a"]).num_classes is None
    assert TableLabelEnv(frame, "a", features=["a"], classes=True).num_classes == 12


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"target": "kinds"}, "no column 'kinds'"),
        ({"target": "kind"}, "'note' is not numeric"),
        ({"target": "kind", "features": ["a"], "classes": False}, "holds no numbers"),
        ({"target": "gap", "features": ["a"]}, "empty in row 2"),
        ({"target": "kind", "features": ["a"], "test": 12}, "leave an empty pool"),
        ({"target": "kind", "features": ["gap"]}, "not finite"),
        ({"target": "kind", "table": "no_such.csv"}, "no file"),
    ],
)
def test_bad_tables_are_refused(options: dict[str, Any], text: str) -> None:
    gap = [0.0, 1.0, np.nan, *range(9)]
    frame = pd.DataFrame({"a": range(12), "note": ["x"] * 12, "kind": ["cat", "dog"] * 6, "gap": gap})
    with pytest.raises(ValueError, match=text):
        TableLabelEnv(**{"table": frame, **options})


X, Y = np.zeros((4, 2)), np.array([0.0, 1.0, 1.0, 0.0])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((X[0], Y, X, Y), "pool: shape"),
        ((X, Y[:3], X, Y), "labels: shape"),
        ((X, Y, X[:, :1], Y), "test_inputs: rows of shape"),
        ((X, Y, X, Y, ("only",)), "labels: row 1 is 1"),
        ((X, Y + 0.5, X, Y, ("a", "b", "c")), "classes are integers"),
        ((X, Y, X, Y, (), "y", ("one",)), "parameter_names"),
    ],
)
def test_bad_arrays_are_refused(arguments: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        LabelPoolEnv(*arguments)


def test_bad_options_are_refused() -> None:
    with pytest.raises(ValueError, match="repeats"):
        make("LabelIris", repeats=0)
    with pytest.raises(ValueError, match="size"):
        make("LabelFriedman1", size=0)
