"""Parameters that are one of several listed values, with or without an order."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from seqbdl.errors import InvalidSpaceError
from seqbdl.loops.parameters import Parameter, Value, check_name


def _check_choices(name: str, what: str, values: object) -> tuple[Value, ...]:
    if isinstance(values, str) or not hasattr(values, "__iter__"):
        raise InvalidSpaceError(f"parameter {name!r}: {what}={values!r} must be a list")
    listed = tuple(value.item() if isinstance(value, np.generic) else value for value in values)
    for value in listed:
        if not (value is None or isinstance(value, str | bool | int | float)):
            raise InvalidSpaceError(f"parameter {name!r}: {value!r} is a {type(value).__name__}; use strings or numbers")
        if isinstance(value, float) and not math.isfinite(value):
            raise InvalidSpaceError(f"parameter {name!r}: {what} hold {value!r}; every value must be finite")
    if len(listed) < 2:
        raise InvalidSpaceError(f"parameter {name!r}: {what} need at least two entries; leave a constant out of the space")
    for i, value in enumerate(listed):
        if _index(listed, value) != i:
            raise InvalidSpaceError(f"parameter {name!r}: {value!r} occurs twice in {what}; remove one")
    return listed


def _index(choices: tuple[Value, ...], value: object) -> int | None:
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.size == 1):
        value = value.item()
    for i, choice in enumerate(choices):
        # True == 1 in Python, but they are two different choices
        if isinstance(choice, bool) is isinstance(value, bool) and type(value) in (type(choice), int, float) and choice == value:
            return i
    return None


@dataclass(frozen=True)
class _Listed(Parameter):
    @property
    def options(self) -> tuple[Value, ...]:
        """The values, in order."""
        return ()

    @property
    def levels(self) -> int | None:
        return len(self.options)

    def index(self, value: object) -> int:
        """The place of a value among the options.

        Raises:
            InvalidSpaceError: The value is none of them.
        """
        found = _index(self.options, value)
        if found is None:
            known = ", ".join(repr(option) for option in self.options)
            raise InvalidSpaceError(f"parameter {self.name!r}: {value!r} is not one of its values; they are {known}")
        return found

    def check(self, value: object) -> Value:
        return self.options[self.index(value)]

    def level_value(self, level: int) -> Value:
        return self.options[level]


@dataclass(frozen=True)
class Categorical(_Listed):
    """One of several choices without an order.

    Attributes:
        choices: At least two different strings, numbers or booleans.
    """

    choices: tuple[Value, ...]
    kind: ClassVar[str] = "categorical"

    def __post_init__(self) -> None:
        check_name(self.name)
        object.__setattr__(self, "choices", _check_choices(self.name, "choices", self.choices))

    @property
    def options(self) -> tuple[Value, ...]:
        return self.choices

    @property
    def width(self) -> int:
        return len(self.choices)

    @property
    def categorical(self) -> bool:
        return True

    @property
    def search_high(self) -> float:
        return float(len(self.choices) - 1)

    def to_search(self, value: Value) -> float:
        return float(self.index(value))

    def from_search(self, search: float) -> Value:
        return self.choices[min(max(round(search), 0), len(self.choices) - 1)]


@dataclass(frozen=True)
class Ordinal(_Listed):
    """One of several values with an order; neighbours are taken to be equally far apart.

    Attributes:
        values: At least two different values, in their order.
    """

    values: tuple[Value, ...]
    kind: ClassVar[str] = "ordinal"

    def __post_init__(self) -> None:
        check_name(self.name)
        object.__setattr__(self, "values", _check_choices(self.name, "values", self.values))

    @property
    def options(self) -> tuple[Value, ...]:
        return self.values

    def to_search(self, value: Value) -> float:
        return self.index(value) / (len(self.values) - 1)

    def from_search(self, search: float) -> Value:
        last = len(self.values) - 1
        return self.values[min(max(round(search * last), 0), last)]
