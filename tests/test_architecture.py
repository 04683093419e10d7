"""Rooms import only what docs/architecture.md allows them, and every room keeps its house rules."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
GROUND = {"errors", "serialization", "_checks"}
MODEL = {"priors", "likelihoods"}
MAY_IMPORT = {
    "envs": set(),
    "networks": GROUND,
    "posteriors": GROUND | MODEL | {"networks"},
    "inference": GROUND | MODEL | {"networks", "posteriors"},
    "surrogates": GROUND | MODEL | {"networks", "posteriors", "inference"},
    "acquisition": GROUND | {"posteriors", "surrogates"},
    "diagnostics": GROUND | {"posteriors", "surrogates"},
    "integrations": GROUND | {"networks", "posteriors", "inference", "surrogates"},
    "loops": GROUND | {"acquisition", "surrogates", "posteriors", "diagnostics"},
}
FOLDERS = {"envs": ROOT / "envs", "loops": ROOT / "loops"}
MAX_LINES = 400
LONG = {"seqbdl/surrogates/base.py": 550}  # the contract stands in one place
SEEDS_AND_RESTORES = "seqbdl/acquisition/_random.py"  # the one place that runs BoTorch under a seeded, then restored, state


def folder(room: str) -> Path:
    return FOLDERS.get(room, ROOT / "seqbdl" / room)


def sources() -> list[Path]:
    return sorted(path for top in ("seqbdl", "loops", "envs") for path in (ROOT / top).rglob("*.py"))


def imported_rooms(path: Path) -> set[str]:
    """The rooms of seqbdl that a file imports, `seqbdl.x.y` being room `x`."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] if node.module != "seqbdl" else [f"seqbdl.{alias.name}" for alias in node.names]
        rooms |= {name.split(".")[1] for name in names if name.startswith("seqbdl.")}
    return rooms


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_rooms_import_only_what_lies_below(room: str) -> None:
    for path in sorted(folder(room).rglob("*.py")):
        beyond = imported_rooms(path) - MAY_IMPORT[room] - {room}
        assert not beyond, f"{path.relative_to(ROOT)} imports {', '.join(sorted(beyond))}"


def test_every_room_is_in_the_plan() -> None:
    plan = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = [path for path in (ROOT / "seqbdl").iterdir() if (path / "__init__.py").exists()]
    for path in rooms:
        assert f"`seqbdl/{path.name}/`" in plan, path.name


def test_no_file_is_long() -> None:
    for path in sources():
        name = path.relative_to(ROOT).as_posix()
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= LONG.get(name, MAX_LINES), f"{name} has {lines} lines"


def calls(path: Path) -> set[str]:
    """Dotted names of everything that a file calls."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}


def test_nobody_touches_global_randomness_or_hides_warnings() -> None:
    forbidden = {"torch.manual_seed", "torch.seed", "torch.random.manual_seed", "np.random.seed", "random.seed"}
    forbidden |= {"numpy.random.seed", "warnings.filterwarnings", "warnings.simplefilter", "botorch.settings.debug"}
    for path in sources():
        name = path.relative_to(ROOT).as_posix()
        found = calls(path) & forbidden
        assert not found or name == SEEDS_AND_RESTORES, f"{name}: {found}"


def test_nothing_loads_code_from_files() -> None:
    forbidden = {"pickle.load", "pickle.loads", "torch.load", "yaml.load", "eval", "exec", "joblib.load"}
    for path in sources():
        assert not calls(path) & forbidden, f"{path.relative_to(ROOT)}: {calls(path) & forbidden}"
