"""Policies: information-directed sampling against a grid, ties, coherence over arms."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqbdl.loops.bandit_policies import greedy_probs, ids_probs, thompson_probs, ucb_probs


def ratio(draws: torch.Tensor, probs: torch.Tensor) -> float:
    """``Delta(pi)^2 / v(pi)`` by its definition."""
    best, mean = draws.argmax(1), draws.mean(0)
    regret = draws.max(1).values.mean() - mean
    gain = torch.zeros_like(mean)
    for b in best.unique():
        rows = best == b
        gain += rows.double().mean() * (draws[rows].mean(0) - mean).square()
    return float((probs @ regret) ** 2 / (probs @ gain))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 5))
def test_ids_is_at_least_as_good_as_a_grid(seed: int, K: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(K, K, generator=generator, dtype=torch.float64)
    draws = torch.randn(200, K, generator=generator, dtype=torch.float64) @ mix + torch.randn(K, generator=generator).double()
    probs = ids_probs(draws)
    assert float(probs.sum()) == pytest.approx(1.0)
    assert int((probs > 0).sum()) <= 2
    if len(draws.argmax(1).unique()) == 1:
        return  # one arm is always the best: its regret is 0 and so is every gain
    eye = torch.eye(K, dtype=torch.float64)
    found = ratio(draws, probs)
    grid = [q * eye[a] + (1 - q) * eye[b] for a in range(K) for b in range(a) for q in torch.linspace(0, 1, 21).tolist()]
    assert found <= min(ratio(draws, pi) for pi in grid) + 1e-9


def test_ids_plays_an_arm_that_tells_which_other_is_best() -> None:
    """One of ten arms pays 1, the last never pays most but reveals which: ratio 1.1^2 / 0.33 against 0.9^2 / 0.09."""
    generator = torch.Generator().manual_seed(0)
    best = torch.randint(10, (4000,), generator=generator)
    draws = torch.cat([torch.eye(10, dtype=torch.float64)[best], (0.2 * best.double() - 1.0).unsqueeze(1)], 1)
    assert ids_probs(draws)[10] > 0.5
    shuffled = draws.clone()
    shuffled[:, 10] = shuffled[torch.randperm(4000, generator=generator), 10]
    assert ids_probs(shuffled)[10] == 0.0


def test_an_arm_that_is_always_best_is_played() -> None:
    draws = torch.tensor([[0.0, 1.0, 0.5], [0.2, 1.1, 0.4]], dtype=torch.float64)
    for probs in (ids_probs(draws), thompson_probs(draws), ucb_probs(draws, 2.0)):
        assert probs.tolist() == [0.0, 1.0, 0.0]


def test_ties_are_split_evenly() -> None:
    assert greedy_probs(torch.tensor([1.0, 1.0, 0.0]).double()).tolist() == [0.5, 0.5, 0.0]
    assert thompson_probs(torch.zeros(5, 4).double()).tolist() == [0.25] * 4
    assert ids_probs(torch.zeros(5, 4).double()).sum() == 1.0


def test_draws_that_are_not_finite_are_left_out() -> None:
    draws = torch.tensor([[0.0, 1.0], [float("nan"), 0.0], [2.0, 1.0]], dtype=torch.float64)
    assert thompson_probs(draws).tolist() == [0.5, 0.5]
