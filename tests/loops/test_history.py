"""The history as a table, as a picture, and stored."""

from __future__ import annotations

import math

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

from seqbdl.errors import InvalidOptionError, StateError
from seqbdl.loops import BayesOptLoop, History, Real, Space
from seqbdl.serialization import load_tree, save_tree


def example(objective: str = "minimize") -> History:
    loop = BayesOptLoop(Space([Real("x", 0, 9)]), acquisition="random", objective=objective, constraints=["c"])
    for x, y, c in [(1.0, 5.0, -1.0), (2.0, 4.0, 2.0), (3.0, float("nan"), 0.0), (4.0, 3.0, 0.0), (5.0, 6.0, -1.0)]:
        loop.tell({"x": x}, [y, c], true_value=y - 0.1)
    loop.ask()
    loop.history.optimal_value = 1.0
    return loop.history


def test_frame() -> None:
    frame = example().frame()
    assert list(frame.columns) == [
        *("step", "batch", "source", "status", "x", "outcome", "c", "feasible", "reason", "true_value", "best_so_far"),
        *("regret", "predicted_outcome", "predicted_outcome_sd", "seconds_ask", "seconds_tell"),
    ]
    assert frame["status"].tolist() == ["complete", "complete", "failed", "complete", "complete", "pending"]
    assert frame["feasible"].tolist() == [True, False, None, True, True, None]
    assert frame["best_so_far"].tolist() == [5.0, 5.0, 5.0, 3.0, 3.0, 3.0]
    np.testing.assert_allclose(frame["regret"], [3.9, 3.9, 3.9, 1.9, 1.9, 1.9])
    assert frame["seconds_tell"].iloc[:5].gt(0).all()
    assert frame["seconds_ask"].iloc[5] > 0
    assert len(History(["x"]).frame()) == 0


def test_directions() -> None:
    best = example("maximize").best()
    assert best is not None
    assert best.outcomes == [6.0]
    assert example("maximize").best_so_far().tolist() == [5.0, 5.0, 5.0, 5.0, 6.0, 6.0]


def test_summary_is_readable() -> None:
    assert example().summary().splitlines() == [
        "6 trials: 4 complete, 1 failed, 1 pending",
        "3 of 4 complete trials are feasible",
        "best outcome: 3 at trial 3 (x=4)",
        "regret: 1.9",
    ]


def test_hypervolume_of_two_boxes() -> None:
    history = History(["x"], ["a", "b"], ["maximize", "minimize"], ref_point=[0.0, 4.0])
    for values in ([2.0, 3.0], [1.0, 1.0], [0.5, 3.5]):
        record = history.append(0, {"x": 0.0}, "told")
        record.outcomes, record.status = values, "complete"
    np.testing.assert_allclose(history.best_so_far(), [2.0, 4.0, 4.0])
    assert [record.step for record in history.pareto()] == [0, 1]
    with pytest.raises(InvalidOptionError, match=r"history.pareto\(\)"):
        history.best()


def test_stored_and_read_back(tmp_path) -> None:  # type: ignore[no-untyped-def]
    history = example()
    save_tree(tmp_path / "history", history.to_tree())
    back = History.from_tree(load_tree(tmp_path / "history"))
    assert back.frame().equals(history.frame())
    assert back.optimal_value == 1.0
    assert math.isnan(back[5].outcomes[0])
    with pytest.raises(StateError, match="no history"):
        History.from_tree({"records": [{"colour": 1}], "parameter_names": ["x"]})


def test_plot() -> None:
    mpl.use("Agg")
    axis = Figure().subplots()
    assert example().plot(axis) is axis
    labels = {text.get_text() for text in axis.get_legend().get_texts()}
    assert labels == {"observed", "infeasible", "optimum", "best so far", "failed"}
    assert axis.get_xlabel() == "trial"
    dots = axis.get_lines()[0].get_xydata()
    np.testing.assert_allclose(dots, [[1, 5], [4, 3], [5, 6]])
    front = History(["x"], ["a", "b"], ["maximize", "maximize"])
    record = front.append(0, {"x": 0.0}, "told")
    record.outcomes, record.status = [1.0, 2.0], "complete"
    assert front.plot(Figure().subplots()).get_xlabel() == "a (maximize)"
    front.ref_point = [0.0, 0.0]
    assert front.plot(Figure().subplots()).get_ylabel() == "hypervolume"
