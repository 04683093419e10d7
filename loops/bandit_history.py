"""Which arms were played in which contexts, with what chances, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from seqbdl.errors import StateError
from seqbdl.loops.history import History, Record

NAN = float("nan")


@dataclass(frozen=True)
class Decision:
    """One choice of an arm; usable as the integer of the arm.

    Attributes:
        arm: Which was chosen.
        id: What :meth:`BanditLoop.tell` wants to know it by.
        propensity: The chance with which it was chosen; NaN where it was not computed.
        propensities: The chances of all offered arms, in the order of ``offered``; empty where not computed.
        offered: The arms that could be chosen.
    """

    arm: int
    id: int
    propensity: float
    propensities: tuple[float, ...]
    offered: tuple[int, ...]

    def __index__(self) -> int:
        return self.arm


class BanditHistory(History):
    """A history of decisions: what off-policy evaluation needs, and the regret where an environment tells it."""

    def __init__(self) -> None:
        super().__init__(("arm",), ("reward",))
        self.decisions: list[Decision] = []
        self.contexts: list[list[float]] = []
        self.regrets: dict[int, float] = {}

    def action(self, record: Record) -> Decision:
        """The decision of a record."""
        return self.decisions[record.step]

    def best(self) -> Record | None:
        """``None``: rewards in different contexts do not compare."""
        return None

    def best_so_far(self) -> NDArray[np.float64]:
        """NaN: rewards in different contexts do not compare."""
        return np.full(len(self.records), NAN)

    def regret(self) -> NDArray[np.float64]:
        """Cumulative expected regret after every decision; NaN where no environment tells it."""
        return np.cumsum([self.regrets.get(record.step, NAN) for record in self.records])

    def total_reward(self) -> float:
        """The sum of the rewards that came."""
        return float(sum(record.outcomes[0] for record in self.complete))

    def frame(self) -> pd.DataFrame:
        """One row per decision: ``decision``, ``source``, ``status``, ``x0...``, ``arm``, ``propensity``, ``reward``, ``regret``
        (of this decision) and ``cumulative_regret``."""
        table = pd.DataFrame(
            {
                "decision": [record.step for record in self.records],
                "source": [record.source for record in self.records],
                "status": [record.status for record in self.records],
            }
        )
        width = max((len(row) for row in self.contexts), default=0)
        contexts = np.full((len(self), width), NAN)
        for i, row in enumerate(self.contexts):
            contexts[i, : len(row)] = row
        for j in range(width):
            table[f"x{j}"] = contexts[:, j]
        table["arm"] = [decision.arm for decision in self.decisions]
        table["propensity"] = [decision.propensity for decision in self.decisions]
        table["reward"] = [record.outcomes[0] for record in self.records]
        table["regret"] = [self.regrets.get(record.step, NAN) for record in self.records]
        table["cumulative_regret"] = self.regret()
        return table

    def summary(self) -> str:
        """A few lines for a person."""
        complete = self.complete
        lines = [f"{len(self)} decisions, {len(complete)} rewards, {len(self) - len(complete)} still to come or failed"]
        if complete:
            rewards = [record.outcomes[0] for record in complete]
            lines.append(f"total reward {sum(rewards):.6g}, mean {np.mean(rewards):.4g}")
        if self.regrets:
            lines.append(f"cumulative regret {np.nansum(list(self.regrets.values())):.6g}")
        return "\n".join(lines)

    def plot(self, ax: Any = None, label: str | None = None) -> Any:
        """Draw the cumulative regret over decisions, or the cumulative reward where no regret is known.

        Args:
            ax: A Matplotlib axis; a new figure's by default.
            label: For the legend.

        Returns:
            The axis.
        """
        if ax is None:
            from matplotlib import pyplot as plt

            ax = plt.subplots(figsize=(7.0, 4.0), layout="constrained")[1]
        steps = np.arange(1, len(self) + 1)
        if self.regrets:
            ax.plot(steps, self.regret(), label=label)
            ax.set_ylabel("cumulative regret")
        else:
            ax.plot(steps, np.nancumsum([record.outcomes[0] for record in self.records]), label=label)
            ax.set_ylabel("cumulative reward")
        ax.set_xlabel("decision")
        if label is not None:
            ax.legend()
        return ax

    def plot_arms(self, ax: Any = None, bins: int = 20) -> Any:
        """Draw how the shares of the arms change over time, stacked.

        Args:
            ax: A Matplotlib axis; a new figure's by default.
            bins: Spans of time.

        Returns:
            The axis.
        """
        if ax is None:
            from matplotlib import pyplot as plt

            ax = plt.subplots(figsize=(7.0, 4.0), layout="constrained")[1]
        arms = np.array([decision.arm for decision in self.decisions], dtype=int)
        spans = [span for span in np.array_split(arms, bins) if len(span)]
        shares = np.array([np.bincount(span, minlength=int(arms.max()) + 1) / len(span) for span in spans])
        ends = np.cumsum([len(span) for span in spans])
        ax.stackplot(ends, shares.T, labels=[f"arm {k}" for k in range(shares.shape[1])])
        ax.set_xlabel("decision")
        ax.set_ylabel("share of decisions")
        if shares.shape[1] <= 12:
            ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return ax

    def to_tree(self) -> dict[str, Any]:
        """Everything, for :func:`seqbdl.serialization.save_tree`."""
        return {
            "records": [asdict(record) for record in self.records],
            "decisions": [asdict(decision) for decision in self.decisions],
            "contexts": [list(row) for row in self.contexts],
            "regrets": [[step, value] for step, value in self.regrets.items()],
        }

    @staticmethod
    def from_tree(tree: Mapping[str, Any]) -> BanditHistory:
        """The history that :meth:`to_tree` described.

        Raises:
            StateError: The tree is not one.
        """
        history = BanditHistory()
        try:
            history.records = [Record(**record) for record in tree["records"]]
            history.decisions = [
                Decision(d["arm"], d["id"], d["propensity"], tuple(d["propensities"]), tuple(d["offered"]))
                for d in tree["decisions"]
            ]
            history.contexts = [list(row) for row in tree["contexts"]]
            history.regrets = {int(step): float(value) for step, value in tree["regrets"]}
        except (KeyError, TypeError, ValueError) as error:
            raise StateError(f"the state holds no history of decisions: {error}") from error
        return history
