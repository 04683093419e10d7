"""Bayesian optimization of a function in one call."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import gymnasium
import numpy as np

from seqbdl.errors import InvalidOptionError, InvalidSpaceError
from seqbdl.loops import BayesOptLoop, Categorical, History, Integer, Parameter, Point, Real, Space
from seqbdl.loops.callbacks import Callback
from seqbdl.loops.proposals import AcquisitionFactory
from seqbdl.loops.run import run
from seqbdl.loops.space import parameter_from_dict
from seqbdl.surrogates import Surrogate

SpaceLike: TypeAlias = "Space | Mapping[str, Any] | Sequence[Any] | gymnasium.Space[Any]"


@dataclass(frozen=True)
class OptimizeResult:
    """What :func:`optimize` found.

    Attributes:
        best_point: The feasible point with the best observed outcome; ``None`` when there is none, or several outcomes.
        best_value: Its observed outcome.
        recommended_point: The evaluated point with the best posterior mean; under noise the safer choice. For several
            outcomes the list of points on the Pareto front; ``None`` when every evaluation failed.
        history: Everything that was asked and told.
        loop: The loop, to go on with ``ask`` and ``tell``.
    """

    best_point: Point | None
    best_value: float | None
    recommended_point: Any
    history: History
    loop: BayesOptLoop

    def __str__(self) -> str:
        return self.history.summary()


def optimize(
    f: Callable[[Any], Any],
    space: SpaceLike,
    budget: int,
    surrogate: str | Surrogate = "gp",
    acquisition: str | AcquisitionFactory = "auto",
    *,
    objective: str | Sequence[str] = "maximize",
    batch_size: int = 1,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
    checkpoint: str | os.PathLike[str] | None = None,
    on_error: str = "record",
    seed: int = 0,
    **loop_options: Any,
) -> OptimizeResult:
    """Optimize a function that is expensive to evaluate.

    Args:
        f: Takes a point, a dictionary from name to value (an array when ``space`` is a list of pairs), and returns a
            number; with constraints or several outcomes a sequence or a mapping. An exception or NaN is recorded as a
            failed trial.
        space: A :class:`seqbdl.loops.Space`; a list of ``(low, high)`` pairs; a mapping from name to a pair, to a list
            of choices, or to a parameter's description (``{"type": "real", "low": 1e-4, "high": 1, "log": True}``);
            parameters; or a Gymnasium space.
        budget: Evaluations in all, the initial design included.
        surrogate: A registered name, or an instance.
        acquisition: A name, or a factory; see :class:`seqbdl.loops.BayesOptLoop`.
        objective: ``"maximize"`` or ``"minimize"``; for several outcomes also one per outcome.
        batch_size: Points chosen at once.
        callbacks: See :mod:`seqbdl.loops.callbacks`.
        progress: Whether to show a progress bar.
        checkpoint: A file written on the way; when it exists, the run continues from it exactly.
        on_error: ``"record"`` an exception of ``f`` as a failed trial, or ``"raise"`` it.
        seed: Of everything random.
        loop_options: More for :class:`seqbdl.loops.BayesOptLoop`, such as ``constraints=``, ``num_outcomes=``,
            ``initial=``, ``noise=`` or ``surrogate_options=``.

    Raises:
        InvalidSpaceError: The space is empty, or a range is reversed.
        InvalidOptionError: The budget is not positive, or settings contradict each other.
    """
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
        raise InvalidOptionError(f"budget={budget!r}; it is a number of evaluations, at least 1")
    if not callable(f):
        raise InvalidOptionError(f"f is a {type(f).__name__}; give a function of a point")
    built, convert = as_space(space)
    loop = BayesOptLoop(built, surrogate, acquisition, objective=objective, seed=seed, **loop_options)
    history = run(loop, f, budget, callbacks, progress, checkpoint, batch_size, seed, on_error=on_error, convert=convert)
    best = history.best() if len(history.outcome_names) == 1 else None
    return OptimizeResult(
        best_point=None if best is None else dict(best.point),
        best_value=None if best is None else best.outcomes[0],
        recommended_point=loop.recommend() if history.complete else None,
        history=history,
        loop=loop,
    )


def as_space(space: SpaceLike) -> tuple[Space, Callable[[Point], Any]]:
    """The space that a user meant, and how its points are handed to the user's function.

    Raises:
        InvalidSpaceError: It cannot be read as a space.
    """
    if isinstance(space, Space):
        return space, dict
    if isinstance(space, gymnasium.Space):
        built = Space.from_gymnasium(space)
        return built, built.to_action
    if isinstance(space, Mapping):
        return Space(_parameter(str(name), entry) for name, entry in space.items()), dict
    if isinstance(space, str) or not hasattr(space, "__iter__"):
        raise InvalidSpaceError(f"space is {space!r}; give a Space, a list of (low, high) pairs or a mapping from name to range")
    entries = list(space)
    if entries and all(isinstance(entry, Parameter) for entry in entries):
        return Space(entries), dict
    pairs = [_pair(i, entry) for i, entry in enumerate(entries)]
    names = [f"x{i}" for i in range(len(pairs))]
    return Space(Real(name, low, high) for name, (low, high) in zip(names, pairs, strict=True)), _as_array


def _as_array(point: Point) -> Any:
    return np.array(list(point.values()), dtype=np.float64)


def _pair(place: int, entry: Any) -> tuple[float, float]:
    try:
        low, high = entry
        return float(low), float(high)
    except (TypeError, ValueError) as error:
        raise InvalidSpaceError(
            f"entry {place} of the space is {entry!r}; it needs to be a pair (low, high) of numbers"
        ) from error


def _parameter(name: str, entry: Any) -> Parameter:
    if isinstance(entry, Parameter):
        if entry.name != name:
            raise InvalidSpaceError(f"the space has the parameter {entry.name!r} under the name {name!r}; use one name")
        return entry
    if isinstance(entry, Mapping):
        return parameter_from_dict({"type": "real", **entry, "name": name})
    if isinstance(entry, tuple) and len(entry) == 2 and all(_number(value) for value in entry):
        low, high = entry
        return Integer(name, low, high) if isinstance(low, int) and isinstance(high, int) else Real(name, low, high)
    if isinstance(entry, list):
        return Categorical(name, tuple(entry))
    raise InvalidSpaceError(
        f"parameter {name!r} is {entry!r}; give a tuple (low, high) (integers: two ints), a list of choices, or a description"
    )


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
