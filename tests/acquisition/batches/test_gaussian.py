"""Batches under a joint Gaussian: scores are determinants and conditional variances, choices those of a plain greedy search."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seqbdl.acquisition import gaussian_scores
from seqbdl.acquisition.batches import PoolKernel, gaussian_epig_batch, max_det, variance_reduction_batch
from seqbdl.errors import InvalidDataError, InvalidOptionError

N, M = 10, 4


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def features(seed: int, rows: int = N + M, dim: int = 6) -> Tensor:
    return torch.randn(rows, dim, generator=gen(seed), dtype=torch.float64)


def noise_of(seed: int) -> Tensor:
    return 0.05 + torch.rand(N, generator=gen(seed), dtype=torch.float64)


def information(K: Tensor, noise: Tensor, picks: list[int]) -> float:
    return float(gaussian_scores.joint_gaussian_bald(K[picks][:, picks], noise[picks])) if picks else 0.0


def about_targets(K: Tensor, noise: Tensor, target_noise: float, weights: Tensor, picks: list[int]) -> float:
    """Mean over targets of the mutual information of outcomes, by determinants."""
    total, noisy = 0.0, K + torch.diag(torch.cat([noise, torch.full((M,), target_noise, dtype=torch.float64)]))
    for t in range(N, N + M):
        both = [*picks, t]
        joint = torch.logdet(noisy[both][:, both])
        alone = torch.logdet(noisy[picks][:, picks]) if picks else torch.zeros((), dtype=torch.float64)
        total += float(weights[t - N] * 0.5 * (alone + noisy[t, t].log() - joint))
    return total


def reduction(K: Tensor, noise: Tensor, weights: Tensor, picks: list[int]) -> float:
    if not picks:
        return 0.0
    cross = K[N:, picks]
    gain = cross @ torch.linalg.solve(K[picks][:, picks] + torch.diag(noise[picks]), cross.T)
    return float(gain.diagonal() @ weights)


def greedy(value: Callable[[list[int]], float], q: int, pending: list[int], exclude: list[int], cost: Tensor) -> list[int]:
    picks: list[int] = []
    for _ in range(q):
        known = pending + picks
        gains = {x: (value([*known, x]) - value(known)) / float(cost[x]) for x in range(N) if x not in known and x not in exclude}
        picks.append(max(gains, key=lambda x: gains[x]))
    return picks


@settings(deadline=None, derandomize=True, max_examples=25)
@given(st.integers(0, 10_000), st.booleans(), st.booleans())
def test_all_three_are_plain_greedy_searches(seed: int, priced: bool, waiting: bool) -> None:
    phi, noise = features(seed), noise_of(seed)
    K, pool = phi @ phi.T, PoolKernel.of_features(phi[:N])
    weights = torch.tensor([1.0, 2.0, 0.0, 1.0], dtype=torch.float64)
    share = weights / weights.sum()
    cost = 0.5 + torch.rand(N, generator=gen(seed), dtype=torch.float64) if priced else torch.ones(N, dtype=torch.float64)
    pending, exclude = ([1, 6] if waiting else []), [3]
    rules: dict[str, Any] = {"pending": pending, "exclude": exclude, "cost": cost if priced else None}
    cross, there = K[:N, N:], K.diagonal()[N:]
    cases = [
        (max_det(pool, 3, noise, gen(), **rules), lambda picks: information(K, noise, picks)),
        (
            gaussian_epig_batch(pool, cross, there, 3, noise, 0.3, gen(), target_weights=weights, **rules),
            lambda picks: about_targets(K, noise, 0.3, share, picks),
        ),
        (
            variance_reduction_batch(pool, cross, 3, noise, gen(), target_weights=weights, **rules),
            lambda picks: reduction(K, noise, share, picks),
        ),
    ]
    for batch, value in cases:
        picks = batch.indices.tolist()
        assert picks == greedy(value, 3, pending, exclude, cost)
        for length in range(1, 4):
            expected = value(pending + picks[:length]) - value(pending)
            assert float(batch.scores[length - 1]) == pytest.approx(expected, abs=1e-10)
        assert torch.allclose(batch.increments.cumsum(0), batch.scores)


def test_one_pick_is_the_best_point_score() -> None:
    phi, noise = features(1), noise_of(1)
    K = phi @ phi.T
    v, cross, there = K.diagonal()[:N], K[:N, N:], K.diagonal()[N:]
    pool = PoolKernel.of_covariance(K[:N, :N])
    pairs = [
        (max_det(pool, 1, noise, gen()), gaussian_scores.gaussian_bald(v, noise)),
        (
            gaussian_epig_batch(pool, cross, there, 1, noise, 0.2, gen()),
            gaussian_scores.gaussian_epig(v, there, cross, noise, 0.2),
        ),
        (variance_reduction_batch(pool, cross, 1, noise, gen()), gaussian_scores.integrated_variance_reduction(v, cross, noise)),
    ]
    for batch, scores in pairs:
        assert int(batch.indices[0]) == int(scores.argmax())
        assert float(batch.scores[0]) == pytest.approx(float(scores.max()), abs=1e-13)


def test_information_increments_never_grow() -> None:
    phi = features(2, rows=60, dim=20)
    increments = max_det(phi, 30, 0.1, gen()).increments
    assert bool((increments.diff() <= 1e-12).all())


def test_without_noise_it_is_a_pivoted_cholesky_factorization() -> None:
    phi = features(3, rows=30, dim=12)
    batch = max_det(phi, 8, 0.0, gen())
    picks = batch.indices.tolist()
    K = phi @ phi.T
    for length in range(1, 9):
        expected = 0.5 * torch.logdet(K[picks[:length]][:, picks[:length]])
        assert float(batch.scores[length - 1]) == pytest.approx(float(expected), abs=1e-9)
    remaining = K.clone()
    for pick in picks:
        assert pick == int(remaining.diagonal().argmax())
        remaining = remaining - remaining[:, [pick]] @ remaining[[pick]] / remaining[pick, pick]


def test_beyond_the_rank_picks_are_random_and_said_so() -> None:
    batch = max_det(features(4, rows=10, dim=2), 5, 0.0, gen())
    assert len(set(batch.indices.tolist())) == 5
    assert batch.status.random_picks == 3
    assert not batch.status.ok


def test_noisy_duplicates_may_still_tell() -> None:
    phi = torch.tensor([[1.0], [1.0]], dtype=torch.float64)
    batch = max_det(phi, 2, 0.5, gen())
    assert batch.increments.tolist() == pytest.approx(
        [0.5 * torch.tensor(3.0).log().item(), 0.5 * torch.tensor(5 / 3).log().item()]
    )
    assert batch.status.ok


def test_bad_input_is_refused() -> None:
    phi = features(5)
    with pytest.raises(InvalidOptionError, match="cost needs noise > 0"):
        max_det(phi, 1, 0.0, gen(), cost=torch.ones(N + M))
    mixed = torch.ones(N + M)
    mixed[2] = 0.0
    with pytest.raises(InvalidDataError, match="noise is zero at point 2 and not everywhere"):
        max_det(phi, 1, mixed, gen())
    with pytest.raises(InvalidDataError, match="noise is zero or negative"):
        variance_reduction_batch(phi, torch.zeros(N + M, 1), 1, 0.0, gen())
    with pytest.raises(InvalidDataError, match="take all moments from one posterior"):
        gaussian_epig_batch(phi[:2], torch.full((2, 1), 100.0), torch.ones(1), 1, 0.1, 0.1, gen())
    with pytest.raises(InvalidOptionError, match="generator"):
        max_det(phi, 1, 0.1, None)  # type: ignore[arg-type]
