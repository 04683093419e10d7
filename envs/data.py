"""Loaders of measured tables: from scikit-learn, or from the files of another installed distribution.

Carriers are packages that happen to hold a table. They are installed with `--no-deps`, never imported, and read by
path, because their own requirements conflict with almost everything.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import sklearn.datasets

if TYPE_CHECKING:
    import pandas as pd

Array = npt.NDArray[np.float64]


def read_table(table: pd.DataFrame | str, target: str, features: Sequence[str] | None = None) -> tuple[pd.DataFrame, list[str]]:
    """A user's table and the names of its inputs, which are numbers.

    Args:
        table: a data frame, or the path of a CSV file.
        target: the column that is not an input.
        features: the inputs; by default all other columns.

    Raises:
        ValueError: there is no such file or column, or an input is not numeric.
    """
    import pandas as pd

    try:
        frame = table if isinstance(table, pd.DataFrame) else pd.read_csv(table)
    except FileNotFoundError as error:
        raise ValueError(f"table: no file {table!r}; give a data frame or the path of a file.") from error
    columns = list(features) if features is not None else [c for c in frame.columns if c != target]
    missing = [c for c in [target, *columns] if c not in frame.columns]
    if missing:
        raise ValueError(f"table: no column {missing[0]!r}; its columns are {list(frame.columns)}.")
    for column in columns:
        if not pd.api.types.is_numeric_dtype(frame[column]):
            raise ValueError(f"table: column {column!r} is not numeric; encode it, or leave it out of features.")
    return frame, columns


@dataclass(frozen=True)
class Carrier:
    """A distribution that holds tables.

    Args:
        name: its name on the package index.
        version: the version whose files are known.
    """

    name: str
    version: str

    @property
    def install(self) -> str:
        """The command that installs it."""
        return f"pip install --no-deps {self.name}=={self.version}"

    @property
    def available(self) -> bool:
        """Whether it is installed, in whatever version."""
        try:
            metadata.version(self.name)
        except metadata.PackageNotFoundError:
            return False
        return True

    def path(self, relative: str) -> Path:
        """Where its file `relative` lies; `ValueError` with the command to run when it is not there."""
        try:
            files = metadata.files(self.name) or []
        except metadata.PackageNotFoundError:
            raise ValueError(f"the package {self.name} holds this table and is missing; run: {self.install}") from None
        for file in files:
            if file.as_posix() == relative:
                return Path(str(file.locate()))
        raise ValueError(f"the package {self.name} has no file {relative}; run: {self.install}")


BOCODE = Carrier("bocode", "1.0.1")
OLYMPUS = Carrier("olymp", "0.0.1b0")


@dataclass(frozen=True)
class TableSource:
    """A measured table inside a carrier; its last column is the measurement.

    Args:
        carrier: who holds it.
        path: the file inside the carrier.
        goal: `"maximize"` or `"minimize"` the measurement.
        columns: names of all columns, when the file has no header.
        log_scale: names of the inputs best searched on a logarithmic scale.
    """

    carrier: Carrier
    path: str
    goal: str
    columns: tuple[str, ...] = ()
    log_scale: tuple[str, ...] = ()


_BOCODE_FOLDER = "bocode/opt_problems/materials/data"
_PHOTO = ("mat_1", "mat_2", "mat_3", "mat_4", "degradation")
_HPLC = ("sample_loop", "additional_volume", "tubing_volume", "sample_flow", "push_speed", "wait_time", "peak_area")

TABLES: dict[str, TableSource] = {
    "CrossedBarrel": TableSource(BOCODE, f"{_BOCODE_FOLDER}/Crossed barrel_dataset.csv", "maximize"),
    "AgNP": TableSource(BOCODE, f"{_BOCODE_FOLDER}/AgNP_dataset.csv", "minimize"),
    "Perovskite": TableSource(BOCODE, f"{_BOCODE_FOLDER}/Perovskite_dataset.csv", "minimize"),
    "HPLC": TableSource(OLYMPUS, "olympus/datasets/dataset_hplc/data.csv", "maximize", _HPLC),
    "PhotoPCE10": TableSource(OLYMPUS, "olympus/datasets/dataset_photo_pce10/data.csv", "minimize", _PHOTO),
    "PhotoWF3": TableSource(OLYMPUS, "olympus/datasets/dataset_photo_wf3/data.csv", "minimize", _PHOTO),
}


def load_table(name: str) -> tuple[Array, Array, tuple[str, ...]]:
    """Inputs `(n, d)`, measurements `(n,)` and the names of all `d + 1` columns of a table in `TABLES`."""
    if name not in TABLES:
        raise ValueError(f"name: {name!r}; the tables are {', '.join(TABLES)}.")
    source = TABLES[name]
    values, columns = read_csv(source.carrier.path(source.path), source.columns)
    return values[:, :-1], values[:, -1], columns


def read_csv(path: Path, columns: Sequence[str] = ()) -> tuple[Array, tuple[str, ...]]:
    """Numbers `(n, c)` and column names of a comma-separated file; without `columns`, its first line names them."""
    rows = [row for row in csv.reader(io.StringIO(path.read_text(encoding="utf-8-sig"))) if row]
    header = tuple(columns) or tuple(cell.strip() for cell in rows.pop(0))
    for i, row in enumerate(rows):
        if len(row) != len(header):
            raise ValueError(f"{path.name}: row {i} has {len(row)} cells, not {len(header)}; correct the file.")
    try:
        return np.array(rows, dtype=np.float64), header
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}; all cells must be numbers.") from error


def load_sklearn(name: str) -> tuple[Array, npt.NDArray[Any], tuple[str, ...]]:
    """Inputs `(n, d)`, targets `(n,)` and the inputs' names of a data set that scikit-learn brings along.

    Args:
        name: `"digits"`, `"breast_cancer"`, `"wine"` or `"iris"` (integer classes), or `"diabetes"` (one number, raw units).
    """
    loaders = {
        "digits": lambda: sklearn.datasets.load_digits(),
        "breast_cancer": lambda: sklearn.datasets.load_breast_cancer(),
        "wine": lambda: sklearn.datasets.load_wine(),
        "iris": lambda: sklearn.datasets.load_iris(),
        "diabetes": lambda: sklearn.datasets.load_diabetes(scaled=False),
    }
    if name not in loaders:
        raise ValueError(f"dataset: {name!r}; the bundled sets are {', '.join(loaders)}.")
    bunch = loaders[name]()
    return np.asarray(bunch.data, dtype=np.float64), np.asarray(bunch.target), tuple(map(str, bunch.feature_names))
