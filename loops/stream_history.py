"""What happened in a stream: scores before learning, calibration over time, tasks that were scored again, and the costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from seqbdl.diagnostics import continual as metrics
from seqbdl.errors import InvalidOptionError, StateError

Array = NDArray[np.float64]


@dataclass
class StreamRecord:
    """One step.

    Attributes:
        step: From 0.
        task: As the stream said; 0 without tasks.
        changed: Whether the stream said that this step begins a task.
        rows: How many.
        log_score: Joint log predictive density (or probability) of the outcomes, before learning them; ``None`` while the
            surrogate had learned nothing.
        accuracy: Share of labels predicted (``None`` for numbers).
        covered: Share of outcomes in the central 90 % interval (numbers), before learning them.
        squared_error: Mean squared error of the predicted means (numbers).
        confidence: Mean probability of the predicted label.
        learned: Whether the posterior took the outcomes; otherwise it is as it was.
        reason: Why not.
        run_length: Expected steps since the last change, under all hypotheses.
        hypotheses: How many.
        state_bytes: Of all posteriors, without the rows that surrogates keep for BoTorch.
        seconds: Of scoring and learning.
    """

    step: int
    task: int
    changed: bool
    rows: int
    log_score: float | None = None
    accuracy: float | None = None
    covered: float | None = None
    squared_error: float | None = None
    confidence: float | None = None
    learned: bool = True
    reason: str = ""
    run_length: float = 0.0
    hypotheses: int = 1
    state_bytes: int = 0
    seconds: float = 0.0


@dataclass
class StreamHistory:
    """Rows per step, and a row of scores on all tasks whenever a task ended.

    Attributes:
        records: Per step.
        task_scores: Per ended task: metric to one score per task.
        baseline: The same before any data; empty without test sets.
    """

    records: list[StreamRecord] = field(default_factory=list)
    task_scores: list[dict[str, list[float]]] = field(default_factory=list)
    baseline: dict[str, list[float]] = field(default_factory=dict)
    outcome_names = ("log_score",)
    directions = ("maximize",)
    constraint_names: tuple[str, ...] = ()
    optimal_value: float | None = None
    pending: tuple[Any, ...] = ()

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[StreamRecord]:
        return iter(self.records)

    def best(self) -> None:
        """No step is better than another one: there is nothing to optimize."""
        return

    def frame(self) -> pd.DataFrame:
        """One row per step; the columns are the attributes of :class:`StreamRecord`."""
        return pd.DataFrame([asdict(record) for record in self.records])

    @property
    def losses(self) -> Array:
        """Minus the log score per row, of the steps that have one."""
        return np.array([-r.log_score / r.rows for r in self.records if r.log_score is not None])

    @property
    def changes(self) -> list[int]:
        """Places in :attr:`losses` at which a task began, the first one left out."""
        scored = [record for record in self.records if record.log_score is not None]
        return [i for i, record in enumerate(scored) if record.changed and i > 0]

    def task_matrix(self, metric: str = "accuracy") -> Array:
        """``R[t, i]``: the score on task ``i`` after ``t + 1`` tasks, ``k x T`` with ``k`` ended tasks.

        Args:
            metric: ``"accuracy"``, ``"nll"`` or ``"ece"`` of labels; ``"rmse"``, ``"nll"`` or ``"coverage"`` (of the central
                90 % intervals) of numbers. Losses are losses: negate them for :func:`seqbdl.diagnostics.backward_transfer`.

        Raises:
            InvalidOptionError: No task ended, or there is no such metric.
        """
        if not self.task_scores:
            raise InvalidOptionError("no task has ended, or the loop has no test sets; see ContinualLoop.score_tasks")
        if metric not in self.task_scores[0]:
            raise InvalidOptionError(f"metric={metric!r} is not one of {', '.join(self.task_scores[0])}")
        return np.array([row[metric] for row in self.task_scores], dtype=np.float64)

    def summary(self) -> dict[str, float]:
        """The numbers of the run: prequential log loss per row, steps that failed, and what the matrix says where it is whole."""
        out: dict[str, float] = {"steps": len(self), "failed": sum(not record.learned for record in self.records)}
        if len(self.losses):
            out["log_loss"] = float(self.losses.mean())
        if self.changes:
            out["log_loss_after_changes"] = metrics.loss_after_changes(self.losses, self.changes)
        if self.task_scores and len(self.task_scores) == len(next(iter(self.task_scores[0].values()))):
            name = "accuracy" if "accuracy" in self.task_scores[0] else "rmse"
            sign = 1.0 if name == "accuracy" else -1.0
            R = sign * self.task_matrix(name)
            out[f"average_{name}"] = sign * metrics.average_accuracy(R)
            out[f"learning_{name}"] = sign * metrics.learning_accuracy(R)
            if len(R) > 1:
                out["backward_transfer"], out["forgetting"] = metrics.backward_transfer(R), metrics.forgetting(R)
                out["forward_transfer"] = metrics.forward_transfer(R, sign * np.array(self.baseline[name]))
            for other in ("nll", "ece", "coverage"):
                if other in self.task_scores[0]:
                    out[f"average_{other}"] = metrics.average_accuracy(self.task_matrix(other))
        out["seconds_per_step"] = float(np.mean([record.seconds for record in self.records])) if self.records else 0.0
        out["state_bytes"] = self.records[-1].state_bytes if self.records else 0
        return out

    def plot(self, window: int = 50) -> Any:
        """Four pictures: log loss, calibration, the matrix of tasks (or run lengths), and costs.

        Args:
            window: Steps of the moving averages.

        Returns:
            The figure.
        """
        from matplotlib import pyplot as plt

        figure, axes = plt.subplots(2, 2, figsize=(11.0, 7.0), layout="constrained")
        self._plot_loss(axes[0, 0], window)
        self._plot_calibration(axes[0, 1], window)
        if self.task_scores:
            self._plot_matrix(axes[1, 0], figure)
        else:
            axes[1, 0].plot([record.run_length for record in self.records])
            axes[1, 0].set(xlabel="step", ylabel="expected steps since the last change")
        costs = axes[1, 1]
        costs.plot([1e3 * record.seconds for record in self.records], lw=0.8)
        costs.set(xlabel="step", ylabel="ms per step", yscale="log")
        size = costs.twinx()
        size.plot([record.state_bytes / 1e3 for record in self.records], color="tab:orange")
        size.set_ylabel("state in kB", color="tab:orange")
        return figure

    def _plot_loss(self, ax: Any, window: int) -> None:
        if len(self.losses):
            ax.plot(metrics.prequential(self.losses), label="cumulative")
            ax.plot(metrics.windowed(self.losses, window), lw=0.8, label=f"last {window}")
            ax.plot(metrics.faded(self.losses), lw=0.8, label="faded, 0.99")
        for change in self.changes:
            ax.axvline(change, color="0.8", zorder=0)
        ax.set(xlabel="step", ylabel="log loss per row")
        ax.legend()

    def _plot_calibration(self, ax: Any, window: int) -> None:
        numbers = [record.covered for record in self.records if record.covered is not None]
        if numbers:
            ax.plot(metrics.windowed(numbers, window), label="coverage")
            ax.axhline(0.9, ls=":", color="0.4", label="90 %")
        labels = [(r.accuracy, r.confidence) for r in self.records if r.accuracy is not None and r.confidence is not None]
        if labels:
            ax.plot(metrics.windowed([accuracy for accuracy, _ in labels], window), label="accuracy")
            ax.plot(metrics.windowed([confidence for _, confidence in labels], window), label="confidence")
        ax.set(xlabel="step", title=f"last {window} steps")
        ax.legend()

    def _plot_matrix(self, ax: Any, figure: Any) -> None:
        name = "accuracy" if "accuracy" in self.task_scores[0] else "rmse"
        R = self.task_matrix(name)
        figure.colorbar(ax.imshow(R, cmap="viridis"), ax=ax)
        for t, i in np.ndindex(*R.shape):
            ax.text(i, t, f"{R[t, i]:.2f}", ha="center", va="center", color="white", fontsize=8)
        ax.set(xlabel="task", ylabel="after task", title=name, xticks=range(R.shape[1]), yticks=range(R.shape[0]))

    def to_tree(self) -> dict[str, Any]:
        """Everything, for :func:`seqbdl.serialization.save_tree`."""
        return {
            "records": [asdict(record) for record in self.records],
            "task_scores": [dict(row) for row in self.task_scores],
            "baseline": dict(self.baseline),
        }

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> StreamHistory:
        """The history that :meth:`to_tree` described.

        Raises:
            StateError: The tree is not one.
        """
        try:
            return cls([StreamRecord(**record) for record in tree["records"]], list(tree["task_scores"]), dict(tree["baseline"]))
        except (KeyError, TypeError) as error:
            raise StateError(f"the state holds no history of a stream: {error}") from error
