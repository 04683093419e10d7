"""From a configuration to something to call with a point: a Python function, or a command that prints a number."""

from __future__ import annotations

import importlib
import shlex
import string
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from seqbdl.cli.config import ConfigError, ObjectiveConfig

Objective = Callable[[Mapping[str, Any]], Any]


class CommandFailedError(RuntimeError):
    """The command of an objective did not give a number; recorded as a failed trial."""


def make_objective(config: ObjectiveConfig, names: Sequence[str], folder: Path, whole: bool = True) -> Objective:
    """The callable behind a `python` or `command` objective.

    Args:
        config: The checked `objective` entry.
        names: The names of the entries of a point.
        whole: Whether a command must use every one of them.
        folder: Where the configuration lies: modules are looked up there first, and commands run there.
    """
    if config.kind == "python":
        return python_objective(config.target, config.kwargs, folder)
    return CommandObjective(config.target, names, folder, config.timeout, whole)


def python_objective(target: str, kwargs: Mapping[str, Any], folder: Path) -> Objective:
    """`module:function`, called as `function(point, **kwargs)` with the point as a dict."""
    module_name, function_name = target.split(":")
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's module does wrong at import is told in one line
        raise ConfigError("objective", f"cannot import {module_name!r}: {type(error).__name__}: {error}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ConfigError("objective", f"the module {module_name!r} has no function {function_name!r}")
    return partial(function, **kwargs) if kwargs else function


class CommandObjective:
    """A command line with `{name}` placeholders, run without a shell; the last line it prints is the outcome.

    Args:
        template: For example `"python measure.py --x {x}"`.
        names: The entries of a point; no other may be used.
        folder: The working directory of the command.
        timeout: Seconds after which a run is stopped and counts as failed.
        whole: Whether every one of the names must be used.
    """

    def __init__(
        self, template: str, names: Sequence[str], folder: Path, timeout: float | None = None, whole: bool = True
    ) -> None:
        try:
            self._words = shlex.split(template)
            parsed = [string.Formatter().parse(word) for word in self._words]
            fields = {field for pieces in parsed for _, field, _, _ in pieces if field is not None}
        except ValueError as error:
            raise ConfigError("objective.command", f"{template!r} cannot be read: {error}") from error
        for field in sorted(fields - set(names)):
            raise ConfigError("objective.command", f"{{{field}}} is not a parameter; the space has {', '.join(names)}")
        for name in names:
            if whole and name not in fields:
                raise ConfigError("objective.command", f"the parameter {name!r} is not used; write {{{name}}} into it")
        self._folder = folder
        self._timeout = timeout

    def __call__(self, point: Mapping[str, Any]) -> float:
        words = [word.format(**point) for word in self._words]
        try:
            done = subprocess.run(words, cwd=self._folder, capture_output=True, text=True, timeout=self._timeout, check=False)
        except subprocess.TimeoutExpired as error:
            raise CommandFailedError(f"stopped after {self._timeout} seconds") from error
        except OSError as error:
            raise CommandFailedError(f"cannot run {words[0]!r}: {error.strerror or error}") from error
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["it printed no message"])[-1]
            raise CommandFailedError(f"exit status {done.returncode}: {last}")
        lines = done.stdout.strip().splitlines()
        try:
            return float(lines[-1])
        except (IndexError, ValueError) as error:
            shown = repr(lines[-1]) if lines else "nothing"
            raise CommandFailedError(f"the last line must be a number, it printed {shown}") from error
