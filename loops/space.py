"""Search spaces: what may be asked, and its coordinates for the surrogate and for the acquisition optimizer."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

from seqbdl.errors import InvalidSpaceError, ShapeError
from seqbdl.loops.choices import Categorical, Ordinal
from seqbdl.loops.parameters import MAX_LEVELS, Integer, Parameter, Real, Value

if TYPE_CHECKING:
    import gymnasium

    from seqbdl.loops.candidates import CandidateSpace

Point: TypeAlias = dict[str, Value]
"""One setting of all parameters, in the user's names and units."""

MAX_TABLE = 4096
"""Finite spaces of at most this many points are searched by evaluating every point."""


class Space:
    """A product of named parameters.

    Points are dictionaries from name to value. The surrogate sees them as rows of ``dim`` columns in ``[0, 1]``
    (categories one-hot); the acquisition optimizer moves one search coordinate per parameter.

    Args:
        parameters: At least one parameter; names are unique.

    Raises:
        InvalidSpaceError: No parameters, or two with the same name.
    """

    def __init__(self, parameters: Iterable[Parameter]) -> None:
        self.parameters: tuple[Parameter, ...] = tuple(parameters)
        if not self.parameters:
            raise InvalidSpaceError("a space needs at least one parameter; this one is empty")
        seen: set[str] = set()
        for parameter in self.parameters:
            if not isinstance(parameter, Parameter):
                raise InvalidSpaceError(
                    f"{parameter!r} is not a parameter; use Real, Integer, Categorical or Ordinal of seqbdl.loops"
                )
            if parameter.name in seen:
                raise InvalidSpaceError(f"two parameters are called {parameter.name!r}; names must differ")
            seen.add(parameter.name)
        self._starts = tuple(itertools.accumulate((p.width for p in self.parameters), initial=0))
        self._inputs: Tensor | None = None  # the table of a finite space, made when first needed
        self._rows: dict[tuple[Any, ...], int] = {}

    # -- what it consists of

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters' names, in order."""
        return tuple(parameter.name for parameter in self.parameters)

    @property
    def dim(self) -> int:
        """The number of columns that the surrogate sees."""
        return self._starts[-1]

    @property
    def cardinality(self) -> int | None:
        """The number of different points; ``None`` where a parameter is continuous."""
        levels = [parameter.levels for parameter in self.parameters]
        if any(level is None for level in levels):
            return None
        return math.prod(level for level in levels if level is not None)

    @property
    def listed(self) -> bool:
        """Whether the space is a list of candidates rather than a product of parameters."""
        return False

    @property
    def bounds(self) -> Tensor:
        """The bounds of the surrogate's inputs, ``2 x dim``: the unit cube."""
        return torch.stack([torch.zeros(self.dim, dtype=torch.double), torch.ones(self.dim, dtype=torch.double)])

    @property
    def search_bounds(self) -> Tensor:
        """The bounds of the search coordinates, ``2 x number of parameters``."""
        high = torch.tensor([parameter.search_high for parameter in self.parameters], dtype=torch.double)
        return torch.stack([torch.zeros_like(high), high])

    @property
    def discrete_dims(self) -> dict[int, list[float]]:
        """The allowed search coordinates of integers, ordinals and grids of up to a hundred levels."""
        return {
            i: [p.to_search(p.level_value(level)) for level in range(p.levels)]
            for i, p in enumerate(self.parameters)
            if not p.categorical and p.levels is not None and p.levels <= MAX_LEVELS
        }

    @property
    def cat_dims(self) -> dict[int, list[float]]:
        """The search coordinates (indices of choices) of categorical parameters."""
        return {i: [float(k) for k in range(p.width)] for i, p in enumerate(self.parameters) if p.categorical}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({list(self.parameters)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Space) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    # -- points

    def point(self, value: object) -> Point:
        """A point as a dictionary of plain Python values, checked.

        Args:
            value: A mapping from name to value (further keys are ignored), or the values in the parameters' order.

        Raises:
            InvalidSpaceError: A parameter is missing, or a value is not of its kind (a category never seen).
            ShapeError: A sequence of the wrong length.
        """
        if isinstance(value, Mapping):
            missing = [name for name in self.names if name not in value]
            if missing:
                raise InvalidSpaceError(f"the point {dict(value)!r} lacks {', '.join(map(repr, missing))}; give every parameter")
            return {p.name: p.check(value[p.name]) for p in self.parameters}
        values = _as_list(value)
        if len(values) != len(self.parameters):
            raise ShapeError(
                f"the point {value!r} has {len(values)} values, the space has {len(self.parameters)} parameters: "
                f"{', '.join(self.names)}"
            )
        return {p.name: p.check(v) for p, v in zip(self.parameters, values, strict=True)}

    def contains(self, value: object) -> bool:
        """Whether a point is one that the space would propose: within its ranges and on its grids."""
        try:
            point = self.point(value)
        except (InvalidSpaceError, ShapeError):
            return False
        return all(p.contains(point[p.name]) for p in self.parameters)

    def part(self, values: Mapping[str, Value]) -> Point:
        """Values of some of the parameters, checked; they must be ones that the space would propose.

        Raises:
            InvalidSpaceError: An unknown name, or a value out of range.
        """
        by_name = {parameter.name: parameter for parameter in self.parameters}
        for name, value in values.items():
            if name not in by_name:
                raise InvalidSpaceError(f"fixed names {name!r}; the parameters are {', '.join(by_name)}")
            if not by_name[name].contains(value):
                raise InvalidSpaceError(f"fixed: {value!r} is not a valid value of {name!r}")
        return {name: by_name[name].check(value) for name, value in values.items()}

    def key(self, point: Mapping[str, Value]) -> tuple[Any, ...]:
        """What two points share when they are the same point."""
        return tuple(round(p.to_search(point[p.name]), 12) for p in self.parameters)

    def match(self, value: object, points: Sequence[Point]) -> int | None:
        """The place of the first of ``points`` that is the same point as ``value``; ``None`` when none is."""
        point = self.point(value)
        here = self.to_search([point])
        for i, other in enumerate(points):
            if bool(((self.to_search([other]) - here).abs() < 1e-9).all()):
                return i
        return None

    # -- coordinates

    def to_search(self, points: Iterable[object]) -> Tensor:
        """Search coordinates of points: ``n x number of parameters``."""
        checked = [self.point(value) for value in points]
        rows = [[p.to_search(point[p.name]) for p in self.parameters] for point in checked]
        return torch.tensor(rows, dtype=torch.double).reshape(len(rows), len(self.parameters))

    def from_search(self, Xs: Tensor) -> list[Point]:
        """The nearest valid points of search coordinates ``n x number of parameters``."""
        return [
            {p.name: p.from_search(x) for p, x in zip(self.parameters, row, strict=True)} for row in Xs.detach().cpu().tolist()
        ]

    def search_to_model(self, Xs: Tensor) -> Tensor:
        """What the surrogate sees of search coordinates, differentiably: ``batch x q x P`` to ``batch x q x dim``."""
        columns = []
        for i, parameter in enumerate(self.parameters):
            column = Xs[..., i : i + 1]
            if parameter.categorical:
                index = column.detach().squeeze(-1).round().long().clamp(0, parameter.width - 1)
                column = torch.nn.functional.one_hot(index, parameter.width).to(Xs)
            columns.append(column)
        return torch.cat(columns, dim=-1)

    def encode(self, points: Iterable[object]) -> Tensor:
        """The surrogate's inputs of points: ``n x dim``; within ``[0, 1]`` for points within the ranges."""
        return self.search_to_model(self.to_search(points))

    def decode(self, X: Tensor) -> list[Point]:
        """The nearest valid points of surrogate inputs ``n x dim``."""
        if X.dim() != 2 or X.shape[1] != self.dim:
            raise ShapeError(f"X has shape {tuple(X.shape)}; decode needs n x {self.dim}")
        rows = X.detach().cpu()
        columns = []
        for parameter, start in zip(self.parameters, self._starts, strict=False):
            block = rows[:, start : start + parameter.width]
            columns.append(block.argmax(dim=-1, keepdim=True).to(rows) if parameter.categorical else block)
        return self.from_search(torch.cat(columns, dim=-1))

    # -- designs

    def sample(self, n: int, seed: int = 0, skip: int = 0) -> list[Point]:
        """A scrambled Sobol design.

        Args:
            n: How many points.
            seed: The seed of the scrambling; the same seed gives the same sequence.
            skip: How many points of the sequence to leave out at its start.
        """
        engine = SobolEngine(len(self.parameters), scramble=True, seed=seed)
        if skip:
            engine.fast_forward(skip)
        return self._from_units(engine.draw(n, dtype=torch.double))

    def random(self, n: int, generator: torch.Generator) -> list[Point]:
        """Points drawn independently and uniformly (over levels and choices, over the log where ``log=True``)."""
        return self._from_units(torch.rand(n, len(self.parameters), generator=generator, dtype=torch.double))

    def _from_units(self, units: Tensor) -> list[Point]:
        return [{p.name: p.draw(u) for p, u in zip(self.parameters, row, strict=True)} for row in units.tolist()]

    # -- finite spaces

    @property
    def enumerable(self) -> bool:
        """Whether the space is searched by evaluating every point."""
        return self.cardinality is not None and self.cardinality <= MAX_TABLE

    def table(self) -> Tensor:
        """The surrogate's inputs of every point of an enumerable space: ``N x dim``."""
        if self._inputs is None:
            points = [self.table_point(row) for row in range(self._table_size())]
            self._inputs = self.encode(points)
            self._rows = {self.key(point): row for row, point in enumerate(points)}
        return self._inputs

    def table_rows(self, keys: Iterable[tuple[Any, ...]]) -> list[int]:
        """The rows of the table that have these keys (see :meth:`key`); others are left out."""
        self.table()
        return sorted(self._rows[key] for key in keys if key in self._rows)

    def table_point(self, row: int) -> Point:
        """The point in a row of the table."""
        if not 0 <= row < self._table_size():
            raise InvalidSpaceError(f"row {row} is not in the table of {self._table_size()} points")
        point: Point = {}
        for parameter in reversed(self.parameters):
            row, level = divmod(row, parameter.levels or 1)
            point[parameter.name] = parameter.level_value(level)
        return {name: point[name] for name in self.names}

    def _table_size(self) -> int:
        if not self.enumerable:
            raise InvalidSpaceError(f"a space of {self.cardinality or 'infinitely many'} points has no table")
        return self.cardinality or 0

    # -- storage

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description; see :meth:`from_dict`."""
        return {
            "parameters": [
                {key: list(value) if isinstance(value, tuple) else value for key, value in p.to_dict().items()}
                for p in self.parameters
            ]
        }

    def to_json(self) -> str:
        """The description as text."""
        return json.dumps(self.to_dict(), allow_nan=False)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Space:
        """The space that :meth:`to_dict` described.

        Raises:
            InvalidSpaceError: Not such a description.
        """
        if "candidates" in data:
            from seqbdl.loops.candidates import CandidateSpace

            return CandidateSpace(data["candidates"])
        if not isinstance(data.get("parameters"), list):
            raise InvalidSpaceError("a space's description needs a list under 'parameters'")
        return Space(parameter_from_dict(entry) for entry in data["parameters"])

    @staticmethod
    def from_json(text: str) -> Space:
        """The space that :meth:`to_json` described."""
        try:
            return Space.from_dict(json.loads(text))
        except json.JSONDecodeError as error:
            raise InvalidSpaceError(f"not JSON: {error}") from error

    # -- other sources

    @staticmethod
    def from_candidates(table: Any, names: Sequence[str] | None = None) -> CandidateSpace:
        """The space of the rows of a table; see :class:`seqbdl.loops.candidates.CandidateSpace`."""
        from seqbdl.loops.candidates import CandidateSpace

        return CandidateSpace(table, names=names)

    @staticmethod
    def from_gymnasium(action_space: gymnasium.Space[Any], env: gymnasium.Env[Any, Any] | None = None) -> Space:
        """The space of an environment's actions; see :func:`seqbdl.loops.gym_space.space_from_gymnasium`."""
        from seqbdl.loops.gym_space import space_from_gymnasium

        return space_from_gymnasium(action_space, env)

    def to_action(self, point: Mapping[str, Value]) -> Any:
        """The point as an environment's action: for a plain space, the array of its numbers.

        Raises:
            InvalidSpaceError: A choice is not a number; make the space with :meth:`from_gymnasium`.
        """
        values = [point[name] for name in self.names]
        for name, value in zip(self.names, values, strict=True):
            if isinstance(value, str) or value is None:
                raise InvalidSpaceError(
                    f"parameter {name!r}: {value!r} has no place in an array action; use"
                    " Space.from_gymnasium(env.action_space, env)"
                )
        return np.array(values, dtype=np.float64)


def _as_list(value: object) -> list[object]:
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        return list(value.reshape(-1).tolist())
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return list(value)
    if isinstance(value, int | float | str):
        return [value]
    raise InvalidSpaceError(f"a point is a mapping from name to value, or a sequence of values, not a {type(value).__name__}")


_KINDS: dict[str, type[Parameter]] = {"real": Real, "integer": Integer, "categorical": Categorical, "ordinal": Ordinal}


def parameter_from_dict(data: dict[str, Any]) -> Parameter:
    """The parameter that :meth:`Parameter.to_dict` described.

    Raises:
        InvalidSpaceError: Unknown type or field, or a field that is not valid.
    """
    fields = dict(data)
    kind = fields.pop("type", None)
    if kind not in _KINDS:
        raise InvalidSpaceError(f"parameter type {kind!r} is unknown; the known ones are {', '.join(_KINDS)}")
    try:
        return _KINDS[kind](**fields)
    except TypeError as error:
        raise InvalidSpaceError(f"parameter {data.get('name')!r} of type {kind!r}: {error}") from error
