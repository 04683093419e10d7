"""Learning curves, their pictures, metrics against closed forms, and the rules that end a run."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import seqbdl
from seqbdl.errors import InvalidOptionError, StateError
from seqbdl.loops import ActiveLearningLoop, EarlyStopping, LearningHistory, LearningStop, run
from seqbdl.loops.learning_history import CurvePoint
from seqbdl.loops.learning_metrics import class_metrics, kappa, value_metrics
from seqbdl.posteriors import Prediction

POOL = torch.rand(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def curve(values: list[float], classes: bool = True, **more: list[float]) -> LearningHistory:
    history = LearningHistory(["a", "b"] if classes else [])
    for i, value in enumerate(values):
        record = history.append(i, {"index": i}, "model")
        record.outcomes[:], record.status = [i % 2], "complete"
        metrics = {history.main_metric: value, **{name: column[i] for name, column in more.items()}}
        history.curve.append(CurvePoint(i + 1, i + 1, 2.0 * (i + 1), metrics))
    return history


def test_curve_and_best_score() -> None:
    history = curve([0.5, 0.8, 0.7, 0.9])
    assert history.best_so_far().tolist() == [0.5, 0.8, 0.8, 0.9]
    assert history.labels_to(0.8) == 2
    assert history.labels_to(0.95) is None
    assert history.curve_frame()["cost"].tolist() == [2.0, 4.0, 6.0, 8.0]
    assert history.frame()["class"].tolist() == ["a", "b", "a", "b"]
    assert history.best() is None
    errors = curve([3.0, 1.0, 2.0], classes=False)
    assert errors.best_so_far().tolist() == [-3.0, -1.0, -1.0]
    assert errors.labels_to(2.0) == 2
    assert "accuracy 0.9" in history.summary()


def test_empty_histories_speak_too() -> None:
    history = LearningHistory()
    assert history.curve_frame().columns.tolist() == ["labels", "step", "cost"]
    assert history.frame().empty
    assert history.summary().startswith("0 labels")
    with pytest.raises(InvalidOptionError, match="make the loop with test="):
        history.plot()


def test_plot() -> None:
    ax = Figure().subplots()
    history = curve([0.5, 0.8, 0.9])
    history.plot(ax, label="BALD")
    history.plot(ax, x="cost", label="by cost")
    assert [line.get_xdata().tolist() for line in ax.lines] == [[1, 2, 3], [2.0, 4.0, 6.0]]
    assert ax.get_ylabel() == "test accuracy"
    with pytest.raises(InvalidOptionError, match="x='time'"):
        history.plot(ax, x="time")
    with pytest.raises(InvalidOptionError, match="'rmse'; it has accuracy"):
        history.plot(ax, metric="rmse")


def test_a_tree_holds_everything() -> None:
    history = curve([0.5, 0.8])
    history.scores[1] = (0.3, 0.2)
    again = LearningHistory.from_tree(history.to_tree())
    assert again.curve == history.curve
    assert again.scores == history.scores
    assert again.frame().equals(history.frame())
    with pytest.raises(StateError, match="no history of labels"):
        LearningHistory.from_tree({"records": []})


class Known:
    """A surrogate whose predictions are written down."""

    def predict(self, X: torch.Tensor) -> Any:
        if X.shape[1] == 2:
            return SimpleNamespace(probs=X)
        mean, std = X[:, :1], X[:, 1:2]
        return Prediction(mean, std, std, 0 * std, lambda p: mean + torch.special.ndtri(p) * std)


def test_metrics_of_classes() -> None:
    probs = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.7, 0.3]], dtype=torch.float64)
    y = torch.tensor([0, 1, 1, 0])
    made = class_metrics(Known(), probs, y)  # type: ignore[arg-type]  # all that is read of a surrogate
    assert made["accuracy"] == 0.75
    assert made["nll"] == pytest.approx(-sum(map(math.log, (0.9, 0.8, 0.4, 0.7))) / 4)
    # each row has a bin of its own: |confidence - correct| on average
    assert made["ece"] == pytest.approx((0.1 + 0.2 + 0.6 + 0.3) / 4)


def test_metrics_of_values() -> None:
    X = torch.tensor([[0.0, 1.0, 0.0], [1.0, 2.0, 0.0]], dtype=torch.float64)
    made = value_metrics(Known(), X, torch.tensor([1.0, 7.0], dtype=torch.float64))  # type: ignore[arg-type]  # likewise
    assert made["rmse"] == pytest.approx(math.sqrt((1 + 36) / 2))
    density = -0.5 * np.array([1.0, 9.0]) - np.log([1.0, 2.0]) - 0.5 * math.log(2 * math.pi)
    assert made["nll"] == pytest.approx(-density.mean())
    assert made["coverage"] == 0.5  # one deviation is inside 95 %, three are not


def test_kappa() -> None:
    a = torch.tensor([0, 0, 1, 1])
    assert kappa(a, a, 2) == 1.0
    assert kappa(torch.zeros(4).long(), torch.zeros(4).long(), 2) == 1.0
    assert kappa(a, torch.tensor([0, 1, 0, 1]), 2) == pytest.approx(0.0)  # agreement by chance
    assert kappa(a, 1 - a, 2) == pytest.approx(-1.0)


# -- stopping


def stand_in(history: LearningHistory, **more: Any) -> Any:
    classes = len(history.class_names)
    state = {"pending": [], "labelled": [0], "spent": 8.0, "labels": SimpleNamespace(num_classes=classes), "history": history}
    return SimpleNamespace(**{**state, **more})


@pytest.mark.parametrize(
    ("rule", "values", "stops"),
    [
        ({"target": 0.9}, [0.5, 0.9], "accuracy 0.9 reaches 0.9"),
        ({"target": 0.9}, [0.95, 0.8], ""),
        ({"patience": 2}, [0.5, 0.8, 0.8, 0.7], "in 2 rounds"),
        ({"patience": 2}, [0.5, 0.8, 0.8, 0.81], ""),
        ({"patience": 2, "min_delta": 0.05}, [0.5, 0.8, 0.8, 0.81], "in 2 rounds"),
        ({"patience": 2}, [0.5, 0.8], ""),
        ({"max_cost": 8.0}, [0.5], "cost 8 of 8"),
        ({"max_cost": 9.0}, [0.5], ""),
    ],
)
def test_rules(rule: dict[str, Any], values: list[float], stops: str) -> None:
    loop = stand_in(curve(values))
    text = LearningStop(**rule).reason(loop)
    assert (stops in text) if stops else text == ""
    assert LearningStop(**rule).reason(stand_in(curve(values), pending=[3])) == ""


def test_errors_are_better_when_smaller() -> None:
    loop = stand_in(curve([3.0, 1.0], classes=False))
    assert LearningStop(target=1.5).reason(loop) == "rmse 1 reaches 1.5"
    assert LearningStop(target=0.5).reason(loop) == ""


def test_agreement_and_increments() -> None:
    history = curve([0.5] * 4, agreement=[0.5, 0.995, 0.99, 1.0])
    assert "agreed to 0.99" in LearningStop(agreement=0.99).reason(stand_in(history))
    assert LearningStop(agreement=0.999).reason(stand_in(history)) == ""
    history.scores = {2: (0.5, 0.5), 3: (0.02, 0.02)}
    assert "add 0.02" in LearningStop(min_increment=0.1).reason(stand_in(history))
    assert LearningStop(min_increment=0.01).reason(stand_in(history)) == ""
    with pytest.raises(InvalidOptionError, match="for classes"):
        LearningStop(agreement=0.99).reason(stand_in(curve([1.0], classes=False)))


@pytest.mark.parametrize(
    ("rule", "text"), [({}, "needs target="), ({"patience": 0}, "patience=0"), ({"agreement": 1.5}, "agreement=1.5")]
)
def test_bad_rules_are_refused(rule: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidOptionError, match=text):
        LearningStop(**rule)


def test_callbacks_end_a_run() -> None:
    def label(index: int) -> float:
        return float(POOL[index].sum())

    for rule in (LearningStop(target=0.1), EarlyStopping(target=-0.1)):
        loop = ActiveLearningLoop(POOL, "gp", initial=4, test=(POOL, POOL.sum(-1)))
        history = run(loop, label, 50, [rule], batch_size=2, progress=False)
        assert len(history) < 50
        assert loop.history.curve[-1].metrics["rmse"] <= 0.1
    blind = ActiveLearningLoop(POOL, seqbdl.make_surrogate("gp", 2), initial=4)
    with pytest.raises(InvalidOptionError, match="make the loop with test="):
        run(blind, label, 12, [LearningStop(target=0.1)], progress=False)
