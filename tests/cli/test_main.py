"""The command as a user meets it."""

from __future__ import annotations

import csv
import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import pandas as pd
import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

import seqbdl
from seqbdl.cli.main import app

FUNCTION = """
import os, pathlib, signal

calls = 0


def quadratic(point, shift=0.0):
    return -(point["x"] - 0.3 - shift) ** 2 - point["n"]


def deadly(point):
    # Kills its process at the sixth call, once.
    global calls
    calls += 1
    deaths = pathlib.Path(__file__).with_name("deaths")
    if calls == 6 and not deaths.exists():
        deaths.write_text("done")
        os.kill(os.getpid(), signal.SIGKILL)
    return quadratic(point)


def broken(point):
    raise RuntimeError("the pump is dry")
"""
CONFIG: dict[str, Any] = {
    "objective": "python:cli_objective:quadratic",
    "space": {"x": {"low": 0.0, "high": 1.0}, "n": {"type": "integer", "low": 0, "high": 2}},
    "budget": 7,
    "initial": 5,
    "surrogate": "nngp",
}


def invoke(*arguments: str) -> Result:
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert "Traceback" not in result.output
    return result


@pytest.fixture
def configure(tmp_path: Path) -> Any:
    (tmp_path / "cli_objective.py").write_text(FUNCTION, encoding="utf-8")
    (tmp_path / "same.csv").write_text("a,b\n1,1\n1,1\n", encoding="utf-8")

    def write(**changes: Any) -> str:
        content = {key: value for key, value in {**CONFIG, **changes}.items() if value is not ...}
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
        return str(tmp_path / "c.yaml")

    yield write
    sys.modules.pop("cli_objective", None)


