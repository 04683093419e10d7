"""Benchmarks are scripts: tests load them by path."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="session")
def load() -> Callable[[str], ModuleType]:
    def load(name: str) -> ModuleType:
        full = f"seqbdl_benchmark_{name}"
        if full not in sys.modules:
            spec = importlib.util.spec_from_file_location(full, FOLDER / f"{name}.py")
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[full] = module  # dataclasses look their module up
            spec.loader.exec_module(module)
        return sys.modules[full]

    return load
