"""Telling: late, partial, unasked, broken; nothing that was told is lost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from seqbdl.errors import InvalidDataError, InvalidSpaceError, ShapeError
from seqbdl.loops import BayesOptLoop, Categorical, Real, Space

SPACE = Space([Real("x", 0, 1), Categorical("c", ["a", "b"])])


def quick(**options: Any) -> BayesOptLoop:
    settings = {"acquisition_options": {"mc_samples": 16}, "optimizer_options": {"num_restarts": 1, "raw_samples": 16}}
    return BayesOptLoop(SPACE, **{"initial": 4, **settings, **options})


def test_outcomes_may_come_late_and_in_any_order() -> None:
    loop = quick()
    first, second, third = loop.ask(n=3)
    loop.tell(third, 3.0)
    loop.tell(first, 1.0)
    assert [record.point for record in loop.history.pending] == [second]
    record = loop.tell(second, 2.0)
    assert record.step == 1
    assert [record.outcomes[0] for record in loop.history] == [1.0, 2.0, 3.0]
    assert len(loop.history) == 3


@pytest.mark.parametrize(
    "outcome",
    [2.5, np.float64(2.5), np.array(2.5), np.array([2.5]), torch.tensor(2.5), [2.5], {"outcome": 2.5}, np.float32(2.5)],
)
def test_ways_to_tell_a_number(outcome: Any) -> None:
    loop = quick()
    point = loop.ask()
    loop.tell(point, outcome)
    assert loop.history[0].outcomes == [2.5]
    assert loop.history[0].status == "complete"


def test_points_as_arrays() -> None:
    space = Space([Real("x", 0, 1), Real("y", 0, 1)])
    loop = BayesOptLoop(space)
    points = loop.ask(n=3)
    X = np.array([[point["x"], point["y"]] for point in points])
    loop.tell(X, np.array([[1.0], [2.0], [3.0]]))
    assert not loop.history.pending
    loop.tell(X[0], 1.5)  # once more: a replicate, and a row of its own
    loop.tell(torch.tensor([0.5, 0.5]), 4.0)
    assert [record.source for record in loop.history] == ["initial"] * 3 + ["told"] * 2
    assert [record.outcomes[0] for record in loop.history] == [1.0, 2.0, 3.0, 1.5, 4.0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nan_is_a_recorded_failure_that_the_surrogate_never_sees(bad: float) -> None:
    loop = quick()
    for value in (1.0, bad, 2.0, 3.0):
        loop.tell(loop.ask(), value)
    assert [record.status for record in loop.history] == ["complete", "failed", "complete", "complete"]
    assert str(bad) in loop.history[1].reason
    loop.ask()
    assert loop.surrogate.train_inputs is not None
    assert len(loop.surrogate.train_inputs[0]) == 3
    assert bool(torch.isfinite(loop.surrogate.train_targets).all())  # type: ignore[arg-type]
    assert loop.history.frame()["outcome"].iloc[[0, 2, 3]].tolist() == [1.0, 2.0, 3.0]


def test_failures_are_kept_with_their_reason_and_not_asked_again() -> None:
    space = Space([Real("x", 0, 1)])
    for acquisition in ("qLogNEI", "LogEI", "thompson"):
        loop = BayesOptLoop(space, acquisition=acquisition, initial=3, optimizer_options={"num_restarts": 2, "raw_samples": 32})
        for _ in range(10):
            point = loop.ask()
            if point["x"] > 0.9:  # the best is out of reach
                loop.tell(point, failed=True, reason="the flask burst")
            else:
                loop.tell(point, point["x"])
        failed = loop.history.failed
        assert all(record.reason == "the flask burst" for record in failed)
        x = np.array([record.point["x"] for record in loop.history], dtype=float)
        assert np.diff(np.sort(x)).min() > 0
        assert loop.recommend()["x"] <= 0.9


def test_only_failures_so_far() -> None:
    loop = quick(initial=2)
    for _ in range(6):
        loop.tell(loop.ask(), failed=True)
    assert [record.source for record in loop.history] == ["initial"] * 6
    assert loop.history.best() is None
    assert loop.history.summary() == "6 trials: 6 failed"
    loop.tell(loop.ask(), 1.0)
    assert loop.recommend() == loop.history[6].point


def test_outcomes_in_parts() -> None:
    loop = quick(num_outcomes=2, outcome_names=["yield", "purity"], constraints=["heat"])
    point = loop.ask()
    assert loop.tell(point, {"purity": 0.9}).status == "partial"
    assert loop.tell(point, {"heat": -1.0}).status == "partial"
    assert len(loop.history.pending) == 1
    record = loop.tell(point, [5.0, None])
    assert (record.status, record.outcomes, record.constraints) == ("complete", [5.0, 0.9], [-1.0])
    assert len(loop.history) == 1
    other = loop.ask()
    assert loop.tell(other, [1.0, 2.0], constraints=0.5).status == "complete"
    third = loop.ask()
    assert loop.tell(third, [1.0, 2.0, 0.5]).constraints == [0.5]
    fourth = loop.ask()
    assert loop.tell(fourth, {"yield": 1.0, "purity": float("nan"), "heat": 0.0}).reason == "purity is nan"


@pytest.mark.parametrize(
    ("points", "outcomes", "options", "error", "message"),
    [
        ({"x": 0.5, "c": "z"}, 1.0, {}, InvalidSpaceError, "'z' is not one of its values; they are 'a', 'b'"),
        ({"x": 0.5}, 1.0, {}, InvalidSpaceError, "lacks 'c'"),
        ({"x": 0.5, "c": "a"}, [1.0, 2.0], {}, ShapeError, "has 2 values; expected 1"),
        ({"x": 0.5, "c": "a"}, np.ones((1, 1)), {}, ShapeError, r"shape \(1, 1\)"),
        ({"x": 0.5, "c": "a"}, "much", {}, InvalidDataError, "'much', a str"),
        ({"x": 0.5, "c": "a"}, {"yeild": 1.0}, {}, InvalidDataError, "'yeild' is not one of 'outcome'"),
        ({"x": 0.5, "c": "a"}, None, {}, InvalidDataError, "no outcome was told"),
        ({"x": 0.5, "c": "a"}, 1.0, {"constraints": 1.0}, InvalidDataError, "the loop has none"),
        ({"x": 0.5, "c": "a"}, 1.0, {"Yvar": -1.0}, InvalidDataError, "at least 0"),
        ({"x": 0.5, "c": "a"}, 1.0, {"Yvar": [1.0, 2.0]}, ShapeError, "2 values; expected 1"),
        ([{"x": 0.5, "c": "a"}, {"x": 0.1, "c": "q"}], [1.0, 2.0], {}, InvalidSpaceError, "point 1: .*'q'"),
        ([{"x": 0.5, "c": "a"}, {"x": 0.1, "c": "a"}], [1.0], {}, ShapeError, "outcome has 1 entries for 2 points"),
        ([{"x": 0.5, "c": "a"}, {"x": 0.1, "c": "a"}], 1.0, {}, ShapeError, "one entry per point"),
        ([{"x": 0.5, "c": "a"}, {"x": 0.1, "c": "a"}], [1.0, [1.0, 2.0]], {}, ShapeError, "expected 1"),
        ([], [], {}, ShapeError, "empty list"),
        ({"x": 0.5, "c": "a"}, 1.0, {"Yvar": 0.1}, InvalidDataError, "some trials only"),
    ],
)
def test_mistakes_are_refused_and_nothing_is_lost(
    points: Any, outcomes: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    loop = quick()
    asked = loop.ask(n=2)
    loop.tell(asked[0], 7.0)
    before = loop.history.frame()
    with pytest.raises(error, match=message):
        loop.tell(points, outcomes, **options)
    after = loop.history.frame()
    assert before.equals(after)
    loop.tell(asked[1], 8.0)
    assert [record.outcomes[0] for record in loop.history] == [7.0, 8.0]


def test_a_candidate_is_told_by_number_or_by_values() -> None:
    space = Space.from_candidates(np.array([[0.0], [0.0], [1.0], [2.0]]))
    loop = BayesOptLoop(space, initial=2)
    points = loop.ask(n=4)
    for point in points:
        loop.tell({"x0": point["x0"]} if point["candidate"] == 1 else point["candidate"], point["x0"])
    # rows 0 and 1 are equal: telling by value took whichever still waited
    assert not loop.history.pending
    assert len(loop.history) == 4
