"""Spaces that are tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from seqbdl.errors import InvalidSpaceError
from seqbdl.loops import BayesOptLoop, Space, SpaceExhaustedError

TABLE = pd.DataFrame(
    {
        "temperature": [20.0, 40.0, 40.0, 80.0],
        "solvent": ["water", "ethanol", "water", "water"],
        "pressure": [1.0, 1.0, 1.0, 1.0],
        "runs": [1, 2, 2, 3],
    },
    index=[10, 11, 12, 13],
)


def test_rows_are_points_with_their_number() -> None:
    space = Space.from_candidates(TABLE)
    assert len(space) == space.cardinality == 4
    assert space.table_point(1) == {
        "candidate": 1,
        "temperature": 40.0,
        "solvent": "ethanol",
        "pressure": 1.0,
        "runs": 2,
    }
    # a column in which nothing varies is carried along, and tells the surrogate nothing
    assert space.names == ("temperature", "solvent", "runs")
    torch.testing.assert_close(space.table()[1], torch.tensor([1 / 3, 0.0, 1.0, 0.5], dtype=torch.double))


def test_points_are_found_by_number_and_by_values() -> None:
    space = Space.from_candidates(TABLE)
    assert space.point(3)["temperature"] == 80.0
    assert space.point({"candidate": 2})["solvent"] == "water"
    assert space.point({"temperature": 40.0, "solvent": "water", "runs": 2})["candidate"] == 2
    for row in range(4):
        point = space.table_point(row)
        assert space.decode(space.encode([point])) == [point]
        assert space.key(point) == (row,)


def test_equal_rows_stay_different_candidates() -> None:
    space = Space.from_candidates(np.array([[0.0, 1.0], [0.0, 1.0], [1.0, 2.0]]))
    points = [space.table_point(row) for row in range(3)]
    assert len({space.key(point) for point in points}) == 3
    assert space.match(points[1], points) == 1
    assert space.match({"x0": 0.0, "x1": 1.0}, points[1:]) == 0
    assert space.match(points[2], points[:2]) is None


def test_samples_are_distinct_rows() -> None:
    space = Space.from_candidates(np.arange(20.0)[:, None])
    rows = [point["candidate"] for point in space.sample(12, seed=4) + space.sample(20, seed=4, skip=12)]
    assert sorted(rows) == list(range(20))  # type: ignore[type-var]
    assert len(space.random(50, torch.Generator().manual_seed(0))) == 50


@pytest.mark.parametrize("acquisition", ["sobol", "random", "auto"])
def test_candidates_can_be_held_to_a_value(acquisition: str) -> None:
    loop = BayesOptLoop(Space.from_candidates(TABLE), acquisition=acquisition, initial=2)
    rows = set()
    for _ in range(3):
        point = loop.ask(fixed={"solvent": "water"})
        rows.add(point["candidate"])
        loop.tell(point, 1.0 + point["candidate"])
    assert rows == {0, 2, 3}
    with pytest.raises(SpaceExhaustedError):
        loop.ask(fixed={"solvent": "water"})


def test_random_search_finds_the_last_points_of_a_table() -> None:
    loop = BayesOptLoop(Space.from_candidates(np.arange(3000.0)[:, None]), acquisition="random")
    loop.ask(n=2990)
    assert len({loop.ask()["candidate"] for _ in range(10)}) == 10
    assert loop.remaining == 0


def test_json_round_trip() -> None:
    space = Space.from_candidates(TABLE)
    assert Space.from_json(space.to_json()) == space


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (np.empty((0, 2)), "empty"),
        (np.ones((3, 2)), "nothing to choose"),
        (np.zeros((2, 2, 2)), "N x d"),
        (pd.DataFrame({"a": [1.0, None]}), "column 'a' is missing or not finite in row 1"),
        (pd.DataFrame({"a": ["x", None]}), "row 1"),
        (pd.DataFrame({"candidate": [1, 2]}), "rename it"),
        (pd.DataFrame([[1, 2], [3, 4]], columns=["a", "a"]), "'a'; names must differ"),
    ],
)
def test_bad_tables_are_refused(table: Any, message: str) -> None:
    with pytest.raises(InvalidSpaceError, match=message):
        Space.from_candidates(table)


def test_points_that_are_no_rows_are_refused() -> None:
    space = Space.from_candidates(TABLE)
    with pytest.raises(InvalidSpaceError, match="none of the 4 candidates"):
        space.point({"temperature": 41.0, "solvent": "water", "runs": 2})
    with pytest.raises(InvalidSpaceError, match="rows are 0 to 3"):
        space.point(4)
    with pytest.raises(InvalidSpaceError, match="'glycol' is not one of"):
        space.point({"temperature": 41.0, "solvent": "glycol", "runs": 2})
    assert not space.contains(9)
    assert space.contains(0)
