"""Sketches keep inner products, and posterior features are those of the conditioned kernel."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from seqbdl.acquisition.batches import features, make_sketch, posterior_features
from seqbdl.acquisition.batches.features import evaluate_features, unit_scale
from seqbdl.errors import InvalidDataError, InvalidOptionError, ShapeError


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=gen(seed), dtype=torch.float64)


def test_sketches_keep_inner_products_in_expectation() -> None:
    rows = normal(2, 300)
    exact = rows @ rows.T
    runs, dim = 300, 64
    found = torch.stack([(s := make_sketch(300, dim, gen(seed))(rows)) @ s.T for seed in range(runs)])
    error = found.std(0) / math.sqrt(runs)
    assert bool(((found.mean(0) - exact).abs() < 4.5 * error + 1e-12).all())
    # The error of one sketch is that of a random projection, sqrt(2 / D) of the norm at most.
    norms = found[:, [0, 1], [0, 1]] / exact.diagonal()
    assert bool((norms.std(0) < 1.2 * math.sqrt(2 / dim)).all())


def test_a_sketch_is_linear_and_sparse() -> None:
    sketch = make_sketch(10, 32, gen())
    columns = sketch(torch.eye(10, dtype=torch.float64))
    assert torch.allclose(columns.square().sum(-1), torch.ones(10, dtype=torch.float64))  # every unit vector keeps its length
    assert (columns != 0).sum(-1).tolist() == [8] * 10
    rows = normal(4, 10)
    assert torch.allclose(sketch(rows), rows @ columns, atol=1e-14)
    with pytest.raises(ShapeError, match="N x 10"):
        sketch(normal(4, 9))
    with pytest.raises(InvalidOptionError, match="dim=4"):
        make_sketch(10, 4, gen())


def test_features_come_in_chunks_and_with_one_sketch(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = normal(3, 40)
    X = normal(9, 3, seed=1)
    plain, none = evaluate_features(lambda x: (x @ weights).tanh(), X, 64, gen())
    assert none is None
    assert torch.allclose(plain, (X @ weights).tanh())
    small, sketch = evaluate_features(lambda x: (x @ weights).tanh(), X, 16, gen())
    assert small.shape == (9, 16)
    monkeypatch.setattr(features, "VALUES_AT_ONCE", 80)
    again, same = evaluate_features(lambda x: (x @ weights).tanh(), X, 16, gen(5), sketch)
    assert same is sketch
    assert torch.allclose(again, small, atol=1e-13)


def test_rows_of_several_outputs_stand_side_by_side() -> None:
    rows, _ = evaluate_features(lambda x: x.repeat_interleave(2, dim=0), normal(5, 3), None, gen())
    assert rows.shape == (5, 6)
    with pytest.raises(ShapeError, match="a row for each input"):
        evaluate_features(lambda x: x.sum(), normal(5, 3), None, gen())


@pytest.mark.parametrize("num_train", [3, 20])
def test_posterior_features_are_those_of_the_conditioned_kernel(num_train: int) -> None:
    rows, train, noise = normal(7, 6), normal(num_train, 6, seed=1), 0.3
    phi = posterior_features(rows, train, noise)
    gain = torch.linalg.solve(train @ train.T + noise * torch.eye(num_train, dtype=torch.float64), train @ rows.T)
    assert torch.allclose(phi @ phi.T, rows @ rows.T - rows @ train.T @ gain, atol=1e-11)
    with pytest.raises(InvalidOptionError, match="noise=0"):
        posterior_features(rows, train, 0.0)


def test_the_scale_of_training_points() -> None:
    train = normal(20, 6)
    assert float((unit_scale(train) * train).square().sum(-1).mean()) == pytest.approx(1.0)
    with pytest.raises(InvalidDataError, match="zero at every row"):
        unit_scale(torch.zeros(3, 2))
