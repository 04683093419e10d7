"""Objectives and constraints in one number."""

from __future__ import annotations

import torch

from seqbdl.acquisition.scores import Scorer, feasible_first, violation, with_optional_inputs


def test_every_infeasible_sample_ranks_below_every_feasible_one() -> None:
    values = torch.tensor([-5.0, 100.0, 3.0, 50.0])
    excess = torch.tensor([0.0, 0.1, 0.0, 2.0])
    order = feasible_first(values, excess).argsort(descending=True)
    assert order.tolist() == [2, 0, 1, 3]
    assert torch.equal(feasible_first(values, None), values)


def test_violations_add_up_and_feasible_ones_count_nothing() -> None:
    samples = torch.tensor([[1.0, -2.0], [0.5, 0.25]])
    total = violation(samples, [lambda Y: Y[..., 0], lambda Y: Y[..., 1]])
    assert total is not None
    assert total.tolist() == [1.0, 0.75]
    assert violation(samples, None) is None


def test_a_scorer_reads_indices_and_callables() -> None:
    samples = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    X = torch.tensor([[10.0], [20.0]])
    assert Scorer(2, 1).value(samples).tolist() == [[2.0, 4.0]]
    assert Scorer(1).value(samples[..., :1]).tolist() == [[1.0, 3.0]]
    assert Scorer(2, lambda Y, X: Y[..., 0] + X[..., 0]).value(samples, X).tolist() == [[11.0, 23.0]]
    limited = Scorer(2, 0, [lambda Y: Y[..., 1] - 3.0])
    assert limited.constrained
    assert limited.penalized(samples, X, 10.0).tolist() == [[1.0, -7.0]]
    assert limited.ranked(samples).argmax(dim=-1).tolist() == [0]


def test_callables_with_and_without_inputs() -> None:
    samples, X = torch.ones(2), torch.full((2,), 3.0)
    assert torch.equal(with_optional_inputs(lambda Y: 2 * Y)(samples, X), 2 * samples)
    assert torch.equal(with_optional_inputs(lambda Y, X=None: Y + X)(samples, X), samples + X)
    assert torch.equal(with_optional_inputs(torch.neg)(samples, X), -samples)
