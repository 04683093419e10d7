"""Errors that say which argument is wrong, which row, and what to do.

Every error of the library that bad input can cause is a :class:`ValueError`, so that callers may catch either the
precise class or the builtin.
"""

from __future__ import annotations


class SeqbdlError(ValueError):
    """Base class: something that was handed in cannot be used as it is."""


class InvalidDataError(SeqbdlError):
    """Inputs or outcomes hold NaN or infinite values, or values out of range."""


class ShapeError(SeqbdlError):
    """A tensor has the wrong number of dimensions, rows or columns."""


class UnknownNameError(SeqbdlError):
    """A surrogate, acquisition function, likelihood or option of that name does not exist."""

    def __init__(self, kind: str, name: object, known: list[str]) -> None:
        super().__init__(f"unknown {kind} {name!r}; the known ones are: {', '.join(known)}")


class InvalidOptionError(SeqbdlError):
    """An option has a value that the method cannot work with."""


class DivergedError(SeqbdlError):
    """A sampler has exploded at the step size that it was given."""


class NotPositiveDefiniteError(SeqbdlError):
    """A covariance matrix has no Cholesky factor, even with jitter."""


class InvalidSpaceError(SeqbdlError):
    """A search space, or a point in it, is not valid."""


class StateError(SeqbdlError):
    """A saved state does not belong to the object that loads it, or a file is not one of ours."""
