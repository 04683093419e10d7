"""Scores of class probabilities: golden numbers, values by hand, and what holds for any probabilities."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seqbdl.acquisition import _pool_inputs, pool_scores
from seqbdl.errors import InvalidDataError, ShapeError

SCORES = [
    pool_scores.predictive_entropy,
    pool_scores.margin,
    pool_scores.variation_ratio,
    pool_scores.vote_variation_ratio,
    pool_scores.mean_standard_deviation,
    pool_scores.expected_entropy,
    pool_scores.bald,
]


def golden() -> Tensor:
    """``20 x 50 x 4``."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(50, 20, 4, dtype=torch.float64, generator=generator)
    return logits.log_softmax(-1).transpose(0, 1)


def random_log_probs(n: int, N: int, C: int, seed: int, certain: bool = False, scale: float = 3.0) -> Tensor:
    """``n x N x C``; ``certain``: every draw is sure of one class."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(n, N, C, generator=generator, dtype=torch.float64)
    if certain:
        return torch.nn.functional.one_hot(logits.argmax(-1), C).double().log()
    return logits.log_softmax(-1)


def as_log_probs(probs: list[list[list[float]]]) -> Tensor:
    return torch.tensor(probs, dtype=torch.float64).log()


def test_golden_bald() -> None:
    top = pool_scores.bald(golden()).topk(5)
    assert top.indices.tolist() == [26, 49, 0, 2, 43]
    expected = torch.tensor([0.7006477072, 0.6917721354, 0.6710559449, 0.6666812568, 0.6646165034], dtype=torch.float64)
    assert torch.allclose(top.values, expected, rtol=0, atol=1e-9)


def test_golden_epig() -> None:
    scores = pool_scores.epig(golden()[:, :40], golden()[:, 40:])
    top = scores.topk(5)
    assert top.indices.tolist() == [2, 0, 35, 24, 13]
    expected = torch.tensor([0.04964647, 0.04922993, 0.04835099, 0.04654608, 0.04628696], dtype=torch.float64)
    assert torch.allclose(top.values, expected, rtol=0, atol=1e-8)
    assert float(scores.mean()) == pytest.approx(0.03828782535, abs=1e-10)


def test_two_draws_two_classes_by_hand() -> None:
    # Both sure and opposed; both sure and agreed; both undecided; (0.9, 0.1) against (0.5, 0.5).
    log_probs = as_log_probs([[[1, 0], [1, 0], [0.5, 0.5], [0.9, 0.1]], [[0, 1], [1, 0], [0.5, 0.5], [0.5, 0.5]]])
    h = lambda p: -(p * math.log(p) + (1 - p) * math.log(1 - p))  # noqa: E731
    two = math.log(2)
    cases = {
        pool_scores.predictive_entropy: [two, 0, two, h(0.7)],
        pool_scores.margin: [0, 1, 0, 0.4],
        pool_scores.variation_ratio: [0.5, 0, 0.5, 0.3],
        pool_scores.vote_variation_ratio: [0.5, 0, 0, 0],
        pool_scores.mean_standard_deviation: [0.5, 0, 0, 0.2],
        pool_scores.expected_entropy: [0, 0, two, (h(0.9) + two) / 2],
        pool_scores.bald: [two, 0, 0, h(0.7) - (h(0.9) + two) / 2],
    }
    for score, expected in cases.items():
        assert torch.allclose(score(log_probs), torch.tensor(expected, dtype=torch.float64), atol=1e-14), score.__name__


def test_the_two_variation_ratios_differ() -> None:
    log_probs = as_log_probs([[[0.51, 0.49]], [[0.51, 0.49]], [[0.1, 0.9]]])
    assert float(pool_scores.vote_variation_ratio(log_probs)) == pytest.approx(1 / 3)  # two of three vote for class 0
    assert float(pool_scores.variation_ratio(log_probs)) == pytest.approx(1 - (0.49 + 0.49 + 0.9) / 3)  # and the mean for class 1


@settings(deadline=None, derandomize=True, max_examples=25)
@given(st.integers(2, 6), st.integers(1, 5), st.integers(2, 5), st.booleans(), st.integers(0, 10_000))
def test_bounds_hold_for_any_probabilities(n: int, N: int, C: int, certain: bool, seed: int) -> None:
    log_probs = random_log_probs(n, N, C, seed, certain)
    targets = random_log_probs(n, 3, C, seed + 1, certain)
    bald, epig = pool_scores.bald(log_probs), pool_scores.epig(log_probs, targets)
    rounding = 1e-12
    assert bool((bald >= -rounding).all())
    assert bool((bald <= min(math.log(C), math.log(n)) + rounding).all())
    assert bool((epig >= -rounding).all())
    assert bool((epig <= bald + rounding).all())
    total = pool_scores.expected_entropy(log_probs) + bald
    assert torch.allclose(total, pool_scores.predictive_entropy(log_probs), atol=rounding)
    for score in SCORES:
        values = score(log_probs)
        assert values.shape == (N,)
        assert values.dtype == torch.float64
        assert bool(values.isfinite().all())


def test_epig_by_enumeration() -> None:
    pool, targets = random_log_probs(7, 4, 3, 0), random_log_probs(7, 5, 2, 1)
    expected = torch.zeros(4, dtype=torch.float64)
    for x, t in itertools.product(range(4), range(5)):
        for y, z in itertools.product(range(3), range(2)):
            p, q = pool[:, x, y].exp(), targets[:, t, z].exp()
            joint = (p * q).mean()
            expected[x] += joint * (joint / (p.mean() * q.mean())).log() / 5
    assert torch.allclose(pool_scores.epig(pool, targets), expected, atol=1e-13)


def test_epig_of_a_deterministic_point_about_itself_is_bald() -> None:
    log_probs = random_log_probs(6, 1, 3, 0, certain=True)
    assert torch.allclose(pool_scores.epig(log_probs, log_probs), pool_scores.bald(log_probs), atol=1e-13)


def test_target_weights_are_repeated_targets() -> None:
    pool, targets = random_log_probs(5, 6, 3, 0), random_log_probs(5, 3, 3, 1)
    weighted = pool_scores.epig(pool, targets, torch.tensor([2.0, 0.0, 4.0]))
    repeated = pool_scores.epig(pool, targets[:, [0, 2, 2]])
    assert torch.allclose(weighted, repeated, atol=1e-13)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    log_probs, targets = random_log_probs(5, 23, 3, 0), random_log_probs(5, 7, 3, 1)
    whole = [score(log_probs) for score in SCORES] + [pool_scores.epig(log_probs, targets)]
    for module in (_pool_inputs, pool_scores):
        monkeypatch.setattr(module, "VALUES_AT_ONCE", 40)
    parts = [score(log_probs) for score in SCORES] + [pool_scores.epig(log_probs, targets)]
    for a, b in zip(whole, parts, strict=True):
        assert torch.allclose(a, b, atol=1e-14)


def test_extreme_log_probabilities_stay_finite() -> None:
    log_probs = torch.tensor([[[0.0, -800.0]], [[-800.0, 0.0]]], dtype=torch.float64)  # far beyond what probabilities can hold
    assert float(pool_scores.bald(log_probs)) == pytest.approx(math.log(2), abs=1e-14)
    assert float(pool_scores.epig(log_probs, log_probs)) == pytest.approx(math.log(2), abs=1e-14)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_lower_precision_is_accepted_and_computed_in_double(dtype: torch.dtype, tolerance: float) -> None:
    log_probs = random_log_probs(10, 20, 3, 0)
    scores = pool_scores.bald(log_probs.to(dtype))
    assert scores.dtype == torch.float64
    assert torch.allclose(scores, pool_scores.bald(log_probs), atol=tolerance)


def test_bad_probabilities_are_refused_by_name_and_place() -> None:
    good = random_log_probs(4, 6, 3, 0)
    off = good.clone()
    off[2, 5] += 0.1
    with pytest.raises(InvalidDataError, match=r"sums to 1\.105.*point 5 of draw 2.*log_softmax"):
        pool_scores.bald(off)
    with pytest.raises(InvalidDataError, match="not to 1"):
        pool_scores.bald(good.exp())
    nan = good.clone()
    nan[1, 3, 0] = torch.nan
    with pytest.raises(InvalidDataError, match="point 3 of draw 1"):
        pool_scores.predictive_entropy(nan)
    with pytest.raises(ShapeError, match="n x N x C"):
        pool_scores.bald(good[0])
    with pytest.raises(ShapeError, match="C >= 2"):
        pool_scores.bald(torch.zeros(3, 4, 1))
    with pytest.raises(ShapeError, match="disagreement"):
        pool_scores.bald(good[:1])
    with pytest.raises(ShapeError, match=r"hand in a torch\.Tensor"):
        pool_scores.bald(good.numpy())  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="the same functions at both"):
        pool_scores.epig(good, good[:3])
    with pytest.raises(InvalidDataError, match="target_weights is negative at target 1"):
        pool_scores.epig(good, good, torch.tensor([1.0, -1.0, 1.0, 1.0, 1.0, 1.0]))
    with pytest.raises(ShapeError, match="6 entries"):
        pool_scores.epig(good, good, torch.ones(5))
