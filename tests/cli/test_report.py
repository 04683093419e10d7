"""Reports are one file, offline, and escape what comes from outside."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from seqbdl.cli.report import Report, Section, Table, embed, format_number, versions

VOID = {"meta", "img", "br"}


class _Balanced(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def report() -> Report:
    figure = Figure()
    figure.subplots().plot([1, 2])
    rows = [["<b>x</b>", "1.5"], ["y", "–"]]
    sections = [
        Section("Picture", image=embed(figure)),
        Section("Table", "some text", table=Table(["n", "v"], rows, [0])),
    ]
    return Report("A <title>", "sub", ["first & last"], sections, versions())


def test_page_is_whole_and_offline(report: Report, tmp_path: Path) -> None:
    text = report.write(tmp_path / "r.html").read_text(encoding="utf-8")
    parser = _Balanced()
    parser.feed(text)
    assert parser.open == []
    assert not re.search(r"(src|href)=\"(?!data:)|<script|https?://|@import|url\(", text)


def test_picture_is_a_png(report: Report) -> None:
    (data,) = re.findall(r"data:image/png;base64,([^\"]+)", report.html())
    assert base64.b64decode(data).startswith(b"\x89PNG")


def test_everything_is_escaped(report: Report) -> None:
    text = report.html()
    assert "<b>x</b>" not in text
    assert "A &lt;title&gt;" in text
    assert "first &amp; last" in text


def test_columns_of_numbers() -> None:
    content = Table(["a", "b", "c"], [["x", "1", "> 3"], ["y", "-2.5", "–"]])
    assert [content.is_number(i) for i in range(3)] == [False, True, True]


def test_numbers_are_short() -> None:
    assert [format_number(v) for v in (None, 0.0314159, 1.23456e-7, 12.0)] == ["–", "0.03142", "1.235e-07", "12"]
