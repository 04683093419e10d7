"""Pools of every kind give the same matrix, and what is no pool is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch.utils.data import DataLoader, TensorDataset

from seqbdl.errors import InvalidDataError, InvalidOptionError, InvalidSpaceError, ShapeError
from seqbdl.loops import LabelPool

X = torch.arange(24.0, dtype=torch.float64).reshape(6, 2, 2)
FLAT = X.flatten(1)
LABELS = torch.arange(6)


class Items(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Any:
        return X[index], LABELS[index]


@pytest.mark.parametrize(
    "items",
    [
        X,
        X.float(),
        X.numpy(),
        X.tolist(),
        list(X),
        TensorDataset(X, LABELS),
        Items(),
        DataLoader(Items(), batch_size=4),
        DataLoader(TensorDataset(X), batch_size=5),
    ],
    ids=lambda items: type(items).__name__,
)
def test_kinds_of_pools(items: Any) -> None:
    pool = LabelPool(items)
    assert torch.equal(pool.X, FLAT)
    assert pool.shape == (2, 2)
    assert len(pool) == 6
    assert pool.dim == 4
    assert torch.equal(pool.inputs(X[:2]), FLAT[:2])


def test_a_data_frame() -> None:
    pool = LabelPool(pd.DataFrame({"a": [1, 2], "b": [0.5, 1.5]}))
    assert pool.X.tolist() == [[1.0, 0.5], [2.0, 1.5]]


def test_texts_with_a_feature_function() -> None:
    calls = []

    def encode(texts: list[str]) -> np.ndarray:
        calls.append(len(texts))
        return np.array([[len(text), text.count("a")] for text in texts])

    texts = ["banana", "fig"] * 150
    pool = LabelPool(texts, encode)
    assert pool.X[:2].tolist() == [[6.0, 3.0], [3.0, 0.0]]
    assert calls == [256, 44]  # in slices
    assert pool.inputs(["aa"]).tolist() == [[2.0, 2.0]]


def test_features_of_a_network_carry_no_gradient() -> None:
    pool = LabelPool(DataLoader(Items(), batch_size=4), torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3)).double())
    assert pool.X.shape == (6, 3)
    assert not pool.X.requires_grad


def test_bounds_are_per_column_of_tables_and_common_of_images() -> None:
    table = torch.tensor([[0.0, 5.0], [1.0, 5.0]], dtype=torch.float64)
    assert LabelPool(table).bounds.tolist() == [[0.0, 5.0], [1.0, 6.0]]  # a constant column has a range too
    assert LabelPool(X).bounds.tolist() == [[0.0] * 4, [23.0] * 4]


@pytest.mark.parametrize(
    ("items", "error", "text"),
    [
        (torch.zeros(3), ShapeError, "N x"),
        (torch.zeros(0, 2), ShapeError, "N x"),
        (torch.tensor([[0.0], [float("nan")]]), InvalidDataError, "in row 1"),
        (["a", "b"], InvalidOptionError, "give features="),
        ("text", InvalidOptionError, "give features="),
        (pd.DataFrame({"a": ["x", "y"]}), InvalidDataError, "encode it"),
        (DataLoader(Items(), shuffle=True), InvalidOptionError, "shuffle=False"),
        (5, InvalidOptionError, "pool is a int"),
    ],
)
def test_what_is_no_pool_is_refused(items: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        LabelPool(items)


def test_other_items_must_look_like_the_pool() -> None:
    with pytest.raises(ShapeError, match=r"shape \(3,\), those of the pool \(2, 2\)"):
        LabelPool(X).inputs(torch.zeros(1, 3))


@given(arrays.arrays(np.float64, arrays.array_shapes(min_dims=2, max_dims=4, max_side=4), elements=st.floats(-9, 9)))
@settings(max_examples=40, deadline=None)
def test_rows_are_flattened_whatever_their_shape(items: np.ndarray) -> None:
    pool = LabelPool(items)
    assert np.array_equal(pool.X.numpy(), items.reshape(len(items), -1))
    assert bool((pool.bounds[0] <= pool.X).all())
    assert bool((pool.bounds[1] >= pool.X).all())
    assert bool((pool.bounds[1] > pool.bounds[0]).all())


@pytest.mark.parametrize(("point", "index"), [(2, 2), (np.int64(2), 2), (torch.tensor(2), 2), ({"index": 2}, 2)])
def test_indices(point: Any, index: int) -> None:
    assert LabelPool(X).to_action(point) == index
    assert type(LabelPool(X).to_action(point)) is int


@pytest.mark.parametrize("point", [6, -1, 1.0, "1", None, {"x": 1}, True])
def test_what_is_no_index(point: Any) -> None:
    with pytest.raises(InvalidSpaceError, match="index"):
        LabelPool(X).to_action(point)
