"""Every Python block of the documentation runs, top to bottom, one namespace per page."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from seqbdl.cli.config import parse_config
from seqbdl.surrogates import registry

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[int, str]]:
    """Line numbers and texts of the Python blocks of a page."""
    text = page.read_text(encoding="utf-8")
    return [(text.count("\n", 0, match.start(1)), match.group(1)) for match in BLOCK.finditer(text)]


def execute(page: Path, namespace: dict[str, Any]) -> dict[str, Any]:
    for line, code in blocks(page):
        # Leading newlines make tracebacks point at the line of the page.
        exec(compile("\n" * line + code, str(page), "exec"), namespace)
    return namespace


@pytest.fixture
def clean_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a page registers is gone afterwards."""
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name)
def test_python_blocks_run(page: Path, clean_registry: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    execute(page, {"__name__": "__docs__"})


def test_relative_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_example_surrogate_takes_less_than_a_hundred_lines() -> None:
    _, code = blocks(ROOT / "docs" / "add-a-surrogate.md")[0]
    assert len(code.splitlines()) < 100


def test_the_example_surrogate_passes_the_contract(tmp_path: Path) -> None:
    """The class of the page, registered before the contract test is collected, goes through all of it."""
    _, code = blocks(ROOT / "docs" / "add-a-surrogate.md")[0]
    (tmp_path / "docs_surrogate.py").write_text(code, encoding="utf-8")
    contract = ROOT / "tests" / "surrogates" / "test_contract.py"
    options = ["-p", "docs_surrogate", "-p", "no:cacheprovider", "-k", "random-network", "-q"]
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "COV_"))}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", str(contract), *options],
        cwd=ROOT,
        env=env | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed.group(1)) > 40


def test_the_configuration_of_the_guide_is_accepted(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "bayesian-optimization.md").read_text(encoding="utf-8")
    (configuration,) = re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    config = parse_config(yaml.safe_load(configuration), tmp_path)
    assert [parameter.kind for parameter in config.space or ()] == ["real", "real", "integer", "categorical", "ordinal"]
