"""What every selection respects: rules are checked, and nothing forbidden is picked."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqbdl.acquisition.batches.batch import Batch, BatchStatus, Picking, pool_rules
from seqbdl.errors import InvalidDataError, InvalidOptionError, ShapeError


def test_rules_hold_what_may_be_chosen() -> None:
    rules = pool_rules(6, 2, pending=[1], exclude=torch.tensor([0, 5]))
    assert rules.allowed.tolist() == [False, False, True, True, True, False]
    assert rules.pending.tolist() == [1]
    masked = pool_rules(6, 2, pending=[1], exclude=torch.tensor([True, False, False, False, False, True]))
    assert masked.allowed.tolist() == rules.allowed.tolist()
    assert pool_rules(3, 3).allowed.tolist() == [True] * 3


def test_bad_rules_are_refused() -> None:
    with pytest.raises(InvalidDataError, match="exclude holds index 2 2 times"):
        pool_rules(6, 1, exclude=[2, 3, 2])
    with pytest.raises(InvalidDataError, match="pending holds index 1 3 times"):
        pool_rules(6, 1, pending=[1, 1, 1])
    with pytest.raises(InvalidDataError, match="index 4 is in pending and in exclude"):
        pool_rules(6, 1, pending=[4], exclude=[4])
    with pytest.raises(InvalidDataError, match=r"exclude\[1\] is 6; the pool's indices are 0 to 5"):
        pool_rules(6, 1, exclude=[0, 6])
    with pytest.raises(InvalidDataError, match="is -1"):
        pool_rules(6, 1, pending=[-1])
    with pytest.raises(ShapeError, match="whole numbers"):
        pool_rules(6, 1, exclude=torch.tensor([0.5]))
    with pytest.raises(ShapeError, match="each of 6 points"):
        pool_rules(6, 1, exclude=torch.tensor([True, False]))
    with pytest.raises(InvalidOptionError, match="batch_size=4, but 3 of 6"):
        pool_rules(6, 4, pending=[0], exclude=[1, 2])
    with pytest.raises(InvalidOptionError, match="batch_size=0"):
        pool_rules(6, 0)
    with pytest.raises(InvalidDataError, match="cost is zero or negative at point 1"):
        pool_rules(2, 1, cost=torch.tensor([1.0, 0.0]))
    with pytest.raises(ShapeError, match="vector of 2 entries"):
        pool_rules(2, 1, cost=torch.ones(3))


@settings(deadline=None, derandomize=True, max_examples=25)
@given(
    st.lists(st.tuples(st.floats(-5, 5), st.floats(0.1, 10)), min_size=1, max_size=8),
    st.floats(1.01, 5),
)
def test_costs_never_make_a_point_look_better(points: list[tuple[float, float]], factor: float) -> None:
    values = torch.tensor([value for value, _ in points], dtype=torch.float64)
    cost = torch.tensor([price for _, price in points], dtype=torch.float64)
    cheap = pool_rules(len(points), 1, cost=cost).per_cost(values)
    dear = pool_rules(len(points), 1, cost=cost * factor).per_cost(values)
    assert bool((dear <= cheap).all())
    assert bool(((cheap > 0) == (values > 0)).all())


def test_picking_takes_the_first_of_equals_and_refuses_nan() -> None:
    rules = pool_rules(4, 2, exclude=[0])
    picking = Picking(rules)
    assert picking.best(torch.tensor([9.0, 1.0, 1.0, 0.0], dtype=torch.float64)) == 1
    picking.take(1, 1.0)
    assert picking.best(torch.tensor([9.0, 1.0, 1.0, 0.0], dtype=torch.float64)) == 2
    nan = torch.tensor([torch.nan, torch.nan, 1.0, torch.nan], dtype=torch.float64)
    with pytest.raises(InvalidDataError, match="NaN at point 3"):
        picking.best(nan)
    picking.take(2, 0.5)
    assert picking.done
    batch = picking.batch(joint=True)
    assert batch.scores.tolist() == [1.0, 1.5]
    assert picking.batch(joint=False).scores.tolist() == [1.0, 0.5]
    assert len(batch) == 2


def test_a_status_says_what_a_person_should_know() -> None:
    assert str(BatchStatus()) == "ok"
    assert BatchStatus().ok
    assert not BatchStatus(saturated=True).ok
    assert not BatchStatus(random_picks=1).ok
    empty = torch.empty(0)
    assert Batch(empty.long(), empty, empty).status.ok
