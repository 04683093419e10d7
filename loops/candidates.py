"""Spaces that are lists: the rows of a table are all there is to choose from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from seqbdl.errors import InvalidDataError, InvalidSpaceError
from seqbdl.loops.choices import Categorical
from seqbdl.loops.parameters import Parameter, Real, Value
from seqbdl.loops.space import Point, Space, _as_list

ROW = "candidate"
"""The key under which a point says which row of the table it is."""


class CandidateSpace(Space):
    """The rows of a table.

    Points hold the row's number under ``"candidate"`` and the row's columns by name. Columns of numbers are scaled to
    ``[0, 1]``, columns of text or booleans become one-hot; columns in which nothing varies tell the surrogate nothing
    and are only carried along. Equal rows stay different candidates.

    Args:
        table: A DataFrame, a mapping from column name to values, or an array ``N x d``.
        names: The columns' names for an array; ``x0, x1, ...`` by default.

    Raises:
        InvalidSpaceError: No rows, no varying column, missing values, or a column called ``"candidate"``.
    """

    def __init__(self, table: Any, names: Sequence[str] | None = None) -> None:
        self.frame = _as_frame(table, names)
        varying = [column for column in self.frame if self.frame[column].nunique() > 1]
        if not varying:
            raise InvalidSpaceError(f"no column of the {len(self.frame)} candidates varies; there is nothing to choose")
        parameters: list[Parameter] = []
        for column in varying:
            values = self.frame[column]
            if _is_numeric(values):
                parameters.append(Real(column, float(values.min()), float(values.max())))
            else:
                parameters.append(Categorical(column, tuple(pd.unique(values))))
        super().__init__(parameters)
        self._table = self._encode_frame()

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def cardinality(self) -> int | None:
        """The number of rows."""
        return len(self.frame)

    @property
    def listed(self) -> bool:
        """Always."""
        return True

    @property
    def enumerable(self) -> bool:
        """Always: candidates are evaluated one by one, in chunks."""
        return True

    def point(self, value: object) -> Point:
        """The candidate as a point: by its row number, or the first row that has these values.

        Raises:
            InvalidSpaceError: There is no such row.
        """
        if isinstance(value, Mapping) and ROW in value:
            return self.table_point(_row_number(value[ROW]))
        if isinstance(value, int | np.integer) and not isinstance(value, bool):
            return self.table_point(int(value))
        rows = self.rows_like(value)
        if not rows:
            raise InvalidSpaceError(f"{value!r} is none of the {len(self)} candidates; hand in a row of the table")
        return self.table_point(rows[0])

    def rows_like(self, value: object) -> list[int]:
        """The rows whose columns have the values of a point (all columns, or those that vary)."""
        x = self._values(value)
        close = (self._table - x).abs().amax(dim=-1) < 1e-9
        return close.nonzero().squeeze(-1).tolist()

    def _values(self, value: object) -> Tensor:
        if not isinstance(value, Mapping):
            listed = _as_list(value)
            names = self.names if len(listed) == len(self.parameters) else tuple(map(str, self.frame.columns))
            if len(listed) != len(names):
                raise InvalidSpaceError(
                    f"the point {value!r} has {len(listed)} values, the table {len(self.frame.columns)} columns"
                )
            value = dict(zip(names, listed, strict=True))
        missing = [name for name in self.names if name not in value]
        if missing:
            raise InvalidSpaceError(f"the point {dict(value)!r} lacks {', '.join(map(repr, missing))}, and has no {ROW!r}")
        row = torch.tensor([[p.to_search(p.check(value[p.name])) for p in self.parameters]], dtype=torch.double)
        return self.search_to_model(row)

    def contains(self, value: object) -> bool:
        """Whether it is one of the rows."""
        try:
            self.point(value)
        except ValueError:
            return False
        return True

    def match(self, value: object, points: Sequence[Point]) -> int | None:
        """The first of ``points`` that is this row; a value without a row number matches any row with its columns."""
        named = isinstance(value, Mapping) and ROW in value
        rows = {self.point(value)[ROW]} if named or isinstance(value, int | np.integer) else set(self.rows_like(value))
        return next((i for i, other in enumerate(points) if other[ROW] in rows), None)

    def table_rows(self, keys: Iterable[tuple[Any, ...]]) -> list[int]:
        """The rows that have these keys."""
        return sorted(int(key[0]) for key in keys)

    def key(self, point: Mapping[str, Value]) -> tuple[Any, ...]:
        """The row number."""
        return (point[ROW],)

    def encode(self, points: Iterable[object]) -> Tensor:
        """The surrogate's inputs of candidates: ``n x dim``."""
        rows = [_row_number(self.point(value)[ROW]) for value in points]
        return self._table[torch.tensor(rows, dtype=torch.long)]

    def decode(self, X: Tensor) -> list[Point]:
        """The candidates nearest to surrogate inputs ``n x dim``."""
        return [self.table_point(int((self._table - x).square().sum(-1).argmin())) for x in X.detach().cpu().double()]

    def from_search(self, Xs: Tensor) -> list[Point]:
        """The candidates nearest to search coordinates ``n x number of parameters``."""
        return self.decode(self.search_to_model(Xs))

    def sample(self, n: int, seed: int = 0, skip: int = 0) -> list[Point]:
        """Rows in an order shuffled by the seed, from the ``skip``-th on; fewer than ``n`` at the table's end."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return [self.table_point(row) for row in order[skip : skip + n].tolist()]

    def random(self, n: int, generator: torch.Generator) -> list[Point]:
        """Rows drawn independently."""
        return [self.table_point(row) for row in torch.randint(len(self), (n,), generator=generator).tolist()]

    def table(self) -> Tensor:
        """The surrogate's inputs of all candidates: ``N x dim``."""
        return self._table

    def table_point(self, row: int) -> Point:
        """The candidate in a row."""
        if not 0 <= row < len(self):
            raise InvalidSpaceError(f"candidate {row} does not exist; rows are 0 to {len(self) - 1}")
        values = {str(name): _plain(self.frame[name].iat[row]) for name in self.frame}
        return {ROW: row, **values}

    def to_action(self, point: Mapping[str, Value]) -> Any:
        """The row number: the action of an environment over a pool."""
        return np.int64(_row_number(point[ROW]))

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description: all columns."""
        return {"candidates": {str(name): [_plain(v) for v in self.frame[name]] for name in self.frame}}

    def _encode_frame(self) -> Tensor:
        columns = []
        for parameter in self.parameters:
            values = self.frame[parameter.name]
            if isinstance(parameter, Real):
                scaled = (values.to_numpy(dtype=np.float64) - parameter.low) / (parameter.high - parameter.low)
                columns.append(torch.from_numpy(scaled).unsqueeze(-1))
            else:
                codes = {choice: i for i, choice in enumerate(pd.unique(values))}
                index = torch.tensor([codes[value] for value in values])
                columns.append(torch.nn.functional.one_hot(index, parameter.width).double())
        return torch.cat(columns, dim=-1)


def _as_frame(table: Any, names: Sequence[str] | None) -> pd.DataFrame:
    if isinstance(table, pd.DataFrame):
        frame = table.reset_index(drop=True)
    elif isinstance(table, Mapping):
        frame = pd.DataFrame(dict(table))
    else:
        array = table.detach().cpu().numpy() if isinstance(table, Tensor) else np.asarray(table)
        if array.ndim == 1:
            array = array[:, None]
        if array.ndim != 2:
            raise InvalidSpaceError(f"candidates have shape {array.shape}; hand in a table N x d")
        columns = list(names) if names is not None else [f"x{i}" for i in range(array.shape[1])]
        if len(columns) != array.shape[1]:
            raise InvalidSpaceError(f"{len(columns)} names for {array.shape[1]} columns of candidates")
        frame = pd.DataFrame(array, columns=columns)
    frame = frame.rename(columns=str)
    if len(frame) == 0:
        raise InvalidSpaceError("the table of candidates is empty; a space needs at least one row")
    if frame.columns.duplicated().any():
        raise InvalidSpaceError(f"two columns are called {frame.columns[frame.columns.duplicated()][0]!r}; names must differ")
    if ROW in frame.columns:
        raise InvalidSpaceError(f"a column is called {ROW!r}, which names the row number in points; rename it")
    for column in frame.columns:
        values = frame[column]
        bad = values.isna()
        if _is_numeric(values):
            bad = bad | ~np.isfinite(values.to_numpy(dtype=np.float64))
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            raise InvalidSpaceError(f"candidates: column {column!r} is missing or not finite in row {row}; drop or fill it")
    return frame


def _is_numeric(values: pd.Series) -> bool:
    return bool(pd.api.types.is_numeric_dtype(values)) and not bool(pd.api.types.is_bool_dtype(values))


def _row_number(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise InvalidDataError(f"{value!r} is not the number of a candidate's row")
    return int(value)


def _plain(value: Any) -> Value:
    return value.item() if isinstance(value, np.generic) else value
