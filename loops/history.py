"""What was asked and what came of it, as a table in the user's names and units."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from botorch.utils.multi_objective.box_decompositions.dominated import DominatedPartitioning
from botorch.utils.multi_objective.pareto import is_non_dominated
from numpy.typing import NDArray

from seqbdl.errors import InvalidOptionError, StateError
from seqbdl.loops.space import Point

PENDING, PARTIAL, COMPLETE, FAILED = "pending", "partial", "complete", "failed"
DIRECTIONS = ("maximize", "minimize")
NAN = float("nan")


@dataclass
class Record:
    """One trial.

    Attributes:
        step: Its number, from 0, in the order in which trials entered.
        batch: The number of the ``ask`` that proposed it; -1 for points told without having been asked.
        point: What was asked.
        source: ``"initial"`` (design), ``"model"`` (acquisition), ``"random"``, ``"sobol"``, or ``"told"``.
        status: ``"pending"``, ``"partial"`` (some outcomes are in), ``"complete"`` or ``"failed"``.
        outcomes: One number per outcome, in the user's units; NaN where there is none.
        constraints: One number per constraint, feasible when at most 0.
        variances: Known noise variances of outcomes, then constraints; ``None`` when unknown.
        reason: Why it failed.
        true_value: The outcome without noise, where an environment knows it.
        predicted_mean: Posterior mean of the outcomes when it was asked; ``None`` without a model.
        predicted_sd: Posterior standard deviation of the same.
        seconds_ask: Seconds spent to choose it (of a batch: its share).
        seconds_tell: Seconds from asking to telling are the user's; these are the seconds that ``tell`` took.
    """

    step: int
    batch: int
    point: Point
    source: str
    status: str = PENDING
    outcomes: list[float] = field(default_factory=list)
    constraints: list[float] = field(default_factory=list)
    variances: list[float] | None = None
    reason: str = ""
    true_value: float | None = None
    predicted_mean: list[float] | None = None
    predicted_sd: list[float] | None = None
    seconds_ask: float = NAN
    seconds_tell: float = NAN

    @property
    def open(self) -> bool:
        """Whether outcomes are still awaited."""
        return self.status in (PENDING, PARTIAL)

    @property
    def feasible(self) -> bool:
        """Whether it is complete and all constraints hold."""
        return self.status == COMPLETE and all(value <= 0 for value in self.constraints)


class History:
    """The records of a run: rows are added and filled in, never removed or reordered.

    Args:
        parameter_names: Columns of the points.
        outcome_names: One per outcome.
        directions: ``"maximize"`` or ``"minimize"``, one per outcome.
        constraint_names: One per outcome constraint.
        optimal_value: The best possible outcome, where known: then the table has a regret.
        ref_point: For several outcomes, in the user's units: then the table has the hypervolume.
    """

    def __init__(
        self,
        parameter_names: Sequence[str],
        outcome_names: Sequence[str] = ("outcome",),
        directions: Sequence[str] = ("maximize",),
        constraint_names: Sequence[str] = (),
        optimal_value: float | None = None,
        ref_point: Sequence[float] | None = None,
    ) -> None:
        self.parameter_names = tuple(parameter_names)
        self.outcome_names = tuple(outcome_names)
        self.directions = tuple(directions)
        self.constraint_names = tuple(constraint_names)
        self.optimal_value = optimal_value
        self.ref_point = None if ref_point is None else [float(value) for value in ref_point]
        self.records: list[Record] = []

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def __getitem__(self, step: int) -> Record:
        return self.records[step]

    def append(self, batch: int, point: Point, source: str) -> Record:
        """Add a trial that awaits its outcomes."""
        record = Record(
            step=len(self.records),
            batch=batch,
            point=dict(point),
            source=source,
            outcomes=[NAN] * len(self.outcome_names),
            constraints=[NAN] * len(self.constraint_names),
        )
        self.records.append(record)
        return record

    def action(self, record: Record) -> Any:
        """What ``ask`` returned for a record; a repeated run evaluates it."""
        return record.point

    # -- what it says

    @property
    def signs(self) -> NDArray[np.float64]:
        """``m``: 1 where an outcome is maximized, -1 where it is minimized."""
        return np.array([1.0 if direction == "maximize" else -1.0 for direction in self.directions])

    @property
    def pending(self) -> list[Record]:
        """Trials that await outcomes."""
        return [record for record in self.records if record.open]

    @property
    def complete(self) -> list[Record]:
        """Trials with all their outcomes."""
        return [record for record in self.records if record.status == COMPLETE]

    @property
    def failed(self) -> list[Record]:
        """Trials that failed."""
        return [record for record in self.records if record.status == FAILED]

    def best(self) -> Record | None:
        """The feasible trial with the best observed outcome; ``None`` before there is one.

        Noise makes the best observed outcome lucky: a loop's ``recommend()`` goes by the posterior mean.

        Raises:
            InvalidOptionError: There are several outcomes; use :meth:`pareto`.
        """
        if len(self.outcome_names) > 1:
            raise InvalidOptionError("with several outcomes there is no single best trial; use history.pareto()")
        feasible = [record for record in self.records if record.feasible]
        sign = self.signs[0]
        return max(feasible, key=lambda record: sign * record.outcomes[0], default=None)

    def pareto(self) -> list[Record]:
        """The feasible trials that no other one beats in every outcome."""
        feasible = [record for record in self.records if record.feasible]
        if not feasible:
            return []
        values = torch.tensor(np.array([record.outcomes for record in feasible]) * self.signs)
        return [record for record, keep in zip(feasible, is_non_dominated(values).tolist(), strict=True) if keep]

    def best_so_far(self) -> NDArray[np.float64]:
        """After every trial: the best feasible observed outcome, or the hypervolume of several outcomes.

        NaN before the first feasible trial; for several outcomes NaN throughout without a reference point.
        """
        if len(self.outcome_names) > 1:
            return self._hypervolumes()
        return self._running_best([record.outcomes[0] for record in self.records])

    def regret(self) -> NDArray[np.float64]:
        """After every trial: by how much the best feasible trial falls short of the optimum, at least 0 up to rounding.

        Measured without noise where true values are known. NaN when the optimum is not known, or with several outcomes.
        """
        if self.optimal_value is None or len(self.outcome_names) > 1:
            return np.full(len(self.records), NAN)
        values = [record.outcomes[0] if record.true_value is None else record.true_value for record in self.records]
        return self.signs[0] * (self.optimal_value - self._running_best(values))

    def _running_best(self, values: Sequence[float]) -> NDArray[np.float64]:
        best, out, sign = NAN, [], self.signs[0]
        for record, value in zip(self.records, values, strict=True):
            if record.feasible and (math.isnan(best) or sign * value > sign * best):
                best = value
            out.append(best)
        return np.array(out, dtype=np.float64)

    def _hypervolumes(self) -> NDArray[np.float64]:
        if self.ref_point is None:
            return np.full(len(self.records), NAN)
        reference = torch.tensor(np.array(self.ref_point) * self.signs)
        front = torch.empty(0, len(self.outcome_names), dtype=torch.double)
        volume, out = NAN, []
        for record in self.records:
            if record.feasible:
                row = torch.tensor(np.array(record.outcomes) * self.signs).unsqueeze(0)
                joined = torch.cat([front, row])
                joined = joined[is_non_dominated(joined)]
                if math.isnan(volume) or joined.shape != front.shape or not torch.equal(joined, front):
                    front = joined
                    volume = float(DominatedPartitioning(ref_point=reference, Y=front).compute_hypervolume())
            out.append(volume)
        return np.array(out, dtype=np.float64)

    def frame(self) -> pd.DataFrame:
        """The table, one row per trial.

        Columns: ``step``, ``batch``, ``source``, ``status``; the parameters; outcomes; constraints; ``feasible`` (empty
        until complete), ``reason``, ``true_value``, ``best_so_far`` (several outcomes: the hypervolume), ``regret``,
        ``predicted_<outcome>`` and ``predicted_<outcome>_sd`` as of asking, ``seconds_ask``, ``seconds_tell``.
        """
        rows = []
        for record, best, regret in zip(self.records, self.best_so_far(), self.regret(), strict=True):
            row: dict[str, Any] = {name: getattr(record, name) for name in ("step", "batch", "source", "status")}
            row.update(record.point)
            row.update(zip(self.outcome_names, record.outcomes, strict=True))
            row.update(zip(self.constraint_names, record.constraints, strict=True))
            row["feasible"] = record.feasible if record.status == COMPLETE else None
            row["reason"] = record.reason
            row["true_value"] = NAN if record.true_value is None else record.true_value
            row["best_so_far"], row["regret"] = best, regret
            for i, name in enumerate(self.outcome_names):
                row[f"predicted_{name}"] = NAN if record.predicted_mean is None else record.predicted_mean[i]
                row[f"predicted_{name}_sd"] = NAN if record.predicted_sd is None else record.predicted_sd[i]
            row["seconds_ask"], row["seconds_tell"] = record.seconds_ask, record.seconds_tell
            rows.append(row)
        return pd.DataFrame(rows, columns=self._columns())

    def _columns(self) -> list[str]:
        extra = [name for name in (self.records[0].point if self.records else ()) if name not in self.parameter_names]
        predicted = [f"predicted_{name}{end}" for name in self.outcome_names for end in ("", "_sd")]
        return [
            *("step", "batch", "source", "status", *extra, *self.parameter_names, *self.outcome_names),
            *(*self.constraint_names, "feasible", "reason", "true_value", "best_so_far", "regret"),
            *(*predicted, "seconds_ask", "seconds_tell"),
        ]

    def summary(self) -> str:
        """A few lines for a person: how many trials, the best, the regret."""
        counts = {status: sum(r.status == status for r in self.records) for status in (COMPLETE, FAILED, PARTIAL, PENDING)}
        lines = [f"{len(self)} trials: " + ", ".join(f"{n} {status}" for status, n in counts.items() if n)]
        if self.constraint_names and self.complete:
            lines.append(
                f"{sum(record.feasible for record in self.records)} of {len(self.complete)} complete trials are feasible"
            )
        if len(self.outcome_names) > 1:
            lines.append(f"{len(self.pareto())} trials on the Pareto front of {', '.join(self.outcome_names)}")
        elif (best := self.best()) is not None:
            where = ", ".join(f"{name}={_short(value)}" for name, value in best.point.items())
            lines.append(f"best {self.outcome_names[0]}: {best.outcomes[0]:.6g} at trial {best.step} ({where})")
            if self.optimal_value is not None:
                lines.append(f"regret: {self.regret()[-1]:.4g}")
        return "\n".join(lines)

    def plot(self, ax: Any = None) -> Any:
        """Draw outcomes (dots; crosses on the axis for failed trials) and the best so far (line) over trials.

        Several outcomes: the hypervolume over trials where a reference point is known, else the first two outcomes.

        Args:
            ax: A Matplotlib axis; a new figure's by default.

        Returns:
            The axis.
        """
        if ax is None:
            from matplotlib import pyplot as plt

            ax = plt.subplots(figsize=(7.0, 4.0), layout="constrained")[1]
        steps = np.arange(1, len(self) + 1)
        if len(self.outcome_names) > 1 and self.ref_point is None:
            return self._plot_front(ax)
        if len(self.outcome_names) == 1:
            feasible = np.array([record.feasible for record in self.records], dtype=bool)
            complete = np.array([record.status == COMPLETE for record in self.records], dtype=bool)
            values = np.array([record.outcomes[0] for record in self.records], dtype=np.float64)
            ax.plot(steps[feasible], values[feasible], "o", ms=4, alpha=0.6, label="observed")
            if (complete & ~feasible).any():
                ax.plot(steps[complete & ~feasible], values[complete & ~feasible], "o", ms=4, mfc="none", label="infeasible")
            if self.optimal_value is not None:
                ax.axhline(self.optimal_value, ls=":", color="0.4", label="optimum")
            label = "best so far"
            ax.set_ylabel(f"{self.outcome_names[0]} ({self.directions[0]})")
        else:
            label = "hypervolume"
            ax.set_ylabel(label)
        ax.step(steps, self.best_so_far(), where="post", label=label)
        failed = [record.step + 1 for record in self.failed]
        if failed:
            ax.plot(failed, np.zeros(len(failed)), "x", color="tab:red", transform=ax.get_xaxis_transform(), label="failed")
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.set_xlabel("trial")
        ax.legend()
        return ax

    def _plot_front(self, ax: Any) -> Any:
        values = np.array([record.outcomes for record in self.complete], dtype=np.float64).reshape(-1, len(self.outcome_names))
        front = np.array(sorted(record.outcomes for record in self.pareto()), dtype=np.float64).reshape(
            -1, len(self.outcome_names)
        )
        ax.plot(values[:, 0], values[:, 1], "o", ms=4, alpha=0.6, label="observed")
        ax.plot(front[:, 0], front[:, 1], "o-", label="Pareto front")
        ax.set_xlabel(f"{self.outcome_names[0]} ({self.directions[0]})")
        ax.set_ylabel(f"{self.outcome_names[1]} ({self.directions[1]})")
        ax.legend()
        return ax

    # -- storage

    def to_tree(self) -> dict[str, Any]:
        """Everything, for :func:`seqbdl.serialization.save_tree`."""
        return {
            "parameter_names": list(self.parameter_names),
            "outcome_names": list(self.outcome_names),
            "directions": list(self.directions),
            "constraint_names": list(self.constraint_names),
            "optimal_value": self.optimal_value,
            "ref_point": self.ref_point,
            "records": [asdict(record) for record in self.records],
        }

    @staticmethod
    def from_tree(tree: Mapping[str, Any]) -> History:
        """The history that :meth:`to_tree` described.

        Raises:
            StateError: The tree is not one.
        """
        try:
            fields = {key: value for key, value in tree.items() if key != "records"}
            history = History(**fields)
            history.records = [Record(**record) for record in tree["records"]]
        except (KeyError, TypeError) as error:
            raise StateError(f"the state holds no history: {error}") from error
        return history


def _short(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
