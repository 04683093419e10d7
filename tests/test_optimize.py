"""Optimization of a function in one call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from seqbdl.errors import InvalidOptionError, InvalidSpaceError, ShapeError, UnknownNameError
from seqbdl.loops import Categorical, Integer, Real, Space
from seqbdl.optimize import as_space, optimize

QUICK: dict[str, Any] = {
    "progress": False,
    "initial": 4,
    "acquisition_options": {"mc_samples": 16},
    "optimizer_options": {"num_restarts": 2, "raw_samples": 32},
}


def test_minimizes_a_function_of_an_array() -> None:
    def f(x: Any) -> float:
        assert isinstance(x, np.ndarray)
        assert x.shape == (2,)
        return float((x[0] - 2) ** 2 + (x[1] + 1) ** 2)

    result = optimize(f, [(-5, 5), (-5, 5)], 16, objective="minimize", **QUICK)
    assert result.best_point is not None
    assert result.best_value is not None
    assert result.best_value < 0.1
    assert result.best_value == f(np.array([result.best_point["x0"], result.best_point["x1"]]))
    assert result.best_value == min(record.outcomes[0] for record in result.history)
    assert len(result.history) == 16
    assert set(result.recommended_point) == {"x0", "x1"}
    assert str(result) == result.history.summary()


def test_maximizes_a_function_of_names() -> None:
    space = {
        "rate": {"low": 1e-4, "high": 1.0, "log": True},
        "depth": (1, 6),
        "shift": (0.0, 1.0),
        "kind": ["relu", "tanh"],
    }
    built, _ = as_space(space)
    assert built == Space(
        [
            Real("rate", 1e-4, 1.0, log=True),
            Integer("depth", 1, 6),
            Real("shift", 0, 1),
            Categorical("kind", ["relu", "tanh"]),
        ]
    )

    def f(point: dict[str, Any]) -> float:
        return (point["kind"] == "tanh") - abs(np.log10(point["rate"]) + 2) - 0.2 * abs(point["depth"] - 3)

    result = optimize(f, space, 20, **QUICK)
    assert result.best_value is not None
    assert result.best_value > 0.2


def test_a_gymnasium_space_hands_actions_to_the_function() -> None:
    box = spaces.Box(-1.0, 1.0, (2,), np.float64)

    def f(action: Any) -> float:
        assert box.contains(action)
        return -float(np.square(action).sum())

    assert optimize(f, box, 6, **QUICK).best_value is not None


def test_constraints_and_several_outcomes() -> None:
    result = optimize(
        lambda p: {"y": p["x"], "limit": p["x"] - 0.5},
        {"x": (0.0, 1.0)},
        12,
        constraints=["limit"],
        outcome_names=["y"],
        **QUICK,
    )
    assert result.best_value is not None
    assert 0.4 < result.best_value <= 0.5
    several = optimize(lambda p: [p["x"], 1 - p["x"]], {"x": (0.0, 1.0)}, 7, num_outcomes=2, **QUICK)
    assert several.best_point is None
    assert isinstance(several.recommended_point, list)


def test_failures_are_recorded() -> None:
    def f(x: Any) -> float:
        if x[0] > 0.5:
            raise ZeroDivisionError("division by zero")
        return float("nan") if x[0] < 0.2 else float(x[0])

    result = optimize(f, [(0, 1)], 10, **QUICK)
    assert len(result.history) == 10
    assert result.history.failed
    nothing = optimize(lambda x: float("nan"), [(0, 1)], 4, **QUICK)
    assert (nothing.best_point, nothing.best_value, nothing.recommended_point) == (None, None, None)


def test_resumes_from_its_checkpoint(tmp_path: Path) -> None:
    def f(x: Any) -> float:
        return -float(x[0] ** 2)

    whole = optimize(f, [(-1, 1)], 9, **QUICK)
    path = tmp_path / "campaign"
    optimize(f, [(-1, 1)], 6, checkpoint=path, **QUICK)
    resumed = optimize(f, [(-1, 1)], 9, checkpoint=path, **QUICK)
    assert [record.point for record in resumed.history] == [record.point for record in whole.history]


def test_goes_on_by_hand() -> None:
    result = optimize(lambda x: float(x[0]), [(0, 1)], 5, **QUICK)
    point = result.loop.ask()
    result.loop.tell(point, point["x0"])
    assert len(result.history) == 6


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"space": []}, InvalidSpaceError, "at least one parameter"),
        ({"space": {}}, InvalidSpaceError, "at least one parameter"),
        ({"space": [(1, 0)]}, InvalidSpaceError, "low=1.0 is not below high=0.0"),
        ({"space": [(1, 2, 3)]}, InvalidSpaceError, "entry 0"),
        ({"space": [("a", "b")]}, InvalidSpaceError, "pair"),
        ({"space": "abc"}, InvalidSpaceError, "'abc'"),
        ({"space": {"x": 3}}, InvalidSpaceError, "'x' is 3"),
        ({"space": {"x": Real("y", 0, 1)}}, InvalidSpaceError, "use one name"),
        ({"budget": 0}, InvalidOptionError, "budget=0"),
        ({"budget": 2.5}, InvalidOptionError, "budget=2.5"),
        ({"f": 3}, InvalidOptionError, "give a function"),
        ({"surrogate": "oracle"}, UnknownNameError, "'oracle'"),
        ({"objective": "max"}, InvalidOptionError, "'maximize', 'minimize'"),
        ({"f": lambda x: [1.0, 2.0]}, ShapeError, "has 2 values; expected 1"),
    ],
)
def test_mistakes_are_named(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        optimize(**{"f": lambda x: 0.0, "space": [(0, 1)], "budget": 3, **QUICK, **arguments})
