"""Defaults and checks of a loop's settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from seqbdl.errors import InvalidOptionError, ShapeError, StateError
from seqbdl.loops.space import Space


def initial_count(initial: int | None, space: Space) -> int:
    """The number of points of the initial design.

    Raises:
        InvalidOptionError: It is negative.
    """
    if initial is not None:
        if isinstance(initial, bool) or not isinstance(initial, int) or initial < 0:
            raise InvalidOptionError(f"initial={initial!r}; it is a number of points, at least 0")
        return initial
    count = max(5, min(2 * len(space.parameters), 20))
    return count if space.cardinality is None else min(count, max(2, space.cardinality // 2))


def check_refit(refit: str | int) -> str | int:
    """``"every"``, ``"update"``, or a number of trials.

    Raises:
        InvalidOptionError: Anything else.
    """
    if refit in ("every", "update") or (isinstance(refit, int) and not isinstance(refit, bool) and refit >= 1):
        return refit
    raise InvalidOptionError(f"refit={refit!r}; use 'every', 'update', or a number of trials of at least 1")


def check_ref_point(ref_point: Any, num_outcomes: int) -> list[float] | None:
    """The reference point as a list, one entry per outcome.

    Raises:
        ShapeError: Another number of entries, or a single outcome.
    """
    if ref_point is None:
        return None
    values = [float(value) for value in ref_point]
    if num_outcomes == 1 or len(values) != num_outcomes:
        raise ShapeError(
            f"ref_point has {len(values)} entries for num_outcomes={num_outcomes}; it belongs to two or more outcomes "
            "and needs one entry for each"
        )
    return values


def check_state(state: Mapping[str, Any], version: int, settings: Mapping[str, Any]) -> None:
    """Whether a loop with these settings can go on from a state, which holds ``version`` and ``settings``.

    Raises:
        StateError: The state is of another version, or of a loop with other settings.
    """
    if state.get("version") != version:
        raise StateError(f"the state has version {state.get('version')!r}; this library reads version {version}")
    for name, value in dict(state["settings"]).items():
        if settings.get(name) != value:
            raise StateError(f"the state belongs to a loop with another {name} ({value!r}, here {settings.get(name)!r})")
