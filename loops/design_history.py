"""Which designs were asked, what they promised to tell, and what they told."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeAlias

import pandas as pd
import torch

from seqbdl.acquisition.eig import Bounds
from seqbdl.errors import InvalidOptionError, StateError
from seqbdl.loops.history import COMPLETE, History, Record

Interval: TypeAlias = tuple[float, float, float]
"""Lower bound, upper bound and standard error in nats; NaN where there is none."""


class DesignHistory(History):
    """A history of experiments, with the information that each was expected to bring and that all brought so far.

    Args:
        parameter_names: Of the designs.
        outcome_names: Of what is measured.
    """

    def __init__(self, parameter_names: Sequence[str], outcome_names: Sequence[str] = ("outcome",)) -> None:
        super().__init__(parameter_names, outcome_names)
        self.expected: dict[int, Interval] = {}
        self.gained: dict[int, Interval] = {}

    def frame(self) -> pd.DataFrame:
        """One row per experiment.

        Columns: ``step``, ``batch``, ``source``, ``status``; the design; outcomes; ``expected_lower``, ``expected_upper``,
        ``expected_se``: the information that was expected when it was asked (together with what was under way then);
        ``gained_lower``, ``gained_upper``, ``gained_se``: what all outcomes so far told; ``reason``, ``seconds_ask``,
        ``seconds_tell``.
        """
        table = super().frame()
        unknown = (math.nan, math.nan, math.nan)
        for name, values in (("expected", self.expected), ("gained", self.gained)):
            rows = [values.get(record.step, unknown) for record in self.records]
            for i, end in enumerate(("lower", "upper", "se")):
                table[f"{name}_{end}"] = pd.Series([row[i] for row in rows], dtype="float64")
        extra = [name for name in table if name in ("candidate",) and name not in self.parameter_names]
        kept = ["step", "batch", "source", "status", *extra, *self.parameter_names, *self.outcome_names]
        kept += [f"{name}_{end}" for name in ("expected", "gained") for end in ("lower", "upper", "se")]
        return table[[*kept, "reason", "seconds_ask", "seconds_tell"]]

    def summary(self) -> str:
        """A few lines for a person."""
        done = self.complete
        lines = [f"{len(self)} experiments: {len(done)} complete, {len(self.failed)} failed, {len(self.pending)} under way"]
        known = [record.step for record in done if record.step in self.gained]
        if known:
            low, high, error = self.gained[known[-1]]
            lines.append(f"information gained: {low:.3g} to {high:.3g} nats (standard error {error:.2g})")
        return "\n".join(lines)

    def plot(self, ax: Any = None) -> Any:
        """Draw the information gained so far, between its bounds, and what each experiment was expected to bring.

        Args:
            ax: A Matplotlib axis; a new figure's by default.

        Returns:
            The axis.
        """
        if ax is None:
            from matplotlib import pyplot as plt

            ax = plt.subplots(figsize=(7.0, 4.0), layout="constrained")[1]
        asked = [(step + 1, value) for step, value in sorted(self.expected.items())]
        if asked:
            ax.bar([x for x, _ in asked], [value[0] for _, value in asked], width=0.6, alpha=0.4, label="expected of each")
        told = [(r.step + 1, self.gained[r.step]) for r in self.records if r.status == COMPLETE and r.step in self.gained]
        if told:
            x = [place for place, _ in told]
            ax.plot(x, [low for _, (low, _, _) in told], "o-", ms=4, color="tab:orange", label="gained in all")
            ax.fill_between(x, [v[0] for _, v in told], [v[1] for _, v in told], color="tab:orange", alpha=0.3)
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.set_xlabel("experiment")
        ax.set_ylabel("information (nats)")
        if asked or told:
            ax.legend()
        return ax

    def to_tree(self) -> dict[str, Any]:
        """Everything, for :func:`seqbdl.serialization.save_tree`."""
        return {
            "parameter_names": list(self.parameter_names),
            "outcome_names": list(self.outcome_names),
            "expected": [[step, *values] for step, values in self.expected.items()],
            "gained": [[step, *values] for step, values in self.gained.items()],
            "records": [asdict(record) for record in self.records],
        }

    @staticmethod
    def from_tree(tree: Mapping[str, Any]) -> DesignHistory:
        """The history that :meth:`to_tree` described.

        Raises:
            StateError: The tree is not one.
        """
        try:
            history = DesignHistory(tree["parameter_names"], tree["outcome_names"])
            history.expected = {int(step): (float(a), float(b), float(c)) for step, a, b, c in tree["expected"]}
            history.gained = {int(step): (float(a), float(b), float(c)) for step, a, b, c in tree["gained"]}
            history.records = [Record(**record) for record in tree["records"]]
        except (KeyError, TypeError, ValueError) as error:
            raise StateError(f"the state holds no history of experiments: {error}") from error
        return history


def interval(bounds: Bounds) -> Interval:
    """Scalar bounds as three numbers."""
    if bounds.standard_error.dim():
        raise InvalidOptionError("the bounds of one design are wanted")
    nan = torch.tensor(math.nan)
    low = nan if bounds.lower is None else bounds.lower
    high = nan if bounds.upper is None else bounds.upper
    return float(low), float(high), float(bounds.standard_error)
