"""The driver: any loop, in any fitting environment or with any function."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import gymnasium
from tqdm.auto import tqdm

from seqbdl.errors import InvalidOptionError, StateError
from seqbdl.loops.callbacks import Callback, Checkpoint, Run
from seqbdl.loops.evaluators import EnvEvaluator, Evaluator, FunctionEvaluator
from seqbdl.loops.history import History, Record
from seqbdl.serialization import load_tree

STATE_VERSION = 1
ON_ERROR = ("record", "raise")


class Loop(Protocol):
    """What the driver needs of a loop."""

    history: History

    def ask(self, observation: Any = None, n: int = 1) -> Any:
        """The next action, a list of them for ``n > 1``."""

    def tell(
        self,
        action: Any,
        outcome: Any = None,
        Yvar: Any = None,
        *,
        constraints: Any = None,
        failed: bool = False,
        reason: str = "",
        true_value: Any = None,
    ) -> Any:
        """What came of an action; returns its record."""

    def state_dict(self) -> dict[str, Any]:
        """Everything the next asks depend on."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state."""


Objective: TypeAlias = Callable[[Any], Any]


@runtime_checkable
class TakesNotes(Protocol):
    """A loop that learns from more than outcomes, such as rewards of earlier decisions that arrive late."""

    def note(self, record: Record, info: Mapping[str, Any]) -> None:
        """What the environment said beside the outcome of a record."""


def run(
    loop: Loop,
    env: gymnasium.Env[Any, Any] | Objective,
    steps: int,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
    checkpoint: str | os.PathLike[str] | None = None,
    batch_size: int = 1,
    seed: int | None = None,
    *,
    on_error: str = "record",
    known_noise: bool = False,
    convert: Callable[[Any], Any] | None = None,
) -> History:
    """Ask, evaluate, tell, until ``steps`` evaluations are done.

    With a checkpoint, a run that is killed at any moment and started again with the same arguments asks the same points
    as one that was never killed. Trials that the loop has pending when a run begins are evaluated first.

    Args:
        loop: Any loop.
        env: An environment, whose rewards are maximized, or a function of a point.
        steps: Evaluations of this run (of a resumed run: those before included).
        callbacks: Called on the way; see :class:`seqbdl.loops.callbacks.Callback`.
        progress: Whether to show a progress bar.
        checkpoint: A file to write after every ask and tell; when it exists, the run continues from it.
        batch_size: Points per ask.
        seed: Of the environment; the loop's own seed by default.
        on_error: What becomes of an exception in a function: ``"record"`` a failed trial, or ``"raise"``.
        known_noise: Whether to tell the loop the noise variances that an environment knows.
        convert: From the loop's points to the function's argument; points as they are by default.

    Returns:
        The loop's history. It is shorter than ``steps`` when a callback ended the run, or a finite space was exhausted.

    Raises:
        InvalidOptionError: Arguments that do not fit each other.
        StateError: The checkpoint belongs to another run.
    """
    if steps < 0 or batch_size < 1:
        raise InvalidOptionError(f"steps={steps}, batch_size={batch_size}; both are counts, batch_size at least 1")
    if on_error not in ON_ERROR:
        raise InvalidOptionError(f"on_error={on_error!r} is not one of {', '.join(map(repr, ON_ERROR))}")
    evaluator = _evaluator(loop, env, on_error, known_noise, convert)
    observation = evaluator.start(_seed(loop, seed))
    view = Run(loop, steps, lambda: _state(loop, evaluator, view))
    watchers = list(callbacks)
    if checkpoint is not None:
        if Path(checkpoint).exists():
            _resume(loop, evaluator, view, load_tree(checkpoint), checkpoint)
            there = getattr(evaluator, "observation", None)
            observation = observation if there is None else there
        watchers.insert(0, Checkpoint(checkpoint))
    if loop.history.optimal_value is None:
        loop.history.optimal_value = evaluator.optimal_value
    with tqdm(total=steps, initial=min(view.done, steps), disable=not progress, unit="eval") as bar:
        for watcher in watchers:
            watcher.on_start(view)
        waiting = [loop.history.action(record) for record in loop.history.pending][: max(steps - view.done, 0)]
        while view.done < steps and not view.stop:
            if not waiting:
                n = _batch(loop, min(batch_size, steps - view.done))
                if n == 0:
                    view.end("every point of the space has been asked")
                    break
                asked = loop.ask(observation, n)
                waiting = [asked] if n == 1 else list(asked)
                for watcher in watchers:
                    watcher.on_ask(view, waiting)
            action = waiting.pop(0)
            result = evaluator.evaluate(action)
            observation = result.observation
            record = loop.tell(
                action,
                result.outcome,
                result.Yvar,
                constraints=result.constraints,
                failed=result.failed,
                reason=result.reason,
                true_value=result.true_value,
            )
            if isinstance(record, Record) and isinstance(loop, TakesNotes):
                loop.note(record, result.info)
            view.done += 1
            for watcher in watchers:
                watcher.on_tell(view, record if isinstance(record, Record) else None)
            bar.update()
            _show(bar, loop.history)
        for watcher in watchers:
            watcher.on_end(view)
        if view.stop_reason:
            bar.set_postfix_str(view.stop_reason)
    return loop.history


def _evaluator(
    loop: Loop,
    env: gymnasium.Env[Any, Any] | Objective,
    on_error: str,
    known_noise: bool,
    convert: Callable[[Any], Any] | None,
) -> Evaluator:
    if isinstance(env, gymnasium.Env):
        wrong = [name for name in loop.history.directions if name != "maximize"]
        if wrong:
            raise InvalidOptionError("rewards of environments are maximized; make the loop with objective='maximize'")
        wanted = len(loop.history.constraint_names)
        offered = int(getattr(env.unwrapped, "num_constraints", wanted) or 0)
        if wanted != offered:
            raise InvalidOptionError(
                f"the environment has {offered} constraints, the loop {wanted}; make the loop with constraints={offered}"
            )
        m = len(loop.history.outcome_names)
        if known_noise and wanted:
            raise InvalidOptionError("known_noise=True works without constraints only: their noise is not known")
        space = getattr(loop, "space", None)
        return EnvEvaluator(env, _identity if space is None else space.to_action, m, known_noise)
    if not callable(env):
        raise InvalidOptionError(f"env is a {type(env).__name__}; give a Gymnasium environment or a function of a point")
    return FunctionEvaluator(env, convert or _identity, on_error)


def _identity(action: Any) -> Any:
    return action


def _seed(loop: Loop, seed: int | None) -> int | None:
    return getattr(loop, "seed", None) if seed is None else seed


def _batch(loop: Loop, n: int) -> int:
    remaining = getattr(loop, "remaining", None)
    return n if remaining is None else min(n, remaining)


def _show(bar: Any, history: History) -> None:
    if bar.disable or len(history.outcome_names) > 1:
        return
    best = history.best()
    if best is not None:
        bar.set_postfix_str(f"best {best.outcomes[0]:.5g}")


def _state(loop: Loop, evaluator: Evaluator, view: Run) -> dict[str, Any]:
    return {"version": STATE_VERSION, "done": view.done, "loop": loop.state_dict(), "evaluator": evaluator.state_dict()}


def _resume(loop: Loop, evaluator: Evaluator, view: Run, state: Any, path: str | os.PathLike[str]) -> None:
    if not isinstance(state, dict) or state.get("version") != STATE_VERSION or "loop" not in state:
        raise StateError(f"{path} is not a checkpoint of a run; give another file name")
    loop.load_state_dict(state["loop"])
    evaluator.load_state_dict(state["evaluator"])
    view.done = int(state["done"])
