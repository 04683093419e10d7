"""What is told to a bandit, checked as a whole before anything changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from seqbdl.errors import InvalidDataError, ShapeError
from seqbdl.loops.bandit_arms import Arms, read_context
from seqbdl.loops.bandit_history import BanditHistory, Decision


def read_told(
    history: BanditHistory, action: Any, outcome: Any, failed: bool, kind: str
) -> tuple[bool, list[tuple[int, float | None]]]:
    """Whether one decision was named, and ids with rewards (``None``: still to come).

    Raises:
        InvalidDataError: An unknown or closed id, an id that stands twice, a reward that is none.
        ShapeError: Not as many rewards as ids.
    """
    single = isinstance(action, Decision) or np.ndim(action) == 0
    actions = [action] if single else list(action)
    outcomes = [outcome] if single else ([None] * len(actions) if outcome is None else np.asarray(outcome).reshape(-1).tolist())
    if len(actions) != len(outcomes):
        raise ShapeError(f"{len(outcomes)} rewards for {len(actions)} decisions; give one for each")
    told: list[tuple[int, float | None]] = []
    seen: set[int] = set()
    for place, (item, value) in enumerate(zip(actions, outcomes, strict=True)):
        step = item.id if isinstance(item, Decision) else item
        if isinstance(step, bool) or not isinstance(step, int | np.integer) or not 0 <= step < len(history):
            raise InvalidDataError(f"entry {place}: there is no decision with id {step!r}; tell the id that ask gave")
        step = int(step)
        if isinstance(item, Decision) and item.arm != history.decisions[step].arm:
            raise InvalidDataError(f"entry {place}: decision {step} played arm {history.decisions[step].arm}, not {item.arm}")
        if step in seen:
            raise InvalidDataError(f"entry {place}: decision {step} stands twice; it has one reward")
        if not history[step].open:
            raise InvalidDataError(f"entry {place}: the reward of decision {step} was told before; it has one reward")
        seen.add(step)
        told.append((step, None if value is None or failed else read_reward(value, place, kind)))
    return single, told


def read_observed(
    space: Arms, contexts: Any, arms: Any, rewards: Any, kind: str, features: Any
) -> list[tuple[Tensor, Tensor, int, float]]:
    """Contexts, rows, arms and rewards of logged decisions."""
    X = read_context(contexts, space.context_dim)
    X = X.unsqueeze(0) if X.dim() == 1 else X
    played = space.known(np.asarray(arms).reshape(-1).tolist())
    values = np.asarray(rewards).reshape(-1).tolist()
    if not X.shape[0] == len(played) == len(values):
        raise ShapeError(f"{X.shape[0]} contexts, {len(played)} arms and {len(values)} rewards; give one of each per decision")
    seen = space.read_features(features, len(played))
    checked = [read_reward(value, place, kind) for place, value in enumerate(values)]
    rows = []
    for i, (context, arm, value) in enumerate(zip(X, played, checked, strict=True)):
        row = space.rows(context, [arm], None if seen is None else seen[i : i + 1])[0]
        rows.append((context, row, arm, value))
    return rows


def read_reward(value: Any, place: int, kind: str) -> float:
    """A reward of its kind.

    Raises:
        InvalidDataError: NaN, infinite, or none of its kind.
    """
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise InvalidDataError(f"entry {place}: the reward {value!r} is no number") from error
    if not bool(torch.isfinite(torch.tensor(number))):
        raise InvalidDataError(f"entry {place}: the reward is {number}; tell failed=True where none will come")
    if kind == "binary" and number not in (0.0, 1.0):
        raise InvalidDataError(f"entry {place}: the reward is {number}; binary rewards are 0 or 1")
    if kind == "count" and (number < 0 or number != round(number)):
        raise InvalidDataError(f"entry {place}: the reward is {number}; counts are 0, 1, 2, ...")
    return number
