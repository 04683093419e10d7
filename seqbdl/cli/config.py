"""The file that `seqbdl optimize` reads: checked wholly before anything runs, with errors that name the key."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from seqbdl.errors import SeqbdlError

KEYS = (
    "objective",
    "direction",
    "space",
    "candidates",
    "budget",
    "batch_size",
    "initial",
    "surrogate",
    "acquisition",
    "noise",
    "replicates",
    "seed",
    "output",
    "checkpoint",
    "on_error",
)
_KINDS: dict[str, tuple[set[str], set[str]]] = {
    # kind: (required keys, optional keys)
    "real": ({"low", "high"}, {"log", "step", "unit"}),
    "integer": ({"low", "high"}, {"log"}),
    "categorical": ({"choices"}, set()),
    "ordinal": ({"values"}, set()),
}


class ConfigError(SeqbdlError):
    """A configuration that cannot be used; the message begins with the key in question."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"{key}: {problem}" if key else problem)
        self.key = key


@dataclass(frozen=True)
class ObjectiveConfig:
    """What is optimized: an environment, a Python function or a command that prints a number."""

    kind: Literal["env", "python", "command"]
    target: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    timeout: float | None = None


@dataclass(frozen=True)
class ParameterConfig:
    """One entry under `space`: its kind and the arguments of the parameter class of that kind."""

    name: str
    kind: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class OptimizeConfig:
    """Everything that `seqbdl optimize` needs, checked."""

    objective: ObjectiveConfig
    budget: int
    space: tuple[ParameterConfig, ...] | None
    candidates: Path | None
    direction: Literal["maximize", "minimize"]
    batch_size: int
    initial: int | None
    surrogate: str
    surrogate_options: Mapping[str, Any]
    acquisition: str
    acquisition_options: Mapping[str, Any]
    noise: float | None
    replicates: bool
    seed: int
    output: Path
    checkpoint: Path
    on_error: Literal["record", "raise"]

    def identity(self) -> dict[str, Any]:
        """What must stay as it was for a checkpoint to be continued: all but the budget and the places of files."""
        return {
            "objective": [self.objective.kind, self.objective.target, dict(self.objective.kwargs)],
            "space": [[p.name, p.kind, dict(p.arguments)] for p in self.space] if self.space else None,
            "candidates": _fingerprint(self.candidates) if self.candidates else None,
            "direction": self.direction,
            "batch_size": self.batch_size,
            "initial": self.initial,
            "surrogate": [self.surrogate, dict(self.surrogate_options)],
            "acquisition": [self.acquisition, dict(self.acquisition_options)],
            "noise": self.noise,
            "replicates": self.replicates,
            "seed": self.seed,
        }


