"""The kinds of parameters a search space is made of.

Every parameter knows three coordinates of its values:

* the *value* in the user's units (a number, or one of the choices),
* the *search* coordinate, one number that the acquisition optimizer moves: ``[0, 1]``, or the index of a choice,
* the *model* columns in ``[0, 1]`` that the surrogate sees: one, or one per choice (one-hot).
"""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np

from seqbdl.errors import InvalidSpaceError

Value: TypeAlias = float | int | str | bool | None
"""A parameter's value in a point; all of them are JSON scalars, so that points can be stored anywhere."""

MAX_LEVELS = 100
"""Finer grids are searched as continuous and rounded afterwards: a step is then under a percent of the range."""


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def check_name(name: object) -> None:
    if not isinstance(name, str) or not name.strip():
        raise InvalidSpaceError(f"a parameter's name is a non-empty string, not {name!r}")


def _check_range(name: str, low: object, high: object, log: bool) -> None:
    for which, value in (("low", low), ("high", high)):
        if not _is_number(value) or not math.isfinite(value):  # type: ignore[arg-type]
            raise InvalidSpaceError(f"parameter {name!r}: {which}={value!r} is not a finite number; every range needs both ends")
    if low >= high:  # type: ignore[operator]
        raise InvalidSpaceError(
            f"parameter {name!r}: low={low!r} is not below high={high!r}; swap them, or leave a constant out of the space"
        )
    if log and low <= 0:  # type: ignore[operator]
        raise InvalidSpaceError(f"parameter {name!r}: a log scale needs low > 0, not low={low!r}; raise low or set log=False")


def _number(name: str, value: object) -> float:
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    if not _is_number(value) or not math.isfinite(value):  # type: ignore[arg-type]
        raise InvalidSpaceError(f"parameter {name!r}: {value!r} is not a finite number")
    return float(value)  # type: ignore[arg-type]


def _warp(value: float, low: float, high: float, log: bool) -> float:
    if log:
        return (math.log(value) - math.log(low)) / (math.log(high) - math.log(low))
    return (value - low) / (high - low)


def _unwarp(unit: float, low: float, high: float, log: bool) -> float:
    unit = min(max(unit, 0.0), 1.0)
    if unit in (0.0, 1.0):  # exactly the ends: exp(log(high)) may land beside it
        return low if unit == 0.0 else high
    if log:
        return min(max(math.exp(math.log(low) + unit * (math.log(high) - math.log(low))), low), high)
    return min(max(low + unit * (high - low), low), high)


