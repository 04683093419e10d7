"""Batches that spread out: against plain loops over explicit distances, and the law of what is sampled."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from seqbdl.acquisition.batches import Batch, badge, distances, k_centre, kmeans_plus_plus, lcmd
from seqbdl.acquisition.batches.distances import label_residuals
from seqbdl.errors import InvalidOptionError, ShapeError, UnknownNameError

METHODS: list[Callable[..., Batch]] = [k_centre, kmeans_plus_plus, lcmd]


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=gen(seed), dtype=torch.float64)


def plain_k_centre(rows: Tensor, centres: Tensor, q: int, open_: list[int], cost: Tensor) -> list[int]:
    known, picks = list(centres), []
    for _ in range(q):
        value = {
            i: min((float((rows[i] - c).norm()) for c in known), default=float(rows[i].norm())) / float(cost[i]) for i in open_
        }
        picks.append(max((i for i in open_ if i not in picks), key=lambda i: value[i]))
        known.append(rows[picks[-1]])
    return picks


def plain_lcmd(rows: Tensor, centres: Tensor, q: int, open_: list[int]) -> list[int]:
    known, picks = list(centres), []
    for _ in range(q):
        left = [i for i in open_ if i not in picks]
        if not known:
            picks.append(max(left, key=lambda i: float(rows[i].norm())))
        else:
            squared = {i: [float((rows[i] - c).square().sum()) for c in known] for i in left}
            nearest = {i: min(range(len(known)), key=lambda c: squared[i][c]) for i in left}
            sums = [sum(min(squared[i]) for i in left if nearest[i] == c) for c in range(len(known))]
            largest = max(range(len(known)), key=lambda c: sums[c])
            picks.append(max((i for i in left if nearest[i] == largest), key=lambda i: min(squared[i])))
        known.append(rows[picks[-1]])
    return picks


@pytest.mark.parametrize("num_centres", [0, 5])
@pytest.mark.parametrize("seed", range(4))
def test_farthest_first_is_the_plain_loop(num_centres: int, seed: int) -> None:
    rows, centres = normal(25, 3, seed=seed), normal(num_centres, 3, seed=seed + 50)
    cost = 0.5 + torch.rand(25, generator=gen(seed), dtype=torch.float64)
    given = centres if num_centres else None
    open_ = [i for i in range(25) if i not in (2, 9, 4)]
    with_pending = torch.cat([centres, rows[[4]]])
    batch = k_centre(rows, 6, gen(), centres=given, exclude=[2, 9], pending=[4], cost=cost)
    assert batch.indices.tolist() == plain_k_centre(rows, with_pending, 6, open_, cost)
    assert k_centre(rows, 6, gen(), centres=given).indices.tolist() == plain_k_centre(
        rows, centres, 6, list(range(25)), torch.ones(25)
    )


@pytest.mark.parametrize("num_centres", [0, 5])
@pytest.mark.parametrize("seed", range(4))
def test_largest_cluster_is_the_plain_loop(num_centres: int, seed: int) -> None:
    rows, centres = normal(25, 3, seed=seed), normal(num_centres, 3, seed=seed + 50)
    given = centres if num_centres else None
    assert lcmd(rows, 8, gen(), centres=given).indices.tolist() == plain_lcmd(rows, centres, 8, list(range(25)))
    open_ = [i for i in range(25) if i not in (2, 9, 4)]
    batch = lcmd(rows, 6, gen(), centres=given, exclude=[2, 9], pending=[4])
    assert batch.indices.tolist() == plain_lcmd(rows, torch.cat([centres, rows[[4]]]), 6, open_)


def test_increments_are_distances() -> None:
    rows, centres = normal(12, 3), normal(2, 3, seed=1)
    for method in METHODS:
        batch = method(rows, 4, gen(), centres=centres)
        known = centres
        for pick, increment in zip(batch.indices.tolist(), batch.increments.tolist(), strict=True):
            assert increment == pytest.approx(float((rows[pick] - known).norm(dim=-1).min()), abs=1e-7)
            known = torch.cat([known, rows[[pick]]])


def test_blocks_of_centres_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, centres = normal(20, 3), normal(11, 3, seed=1)
    whole = lcmd(rows, 5, gen(), centres=centres).indices.tolist()
    monkeypatch.setattr(distances, "VALUES_AT_ONCE", 100)
    assert lcmd(rows, 5, gen(), centres=centres).indices.tolist() == whole


@pytest.mark.parametrize("priced", [False, True])
def test_the_second_centre_is_sampled_by_squared_distance(priced: bool) -> None:
    rows = torch.tensor([[3.0], [0.0], [1.0], [2.5], [2.0]], dtype=torch.float64)
    cost = torch.tensor([1.0, 2.0, 1.0, 0.5, 1.0], dtype=torch.float64)
    weights = (rows - rows[0]).square().squeeze(-1) / (cost if priced else 1.0)
    weights[4] = 0.0  # excluded
    expected = weights / weights.sum()
    generator, runs = gen(), 600
    counts = torch.zeros(5, dtype=torch.float64)
    for _ in range(runs):
        batch = kmeans_plus_plus(rows, 2, generator, exclude=[4], cost=cost if priced else None)
        assert int(batch.indices[0]) == (3 if priced else 0)  # the largest norm for its cost
        counts[batch.indices[1]] += 1
    if priced:
        weights = (rows - rows[3]).square().squeeze(-1) / cost
        weights[4] = 0.0
        expected = weights / weights.sum()
    error = 4.5 * (expected * (1 - expected) / runs).sqrt()
    assert bool(((counts / runs - expected).abs() <= error).all())


def test_the_first_pick_is_an_option() -> None:
    rows = torch.tensor([[1.0], [2.0], [5.0], [-4.0]], dtype=torch.float64)
    firsts = [int(kmeans_plus_plus(rows, 1, gen(i), first="uniform").indices[0]) for i in range(400)]
    counts = torch.bincount(torch.tensor(firsts), minlength=4).double() / 400
    assert bool(((counts - 0.25).abs() < 4 * math.sqrt(0.25 * 0.75 / 400)).all())
    assert {int(kmeans_plus_plus(rows, 1, gen(i)).indices[0]) for i in range(20)} == {2}
    with pytest.raises(UnknownNameError, match="largest-norm, uniform"):
        kmeans_plus_plus(rows, 1, gen(), first="largest")


def test_badge_is_k_means_on_gradients_that_are_never_formed() -> None:
    log_probs, hidden = normal(7, 30, 4).log_softmax(-1), normal(30, 6, seed=1)
    p = log_probs.exp().mean(0)
    residual = p - torch.nn.functional.one_hot(p.argmax(-1), 4)
    assert torch.allclose(label_residuals(log_probs), residual, atol=1e-14)
    gradients = torch.einsum("if,ic->ifc", hidden, residual).flatten(1)
    for first in ("largest-norm", "uniform"):
        formed = kmeans_plus_plus(gradients, 8, gen(2), first=first, pending=[3], exclude=[4, 5])
        never = badge(log_probs, hidden, 8, gen(2), first=first, pending=[3], exclude=[4, 5])
        assert never.indices.tolist() == formed.indices.tolist()
    with pytest.raises(ShapeError, match="30 x D"):
        badge(log_probs, hidden[:5], 2, gen())


@pytest.mark.parametrize("method", METHODS)
def test_duplicates_are_filled_up_at_random_and_said_so(method: Any) -> None:
    rows = torch.tensor([[1.0, 0.1]] * 6 + [[2.0, 0.3]] * 3, dtype=torch.float64) * 1.1
    batch = method(rows, 5, gen())
    assert len(set(batch.indices.tolist())) == 5
    assert batch.status.random_picks == 3
    assert "at random" in str(batch.status)
    assert batch.increments[2:].tolist() == [0.0] * 3
    assert bool(batch.scores.isfinite().all())
    others = {tuple(method(rows, 5, gen(seed)).indices[2:].tolist()) for seed in range(8)}
    assert len(others) > 1


@pytest.mark.parametrize("method", METHODS)
def test_excluded_duplicates_do_not_hide_what_is_left(method: Any) -> None:
    rows = torch.tensor([[0.0], [0.0], [5.0], [7.0]], dtype=torch.float64)
    batch = method(rows, 2, gen(), centres=torch.zeros(1, 1, dtype=torch.float64), exclude=[3])
    assert int(batch.indices[0]) == 2
    assert batch.status.random_picks == 1


def test_a_generator_is_needed() -> None:
    with pytest.raises(InvalidOptionError, match="generator"):
        k_centre(normal(4, 2), 1, None)  # type: ignore[arg-type]
