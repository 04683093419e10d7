"""A surrogate that was saved and loaded answers the same to the last bit, however its tensors were stored."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import seqbdl
from seqbdl.serialization import dense, is_dense


@pytest.mark.parametrize("name", seqbdl.list_surrogates())
def test_loaded_surrogates_agree_to_the_last_bit(name: str, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    X = torch.rand(12, 6, dtype=torch.float64, generator=generator)[:, ::2]  # not stored row by row
    Y = torch.sin(5 * X.sum(-1, keepdim=True))
    surrogate = seqbdl.make_surrogate(name, 3, seed=0).fit(X, Y)
    assert is_dense(surrogate.save_state()["method"])
    surrogate.update(X[:2] + 0.1, Y[:2])
    seqbdl.save(tmp_path / "s.seqbdl", surrogate)
    loaded = seqbdl.load(tmp_path / "s.seqbdl")
    X_test = torch.rand(20, 2, 3, dtype=torch.float64, generator=generator)
    ours, theirs = surrogate.posterior(X_test), loaded.posterior(X_test)
    assert torch.equal(ours.mean, theirs.mean)
    assert torch.equal(ours.variance, theirs.variance)


def test_dense_keeps_values_and_structure() -> None:
    tree = {"a": torch.arange(6.0).reshape(2, 3).T, "b": [torch.ones(2), None, 3], "c": "x"}
    laid_out = dense(tree)
    assert not is_dense(tree)
    assert is_dense(laid_out)
    assert torch.equal(laid_out["a"], tree["a"])
    assert laid_out["b"][1:] == [None, 3]
