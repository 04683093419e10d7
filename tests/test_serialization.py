"""Trees on disk: everything comes back as it went, and nothing is executed."""

from __future__ import annotations

import json
import math
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

import seqbdl
from seqbdl.errors import StateError
from seqbdl.serialization import generator_state, load_tree, restore_generator, save_tree


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, float) and math.isnan(a):
        return isinstance(b, float) and math.isnan(b)
    return type(a) is type(b) and bool(a == b)


leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(width=64)
    | st.text(max_size=8)
    | st.lists(st.floats(allow_nan=False), max_size=4).map(lambda v: torch.tensor(v, dtype=torch.float64))
)
keys = st.text(max_size=6).filter(lambda key: key not in ("__tensor__", "__float__"))
trees = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=8)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=trees)
def test_trees_come_back(tree: Any, tmp_path: Path) -> None:
    save_tree(tmp_path / "tree", tree)
    assert same(tree, load_tree(tmp_path / "tree"))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(3.5),
        torch.zeros(0, 4),
        torch.arange(6).reshape(2, 3).T,
        torch.tensor([True, False]),
        torch.ones(2, dtype=torch.bfloat16),
        torch.arange(5, dtype=torch.uint8),
        torch.ones(3, requires_grad=True),
        torch.ones(1).expand(4),
    ],
)
def test_tensors_of_every_kind(tensor: Tensor, tmp_path: Path) -> None:
    save_tree(tmp_path / "t", tensor)
    loaded = load_tree(tmp_path / "t")
    assert same(tensor.detach(), loaded)
    assert not loaded.requires_grad


def test_keys_with_dots_do_not_collide(tmp_path: Path) -> None:
    tree = {
        "a": {"b": torch.zeros(1)},
        "a.b": torch.ones(2),
        "root": torch.ones(3),
        "x": [torch.ones(4)],
        "x.0": torch.ones(5),
    }
    save_tree(tmp_path / "t", tree)
    assert same(tree, load_tree(tmp_path / "t"))


def test_one_tensor_twice(tmp_path: Path) -> None:
    shared = torch.arange(3.0)
    save_tree(tmp_path / "t", {"a": shared, "b": [shared, shared[1:]]})
    assert same(load_tree(tmp_path / "t"), {"a": shared, "b": [shared, shared[1:]]})


def test_arrays_become_tensors_and_tuples_lists(tmp_path: Path) -> None:
    save_tree(tmp_path / "t", {"a": np.arange(4)[::-1], "b": np.array(2.5), "c": (1, np.float32(0.5), np.bool_(True))})
    loaded = load_tree(tmp_path / "t")
    assert same(loaded, {"a": torch.tensor([3, 2, 1, 0]), "b": torch.tensor(2.5).double(), "c": [1, 0.5, True]})


@pytest.mark.parametrize(
    "tree",
    [object(), {"a": {1: 2}}, {"__tensor__": 1}, [{"__float__": "nan"}], {1, 2}, np.array(["a"]), np.array([object()])],
)
def test_what_cannot_be_saved_is_refused(tree: Any, tmp_path: Path) -> None:
    with pytest.raises(StateError):
        save_tree(tmp_path / "t", tree)
    assert list(tmp_path.iterdir()) == []  # nothing half-written remains


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tree(tmp_path / "t", {"version": 1})

    def killed(*args: Any) -> None:
        raise OSError("power cut")

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(OSError, match="power cut"):
        save_tree(tmp_path / "t", {"version": 2})
    assert load_tree(tmp_path / "t") == {"version": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["t"]


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_tree(tmp_path / "nothing")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(StateError, match="not a safetensors file"):
        load_tree(tmp_path / "text")
    save_file({"a": torch.ones(1)}, tmp_path / "foreign")
    with pytest.raises(StateError, match="not a saved state"):
        load_tree(tmp_path / "foreign")
    save_tree(tmp_path / "tree", {"a": 1})
    with pytest.raises(StateError, match="holds no surrogate"):
        seqbdl.load(tmp_path / "tree")


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


def test_pickles_are_not_executed(tmp_path: Path) -> None:
    (tmp_path / "trap").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(StateError):
        load_tree(tmp_path / "trap")
    torch.save({"a": Trap(tmp_path / "sprung")}, tmp_path / "torch")
    with pytest.raises(StateError):
        seqbdl.load(tmp_path / "torch")
    assert not (tmp_path / "sprung").exists()


def test_stored_names_only_look_up_the_registry(tmp_path: Path) -> None:
    seqbdl.save(tmp_path / "s", seqbdl.make_surrogate("gp", 2))
    tree = load_tree(tmp_path / "s")
    save_tree(tmp_path / "evil", {**tree, "surrogate": "os.system"})
    with pytest.raises(ValueError, match=r"unknown surrogate 'os\.system'"):
        seqbdl.load(tmp_path / "evil")


def test_the_file_is_plain_safetensors_and_json(tmp_path: Path) -> None:
    save_tree(tmp_path / "t", {"a": torch.ones(2), "b": float("inf")})
    raw = (tmp_path / "t").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    assert header["a"]["shape"] == [2]
    assert json.loads(header["__metadata__"]["tree"]) == {"a": {"__tensor__": "a"}, "b": {"__float__": "inf"}}


def test_folders_are_made(tmp_path: Path) -> None:
    save_tree(tmp_path / "new" / "folder" / "t", 1)
    assert load_tree(tmp_path / "new" / "folder" / "t") == 1


def test_generators_go_on_where_they_were(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(5)
    torch.rand(3, generator=generator)
    save_tree(tmp_path / "g", {"g": generator_state(generator)})
    again = restore_generator(load_tree(tmp_path / "g")["g"])
    assert torch.equal(torch.randn(7, generator=generator), torch.randn(7, generator=again))