def trials(folder: Path) -> list[dict[str, str]]:
    with (folder / "trials.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_help_names_every_command() -> None:
    text = invoke("--help").output
    assert all(name in text for name in ("demo", "optimize", "surrogates", "envs"))


def test_surrogates_for_programs_and_for_people() -> None:
    rows = json.loads(invoke("surrogates", "--format", "json").output)
    assert [row["name"] for row in rows] == seqbdl.list_surrogates()
    assert all(row["summary"] for row in rows)
    assert "nngp" in invoke("surrogates").output


def test_envs_can_all_be_made_when_they_say_so() -> None:
    rows = json.loads(invoke("envs", "--format", "json").output)
    registered = {row["id"] for row in rows}
    assert {"seqbdl/Branin-v0", "seqbdl/TuneDigits-v0"} <= registered
    assert registered <= set(gymnasium.registry)
    assert "seqbdl/Branin-v0" in invoke("envs").output
    bandits = {row["id"] for row in json.loads(invoke("envs", "--kind", "bandit", "--format", "json").output)}
    assert "seqbdl/WheelBandit-v0" in bandits
    assert bandits < registered


def test_optimize_writes_table_picture_and_report(configure: Any, tmp_path: Path) -> None:
    result = invoke("optimize", configure(), "--quiet")
    assert result.exit_code == 0, result.output
    out = tmp_path / "seqbdl-results"
    assert len(trials(out)) == 7
    assert "<img" in (out / "report.html").read_text(encoding="utf-8")
    assert (out / "trials.png").read_bytes().startswith(b"\x89PNG")
    (best,) = json.loads((out / "best.json").read_text(encoding="utf-8"))
    assert best["outcomes"][0] == max(float(row["outcome"]) for row in trials(out))


def test_optimize_goes_on_where_it_stopped(configure: Any, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert invoke("optimize", configure(), "--quiet", "--out", str(whole)).exit_code == 0
    assert invoke("optimize", configure(), "--quiet", "--out", str(parts), "--budget", "6").exit_code == 0
    second = invoke("optimize", configure(), "--quiet", "--out", str(parts))
    assert "Going on" in second.output
    points = [[(row["x"], row["n"], row["outcome"]) for row in trials(folder)] for folder in (whole, parts)]
    assert points[0] == points[1]


def test_optimize_survives_being_killed_in_an_evaluation(configure: Any, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    config = configure(objective="python:cli_objective:deadly")
    (tmp_path / "deaths").write_text("done", encoding="utf-8")
    assert invoke("optimize", config, "--quiet", "--out", str(whole)).exit_code == 0
    (tmp_path / "deaths").unlink()
    command = [sys.executable, "-m", "seqbdl.cli.main", "optimize", config, "--quiet", "--out", str(killed)]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == -signal.SIGKILL
    assert invoke("optimize", config, "--quiet", "--out", str(killed)).exit_code == 0
    points = [[(row["x"], row["n"], row["outcome"]) for row in trials(folder)] for folder in (whole, killed)]
    assert points[0] == points[1]


def test_optimize_refuses_another_configurations_checkpoint(configure: Any) -> None:
    assert invoke("optimize", configure(budget=2), "--quiet").exit_code == 0
    changed = configure(budget=2, seed=5)
    result = invoke("optimize", changed, "--quiet")
    assert result.exit_code == 2
    assert "seed: differs" in result.output
    assert invoke("optimize", changed, "--quiet", "--fresh").exit_code == 0


def test_optimize_an_environment_in_batches(configure: Any, tmp_path: Path) -> None:
    objective = {"env": "seqbdl/Branin-v0", "kwargs": {"noise_std": 0.1}}
    result = invoke("optimize", configure(objective=objective, space=..., batch_size=2), "--quiet")
    assert result.exit_code == 0, result.output
    assert len(trials(tmp_path / "seqbdl-results")) == 7


def test_optimize_a_command_that_is_minimized(configure: Any, tmp_path: Path) -> None:
    command = f'"{sys.executable}" -c "print(({{x}} - 0.3) ** 2 + {{n}})"'
    result = invoke("optimize", configure(objective={"command": command}, direction="minimize"), "--quiet")
    assert result.exit_code == 0, result.output
    values = [float(row["outcome"]) for row in trials(tmp_path / "seqbdl-results")]
    (best,) = json.loads((tmp_path / "seqbdl-results" / "best.json").read_text(encoding="utf-8"))
    assert best["outcomes"][0] == min(values)


@pytest.mark.parametrize("suffix", [".csv", ".xlsx"])
def test_optimize_over_a_table_of_candidates(configure: Any, tmp_path: Path, suffix: str) -> None:
    table = pd.DataFrame({"angle": [10.0, 20.0, 30.0, 40.0, 50.0, 60.0], "maker": ["a", "b", "a", "b", "a", "b"]})
    if suffix == ".csv":
        table.to_csv(tmp_path / "table.csv", index=False)
    else:
        table.to_excel(tmp_path / "table.xlsx", index=False)
    command = f'"{sys.executable}" -c "print(-abs({{angle}} - 40))"'
    config = configure(objective={"command": command}, space=..., candidates="table" + suffix, initial=3, budget=9)
    result = invoke("optimize", config, "--quiet")
    assert result.exit_code == 0, result.output
    rows = trials(tmp_path / "seqbdl-results")
    assert len({row["candidate"] for row in rows}) == len(rows) == 6  # every row once, then there is nothing left
    (best,) = json.loads((tmp_path / "seqbdl-results" / "best.json").read_text(encoding="utf-8"))
    assert best["point"] == {"candidate": 3, "angle": 40.0, "maker": "b"}


def test_optimize_where_every_trial_fails_says_so(configure: Any, tmp_path: Path) -> None:
    result = invoke("optimize", configure(objective="python:cli_objective:broken", budget=2), "--quiet")
    assert result.exit_code == 1
    assert "the pump is dry" in result.output
    assert {row["status"] for row in trials(tmp_path / "seqbdl-results")} == {"failed"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"budget": 0}, "budget: "),
        ({"objective": "python:cli_objective:nothing"}, "objective: "),
        ({"objective": "seqbdl/Nowhere-v0", "space": ...}, "objective: "),
        ({"objective": {"env": "seqbdl/Branin-v0", "kwargs": {"nois": 1}}, "space": ...}, "objective: "),
        ({"space": {"x": [1.0, 0.0]}}, "space.x: "),
        ({"space": ..., "candidates": "same.csv"}, "candidates: same.csv: "),
        ({"surrogate": "oracle"}, "surrogate: unknown surrogate 'oracle'; the known ones are"),
        ({"surrogate": {"name": "nngp", "magic": 3}}, "surrogate.magic: "),
        ({"acquisition": "luck"}, "acquisition: unknown acquisition"),
    ],
)
def test_bad_configurations_are_told_in_one_line(configure: Any, changes: dict[str, Any], words: str) -> None:
    result = invoke("optimize", configure(**changes), "--quiet")
    assert result.exit_code == 2
    (line,) = result.output.strip().splitlines()
    assert line.startswith("error: ")
    assert words in line


def test_missing_configuration() -> None:
    result = invoke("optimize", "no-such-file.yaml")
    assert result.exit_code == 2
    assert "cannot read" in result.output


def test_quick_demo(tmp_path: Path) -> None:
    result = invoke("demo", "--quick", "--workers", "1", "--surrogate", "nngp", "--out", str(tmp_path / "demo"))
    assert result.exit_code == 0, result.output
    assert "random search" in result.output
    summary = json.loads((tmp_path / "demo" / "summary.json").read_text(encoding="utf-8"))
    assert summary["evaluations"] == 8
    assert {row["method"] for row in summary["methods"]} == {"nngp", "random search"}
    text = (tmp_path / "demo" / "report.html").read_text(encoding="utf-8")
    assert summary["verdict"][0].split(" evaluations")[0] in text
    assert not re.search(r"https?://", text)
    with (tmp_path / "demo" / "evaluations.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8 + 8 + summary["methods"][0]["random_pool"] - 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--surrogate", "oracle"), "unknown surrogate"),
        (("--env", "seqbdl/Nowhere-v0"), "Nowhere"),
        (("--initial", "9"), "--initial 9 leaves nothing"),
    ],
)
def test_bad_demo_arguments(arguments: tuple[str, ...], words: str, tmp_path: Path) -> None:
    result = invoke("demo", "--quick", "--surrogate", "nngp", "--out", str(tmp_path / "demo"), *arguments)
    assert result.exit_code == 2
    assert words in result.output
