"""`seqbdl bandit`: tables are played row by row, and bad ones are told in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import Result
from typer.testing import CliRunner

from seqbdl.cli.main import app


def play(table: Path, *options: str) -> Result:
    result = CliRunner().invoke(app, ["bandit", str(table), "--quiet", *options], env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert "Traceback" not in result.output
    return result


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Which of two arms is better is a matter of the sign of ``x``; the third is always poor."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, 150)
    frame = pd.DataFrame({"x": x, "z": rng.normal(size=150), "a": x, "b": -x, "c": np.full(150, -1.0)})
    frame["best"] = np.where(x > 0, "left", "right")
    path = tmp_path / "plays.csv"
    frame.to_csv(path, index=False)
    return path


def test_a_policy_learns_which_arm_is_best_where(table: Path) -> None:
    result = play(table, "--rewards", "a,b,c", "--surrogate", "linear")
    assert result.exit_code == 0
    decisions = pd.read_csv(table.with_name("plays-decisions.csv"))
    assert decisions["row"].tolist() == list(range(150))
    late = decisions.iloc[50:]
    # With hindsight E|x| = 0.5 is earned, by the best single arm about 0.
    assert (late["best"] - late["reward"]).mean() < 0.05
    assert ((decisions["propensity"] > 0) & (decisions["propensity"] <= 1)).all()
    assert table.with_name("plays-decisions.png").exists()
    assert "150 decisions" in result.output


def test_classes_are_arms(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out.csv"
    options = ["--label", "best", "--features", "x", "--surrogate", "linear", "--policy", "ids", "--shuffle", "--rounds", "60"]
    result = play(table, *options, "--out", str(out))
    assert result.exit_code == 0
    decisions = pd.read_csv(out)
    assert len(decisions) == 60
    assert decisions["row"].is_unique
    assert set(decisions["arm"]) == {"left", "right"}
    assert decisions["reward"].iloc[20:].mean() > 0.8


def test_a_registered_surrogate_plays_classes_as_binary_rewards(table: Path) -> None:
    options = ["--label", "best", "--features", "x", "--surrogate", "last-layer-laplace", "--rounds", "20"]
    assert play(table, *options).exit_code == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "what is earned?"),
        (["--rewards", "a,b", "--label", "best"], "what is earned?"),
        (["--rewards", "a"], "at least two arms"),
        (["--rewards", "a,nothing"], "no column 'nothing'"),
        (["--rewards", "a,best"], "row 0 of column 'best'"),
        (["--rewards", "a,b", "--features", "a"], "is a reward"),
        (["--rewards", "a,b", "--policy", "luck"], "luck"),
        (["--rewards", "a,b", "--surrogate", "luck"], "luck"),
    ],
)
def test_bad_options_are_told_in_one_line(table: Path, options: list[str], words: str) -> None:
    result = play(table, *options)
    assert result.exit_code == 2
    assert words in result.output
    assert not table.with_name("plays-decisions.csv").exists()
