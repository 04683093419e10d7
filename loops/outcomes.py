"""Reading what users tell: numbers, dictionaries and arrays, complete, partial or broken."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from seqbdl.errors import InvalidDataError, InvalidOptionError, ShapeError
from seqbdl.loops.history import DIRECTIONS


@dataclass(frozen=True)
class Told:
    """One trial's outcomes and constraints, one entry each; ``None`` where the value is still to come."""

    outcomes: list[float | None]
    constraints: list[float | None]

    def broken(self, names: Sequence[str]) -> str:
        """Which values are NaN or infinite, in words; empty when none is."""
        values = [*self.outcomes, *self.constraints]
        bad = [f"{name} is {value}" for name, value in zip(names, values, strict=True) if not _usable(value)]
        return "; ".join(bad)


def _usable(value: float | None) -> bool:
    return value is None or math.isfinite(value)


@dataclass(frozen=True)
class OutcomeSpec:
    """What one trial brings back.

    Attributes:
        names: One per outcome.
        directions: ``"maximize"`` or ``"minimize"``, one per outcome.
        constraint_names: One per outcome constraint.
    """

    names: tuple[str, ...]
    directions: tuple[str, ...]
    constraint_names: tuple[str, ...] = ()

    @staticmethod
    def build(
        objective: str | Sequence[str],
        num_outcomes: int,
        constraints: int | Sequence[str],
        outcome_names: Sequence[str] | None = None,
    ) -> OutcomeSpec:
        """From a loop's arguments.

        Raises:
            InvalidOptionError: A direction that does not exist, numbers that do not match, or names that repeat.
        """
        directions = (objective,) * num_outcomes if isinstance(objective, str) else tuple(objective)
        if num_outcomes < 1:
            raise InvalidOptionError(f"num_outcomes={num_outcomes}; a loop needs at least one outcome")
        for direction in directions:
            if direction not in DIRECTIONS:
                raise InvalidOptionError(f"objective {direction!r} is not one of {', '.join(map(repr, DIRECTIONS))}")
        if len(directions) != num_outcomes:
            raise InvalidOptionError(f"objective names {len(directions)} directions for num_outcomes={num_outcomes}")
        if outcome_names is None:
            outcome_names = ["outcome"] if num_outcomes == 1 else [f"outcome_{i}" for i in range(num_outcomes)]
        if len(outcome_names) != num_outcomes:
            raise InvalidOptionError(f"outcome_names has {len(outcome_names)} entries for num_outcomes={num_outcomes}")
        if isinstance(constraints, int):
            if constraints < 0:
                raise InvalidOptionError(f"constraints={constraints}; it is a number of constraints, or their names")
            names = ["constraint"] if constraints == 1 else [f"constraint_{i}" for i in range(constraints)]
        elif isinstance(constraints, str):
            names = [constraints]
        else:
            names = list(constraints)
        everything = [*outcome_names, *names]
        repeated = {name for name in everything if everything.count(name) > 1}
        if repeated:
            raise InvalidOptionError(f"the name {sorted(repeated)[0]!r} is used twice among outcomes and constraints")
        return OutcomeSpec(tuple(outcome_names), tuple(directions), tuple(names))

    @property
    def all_names(self) -> tuple[str, ...]:
        """Outcomes, then constraints: the surrogate's outputs."""
        return (*self.names, *self.constraint_names)

    @property
    def signs(self) -> list[float]:
        """One per output of the surrogate: -1 where an outcome is minimized; constraints keep their sign."""
        return [1.0 if d == "maximize" else -1.0 for d in self.directions] + [1.0] * len(self.constraint_names)

    def read(self, outcome: object, constraints: object = None) -> Told:
        """One trial's outcome.

        Args:
            outcome: a number; a mapping from names of outcomes and constraints (missing ones come later); a sequence
                of outcomes, or of outcomes and constraints. ``None`` stands for a value that is still to come.
            constraints: The constraints' values where they are not in ``outcome``: a number, a mapping or a sequence.

        Raises:
            ShapeError: Too many or too few values.
            InvalidDataError: A name that does not exist, or something that is not a number.
        """
        m, k = len(self.names), len(self.constraint_names)
        if isinstance(outcome, Mapping):
            values = self._from_mapping(outcome, self.all_names)
        else:
            listed = _listed(outcome, "outcome")
            if len(listed) not in ((m,) if constraints is not None else (m, m + k)):
                raise ShapeError(
                    f"the outcome {outcome!r} has {len(listed)} values; expected {m} ({', '.join(self.names)})"
                    + (f", or {m + k} with the constraints {', '.join(self.constraint_names)}" if k else "")
                )
            values = [*listed, *([None] * (m + k - len(listed)))]
        if constraints is None:
            return Told(values[:m], values[m:])
        if k == 0:
            raise InvalidDataError("constraints were told, but the loop has none; make it with constraints=...")
        if isinstance(constraints, Mapping):
            return Told(values[:m], self._from_mapping(constraints, self.constraint_names))
        told = _listed(constraints, "constraints")
        if len(told) != k:
            raise ShapeError(f"constraints has {len(told)} values; expected {k} ({', '.join(self.constraint_names)})")
        return Told(values[:m], told)

    def _from_mapping(self, told: Mapping[Any, Any], names: Sequence[str]) -> list[float | None]:
        unknown = [name for name in told if name not in names]
        if unknown:
            raise InvalidDataError(f"{unknown[0]!r} is not one of {', '.join(map(repr, names))}")
        return [_number(told.get(name), name) for name in names]

    def read_variances(self, Yvar: object) -> list[float]:
        """Noise variances of all outcomes and constraints; a single number holds for all of them.

        Raises:
            ShapeError: Another number of values.
            InvalidDataError: A variance is negative, NaN or infinite.
        """
        listed = (
            [_number(Yvar.get(name), name) for name in self.all_names] if isinstance(Yvar, Mapping) else _listed(Yvar, "Yvar")
        )
        if len(listed) == 1:
            listed = listed * len(self.all_names)
        if len(listed) != len(self.all_names):
            raise ShapeError(f"Yvar has {len(listed)} values; expected {len(self.all_names)} ({', '.join(self.all_names)})")
        values = [value for value in listed if value is not None and math.isfinite(value) and value >= 0]
        if len(values) != len(listed):
            raise InvalidDataError(f"Yvar is {listed}; variances are finite numbers of at least 0")
        return values


def _listed(value: object, name: str) -> list[float | None]:
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        if value.ndim > 1:
            raise ShapeError(f"{name} has shape {value.shape}; one trial brings a number or a flat list of numbers")
        value = value.reshape(-1).tolist()
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_number(entry, f"{name}[{i}]") for i, entry in enumerate(value)]
    return [_number(value, name)]


def _number(value: object, name: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool | np.bool_):
        return float(value)
    if isinstance(value, Tensor | np.ndarray):
        if value.ndim > 1 or (value.numel() if isinstance(value, Tensor) else value.size) != 1:
            raise ShapeError(f"{name} has shape {tuple(value.shape)}; a single number is expected")
        return float(value.reshape(-1)[0])
    if isinstance(value, int | float | np.number):
        return float(value)
    raise InvalidDataError(f"{name} is {value!r}, a {type(value).__name__}; numbers are expected")
