"""When a pool has been labelled enough."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from seqbdl.errors import InvalidOptionError
from seqbdl.loops.callbacks import Callback, Run
from seqbdl.loops.history import Record
from seqbdl.loops.learning_history import metric_sign

if TYPE_CHECKING:
    from seqbdl.loops.active_learning import ActiveLearningLoop

AGREEING_ROUNDS = 3


@dataclass
class LearningStop(Callback):
    """Ends active learning by any of several rules; a callback of :func:`seqbdl.loops.run`, or asked with :meth:`reason`.

    Rules are looked at when no label is pending.

    Attributes:
        target: A level of the test metric.
        patience: Rounds (points of the learning curve) in which the test metric did not get better.
        min_delta: What counts as better.
        metric: Of the two rules above; accuracy of classes and root mean squared error of values by default.
        min_increment: The last ask's best point was to add less than this, in the units of the acquisition.
        agreement: Predicted classes hardly change any more: Cohen's kappa between successive models was at least this in three
            rounds in a row; 0.99 is usual. Needs no test set (M. Bloodgood and K. Vijay-Shanker, "A method for stopping active
            learning based on stabilizing predictions and the need for user-adjustable stopping", CoNLL 2009).
        max_cost: What labels may cost in all.
    """

    target: float | None = None
    patience: int | None = None
    min_delta: float = 0.0
    metric: str | None = None
    min_increment: float | None = None
    agreement: float | None = None
    max_cost: float | None = None

    def __post_init__(self) -> None:
        rules = (self.target, self.patience, self.min_increment, self.agreement, self.max_cost)
        if all(rule is None for rule in rules):
            raise InvalidOptionError("LearningStop needs target=, patience=, min_increment=, agreement= or max_cost=")
        if self.patience is not None and self.patience < 1:
            raise InvalidOptionError(f"patience={self.patience}; it is a number of rounds, at least 1")
        if self.agreement is not None and not 0 < self.agreement <= 1:
            raise InvalidOptionError(f"agreement={self.agreement}; it is a kappa above 0 and at most 1, such as 0.99")

    def on_tell(self, run: Run, record: Record | None) -> None:
        if text := self.reason(run.loop):
            run.end(text)

    def reason(self, loop: ActiveLearningLoop) -> str:
        """Why to stop now; empty when there is no reason to, or labels are pending.

        Raises:
            InvalidOptionError: A rule needs a test set, or classes, and there are none.
        """
        if loop.pending or not loop.labelled:
            return ""
        checks = (self._cost(loop), self._level(loop), self._stalled(loop), self._little(loop), self._agreed(loop))
        return next((text for text in checks if text), "")

    def _cost(self, loop: ActiveLearningLoop) -> str:
        if self.max_cost is None or loop.spent < self.max_cost:
            return ""
        return f"labels have cost {loop.spent:g} of {self.max_cost:g}"

    def _values(self, loop: ActiveLearningLoop) -> tuple[str, list[float]]:
        name = self.metric or loop.history.main_metric
        curve = loop.history.curve
        values = [point.metrics[name] for point in curve if name in point.metrics]
        if curve and not values and name != "agreement":
            raise InvalidOptionError(f"the curve has no metric {name!r}; make the loop with test=, or stop by another rule")
        return name, values

    def _level(self, loop: ActiveLearningLoop) -> str:
        if self.target is None:
            return ""
        name, values = self._values(loop)
        sign = metric_sign(name)
        if not values or sign * values[-1] < sign * self.target:
            return ""
        return f"{name} {values[-1]:.4g} reaches {self.target:g}"

    def _stalled(self, loop: ActiveLearningLoop) -> str:
        if self.patience is None:
            return ""
        name, values = self._values(loop)
        signed = [metric_sign(name) * value for value in values]
        if len(signed) <= self.patience or max(signed[-self.patience :]) > max(signed[: -self.patience]) + self.min_delta:
            return ""
        return f"{name} did not get better in {self.patience} rounds"

    def _little(self, loop: ActiveLearningLoop) -> str:
        if self.min_increment is None or not loop.history.scores:
            return ""
        last = max(loop.history.scores)
        number = loop.history[last].batch
        best = max(scores[1] for step, scores in loop.history.scores.items() if loop.history[step].batch == number)
        return f"the best point was to add {best:.3g}" if best < self.min_increment else ""

    def _agreed(self, loop: ActiveLearningLoop) -> str:
        if self.agreement is None:
            return ""
        if not loop.labels.num_classes:
            raise InvalidOptionError("agreement= is a rule for classes; use patience= or min_increment= for values")
        values = [point.metrics["agreement"] for point in loop.history.curve if "agreement" in point.metrics][-AGREEING_ROUNDS:]
        if len(values) < AGREEING_ROUNDS or min(values) < self.agreement:
            return ""
        return f"predictions agreed to {min(values):.3g} in {AGREEING_ROUNDS} rounds"
