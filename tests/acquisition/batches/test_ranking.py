"""Batches from point scores: order, costs, and the distribution of samples."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqbdl.acquisition.batches import stochastic_batch, top_batch
from seqbdl.acquisition.batches.ranking import SAMPLINGS
from seqbdl.errors import InvalidDataError, InvalidOptionError, ShapeError, UnknownNameError


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


SCORES = torch.tensor([0.1, 0.7, 0.2, 0.4], dtype=torch.float64)


def test_top_is_a_sort() -> None:
    batch = top_batch(SCORES, 3)
    assert batch.indices.tolist() == [1, 3, 2]
    assert batch.scores.tolist() == batch.increments.tolist() == [0.7, 0.4, 0.2]
    assert top_batch(SCORES, 2, exclude=[1], pending=[3]).indices.tolist() == [2, 0]
    costs = torch.tensor([0.1, 10.0, 1.0, 1.0])
    priced = top_batch(SCORES, 2, cost=costs)
    assert priced.indices.tolist() == [0, 3]
    assert priced.scores.tolist() == [0.1, 0.4]  # before division by the cost
    assert top_batch(torch.zeros(3), 3).indices.tolist() == [0, 1, 2]


def probabilities_of_pairs(weights: list[float]) -> dict[tuple[int, int], float]:
    """Of the first two of a sample without replacement in proportion to weights."""
    total = sum(weights)
    pairs = itertools.permutations(range(len(weights)), 2)
    return {(i, j): weights[i] / total * weights[j] / (total - weights[i]) for i, j in pairs}


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_samples_have_the_probabilities_that_they_claim(sampling: str) -> None:
    beta, runs = 2.0, 1200
    ranks = {0: 4, 1: 1, 2: 3, 3: 2}
    weights = {
        "power": [float(s) ** beta for s in SCORES],
        "softmax": [math.exp(beta * float(s)) for s in SCORES],
        "soft-rank": [ranks[i] ** -beta for i in range(4)],
    }[sampling]
    generator = gen()
    counts: dict[tuple[int, int], int] = {}
    for _ in range(runs):
        first, second = stochastic_batch(SCORES, 2, generator, sampling=sampling, beta=beta).indices.tolist()
        counts[first, second] = counts.get((first, second), 0) + 1
    for pair, p in probabilities_of_pairs(weights).items():
        assert abs(counts.get(pair, 0) / runs - p) < 4.5 * math.sqrt(p * (1 - p) / runs) + 1 / runs, pair


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_extreme_beta(sampling: str) -> None:
    assert (
        stochastic_batch(SCORES, 4, gen(), sampling=sampling, beta=1e6).indices.tolist() == top_batch(SCORES, 4).indices.tolist()
    )
    firsts = [int(stochastic_batch(SCORES, 1, gen(i), sampling=sampling, beta=0.0).indices[0]) for i in range(400)]
    counts = torch.bincount(torch.tensor(firsts), minlength=4).double()
    assert bool(((counts / 400 - 0.25).abs() < 4 * math.sqrt(0.25 * 0.75 / 400)).all())


def test_power_never_samples_what_has_no_score() -> None:
    scores = torch.tensor([0.0, -1e-17, 0.5, 0.3], dtype=torch.float64)
    for seed in range(20):
        assert set(stochastic_batch(scores, 2, gen(seed)).indices.tolist()) == {2, 3}
    filled = stochastic_batch(scores, 3, gen())
    assert set(filled.indices[:2].tolist()) == {2, 3}
    assert filled.status.random_picks == 1
    assert "only 2 points have a positive score" in str(filled.status)


def test_costs_divide_the_weights() -> None:
    cost = torch.tensor([1.0, 1e9, 1.0, 1.0])
    picks = [int(stochastic_batch(SCORES, 1, gen(i), cost=cost).indices[0]) for i in range(50)]
    assert 1 not in picks


@settings(deadline=None, derandomize=True, max_examples=25)
@given(st.integers(1, 6), st.sampled_from([None, *SAMPLINGS]), st.integers(0, 10_000))
def test_rules_are_respected(q: int, sampling: str | None, seed: int) -> None:
    scores = torch.randn(12, generator=gen(seed), dtype=torch.float64)
    pending, exclude = [0, 4], [7, 11, 3]
    if sampling is None:
        batch = top_batch(scores, q, pending=pending, exclude=exclude)
    else:
        batch = stochastic_batch(scores, q, gen(seed), sampling=sampling, pending=pending, exclude=exclude)
    picks = batch.indices.tolist()
    assert len(set(picks)) == q
    assert not set(picks) & {*pending, *exclude}
    assert batch.scores.tolist() == scores[batch.indices].tolist()


def test_bad_input_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="unknown sampling 'powr'; the known ones are: power, softmax, soft-rank"):
        stochastic_batch(SCORES, 1, gen(), sampling="powr")
    with pytest.raises(InvalidOptionError, match="beta=-1"):
        stochastic_batch(SCORES, 1, gen(), beta=-1.0)
    with pytest.raises(InvalidOptionError, match="generator"):
        stochastic_batch(SCORES, 1, None)  # type: ignore[arg-type]
    with pytest.raises(InvalidDataError, match="NaN"):
        top_batch(torch.tensor([0.1, torch.nan]), 1)
    with pytest.raises(ShapeError, match="vector"):
        top_batch(SCORES.reshape(2, 2), 1)
