"""Inner coordinates: the unit cube by bounds, or the moments of the uniform distribution on it."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from seqbdl.surrogates.scaling import Scaling


def _uniform(n: int, d: int) -> torch.Tensor:
    return torch.rand(n, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_bounds_map_to_the_unit_cube() -> None:
    X, bounds = 10 * _uniform(20, 2) - 3, torch.tensor([[-3.0, -5.0], [7.0, 9.0]], dtype=torch.float64)
    inner = Scaling.learn(X, X[:, :1], bounds).inputs(bounds)
    torch.testing.assert_close(inner, torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64))


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_without_bounds_the_moments_are_those_of_the_unit_cube(shift: float, scale: float) -> None:
    X = shift + scale * _uniform(30, 3).log()  # skewed
    inner = Scaling.learn(X, X[:, :1], None).inputs(X)
    torch.testing.assert_close(inner.mean(0), torch.full((3,), 0.5, dtype=torch.float64), rtol=0, atol=1e-6)
    torch.testing.assert_close(inner.std(0, correction=0), torch.full((3,), math.sqrt(1 / 12)).double(), rtol=1e-6, atol=0)


def test_far_rows_do_not_press_the_others_together() -> None:
    X = _uniform(100, 1)
    X[:3] = 30.0
    inner = Scaling.learn(X, X, None).inputs(X)[3:]
    by_range = (X[3:] / 30.0).std()
    assert float(inner.std()) > 1.5 * float(by_range)


def test_constant_columns_keep_their_scale() -> None:
    X = _uniform(5, 3)
    X[:, 1], X[:, 2] = 4.0, 0.1 + 0.2  # sums that round
    scaling = Scaling.learn(X, X[:, :1], None)
    assert scaling.x_scale[1:].tolist() == [1.0, 1.0]
    assert Scaling.learn(X[:1], X[:1, :1], torch.stack([torch.zeros(3), torch.ones(3)])).inputs(X[:1]).isfinite().all()
    assert Scaling.learn(X[:1], X[:1, :1], None).inputs(X[:1]).eq(0.5).all()
