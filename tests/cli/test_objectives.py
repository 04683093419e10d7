"""Objectives from Python modules and from commands."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from seqbdl.cli.config import ConfigError
from seqbdl.cli.objectives import CommandFailedError, CommandObjective, python_objective

PYTHON = f'"{sys.executable}"'


def test_python_objective_with_options(tmp_path: Path) -> None:
    (tmp_path / "objective_a.py").write_text("def f(point, scale):\n    return scale * point['x']\n", encoding="utf-8")
    assert python_objective("objective_a:f", {"scale": 3.0}, tmp_path)({"x": 2.0}) == 6.0


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("objective_nowhere:f", "cannot import 'objective_nowhere'"),
        ("objective_b:g", "no function 'g'"),
        ("objective_c:f", "ZeroDivisionError"),
    ],
)
def test_python_objective_errors(tmp_path: Path, target: str, words: str) -> None:
    (tmp_path / "objective_b.py").write_text("def f(point):\n    return 1.0\n", encoding="utf-8")
    (tmp_path / "objective_c.py").write_text("1 / 0\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=words):
        python_objective(target, {}, tmp_path)


def test_command_gives_its_last_line(tmp_path: Path) -> None:
    command = CommandObjective(f"{PYTHON} -c \"print('log'); print({{x}} * {{n}})\"", ["x", "n"], tmp_path)
    assert command({"x": 0.5, "n": 3}) == 1.5


def test_values_never_reach_a_shell(tmp_path: Path) -> None:
    script = tmp_path / "s.py"
    script.write_text("import sys; print(len(sys.argv[1]))", encoding="utf-8")
    command = CommandObjective(f"{PYTHON} s.py {{name}}", ["name"], tmp_path)
    assert command({"name": "a; touch bad && $(x)"}) == 20.0
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import sys; sys.exit('no {x} today')", "exit status 1: no 1.0 today"),
        ("print('word {x}')", "printed 'word 1.0'"),
        ("{x}", "printed nothing"),
        ("import time; time.sleep(60 * {x})", "stopped after 0.5 seconds"),
    ],
)
def test_command_failures(tmp_path: Path, code: str, words: str) -> None:
    command = CommandObjective(f'{PYTHON} -c "{code}"', ["x"], tmp_path, timeout=0.5 if "sleep" in code else None)
    with pytest.raises(CommandFailedError, match=words):
        command({"x": 1.0})


def test_command_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(CommandFailedError, match="cannot run 'no-such-program'"):
        CommandObjective("no-such-program {x}", ["x"], tmp_path)({"x": 1.0})


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("run {x} {z}", r"\{z\} is not a parameter"),
        ("run {x}", "'y' is not used"),
        ("run {x} {y} {", "cannot be read"),
        ("run 'open {x} {y}", "cannot be read"),
        ("run {x.real} {y}", "is not a parameter"),
    ],
)
def test_command_template_errors(tmp_path: Path, template: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        CommandObjective(template, ["x", "y"], tmp_path)
