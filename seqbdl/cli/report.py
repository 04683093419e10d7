"""A report as one HTML file that needs no network: the picture is inside, there are no scripts."""

from __future__ import annotations

import base64
import io
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import jinja2
from matplotlib.figure import Figure


@dataclass(frozen=True)
class Table:
    """A table of texts; `marked` are the rows to be set in bold."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    marked: Sequence[int] = ()

    def is_number(self, column: int) -> bool:
        """Whether a column holds numbers, which are set to the right."""
        cells = [row[column].lstrip("<>≈ -") for row in self.rows if row[column] not in ("", "–")]
        return bool(cells) and all(cell[:1].isdigit() for cell in cells)


@dataclass(frozen=True)
class Section:
    """A heading with a text, a picture (base64 of a PNG) and a table, each optional."""

    title: str
    text: str = ""
    image: str = ""
    table: Table | None = None


@dataclass(frozen=True)
class Report:
    """What a report says, from top to bottom."""

    title: str
    subtitle: str
    headline: Sequence[str]
    sections: Sequence[Section] = field(default_factory=tuple)
    provenance: Sequence[str] = field(default_factory=tuple)

    def html(self) -> str:
        """The page; everything that comes from outside is escaped."""
        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("seqbdl.cli"), autoescape=True, undefined=jinja2.StrictUndefined
        )
        return environment.get_template("report.html.j2").render(**vars(self))

    def write(self, path: Path) -> Path:
        """Write the page and give back its place."""
        path.write_text(self.html(), encoding="utf-8")
        return path


def embed(figure: Figure) -> str:
    """A figure as base64 of a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, bbox_inches="tight")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def versions() -> list[str]:
    """The versions that a result depends on."""
    names = ("seqbdl", "torch", "botorch", "gymnasium", "numpy")
    return [f"{name} {metadata.version(name)}" for name in names] + [f"Python {platform.python_version()}"]


def format_number(value: float | None, digits: int = 4) -> str:
    """Short and readable: `0.03142`, `1.2e-07`, `–` for nothing."""
    return "–" if value is None else f"{value:.{digits}g}"
