"""`seqbdl label`: labels are typed, kept, gone on with, and slips and bad tables are told in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import Result
from typer.testing import CliRunner

from seqbdl.cli.main import app

FLOWERS = pd.DataFrame(
    {"width": np.linspace(0.0, 1.0, 24), "height": np.linspace(1.0, 0.0, 24) ** 2, "name": list("abcdefghijklmnopqrstuvwx")}
)


def label(table: Path, *options: str, typed: list[str]) -> Result:
    answers = "".join(f"{line}\n" for line in typed)
    result = CliRunner().invoke(app, ["label", str(table), *options], input=answers, env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert "Traceback" not in result.output
    return result


def labels(table: Path) -> pd.DataFrame:
    return pd.read_csv(table.with_name(table.stem + "-labels.csv"))


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "flowers.csv"
    FLOWERS.to_csv(path, index=False)
    return path


def test_a_person_labels_stops_and_goes_on(table: Path) -> None:
    options = ["--classes", "rose,tulip", "--batch", "2", "--surrogate", "dkm"]
    first = label(table, *options, typed=["rose", "tulip", "lily", "rose", ":q"])
    assert first.exit_code == 0
    assert "'lily' is not one of the classes rose, tulip" in first.output
    assert "Done: stopped." in first.output
    assert labels(table)["label"].tolist() == ["rose", "tulip", "rose"]
    second = label(table, *options, typed=["tulip", "?", "rose", "rose"])  # and the end of the input
    assert "Going on: 3 labels so far." in second.output
    after = labels(table)
    assert after["label"].tolist()[:4] == ["rose", "tulip", "rose", "tulip"]
    assert after["status"].tolist().count("cannot be labelled") == 1
    assert after["row"].is_unique
    whole = label(table, *options, "--fresh", "--budget", "6", typed=["rose", "tulip", "rose", "tulip", "?", "rose", "rose"])
    assert "Done: 6 labels are given." in whole.output
    assert labels(table)["row"].tolist() == after["row"].tolist()  # the same items as with the pause


def test_later_means_the_next_session(table: Path) -> None:
    first = label(table, "--classes", "a,b", "--batch", "2", typed=["", "a"])
    shown = [line for line in first.output.splitlines() if line.startswith("row ")]
    postponed = shown[0].split(",")[0]
    second = label(table, "--classes", "a,b", "--batch", "2", typed=["b"])
    assert next(line for line in second.output.splitlines() if line.startswith("row ")).startswith(postponed)


def test_labels_in_the_table_and_a_test_set(table: Path, tmp_path: Path) -> None:
    kinds = ["left" if width < 0.5 else "right" for width in FLOWERS["width"]]
    FLOWERS.assign(kind=[kind if i % 3 == 0 else None for i, kind in enumerate(kinds)]).to_csv(table, index=False)
    FLOWERS.assign(kind=kinds).to_csv(tmp_path / "test.csv", index=False)
    options = ["--target", "kind", "--test", str(tmp_path / "test.csv"), "--batch", "1", "--features", "width,height"]
    result = label(table, *options, "--surrogate", "dkm", typed=["left", "right"])
    assert "8 labels were in the table." in result.output
    assert "accuracy" in result.output
    assert len(labels(table)) == 10
    assert (tmp_path / "flowers-labels.png").stat().st_size > 1000


def test_numbers(table: Path) -> None:
    result = label(table, "--values", "--surrogate", "gp", "--target", "petals", typed=["3", "many", "4.5"])
    assert "'many' is not a finite number" in result.output
    assert labels(table)["petals"].tolist() == [3.0, 4.5]


def test_texts(tmp_path: Path) -> None:
    table = tmp_path / "mails.csv"
    texts = [f"{'win money now' if i % 2 else 'meeting at noon'} {i}" for i in range(20)]
    pd.DataFrame({"mail": texts}).to_csv(table, index=False)
    result = label(table, "--text", "mail", "--classes", "ham,spam", "--batch", "4", typed=["ham", "spam"] * 3)
    assert result.exit_code == 0
    assert len(labels(table)) == 6


def test_it_stops_when_predictions_agree(table: Path) -> None:
    kinds = ["left" if i < 12 else "right" for i in range(24)]
    FLOWERS.assign(label=[None if i % 2 else kind for i, kind in enumerate(kinds)]).to_csv(table, index=False)
    result = label(table, "--batch", "1", "--agreement", "0.5", "--surrogate", "dkm", typed=["left", "left", "left", "left"])
    assert "Done: predictions agreed" in result.output
    assert len(labels(table)) == 12 + 3  # three comparisons of four models


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ([], "what is a label?"),
        (["--values", "--classes", "a,b"], "contradict each other"),
        (["--classes", "a"], "at least two"),
        (["--classes", "a,b", "--features", "name"], "'name' is not numeric"),
        (["--classes", "a,b", "--features", "depth"], "no column 'depth'"),
        (["--classes", "a,b", "--text", "mail"], "no column 'mail'"),
        (["--target", "width"], "holds numbers: give --values"),
        (["--target", "name", "--classes", "a,b"], "is not one of the classes a, b"),
        (["--classes", "a,b", "--surrogate", "gp"], "knows no classes"),
        (["--classes", "a,b", "--acquisition", "BLAD"], "unknown batch acquisition"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(table: Path, options: list[str], text: str) -> None:
    result = label(table, *options, typed=[])
    assert result.exit_code == 2
    assert text in " ".join(result.output.split())


def test_another_table_does_not_go_on(table: Path) -> None:
    label(table, "--classes", "a,b", typed=["a"])
    FLOWERS.assign(width=0.5).to_csv(table, index=False)
    result = label(table, "--classes", "a,b", typed=["a"])
    assert result.exit_code == 2
    assert "another pool" in result.output


def test_missing_and_empty_tables(tmp_path: Path) -> None:
    assert "No such file" in label(tmp_path / "none.csv", "--values", typed=[]).output
    (tmp_path / "empty.csv").write_text("")
    assert label(tmp_path / "empty.csv", "--values", typed=[]).exit_code == 2
    (tmp_path / "header.csv").write_text("a,b\n")
    assert "has no rows" in label(tmp_path / "header.csv", "--values", typed=[]).output
