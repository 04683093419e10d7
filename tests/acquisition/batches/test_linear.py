"""BAIT against traces of inverses, Frank-Wolfe against its residual."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from seqbdl.acquisition.batches import bait, frank_wolfe, variance_reduction_batch
from seqbdl.errors import InvalidDataError, InvalidOptionError, ShapeError


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=gen(seed), dtype=torch.float64)


def trace_after(rows: Tensor, noise: Tensor, targets: Tensor, picks: list[int]) -> float:
    precision = torch.eye(rows.shape[1], dtype=torch.float64) + rows[picks].T @ (rows[picks] / noise[picks].unsqueeze(-1))
    return float((targets @ torch.linalg.inv(precision) * targets).sum(-1).mean())


@pytest.mark.parametrize("backward", [False, True])
def test_scores_are_falls_of_the_trace(backward: bool) -> None:
    rows, targets = normal(30, 8), normal(12, 8, seed=1)
    noise = 0.1 + torch.rand(30, generator=gen(), dtype=torch.float64)
    pending = [5, 7]
    batch = bait(rows, 6, noise, gen(), targets=targets, backward=backward, pending=pending, exclude=[0, 1])
    picks = batch.indices.tolist()
    assert len(set(picks)) == 6
    assert not set(picks) & {0, 1, 5, 7}
    before = trace_after(rows, noise, targets, pending)
    for length in range(1, 7):
        expected = before - trace_after(rows, noise, targets, pending + picks[:length])
        assert float(batch.scores[length - 1]) == pytest.approx(expected, abs=1e-10)


def test_forward_is_the_greedy_reduction_of_variance_at_the_targets() -> None:
    rows, targets = normal(30, 8), normal(12, 8, seed=1)
    weights = torch.rand(12, generator=gen(), dtype=torch.float64)
    forward = bait(rows, 6, 0.2, gen(), targets=targets, target_weights=weights, backward=False)
    same = variance_reduction_batch(rows, rows @ targets.T, 6, 0.2, gen(), target_weights=weights)
    assert forward.indices.tolist() == same.indices.tolist()
    assert torch.allclose(forward.scores, same.scores, atol=1e-11)


def test_second_thoughts_never_end_lower_and_sometimes_higher() -> None:
    higher = 0
    for seed in range(12):
        rows = normal(40, 6, seed=seed)
        forward = bait(rows, 4, 0.05, gen(), backward=False)
        both = bait(rows, 4, 0.05, gen())
        assert float(both.scores[-1]) >= float(forward.scores[-1]) - 1e-12
        higher += float(both.scores[-1]) > float(forward.scores[-1]) + 1e-9
    assert higher > 0


def test_dropping_takes_away_what_costs_least() -> None:
    """One point too many: the best subset of four of the five picks, by enumeration."""
    rows = normal(5, 3, seed=3)
    noise = torch.full((5,), 0.1, dtype=torch.float64)
    batch = bait(rows, 4, noise, gen(), targets=rows)
    subsets = [[i for i in range(5) if i != out] for out in range(5)]
    best = min(trace_after(rows, noise, rows, subset) for subset in subsets)
    assert trace_after(rows, noise, rows, batch.indices.tolist()) == pytest.approx(best, abs=1e-12)


def test_small_noise_is_stable() -> None:
    rows = normal(60, 10)
    batch = bait(rows, 8, 1e-6, gen())
    noise = torch.full((60,), 1e-6, dtype=torch.float64)
    expected = trace_after(rows, noise, rows, []) - trace_after(rows, noise, rows, batch.indices.tolist())
    assert float(batch.scores[-1]) == pytest.approx(expected, rel=1e-7)


def test_costs_are_respected() -> None:
    rows = normal(20, 4)
    free = bait(rows, 3, 0.1, gen()).indices.tolist()
    cost = torch.ones(20, dtype=torch.float64)
    cost[free] = 1e6
    assert not set(bait(rows, 3, 0.1, gen(), cost=cost).indices.tolist()) & set(free)
    first = int(frank_wolfe(rows, 1, gen()).indices[0])
    cost = torch.ones(20, dtype=torch.float64)
    cost[first] = 1e6
    assert first not in frank_wolfe(rows, 3, gen(), cost=cost).indices.tolist()


def test_nothing_left_is_filled_up_at_random() -> None:
    rows = torch.zeros(6, 2, dtype=torch.float64)
    rows[0, 0] = 1.0
    for batch in (bait(rows, 3, 0.1, gen()), frank_wolfe(rows, 3, gen())):
        assert int(batch.indices[0]) == 0
        assert batch.status.random_picks == 2
        assert bool(batch.scores.isfinite().all())


def test_frank_wolfe_lowers_the_squared_error_by_its_scores() -> None:
    rows = normal(50, 5) + 0.5
    batch = frank_wolfe(rows, 10, gen())
    assert bool((batch.increments >= -1e-12).all())
    assert float(batch.scores[-1]) <= 1.0 + 1e-12
    # The first step by hand: the direction most like the sum, and the share that a line search gives.
    whole = rows.sum(0)
    unit = rows / rows.norm(dim=-1, keepdim=True)
    first = int((unit @ whole).argmax())
    assert int(batch.indices[0]) == first
    towards = rows.norm(dim=-1).sum() * unit[first]
    share = float((towards @ whole) / towards.square().sum())
    error = float((whole - share * towards).square().sum() / whole.square().sum())
    assert float(batch.scores[0]) == pytest.approx(1 - error, abs=1e-12)


def test_frank_wolfe_continues_from_pending_points() -> None:
    rows = normal(50, 5) + 0.5
    whole = frank_wolfe(rows, 6, gen())
    later = frank_wolfe(rows, 4, gen(), pending=whole.indices[:2])
    assert later.indices.tolist() == whole.indices[2:].tolist()
    assert torch.allclose(later.increments, whole.increments[2:], atol=1e-12)


def test_bad_input_is_refused() -> None:
    rows = normal(6, 3)
    with pytest.raises(InvalidDataError, match="noise is zero or negative"):
        bait(rows, 2, 0.0, gen())
    with pytest.raises(ShapeError, match="needs N x 3"):
        bait(rows, 2, 0.1, gen(), targets=normal(4, 2))
    with pytest.raises(InvalidOptionError, match="batch_size=7"):
        frank_wolfe(rows, 7, gen())
    with pytest.raises(InvalidOptionError, match="generator"):
        bait(rows, 2, 0.1, None)  # type: ignore[arg-type]
