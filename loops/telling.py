"""Taking apart one call of ``tell``: a single trial, or a batch of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from seqbdl.errors import InvalidDataError, ShapeError
from seqbdl.loops.space import Point, Space


@dataclass(frozen=True)
class Trial:
    """One trial as it was told; see :meth:`seqbdl.loops.BayesOptLoop.tell`.

    Attributes:
        point: The point as told (a mapping, a sequence, or a candidate's row number), checked.
        outcome: As told.
        Yvar: As told.
        constraints: As told.
        failed: Whether it failed.
        reason: Why.
        true_value: The outcome without noise.
    """

    point: object
    outcome: object
    Yvar: object
    constraints: object
    failed: bool
    reason: str
    true_value: float | None


def read_trials(
    space: Space,
    action: object,
    outcome: object,
    Yvar: object,
    constraints: object,
    failed: bool | Sequence[bool],
    reason: str | Sequence[str],
    true_value: object,
) -> tuple[bool, list[Trial]]:
    """Whether it is a single trial, and the trials.

    Raises:
        InvalidSpaceError: A point is not of the space; in a batch the message names its place.
        ShapeError: Another number of outcomes than points.
    """
    points, single = _points(action)
    n = len(points)
    for i, point in enumerate(points):
        _check_point(space, point, None if single else i)
    columns = {
        "outcome": [outcome] if single else _spread("outcome", outcome, n, shared=outcome is None),
        "Yvar": [Yvar] if single else _spread("Yvar", Yvar, n, shared=Yvar is None or isinstance(Yvar, int | float)),
        "constraints": [constraints] if single else _spread("constraints", constraints, n, shared=constraints is None),
        "failed": _spread("failed", failed, n, shared=isinstance(failed, bool | np.bool_)),
        "reason": _spread("reason", reason, n, shared=isinstance(reason, str)),
        "true_value": [true_value] if single else _spread("true_value", true_value, n, shared=true_value is None),
    }
    trials = []
    for i, point in enumerate(points):
        row: dict[str, Any] = {name: column[i] for name, column in columns.items()}
        if row["outcome"] is None and not row["failed"]:
            where = "" if single else f" (entry {i})"
            raise InvalidDataError(f"no outcome was told for {point!r}{where}; tell one, or failed=True with a reason")
        row["failed"], row["reason"] = bool(row["failed"]), str(row["reason"])
        row["true_value"] = None if row["true_value"] is None else float(row["true_value"])
        trials.append(Trial(point=point, **row))
    return single, trials


def _points(action: object) -> tuple[list[object], bool]:
    if isinstance(action, Tensor):
        action = action.detach().cpu().numpy()
    if isinstance(action, np.ndarray):
        return ([action], True) if action.ndim <= 1 else (list(action), False)
    if isinstance(action, Sequence) and not isinstance(action, str | bytes):
        nested = [isinstance(entry, Mapping | np.ndarray | Tensor | list | tuple) for entry in action]
        if action and all(nested):
            return list(action), False
        if not action:
            raise ShapeError("an empty list of points was told; tell at least one")
    return [action], True


def _check_point(space: Space, point: object, place: int | None) -> Point:
    try:
        return space.point(point)
    except ValueError as error:
        if place is None:
            raise
        raise type(error)(f"point {place}: {error}; nothing of this call was recorded") from error


def _spread(name: str, value: Any, n: int, shared: bool) -> list[Any]:
    if shared:
        return [value] * n
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray) and value.ndim > 0:
        value = list(value)
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Sequence):
        raise ShapeError(f"{name} is {value!r} for {n} points; give one entry per point")
    if len(value) != n:
        raise ShapeError(f"{name} has {len(value)} entries for {n} points; give one per point. Nothing of this call was recorded")
    return list(value)
