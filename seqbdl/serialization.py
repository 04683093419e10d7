"""Trees of tensors and plain values on disk: safetensors for the numbers, JSON for the rest.

Loading executes nothing: there is no pickle, no import by name and no evaluation of stored text. A tree is a nesting of
dictionaries with string keys, lists, tensors, numbers, strings, booleans and ``None``.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from seqbdl.errors import StateError

FORMAT = "seqbdl-tree-1"
_TENSOR = "__tensor__"
_FLOAT = "__float__"


def _flatten(node: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(node, Tensor):
        key = path or "root"
        while key in tensors:  # {"a": {"b": ...}, "a.b": ...}
            key += "'"
        tensors[key] = node.detach().cpu().contiguous().clone()
        return {_TENSOR: key}
    if isinstance(node, np.ndarray):
        if node.dtype.kind not in "biuf":
            raise StateError(f"cannot save an array of {node.dtype} at {path!r}: use numbers, or a list of strings")
        return _flatten(torch.from_numpy(np.array(node, order="C")), path, tensors)
    if isinstance(node, dict):
        out = {}
        for key, value in node.items():
            if not isinstance(key, str) or key in (_TENSOR, _FLOAT):
                raise StateError(f"a tree's keys are strings other than reserved words; {key!r} under {path!r} is not")
            out[key] = _flatten(value, f"{path}.{key}" if path else key, tensors)
        return out
    if isinstance(node, list | tuple):
        return [_flatten(value, f"{path}.{i}" if path else str(i), tensors) for i, value in enumerate(node)]
    if isinstance(node, np.generic):
        return _flatten(node.item(), path, tensors)
    if isinstance(node, float) and not np.isfinite(node):
        return {_FLOAT: repr(node)}  # JSON has no NaN and no infinity
    if node is None or isinstance(node, bool | int | float | str):
        return node
    raise StateError(f"cannot save a {type(node).__name__} at {path!r}: use tensors, numbers, strings, lists and dicts")


def _restore(node: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(node, dict):
        if set(node) == {_TENSOR}:
            return tensors[node[_TENSOR]]
        if set(node) == {_FLOAT}:
            return float(node[_FLOAT])
        return {key: _restore(value, tensors) for key, value in node.items()}
    if isinstance(node, list):
        return [_restore(value, tensors) for value in node]
    return node


def save_tree(path: str | os.PathLike[str], tree: Any) -> None:
    """Write a tree to one file, atomically: a reader sees the old file or the new one, never a part.

    Args:
        path: The file to write.
        tree: Nested dicts and lists of tensors, numbers, strings, booleans and ``None``. Tensors come back on the CPU.

    Raises:
        StateError: Something in the tree is of another type.
    """
    target = Path(path)
    tensors: dict[str, Tensor] = {}
    structure = _flatten(tree, "", tensors)
    metadata = {"format": FORMAT, "tree": json.dumps(structure, allow_nan=False)}
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(handle)
    try:
        save_file(tensors, name, metadata=metadata)
        with open(name, "rb") as written:
            os.fsync(written.fileno())
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def load_tree(path: str | os.PathLike[str]) -> Any:
    """Read a tree that :func:`save_tree` wrote.

    Raises:
        FileNotFoundError: There is no such file.
        StateError: The file is not a tree of this library.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        with safe_open(str(path), framework="pt") as archive:
            metadata = archive.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise StateError(f"{path} is not a saved state of this library (format {metadata.get('format')!r})")
            # clone: slices of the file's buffer are not aligned, and sums over them round differently
            tensors = {key: archive.get_tensor(key).clone() for key in archive.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError as error:
        raise StateError(f"{path} is not a safetensors file: {error}") from error
    return _restore(json.loads(metadata["tree"]), tensors)


def generator_state(generator: torch.Generator) -> Tensor:
    """The state of a generator as a tensor of bytes."""
    return generator.get_state().clone()


def restore_generator(state: Tensor, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator in the given state (see :func:`generator_state`)."""
    generator = torch.Generator(device=device)
    generator.set_state(state.to(torch.uint8).cpu())
    return generator


def is_dense(node: Any) -> bool:
    """Whether every tensor of a tree is stored row by row."""
    if isinstance(node, dict):
        return all(is_dense(value) for value in node.values())
    if isinstance(node, list | tuple):
        return all(is_dense(value) for value in node)
    return not isinstance(node, Tensor) or node.is_contiguous()


def dense(node: Any) -> Any:
    """The tree with every tensor stored row by row, as :func:`load_tree` gives it back."""
    if isinstance(node, dict):
        return {key: dense(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [dense(value) for value in node]
    return node.contiguous() if isinstance(node, Tensor) else node