def load_config(path: Path) -> OptimizeConfig:
    """Read and check a YAML file.

    Raises:
        ConfigError: naming the key, when anything in the file cannot be used.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError("", f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError("", f"{path} is not text in UTF-8: {error.reason} at byte {error.start}") from error
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError("", f"{path} is not valid YAML{where}: {getattr(error, 'problem', None) or error}") from error
    return parse_config(content, folder=path.resolve().parent)


def parse_config(content: object, folder: Path) -> OptimizeConfig:
    """Check the content of a configuration; relative paths in it are meant from `folder`."""
    if not isinstance(content, dict):
        raise ConfigError("", "the configuration must be a mapping with the keys " + ", ".join(KEYS))
    _known(content, KEYS, "")
    objective = _objective(content)
    space = _space(content.get("space"))
    candidates = _candidates(content, folder)
    if objective.kind != "env" and space is None and candidates is None:
        raise ConfigError("space", "missing; give a space or a table of candidates (only an environment brings its own)")
    for key, value in (("space", space), ("candidates", candidates)):
        if objective.kind == "env" and value is not None:
            raise ConfigError(key, "an environment brings its own space; remove this key")
    if space is not None and candidates is not None:
        raise ConfigError("candidates", "there is a space already; remove one of the two")
    direction = _choice(content, "direction", ("maximize", "minimize"), "maximize")
    if objective.kind == "env" and direction == "minimize":
        raise ConfigError("direction", "the reward of an environment is always maximized; remove this key")
    surrogate, surrogate_options = _named(content, "surrogate", "gp")
    acquisition, acquisition_options = _named(content, "acquisition", "auto")
    output = folder / _text(content, "output", "seqbdl-results")
    return OptimizeConfig(
        objective=objective,
        budget=_integer(content, "budget", minimum=1),
        space=space,
        candidates=candidates,
        direction=direction,  # type: ignore[arg-type]  # _choice has checked it
        batch_size=_integer(content, "batch_size", minimum=1, default=1),
        initial=_integer(content, "initial", minimum=0, default=0) if "initial" in content else None,
        surrogate=surrogate,
        surrogate_options=surrogate_options,
        acquisition=acquisition,
        acquisition_options=acquisition_options,
        noise=_noise(content),
        replicates=_flag(content, "replicates"),
        seed=_integer(content, "seed", minimum=0, default=0),
        output=output,
        checkpoint=folder / _text(content, "checkpoint", "") if "checkpoint" in content else output / "checkpoint",
        on_error=_choice(content, "on_error", ("record", "raise"), "record"),  # type: ignore[arg-type]
    )


def _known(mapping: Mapping[Any, Any], known: Sequence[str], where: str) -> None:
    for key in mapping:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else "known keys: " + ", ".join(known)
            raise ConfigError(f"{where}.{key}" if where else str(key), f"unknown key; {hint}")


def _integer(mapping: Mapping[str, Any], key: str, minimum: int, default: int | None = None) -> int:
    value = mapping.get(key, default)
    if value is None:
        raise ConfigError(key, f"missing; give a whole number of at least {minimum}")
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ConfigError(key, f"{value!r} is not a whole number of at least {minimum}")
    return value


def _text(mapping: Mapping[str, Any], key: str, default: str) -> str:
    value = mapping.get(key, default)
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(key, f"{value!r} is not a text")
    return value


def _flag(mapping: Mapping[str, Any], key: str) -> bool:
    value = mapping.get(key, False)
    if not isinstance(value, bool):
        raise ConfigError(key, f"{value!r} is neither true nor false")
    return value


def _noise(content: Mapping[str, Any]) -> float | None:
    value = content.get("noise")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise ConfigError("noise", f"{value!r} is not a variance, a number of at least 0; leave it out to learn it")
    return float(value)


def _candidates(content: Mapping[str, Any], folder: Path) -> Path | None:
    if "candidates" not in content:
        return None
    path = folder / _text(content, "candidates", "")
    if path.suffix.lower() not in (".csv", ".xlsx"):
        raise ConfigError("candidates", f"{path.name} is neither a .csv nor a .xlsx file")
    if not path.is_file():
        raise ConfigError("candidates", f"there is no file {path}")
    return path


def _fingerprint(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _choice(mapping: Mapping[str, Any], key: str, choices: tuple[str, ...], default: str) -> str:
    value = mapping.get(key, default)
    if value not in choices:
        raise ConfigError(key, f"{value!r} is not one of {', '.join(choices)}")
    return str(value)


def _named(mapping: Mapping[str, Any], key: str, default: str) -> tuple[str, dict[str, Any]]:
    """A name, or a mapping of a name and options: `{name: hmc, num_chains: 4}`."""
    value = mapping.get(key, default)
    if isinstance(value, str) and value:
        return value, {}
    if isinstance(value, dict) and isinstance(value.get("name"), str):
        return value["name"], {str(k): v for k, v in value.items() if k != "name"}
    raise ConfigError(key, f"{value!r} is neither a name nor a mapping with the key 'name' and options")


def _objective(content: Mapping[str, Any]) -> ObjectiveConfig:
    value = content.get("objective")
    kwargs: object = {}
    timeout: object = None
    if isinstance(value, dict):
        _known(value, ("env", "python", "command", "kwargs", "timeout"), "objective")
        kinds = [kind for kind in ("env", "python", "command") if kind in value]
        if len(kinds) != 1:
            raise ConfigError("objective", "give exactly one of env, python, command")
        kind, target = kinds[0], value[kinds[0]]
        kwargs, timeout = value.get("kwargs", {}), value.get("timeout")
    else:
        kind, target = _short_objective(value)
    if not isinstance(target, str) or not target.strip():
        raise ConfigError(f"objective.{kind}", f"{target!r} is not a text")
    if not isinstance(kwargs, dict) or (kwargs and kind == "command"):
        raise ConfigError("objective.kwargs", "must be a mapping, and only an env or a python objective takes one")
    if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, int | float) or timeout <= 0):
        raise ConfigError("objective.timeout", f"{timeout!r} is not a number of seconds above zero")
    if timeout is not None and kind != "command":
        raise ConfigError("objective.timeout", "only a command can be stopped after a time; remove this key")
    if kind == "python" and (target.count(":") != 1 or not all(part.strip() for part in target.split(":"))):
        raise ConfigError("objective", f"{target!r} is not of the form module:function")
    return ObjectiveConfig(kind, target.strip(), {str(k): v for k, v in kwargs.items()}, timeout)  # type: ignore[arg-type]


def _short_objective(value: object) -> tuple[str, object]:
    if value is None:
        raise ConfigError("objective", "missing; give an environment id, python:module:function or command: a script")
    if not isinstance(value, str):
        raise ConfigError("objective", f"{value!r} is neither a text nor a mapping")
    for kind in ("python", "command", "env"):
        if value.startswith(kind + ":"):
            return kind, value[len(kind) + 1 :]
    return "env", value


def _space(value: object) -> tuple[ParameterConfig, ...] | None:
    if value is None:
        return None
    if not isinstance(value, dict) or not value:
        raise ConfigError("space", "must be a mapping from each parameter's name to its description, and not empty")
    return tuple(_parameter(str(name), entry) for name, entry in value.items())


def _parameter(name: str, entry: object) -> ParameterConfig:
    where = f"space.{name}"
    if isinstance(entry, list) and len(entry) == 2:  # a short form for reals: x: [0, 1]
        entry = {"type": "real", "low": entry[0], "high": entry[1]}
    if not isinstance(entry, dict):
        raise ConfigError(where, f"{entry!r} is neither [low, high] nor a mapping with the key 'type'")
    kind = entry.get("type", "real")
    if kind not in _KINDS:
        raise ConfigError(f"{where}.type", f"{kind!r} is not one of {', '.join(_KINDS)}")
    required, optional = _KINDS[kind]
    _known(entry, ("type", *sorted(required | optional)), where)
    for key in sorted(required - set(entry)):
        raise ConfigError(f"{where}.{key}", f"missing; a {kind} parameter needs it")
    arguments = {key: item for key, item in entry.items() if key != "type"}
    for key, item in arguments.items():
        _check_argument(f"{where}.{key}", kind, key, item)
    return ParameterConfig(name, kind, arguments)


def _check_argument(where: str, kind: str, key: str, item: object) -> None:
    if key in ("low", "high", "step"):
        allowed = int if kind == "integer" else int | float
        if isinstance(item, bool) or not isinstance(item, allowed):
            # YAML reads 1e-4 as a text: only 1.0e-4 is a number to it.
            readable = isinstance(item, str) and _is_number(item) and kind == "real"
            hint = f"; write {float(str(item))!r}" if readable else ""
            raise ConfigError(where, f"{item!r} is not a {'whole ' if kind == 'integer' else ''}number{hint}")
    elif key == "log" and not isinstance(item, bool):
        raise ConfigError(where, f"{item!r} is neither true nor false")
    elif key in ("choices", "values"):
        if not isinstance(item, list) or not item:
            raise ConfigError(where, "must be a list with at least one entry")
        for option in item:
            if isinstance(option, bool):
                raise ConfigError(where, f"YAML reads an entry as {option}; put words such as 'on' and 'no' in quotes")
            if not isinstance(option, str | int | float):
                raise ConfigError(where, f"the entry {option!r} is neither a text nor a number")


def _is_number(item: object) -> bool:
    try:
        float(str(item))
    except ValueError:
        return False
    return True
