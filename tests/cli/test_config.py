"""Configurations are checked wholly before anything runs, and errors name the key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from seqbdl.cli.config import ConfigError, load_config, parse_config

GOOD: dict[str, Any] = {
    "objective": "python:module:function",
    "space": {"x": {"type": "real", "low": 0.0, "high": 1.0}},
    "budget": 10,
}


def parse(folder: Path = Path("/somewhere"), **changes: Any) -> Any:
    content = {key: value for key, value in {**GOOD, **changes}.items() if value is not ...}
    return parse_config(content, folder)


def test_defaults() -> None:
    config = parse()
    assert (config.surrogate, config.acquisition, config.direction) == ("gp", "auto", "maximize")
    assert (config.batch_size, config.initial, config.seed) == (1, None, 0)
    assert config.output == Path("/somewhere/seqbdl-results")
    assert config.checkpoint == Path("/somewhere/seqbdl-results/checkpoint")


def test_options_of_surrogate_and_acquisition() -> None:
    config = parse(surrogate={"name": "hmc", "num_chains": 2}, acquisition={"name": "qLogEI", "mc_samples": 64})
    assert (config.surrogate, config.surrogate_options) == ("hmc", {"num_chains": 2})
    assert (config.acquisition, config.acquisition_options) == ("qLogEI", {"mc_samples": 64})


@pytest.mark.parametrize(
    ("objective", "kind", "target"),
    [
        ("python:a.b:f", "python", "a.b:f"),
        ("command: ./run {x}", "command", "./run {x}"),
        ({"command": "./run {x}", "timeout": 3}, "command", "./run {x}"),
        ({"python": "a:f", "kwargs": {"k": 1}}, "python", "a:f"),
    ],
)
def test_forms_of_the_objective(objective: Any, kind: str, target: str) -> None:
    config = parse(objective=objective)
    assert (config.objective.kind, config.objective.target) == (kind, target)


def test_environment_brings_its_space() -> None:
    config = parse(objective={"env": "seqbdl/Branin-v0", "kwargs": {"noise_std": 0.1}}, space=...)
    assert config.space is None
    assert config.objective.kwargs == {"noise_std": 0.1}


def test_short_form_of_a_real_parameter() -> None:
    (parameter,) = parse(space={"x": [0, 2]}).space
    assert (parameter.kind, parameter.arguments) == ("real", {"low": 0, "high": 2})


@pytest.mark.parametrize(
    ("changes", "key", "words"),
    [
        ({"objective": ...}, "objective", "missing"),
        ({"objective": 3}, "objective", "neither"),
        ({"objective": "python:no-function"}, "objective", "module:function"),
        ({"objective": {"env": "a", "python": "b:c"}}, "objective", "exactly one"),
        ({"objective": {"comand": "x"}}, "objective.comand", "did you mean 'command'"),
        ({"objective": {"command": "run {x}", "timeout": 0}}, "objective.timeout", "above zero"),
        ({"objective": "seqbdl/Branin-v0"}, "space", "its own space"),
        ({"objective": "seqbdl/Branin-v0", "space": ..., "direction": "minimize"}, "direction", "always maximized"),
        ({"budget": ...}, "budget", "missing"),
        ({"budget": 0}, "budget", "at least 1"),
        ({"budget": True}, "budget", "whole number"),
        ({"budget": 3.5}, "budget", "whole number"),
        ({"budgett": 3}, "budgett", "did you mean 'budget'"),
        ({"direction": "up"}, "direction", "maximize, minimize"),
        ({"space": ...}, "space", "missing"),
        ({"space": {}}, "space", "not empty"),
        ({"space": [1]}, "space", "mapping"),
        ({"space": {"x": 3}}, "space.x", "neither"),
        ({"space": {"x": {"type": "float"}}}, "space.x.type", "real, integer, categorical, ordinal"),
        ({"space": {"x": {"low": 0}}}, "space.x.high", "missing"),
        ({"space": {"x": {"low": "1e-4", "high": 1}}}, "space.x.low", "write 0.0001"),
        ({"space": {"x": {"type": "integer", "low": 0.5, "high": 1}}}, "space.x.low", "whole number"),
        ({"space": {"x": {"low": 0, "high": 1, "log": "yes please"}}}, "space.x.log", "true nor false"),
        ({"space": {"x": {"low": 0, "high": 1, "choices": [1]}}}, "space.x.choices", "unknown key"),
        ({"space": {"x": {"type": "categorical", "choices": []}}}, "space.x.choices", "at least one"),
        ({"space": {"x": {"type": "categorical", "choices": [True]}}}, "space.x.choices", "quotes"),
        ({"surrogate": 3}, "surrogate", "neither a name"),
        ({"surrogate": {"num_chains": 2}}, "surrogate", "neither a name"),
        ({"candidates": "table.csv"}, "candidates", "a space already"),
        ({"candidates": "nowhere.csv", "space": ...}, "candidates", "no file"),
        ({"candidates": "table.json", "space": ...}, "candidates", "neither a .csv nor a .xlsx"),
        ({"noise": -1}, "noise", "at least 0"),
        ({"noise": "little"}, "noise", "variance"),
        ({"replicates": "often"}, "replicates", "true nor false"),
        ({"on_error": "ignore"}, "on_error", "record, raise"),
        ({"seed": -1}, "seed", "at least 0"),
        ({"output": 3}, "output", "not a text"),
    ],
)
def test_errors_name_the_key(changes: dict[str, Any], key: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("a\n1\n2\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        parse(tmp_path, **changes)
    assert caught.value.key == key
    assert str(caught.value).startswith(f"{key}: ")
    assert words in str(caught.value)


def test_not_yaml(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("objective: [1,\nbudget: 3", encoding="utf-8")
    with pytest.raises(ConfigError, match="not valid YAML at line"):
        load_config(file)


def test_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(tmp_path / "missing.yaml")
    file = tmp_path / "c.yaml"
    file.write_bytes(b"\xff\xfe\x00bad")
    with pytest.raises(ConfigError, match="UTF-8"):
        load_config(file)
    file.write_text("just a text", encoding="utf-8")
    with pytest.raises(ConfigError, match="mapping"):
        load_config(file)


def test_identity_forgets_only_budget_and_places() -> None:
    first = parse()
    assert parse(budget=99, output="elsewhere", checkpoint="c", on_error="raise").identity() == first.identity()
    for change in ({"seed": 1}, {"surrogate": "nngp"}, {"space": {"x": [0, 2]}}, {"direction": "minimize"}):
        assert parse(**change).identity() != first.identity()


def test_identity_knows_the_candidates_by_their_content(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("a\n1\n2\n", encoding="utf-8")
    first = parse(tmp_path, candidates="table.csv", space=...)
    before = first.identity()
    table.write_text("a\n1\n3\n", encoding="utf-8")
    assert first.identity() != before


def test_loads_code_from_no_file(tmp_path: Path) -> None:
    """YAML can name Python objects; a configuration must not."""
    file = tmp_path / "c.yaml"
    file.write_text(yaml.dump({**GOOD, "seed": 0}) + "output: !!python/object/apply:os.getcwd []\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(file)
