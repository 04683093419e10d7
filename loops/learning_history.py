"""Which labels were asked, and how good the model was after them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from seqbdl.errors import InvalidOptionError, StateError
from seqbdl.loops.history import History, Record
from seqbdl.loops.label_pool import INDEX

LABEL = "label"
SCORES = {"accuracy": 1.0, "rmse": -1.0}
"""The metrics by which a curve is summed up, and their direction."""


@dataclass(frozen=True)
class CurvePoint:
    """How good the model was with so many labels.

    Attributes:
        labels: Labels that it had learned from.
        step: Records of the history at that time.
        cost: What those labels cost; their number, without costs.
        metrics: ``accuracy``, ``nll``, ``ece`` of classes; ``rmse``, ``nll``, ``coverage`` (of central 95 % intervals) of
            values; ``agreement`` with the predictions of the point before.
    """

    labels: int
    step: int
    cost: float
    metrics: dict[str, float] = field(default_factory=dict)


class LearningHistory(History):
    """A history of labels, with the learning curve.

    Args:
        class_names: One per class; empty for real values.
    """

    def __init__(self, class_names: Sequence[str] = ()) -> None:
        super().__init__((INDEX,), (LABEL,))
        self.class_names = tuple(class_names)
        self.curve: list[CurvePoint] = []
        self.scores: dict[int, tuple[float, float]] = {}

    @property
    def main_metric(self) -> str:
        """``accuracy`` of classes, ``rmse`` of values."""
        return "accuracy" if self.class_names else "rmse"

    def action(self, record: Record) -> int:
        """The index that was asked."""
        index = record.point[INDEX]
        assert isinstance(index, int)
        return index

    def best(self) -> Record | None:
        """``None``: no label is better than another."""
        return None

    def best_so_far(self) -> NDArray[np.float64]:
        """After every trial: the best score on the test set so far, accuracy or negative root mean squared error."""
        out = np.full(len(self.records), np.nan)
        best = np.nan
        for point in self.curve:
            if self.main_metric in point.metrics:
                best = np.fmax(best, SCORES[self.main_metric] * point.metrics[self.main_metric])
                out[max(point.step - 1, 0) :] = best
        return out

    def curve_frame(self) -> pd.DataFrame:
        """The learning curve: ``labels``, ``step``, ``cost`` and one column per metric."""
        rows = [{"labels": p.labels, "step": p.step, "cost": p.cost, **p.metrics} for p in self.curve]
        return pd.DataFrame(rows, columns=None if rows else ["labels", "step", "cost"])

    def labels_to(self, value: float, metric: str | None = None) -> int | None:
        """The fewest labels with which a metric was at least as good as ``value``; ``None``: it never was.

        Args:
            value: A level of the metric.
            metric: The main one by default; all but ``accuracy``, ``coverage`` and ``agreement`` are better when smaller.
        """
        name = self._known(metric)
        sign = metric_sign(name)
        reached = [p.labels for p in self.curve if name in p.metrics and sign * p.metrics[name] >= sign * value]
        return min(reached, default=None)

    def frame(self) -> pd.DataFrame:
        """The table, one row per trial: that of every history, with ``class``, ``score`` and ``increment``.

        ``score`` and ``increment`` are those of the selection, see :class:`seqbdl.acquisition.batches.Batch`.
        """
        table = super().frame().drop(columns=["feasible", "regret", "true_value"])
        if self.class_names:
            named = [None if np.isnan(value) else self.class_names[int(value)] for value in table[LABEL]]
            table.insert(list(table.columns).index(LABEL) + 1, "class", named)
        nothing = (float("nan"), float("nan"))
        for place, name in enumerate(("score", "increment")):
            table[name] = [self.scores.get(record.step, nothing)[place] for record in self.records]
        return table.rename(columns={"best_so_far": "best_score"})

    def summary(self) -> str:
        """A few lines for a person: how many labels, and how good the model is."""
        lines = [f"{len(self.complete)} labels, {len(self.pending)} pending, {len(self.failed)} that could not be given"]
        if self.curve:
            last = self.curve[-1]
            said = ", ".join(f"{name} {value:.4g}" for name, value in last.metrics.items())
            if said:
                lines.append(f"with {last.labels} labels: {said}")
        return "\n".join(lines)

    def plot(self, ax: Any = None, metric: str | None = None, x: str = "labels", label: str | None = None) -> Any:
        """Draw the learning curve: a test metric over labels.

        Args:
            ax: A Matplotlib axis; a new figure's by default.
            metric: The main one by default.
            x: ``"labels"`` or ``"cost"``.
            label: For the legend.

        Returns:
            The axis.

        Raises:
            InvalidOptionError: There is no such metric; without a test set there is none.
        """
        if x not in ("labels", "cost"):
            raise InvalidOptionError(f"x={x!r}; use 'labels' or 'cost'")
        name = self._known(metric)
        if ax is None:
            from matplotlib import pyplot as plt

            ax = plt.subplots(figsize=(7.0, 4.0), layout="constrained")[1]
        points = [point for point in self.curve if name in point.metrics]
        ax.plot([getattr(p, x) for p in points], [p.metrics[name] for p in points], "o-", ms=3, label=label)
        ax.set_xlabel(x)
        ax.set_ylabel(f"test {name}" if name != "agreement" else name)
        if label is not None:
            ax.legend()
        return ax

    def _known(self, metric: str | None) -> str:
        name = self.main_metric if metric is None else metric
        known = sorted({key for point in self.curve for key in point.metrics})
        if name not in known:
            raise InvalidOptionError(
                f"the curve has no metric {name!r}; it has {', '.join(known) or 'none: make the loop with test=(inputs, labels)'}"
            )
        return name

    def to_tree(self) -> dict[str, Any]:
        """Everything, for :func:`seqbdl.serialization.save_tree`."""
        return {
            "class_names": list(self.class_names),
            "curve": [asdict(point) for point in self.curve],
            "scores": [[step, *values] for step, values in self.scores.items()],
            "records": [asdict(record) for record in self.records],
        }

    @staticmethod
    def from_tree(tree: Mapping[str, Any]) -> LearningHistory:
        """The history that :meth:`to_tree` described.

        Raises:
            StateError: The tree is not one.
        """
        try:
            history = LearningHistory(tree["class_names"])
            history.curve = [CurvePoint(**point) for point in tree["curve"]]
            history.scores = {int(step): (float(a), float(b)) for step, a, b in tree["scores"]}
            history.records = [Record(**record) for record in tree["records"]]
        except (KeyError, TypeError, ValueError) as error:
            raise StateError(f"the state holds no history of labels: {error}") from error
        return history


def metric_sign(metric: str) -> float:
    """1 where more is better, -1 where less is."""
    return 1.0 if metric in ("accuracy", "coverage", "agreement") else -1.0
