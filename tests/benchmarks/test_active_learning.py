"""What the tables of the active-learning benchmark say, on curves written by hand."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest


@pytest.fixture(scope="module")
def bench(load: Callable[[str], ModuleType]) -> ModuleType:
    return load("active_learning")


def curve(method: str, seed: int, column: str, values: list[float], **more: float) -> list[dict[str, Any]]:
    keys = {"task": "t", "surrogate": "s", "method": method, "seed": seed, "cpu_seconds": 1.0, **more}
    return [{**keys, "labels": 20 + 10 * i, column: value} for i, value in enumerate(values)]


def test_labels_to_a_level(bench: ModuleType) -> None:
    rows = []
    for seed, values in enumerate([[0.5, 0.91, 0.89, 0.96], [0.92, 0.93, 0.93, 0.93], [0.5, 0.6, 0.9, 0.94]]):
        rows += curve("BALD", seed, "accuracy", values, different=8.0)
    task = bench.Task("env", 20, 10, 3, {"s": {}}, {"BALD": {}})
    line = bench.accuracy_table(pd.DataFrame(rows), task)[-1]
    assert line.startswith("| BALD | s | 3 | 30 (20, 40) | > (50, >) |")


def test_errors_are_compared_under_the_same_seed(bench: ModuleType) -> None:
    rows = []
    for seed in (0, 1):
        rows += curve("Random", seed, "rmse", [9.0, *np.exp([seed, seed + 1.0])], nll=0.0, coverage=0.9)
        rows += curve("LCMD", seed, "rmse", [9.0, *np.exp([seed - 0.5, seed + 0.5])], nll=0.0, coverage=0.9)
    task = bench.Task("env", 20, 10, 2, {"s": {}}, {"Random": {}, "LCMD": {}})
    lines = bench.error_table(pd.DataFrame(rows), task)
    assert "| Random | s | 2 | 1.000 |  |" in lines[-2]  # the mean over rounds after the start, and over seeds
    assert "| LCMD | s | 2 | 0.500 | -0.500 ± 0.000 |" in lines[-1]


def test_the_start_is_balanced_and_shared(bench: ModuleType) -> None:
    labels = np.repeat(np.arange(4.0), 25)
    start = bench.starting_points(labels, 4, 8, seed=3)
    assert sorted(labels[start].tolist()) == [0.0, 0.0, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0]
    assert start == bench.starting_points(labels, 4, 8, seed=3)
    assert len(set(bench.starting_points(labels, None, 8, seed=3))) == 8
