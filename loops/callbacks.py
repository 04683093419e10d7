"""What may look on while a loop runs: checkpoints, early stopping, curves."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seqbdl.errors import InvalidOptionError
from seqbdl.loops.history import History, Record
from seqbdl.serialization import save_tree


@dataclass
class Run:
    """A run as its callbacks see it.

    Attributes:
        loop: The loop.
        steps: How many evaluations the run has in all.
        state: Gives everything a resumed run needs, as a tree.
        done: Evaluations told so far.
        stop: Set it to end the run after this evaluation.
        stop_reason: Why it ended early; empty otherwise.
    """

    loop: Any
    steps: int
    state: Callable[[], dict[str, Any]]
    done: int = 0
    stop: bool = False
    stop_reason: str = ""

    @property
    def history(self) -> History:
        """The loop's history."""
        return self.loop.history

    def end(self, reason: str) -> None:
        """End the run after this evaluation."""
        self.stop, self.stop_reason = True, reason


class Callback:
    """Called at four moments of a run; inherit from it and write those that matter."""

    def on_start(self, run: Run) -> None:
        """Before the first ask; also of a resumed run."""

    def on_ask(self, run: Run, actions: list[Any]) -> None:
        """After the loop chose the next actions, before any is evaluated."""

    def on_tell(self, run: Run, record: Record | None) -> None:
        """After an outcome was told; ``record`` is its row of the history."""

    def on_end(self, run: Run) -> None:
        """After the last tell."""


class Checkpoint(Callback):
    """Writes the whole run to one file after every ask and every tell, atomically.

    :func:`seqbdl.loops.run` continues from the file when it is given as ``checkpoint=``.

    Args:
        path: The file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def on_start(self, run: Run) -> None:
        self._write(run)

    def on_ask(self, run: Run, actions: list[Any]) -> None:
        self._write(run)

    def on_tell(self, run: Run, record: Record | None) -> None:
        self._write(run)

    def _write(self, run: Run) -> None:
        save_tree(self.path, run.state())


@dataclass
class EarlyStopping(Callback):
    """Ends a run that no longer gets better, or that is good enough.

    Attributes:
        patience: Evaluations without an improvement before the run ends; ``None``: no limit.
        min_delta: What counts as an improvement, in the outcome's units (several outcomes: of the hypervolume).
        target: Ends the run when the best outcome reaches it, in the user's direction.
    """

    patience: int | None = None
    min_delta: float = 0.0
    target: float | None = None
    _names: tuple[str, ...] = field(default=("patience", "target"), repr=False)

    def __post_init__(self) -> None:
        if self.patience is None and self.target is None:
            raise InvalidOptionError("EarlyStopping needs patience= or target=")
        if self.patience is not None and self.patience < 1:
            raise InvalidOptionError(f"patience={self.patience}; it is a number of evaluations, at least 1")

    def on_tell(self, run: Run, record: Record | None) -> None:
        history = run.history
        sign = 1.0 if len(history.outcome_names) > 1 else float(history.signs[0])
        best = [sign * value for record, value in zip(history, history.best_so_far(), strict=True) if not record.open]
        if not best or math.isnan(best[-1]):
            return
        if self.target is not None and best[-1] >= sign * self.target:
            run.end(f"the target {self.target:g} is reached")
            return
        if self.patience is None or len(best) <= self.patience:
            return
        before = best[-1 - self.patience]
        if not math.isnan(before) and best[-1] <= before + self.min_delta:
            run.end(f"no improvement in {self.patience} evaluations")


class TensorBoard(Callback):
    """Logs outcomes, the best so far, the regret and the seconds per ask.

    Args:
        log_dir: The folder for TensorBoard.

    Raises:
        ImportError: TensorBoard is not installed.
    """

    def __init__(self, log_dir: str | os.PathLike[str]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError("the TensorBoard callback needs tensorboard: pip install 'seqbdl[lab]'") from error
        self.writer = SummaryWriter(str(log_dir))

    def on_tell(self, run: Run, record: Record | None) -> None:
        if record is None:
            return
        history, step = run.history, record.step
        for name, value in zip(
            (*history.outcome_names, *history.constraint_names), (*record.outcomes, *record.constraints), strict=True
        ):
            self._log(f"outcome/{name}", value, step)
        self._log("run/best_so_far", float(history.best_so_far()[-1]), step)
        self._log("run/regret", float(history.regret()[-1]), step)
        self._log("run/seconds_ask", record.seconds_ask, step)

    def on_end(self, run: Run) -> None:
        self.writer.flush()
        self.writer.close()

    def _log(self, name: str, value: float, step: int) -> None:
        if math.isfinite(value):
            self.writer.add_scalar(name, value, step)
