"""Spaces: validation that names the mistake, and coordinates that go there and back."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from seqbdl.errors import InvalidSpaceError, ShapeError
from seqbdl.loops import Categorical, Integer, Ordinal, Parameter, Real, Space

names = st.text("abcdefgh_ °µ", min_size=1, max_size=6).filter(str.strip)
finite = st.floats(-1e6, 1e6, allow_nan=False)


@st.composite
def reals(draw: st.DrawFn, name: str) -> Real:
    log = draw(st.booleans())
    low = draw(st.floats(1e-6, 1e3) if log else finite)
    high = low + draw(st.floats(1e-2, 1e4))
    step = draw(st.none() | st.floats(0.02, 1.0).map(lambda share: share * (high - low)))
    return Real(name, low, high, log=log, step=step, unit=draw(st.sampled_from(["", "K", "mol/L"])))


@st.composite
def integers(draw: st.DrawFn, name: str) -> Integer:
    log = draw(st.booleans())
    low = draw(st.integers(1 if log else -1000, 1000))
    return Integer(name, low, low + draw(st.integers(1, 5000)), log=log)


choices = st.lists(st.text(max_size=4) | st.integers(-5, 5) | st.booleans(), min_size=2, max_size=6).map(
    lambda values: list({(type(v), v): v for v in values}.values())
)


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    unique = draw(st.lists(names, min_size=1, max_size=5, unique=True))
    parameters: list[Parameter] = []
    for name in unique:
        kind = draw(st.sampled_from(["real", "integer", "categorical", "ordinal"]))
        if kind == "real":
            parameters.append(draw(reals(name)))
        elif kind == "integer":
            parameters.append(draw(integers(name)))
        else:
            values = draw(choices.filter(lambda v: len(v) > 1))
            parameters.append(Categorical(name, values) if kind == "categorical" else Ordinal(name, values))
    return Space(parameters)


def close(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-6)
    return type(a) is type(b) and a == b


@settings(max_examples=150, deadline=None)
@example(Space([Real("fine and far", 1e5, 1e5 + 2**-6, step=2**-11)]), 0)
@given(spaces(), st.integers(0, 2**31 - 1))
def test_points_go_to_the_cube_and_back(space: Space, seed: int) -> None:
    points = space.sample(4, seed) + space.random(4, torch.Generator().manual_seed(seed))
    X = space.encode(points)
    assert X.shape == (8, space.dim)
    assert X.dtype == torch.double
    assert float(X.min()) >= -1e-12
    assert float(X.max()) <= 1 + 1e-12
    for point, back in zip(points, space.decode(X), strict=True):
        assert space.contains(point)
        assert all(close(point[name], back[name]) for name in space.names)
        assert space.key(point) == space.key(space.point(list(point.values())))
    for i, levels in space.discrete_dims.items():
        here = space.to_search(points)[:, i : i + 1]
        assert float((here - torch.tensor(levels, dtype=torch.double)).abs().amin(dim=1).max()) < 1e-9


def test_an_upper_end_off_the_grid_is_no_point() -> None:
    real = Real("x", 0.0, 1.0, step=0.6)
    assert [real.contains(value) for value in (0.0, 0.6, 1.0)] == [True, True, False]


@settings(max_examples=150, deadline=None)
@given(spaces(), st.data())
def test_any_vector_is_snapped_to_a_valid_point(space: Space, data: st.DataObject) -> None:
    X = torch.tensor([data.draw(st.lists(st.floats(0, 1), min_size=space.dim, max_size=space.dim))], dtype=torch.double)
    point = space.decode(X)[0]
    assert space.contains(point)
    again = space.decode(space.encode([point]))[0]
    assert all(close(point[name], again[name]) for name in space.names)


@settings(max_examples=100, deadline=None)
@given(spaces())
def test_json_round_trip(space: Space) -> None:
    assert Space.from_json(space.to_json()) == space


@settings(max_examples=60, deadline=None)
@given(spaces(), st.integers(0, 1000))
def test_sobol_designs_repeat_and_continue(space: Space, seed: int) -> None:
    whole = space.sample(6, seed)
    assert whole == space.sample(6, seed)
    assert whole == space.sample(2, seed) + space.sample(4, seed, skip=2)


def test_search_to_model_is_differentiable_and_one_hot() -> None:
    space = Space([Real("x", 0, 1), Categorical("c", ["a", "b", "c"]), Integer("n", 1, 4)])
    Xs = torch.tensor([[[0.3, 2.0, 1 / 3]]], dtype=torch.double, requires_grad=True)
    X = space.search_to_model(Xs)
    torch.testing.assert_close(X, torch.tensor([[[0.3, 0.0, 0.0, 1.0, 1 / 3]]], dtype=torch.double))
    X.sum().backward()
    assert Xs.grad is not None
    torch.testing.assert_close(Xs.grad, torch.tensor([[[1.0, 0.0, 1.0]]], dtype=torch.double))
    assert space.cat_dims == {1: [0.0, 1.0, 2.0]}
    torch.testing.assert_close(space.search_bounds[1], torch.tensor([1.0, 2.0, 1.0], dtype=torch.double))


def test_log_scale_is_logarithmic() -> None:
    space = Space([Real("rate", 1e-5, 1e-1, log=True)])
    torch.testing.assert_close(space.encode([{"rate": 1e-3}]), torch.tensor([[0.5]], dtype=torch.double))
    assert space.decode(torch.tensor([[1.0]])) == [{"rate": 1e-1}]


def test_steps_are_values_that_can_be_weighed() -> None:
    weight = Real("mass", 0.1, 0.75, step=0.2)
    space = Space([weight])
    assert weight.levels == 4
    assert [space.table_point(i)["mass"] for i in range(4)] == [0.1, 0.3, 0.5, 0.7]
    assert not space.contains({"mass": 0.4})
    assert space.decode(torch.tensor([[1.0]])) == [{"mass": 0.7}]


def test_every_integer_is_drawn_equally_often() -> None:
    space = Space([Integer("n", 1, 4)])
    drawn = [point["n"] for point in space.sample(400, seed=1)]
    assert sorted(set(drawn)) == [1, 2, 3, 4]
    assert all(abs(drawn.count(k) - 100) <= 3 for k in (1, 2, 3, 4))


def test_table_of_a_finite_space_holds_every_point_once() -> None:
    space = Space([Integer("n", 0, 2), Categorical("c", ["a", "b"]), Ordinal("t", [20, 40, 80, 100])])
    assert space.cardinality == 24
    points = [space.table_point(row) for row in range(24)]
    assert len({space.key(point) for point in points}) == 24
    assert torch.equal(space.table(), space.encode(points))
    assert space.table_rows([space.key(points[5]), space.key(points[2])]) == [2, 5]
    assert Space([Real("x", 0, 1), Integer("n", 0, 1)]).cardinality is None
    assert not Space([Integer("n", 0, 10**6)]).enumerable


def test_told_points_may_lie_outside() -> None:
    space = Space([Real("x", 0, 1), Integer("n", 0, 5)])
    assert space.point({"x": 1.5, "n": 7, "operator": "Ada"}) == {"x": 1.5, "n": 7}
    assert not space.contains({"x": 1.5, "n": 3})
    assert float(space.encode([{"x": 1.5, "n": 5}])[0, 0]) == 1.5


def test_numpy_values_are_taken() -> None:
    space = Space([Real("x", 0, 1), Integer("n", 0, 5), Categorical("c", np.array(["a", "b"]))])
    point = space.point({"x": np.float64(0.5), "n": np.int64(2), "c": np.str_("b")})
    assert point == {"x": 0.5, "n": 2, "c": "b"}
    assert [type(value) for value in point.values()] == [float, int, str]


def test_true_and_one_are_two_choices() -> None:
    space = Space([Categorical("c", [True, 1, "1"])])
    torch.testing.assert_close(space.encode([{"c": True}, {"c": 1}, {"c": "1"}]), torch.eye(3, dtype=torch.double))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Space([]), "at least one parameter"),
        (lambda: Space([Real("x", 0, 1), Integer("x", 0, 1)]), "two parameters are called 'x'"),
        (lambda: Space(["x"]), "use Real, Integer, Categorical or Ordinal"),
        (lambda: Real("x", 1, 0), "'x': low=1 is not below high=0"),
        (lambda: Real("x", 1, 1), "leave a constant out"),
        (lambda: Real("x", 0, float("inf")), "high=inf is not a finite number"),
        (lambda: Real("x", float("nan"), 1), "low=nan"),
        (lambda: Real("x", "0", 1), "low='0'"),
        (lambda: Real("x", 0, 1, log=True), "log scale needs low > 0"),
        (lambda: Real("x", 0, 1, step=2), "step=2"),
        (lambda: Real("x", 0, 1, step=0), "step=0"),
        (lambda: Real("", 0, 1), "non-empty string"),
        (lambda: Integer("n", 0.5, 3), "not a whole number"),
        (lambda: Integer("n", 3, 3), "'n'"),
        (lambda: Integer("n", 0, 3, log=True), "log scale"),
        (lambda: Categorical("c", ["a"]), "at least two"),
        (lambda: Categorical("c", ["a", "b", "a"]), "'a' occurs twice"),
        (lambda: Categorical("c", "ab"), "must be a list"),
        (lambda: Categorical("c", [{}, "a"]), "is a dict"),
        (lambda: Ordinal("t", [1, 2, 2]), "2 occurs twice"),
        (lambda: Ordinal("t", [1.0, float("nan")]), "must be finite"),
        (lambda: Space.from_dict({"parameters": [{"type": "fuzzy", "name": "x"}]}), "'fuzzy' is unknown"),
        (lambda: Space.from_dict({"parameters": [{"type": "real", "name": "x", "lo": 1}]}), "'x' of type 'real'"),
        (lambda: Space.from_dict({}), "'parameters'"),
        (lambda: Space.from_json("{"), "not JSON"),
    ],
)
def test_mistakes_are_named(make: Any, message: str) -> None:
    with pytest.raises(InvalidSpaceError, match=message):
        make()


@pytest.mark.parametrize(
    ("point", "error", "message"),
    [
        ({"x": 0.5}, InvalidSpaceError, "lacks 'c'"),
        ({"x": 0.5, "c": "z"}, InvalidSpaceError, "'z' is not one of its values; they are 'a', 'b'"),
        ({"x": float("nan"), "c": "a"}, InvalidSpaceError, "nan is not a finite number"),
        ({"x": "0.5", "c": "a"}, InvalidSpaceError, "'x'"),
        ([0.5], ShapeError, "has 1 values, the space has 2"),
        (None, InvalidSpaceError, "mapping from name to value"),
    ],
)
def test_bad_points_are_refused(point: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Space([Real("x", 0, 1), Categorical("c", ["a", "b"])]).point(point)


def test_decode_checks_its_columns() -> None:
    with pytest.raises(ShapeError, match="n x 2"):
        Space([Real("x", 0, 1), Real("y", 0, 1)]).decode(torch.zeros(3, 1))