@dataclass(frozen=True)
class Parameter:
    """What all kinds of parameters share.

    Attributes:
        name: The column's name; unique in a space.
    """

    name: str
    kind: ClassVar[str] = ""

    @property
    def width(self) -> int:
        """The number of model columns."""
        return 1

    @property
    def levels(self) -> int | None:
        """The number of different values; ``None`` for a continuum."""
        return None

    @property
    def categorical(self) -> bool:
        """Whether values have no order (their search coordinate is the index of the choice)."""
        return False

    @property
    def search_high(self) -> float:
        """The upper end of the search coordinate; the lower one is 0."""
        return 1.0

    def check(self, value: object) -> Value:
        """The value as a plain Python value.

        Values beyond the range are taken as they are (a lab may tell what it did), other mistakes are refused.

        Raises:
            InvalidSpaceError: Not a value of this kind.
        """
        raise InvalidSpaceError(f"{type(self).__name__} is not a kind of parameter")

    def contains(self, value: object) -> bool:
        """Whether the value is one that the space would propose."""
        try:
            checked = self.check(value)
        except InvalidSpaceError:
            return False
        search = self.to_search(checked)
        return -1e-9 <= search <= self.search_high + 1e-9

    def to_search(self, value: Value) -> float:
        """The search coordinate of a checked value."""
        return 0.0

    def from_search(self, search: float) -> Value:
        """The nearest valid value of a search coordinate."""
        return None

    def level_value(self, level: int) -> Value:
        """The value of a level, for parameters with levels."""
        return None

    def draw(self, unit: float) -> Value:
        """The value at a quantile in ``[0, 1)``; every level gets the same share."""
        if self.levels is None:
            return self.from_search(unit)
        return self.level_value(min(int(unit * self.levels), self.levels - 1))

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description; see :func:`parameter_from_dict`."""
        return {"type": self.kind, **{key: value for key, value in vars(self).items() if not key.startswith("_")}}


@dataclass(frozen=True)
class Real(Parameter):
    """A number in a range.

    Attributes:
        low: The lower end, in the user's unit.
        high: The upper end.
        log: Whether to search on a log scale.
        step: The grid ``low, low + step, ...`` to keep to (what can be weighed or set); ``None`` for a continuum.
        unit: The unit's name, for tables and plots.
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None
    unit: str = ""
    kind: ClassVar[str] = "real"

    def __post_init__(self) -> None:
        check_name(self.name)
        _check_range(self.name, self.low, self.high, self.log)
        object.__setattr__(self, "low", float(self.low))
        object.__setattr__(self, "high", float(self.high))
        if self.step is not None:
            if not _is_number(self.step) or not 0 < self.step <= self.high - self.low:
                raise InvalidSpaceError(
                    f"parameter {self.name!r}: step={self.step!r} must be positive and at most the range {self.high - self.low:g}"
                )
            object.__setattr__(self, "step", float(self.step))

    @property
    def levels(self) -> int | None:
        if self.step is None:
            return None
        return math.floor((self.high - self.low) / self.step * (1 + 1e-12) + 1e-9) + 1

    def check(self, value: object) -> Value:
        number = _number(self.name, value)
        if self.log and number <= 0:
            raise InvalidSpaceError(f"parameter {self.name!r}: {number!r} has no place on a log scale; it must be positive")
        return number

    def contains(self, value: object) -> bool:
        if not super().contains(value):
            return False
        if self.step is None:
            return True
        number = _number(self.name, value)
        position = (number - self.low) / self.step
        # fifteen digits of a far point of a fine grid are farther from it than a millionth of a step
        return abs(position - round(position)) < 1e-6 or number == self.level_value(self._nearest_level(number))

    def to_search(self, value: Value) -> float:
        return _warp(_number(self.name, value), self.low, self.high, self.log)

    def from_search(self, search: float) -> Value:
        value = _unwarp(search, self.low, self.high, self.log)
        if self.step is None:
            return value
        return self.level_value(self._nearest_level(value))

    def _nearest_level(self, value: float) -> int:
        return min(round((value - self.low) / (self.step or 1.0)), (self.levels or 1) - 1)

    def level_value(self, level: int) -> Value:
        # fifteen significant digits: 0.30000000000000004 is nothing to weigh
        value = self.low + level * (self.step or 0.0)
        return min(max(float(f"{value:.15g}"), self.low), self.high)


@dataclass(frozen=True)
class Integer(Parameter):
    """A whole number in a range, both ends included.

    Attributes:
        low: The smallest value.
        high: The largest value.
        log: Whether to search on a log scale.
    """

    low: int
    high: int
    log: bool = False
    kind: ClassVar[str] = "integer"

    def __post_init__(self) -> None:
        check_name(self.name)
        _check_range(self.name, self.low, self.high, self.log)
        for which in ("low", "high"):
            value = getattr(self, which)
            if value != int(value):
                raise InvalidSpaceError(f"parameter {self.name!r}: {which}={value!r} is not a whole number; use Real")
            object.__setattr__(self, which, int(value))

    @property
    def levels(self) -> int | None:
        return self.high - self.low + 1

    def check(self, value: object) -> Value:
        number = _number(self.name, value)
        if number != round(number):
            raise InvalidSpaceError(f"parameter {self.name!r}: {value!r} is not a whole number")
        if self.log and number <= 0:
            raise InvalidSpaceError(f"parameter {self.name!r}: {value!r} has no place on a log scale; it must be positive")
        return round(number)

    def to_search(self, value: Value) -> float:
        return _warp(_number(self.name, value), self.low, self.high, self.log)

    def from_search(self, search: float) -> Value:
        return round(_unwarp(search, self.low, self.high, self.log))

    def level_value(self, level: int) -> Value:
        return self.low + level

    def draw(self, unit: float) -> Value:
        if not self.log:
            return super().draw(unit)
        # each integer stands for the half-open interval around it, so that the ends are not drawn too rarely
        low, high = math.log(self.low - 0.5), math.log(self.high + 0.5)
        return min(max(round(math.exp(low + unit * (high - low))), self.low), self.high)
