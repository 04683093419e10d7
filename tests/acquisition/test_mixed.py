"""Columns of mixed spaces: snapping, neighbours, alternating search."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seqbdl.acquisition.ascent import ascend, evaluate_in_chunks
from seqbdl.acquisition.mixed import Columns, alternate
from seqbdl.errors import InvalidOptionError


def box(low: list[float], high: list[float]) -> Tensor:
    return torch.tensor([low, high], dtype=torch.float64)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=3, max_size=3))
def test_snapping_gives_allowed_points_and_keeps_them(unit: list[float]) -> None:
    columns = Columns(box([0, 0, 0], [1, 9, 3]), {1: [0, 2, 9]}, {2: [0, 1, 2, 3]})
    x = torch.tensor(unit, dtype=torch.float64) * torch.tensor([1.0, 9.0, 3.0], dtype=torch.float64)
    snapped = columns.snap(x)
    assert snapped[0] == x[0]
    assert float(snapped[1]) in (0, 2, 9)
    assert float(snapped[1]) == min((0.0, 2.0, 9.0), key=lambda v: abs(v - float(x[1])))
    assert float(snapped[2]) in (0, 1, 2, 3)
    assert torch.equal(columns.snap(snapped), snapped)


def test_categories_are_hit_equally_often() -> None:
    columns = Columns(box([0], [3]), categorical={0: [0, 1, 2, 3]})
    spread = torch.linspace(0, 3, 4001, dtype=torch.float64).unsqueeze(-1)[1:-1]
    counts = torch.bincount(columns.snap(spread).flatten().long(), minlength=4)
    assert int(counts.max() - counts.min()) <= 4


def test_neighbours_differ_in_one_discrete_entry() -> None:
    columns = Columns(box([0, 0, 0], [1, 2, 3]), {1: [0, 1, 2]}, {2: [0, 1, 2, 3]})
    x = torch.tensor([[0.5, 1.0, 3.0], [0.1, 0.0, 2.0]], dtype=torch.float64)
    found = columns.neighbours(x)
    assert found.shape == (2 * (2 + 3), 2, 3)
    assert bool(((found != x).flatten(1).sum(-1) == 1).all())
    assert columns.neighbours(x, frozenset({1, 2})).shape[0] == 0


def test_long_integer_columns_have_few_neighbours_yet_reach_their_ends() -> None:
    columns = Columns(box([0], [999]), {0: list(range(1000))})

    def value(X: Tensor, rows: Tensor) -> Tensor:
        return -(X[:, 0, 0] - 613).abs()

    X, values = alternate(value, torch.tensor([[[5.0]]], dtype=torch.float64), columns, rounds=200)
    assert float(X) == 613
    assert float(values) == 0
    assert columns.neighbours(X[0]).shape[0] <= 8


def test_every_row_climbs_its_own_function() -> None:
    """Rows are told apart by ``rows`` even while some have already converged."""
    targets = torch.tensor([0.1, 0.5, 0.9, 0.3], dtype=torch.float64)

    def value(X: Tensor, rows: Tensor) -> Tensor:
        return -(10.0 ** rows.double()) * (X[:, 0, 0] - targets[rows]).square()

    X, _ = ascend(value, torch.full((4, 1, 1), 0.7, dtype=torch.float64), box([0], [1]))
    assert torch.allclose(X.flatten(), targets, atol=1e-4)


def test_ascent_stays_in_the_box_moves_only_free_columns_and_never_descends() -> None:
    def value(X: Tensor, rows: Tensor) -> Tensor:
        return X.sum(dim=(-1, -2)) + torch.sin(30 * X[..., 0]).sum(-1)

    start = torch.rand(6, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    X, values = ascend(value, start, box([0, 0], [1, 1]), free=[1])
    assert torch.equal(X[..., 0], start[..., 0])
    assert torch.allclose(X[..., 1], torch.ones(6, 2, dtype=torch.float64))
    assert bool((values >= value(start, torch.arange(6))).all())
    with torch.no_grad():
        again, _ = ascend(value, start, box([0, 0], [1, 1]), free=[1])
    assert torch.equal(again, X)


def test_flat_and_broken_functions_leave_the_start() -> None:
    start = torch.full((2, 1, 1), 0.4, dtype=torch.float64)
    flat, _ = ascend(lambda X, rows: X.new_ones(X.shape[0]), start, box([0], [1]))
    assert torch.equal(flat, start)
    broken, values = ascend(lambda X, rows: X[:, 0, 0] * torch.nan, start, box([0], [1]))
    assert torch.equal(broken, start)
    assert bool((values == -torch.inf).all())
    assert evaluate_in_chunks(lambda X, rows: X[:, 0, 0], start[:0]).shape == (0,)


def test_columns_out_of_range_are_named() -> None:
    with pytest.raises(InvalidOptionError, match="columns are 0 to 0"):
        Columns(box([0], [1]), {3: [0, 1]})
    with pytest.raises(InvalidOptionError, match="2 x d"):
        Columns(torch.zeros(3))
