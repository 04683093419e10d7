"""An installed wheel is the whole package: loops/ and envs/ are rooms of seqbdl, and there is no bare loops or envs."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def _run(arguments: list[str], cwd: Path, **environment: str) -> str:
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "COV_"))} | environment
    done = subprocess.run(arguments, cwd=cwd, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of what is shipped, so that the build leaves nothing in the checkout."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "seqbdl", "loops", "envs"):
        (source / name).symlink_to(ROOT / name)
    out = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        str(out),
        ".",
    ]
    _run(command, source)
    (built,) = out.glob("*.whl")
    return built


def _modules(folder: Path, package: str) -> set[str]:
    """Dotted names of all Python files below a folder, as modules of `package`."""
    found = set()
    for file in folder.rglob("*.py"):
        parts = [package, *file.relative_to(folder).with_suffix("").parts]
        found.add(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return found


def test_every_source_file_is_in_the_wheel(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    packed = {name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in names if name.endswith(".py")}
    written = _modules(ROOT / "seqbdl", "seqbdl") | _modules(ROOT / "loops", "seqbdl.loops")
    written |= _modules(ROOT / "envs", "seqbdl.envs")
    assert packed == written


def test_typed_and_licensed(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "seqbdl/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_data_files_are_in_the_wheel(wheel: Path) -> None:
    """Whatever lies beside the code and is not code (page templates, small tables) is shipped too."""
    names = set(zipfile.ZipFile(wheel).namelist())
    folders = {"seqbdl": ROOT / "seqbdl", "seqbdl/loops": ROOT / "loops", "seqbdl/envs": ROOT / "envs"}
    for prefix, folder in folders.items():
        for file in folder.rglob("*"):
            if file.is_file() and file.suffix not in (".py", ".pyc", ".md") and "__pycache__" not in file.parts:
                assert f"{prefix}/{file.relative_to(folder).as_posix()}" in names


def test_installed_wheel_imports_its_rooms_and_no_bare_ones(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    _run(
        [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", str(target), str(wheel)],
        tmp_path,
    )
    # -S -E would lose the dependencies; PYTHONPATH puts the wheel before the editable installation of the checkout.
    program = """
import importlib.util, pathlib, sys
import seqbdl, seqbdl.envs, seqbdl.loops
target = pathlib.Path(sys.argv[1]).resolve()
for module in (seqbdl, seqbdl.envs, seqbdl.loops):
    assert target in pathlib.Path(module.__file__).resolve().parents, module.__file__
assert (pathlib.Path(seqbdl.__file__).parent / "py.typed").exists()
for bare in ("loops", "envs"):
    assert importlib.util.find_spec(bare) is None, bare
print("fine")
"""
    assert "fine" in _run([sys.executable, "-c", program, str(target)], tmp_path, PYTHONPATH=str(target))


def test_command_is_declared(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (entry_points,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
        assert "seqbdl = seqbdl.cli.main:app" in archive.read(entry_points).decode()
