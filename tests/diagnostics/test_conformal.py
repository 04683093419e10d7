"""The coverage guarantee: exactly, where scores have a known distribution, and by simulation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from seqbdl.diagnostics import (
    conformal_classes,
    conformal_intervals,
    conformal_quantile,
    conformal_quantiles,
    coverage_interval,
)
from seqbdl.errors import InvalidDataError, InvalidOptionError, ShapeError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_quantile_is_that_order_statistic() -> None:
    scores = torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0, 9.0, 8.0, 7.0, 6.0])
    assert float(conformal_quantile(scores, 0.1)) == 9.0  # ceil(10 * 0.9) = 9
    assert float(conformal_quantile(scores, 0.2)) == 8.0
    assert float(conformal_quantile(scores, 0.25)) == 8.0  # ceil(7.5)
    assert float(conformal_quantile(scores, 0.3)) == 7.0  # 10 * (1 - 0.3) is exactly 7
    assert conformal_quantile(torch.stack([scores, -scores], -1), 0.2).tolist() == [8.0, -2.0]


def test_no_rounding_adds_a_row() -> None:
    for n in range(1, 150):
        for hundredths in range(1, 100):
            rank = -(-(n + 1) * (100 - hundredths) // 100)  # in integers
            if rank <= n:
                assert float(conformal_quantile(torch.arange(1.0, n + 1), hundredths / 100)) == rank


@pytest.mark.parametrize(("n", "alpha"), [(19, 0.1), (50, 0.1), (99, 0.25)])
def test_absolute_residuals_cover_exactly_on_average(n: int, alpha: float) -> None:
    """The coverage given one calibration set is Beta(k, n + 1 - k), with ``k = ceil((n + 1)(1 - alpha))``."""
    sets = 4000
    y = torch.randn(n, sets, generator=seeded(), dtype=torch.float64)  # each column is a calibration set of its own
    found = conformal_intervals(y, torch.zeros_like(y), alpha=alpha)
    coverage = 2 * torch.special.ndtr(found.threshold) - 1  # of a new standard normal outcome, exactly
    k = math.ceil((n + 1) * (1 - alpha) - 1e-9)
    expected = k / (n + 1)
    assert 1 - alpha <= expected <= 1 - alpha + 1 / (n + 1)
    deviation = math.sqrt(k * (n + 1 - k) / ((n + 1) ** 2 * (n + 2)))
    assert abs(float(coverage.mean()) - expected) < 4 * deviation / math.sqrt(sets)


def heteroscedastic(n: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Outcomes of spread ``0.1 + |x|``, and a model that knows the shape of the spread but is overconfident by 3."""
    generator = seeded(seed)
    x = torch.randn(n, generator=generator, dtype=torch.float64)
    spread = 0.1 + x.abs()
    y = torch.sin(x) + spread * torch.randn(n, generator=generator, dtype=torch.float64)
    return y, torch.sin(x), spread / 3


def binomial_error(coverage: float, n: int, test: int) -> float:
    """Standard deviation of the measured coverage, over the calibration set and the test rows."""
    return math.sqrt(coverage * (1 - coverage) * (1 / n + 1 / test))


def test_intervals_cover_and_normalized_ones_follow_the_spread() -> None:
    alpha, n, test = 0.1, 4000, 20_000
    y, mean, std = heteroscedastic(n, 0)
    new_y, new_mean, new_std = heteroscedastic(test, 1)
    error = binomial_error(1 - alpha, n, test)
    fixed = conformal_intervals(y, mean, alpha=alpha)
    scaled = conformal_intervals(y, mean, std, alpha=alpha)
    for lower, upper in (fixed.interval(new_mean), scaled.interval(new_mean, new_std)):
        assert abs(coverage_interval(new_y, lower, upper) - (1 - alpha)) < 4 * error
    # 1.645 true standard deviations are 4.93 of the overconfident ones; sd of a sample quantile: sqrt(a (1 - a) / n) / f.
    density = 2 * math.exp(-0.5 * 1.6449**2) / math.sqrt(2 * math.pi) / 3
    assert abs(float(scaled.threshold) - 3 * 1.6449) < 4 * math.sqrt(alpha * (1 - alpha) / n) / density
    lower, upper = scaled.interval(new_mean, new_std)
    wide = new_std > new_std.median()
    for part in (wide, ~wide):
        assert abs(coverage_interval(new_y[part], lower[part], upper[part]) - (1 - alpha)) < 4 * binomial_error(0.9, n, test // 2)


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_quantiles_are_widened_or_narrowed_to_coverage(factor: float) -> None:
    alpha, n, test = 0.2, 4000, 20_000
    y, mean, std = heteroscedastic(n, 2)
    new_y, new_mean, new_std = heteroscedastic(test, 3)
    reach, new_reach = factor * 1.2816 * 3 * std, factor * 1.2816 * 3 * new_std
    found = conformal_quantiles(y, mean - reach, mean + reach, alpha)
    assert bool(found.threshold > 0) == (factor < 1)
    lower, upper = found.interval(new_mean - new_reach, new_mean + new_reach)
    assert abs(coverage_interval(new_y, lower, upper) - (1 - alpha)) < 4 * binomial_error(1 - alpha, n, test)


def test_outputs_have_their_own_thresholds() -> None:
    y = torch.randn(50, 2, generator=seeded(), dtype=torch.float64) * torch.tensor([1.0, 10.0])
    both = conformal_intervals(y, torch.zeros_like(y))
    for j in range(2):
        assert float(both.threshold[j]) == float(conformal_intervals(y[:, j], torch.zeros(50)).threshold)
    lower, upper = both.interval(torch.zeros(3, 2))
    assert torch.allclose(upper, both.threshold.float().expand(3, 2))
    assert torch.allclose(lower, -upper)


def classes(n: int, seed: int, num_classes: int = 5) -> tuple[Tensor, Tensor]:
    """Probabilities of an overconfident model, and labels of the true one."""
    generator = seeded(seed)
    logits = 1.5 * torch.randn(n, num_classes, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(-1)
    return (3 * logits).softmax(-1), labels


@pytest.mark.parametrize(("score", "randomized"), [("lac", False), ("aps", False), ("aps", True)])
def test_sets_of_classes_cover(score: str, randomized: bool) -> None:
    alpha, n, test = 0.15, 4000, 20_000
    probs, labels = classes(n, 0)
    new_probs, new_labels = classes(test, 1)
    found = conformal_classes(probs, labels, alpha, score, seeded(2) if randomized else None)
    sets = found.sets(new_probs, seeded(3) if randomized else None)
    covered = float(sets.gather(1, new_labels.unsqueeze(1)).double().mean())
    assert abs(covered - (1 - alpha)) < 4 * binomial_error(1 - alpha, n, test)
    assert sets.dtype == torch.bool
    if not randomized and score == "lac":
        assert torch.equal(sets, new_probs >= 1 - found.threshold)


def test_adaptive_scores_of_a_worked_example() -> None:
    """Sorted probabilities .5, .3, .2: the scores down to each class are .5, .8, 1, and sets are the largest classes."""
    probs = torch.tensor([[0.2, 0.5, 0.3]], dtype=torch.float64)
    for label, expected in ((1, 0.5), (2, 0.8), (0, 1.0)):
        found = conformal_classes(probs.expand(9, 3), torch.full((9,), label), 0.1, "aps")
        assert found.threshold == pytest.approx(expected)
        assert found.sets(probs).tolist() == [[label == 0, True, label in (0, 2)]]


def test_bad_input_is_named() -> None:
    y = torch.zeros(10)
    with pytest.raises(InvalidDataError, match=r"10 calibration rows cannot guarantee alpha=0.05.*at least 19"):
        conformal_intervals(y, y, alpha=0.05)
    assert conformal_quantile(torch.arange(19.0), 0.05).shape == ()
    with pytest.raises(InvalidOptionError, match="alpha=1"):
        conformal_intervals(y, y, alpha=1.0)
    with pytest.raises(ShapeError, match="mean has"):
        conformal_intervals(y, torch.zeros(9))
    with pytest.raises(ShapeError, match="n or n x m"):
        conformal_intervals(torch.zeros(9, 1, 1), torch.zeros(9, 1, 1))
    with pytest.raises(InvalidDataError, match="std is zero"):
        conformal_intervals(y, y, torch.zeros(10))
    with pytest.raises(InvalidDataError, match="y has 1 NaN"):
        conformal_intervals(torch.tensor([0.0, math.nan]), torch.zeros(2))
    with pytest.raises(InvalidOptionError, match="std is missing"):
        conformal_intervals(y, y, torch.ones(10)).interval(y)
    with pytest.raises(InvalidOptionError, match="std is not used"):
        conformal_intervals(y, y).interval(y, y)
    with pytest.raises(InvalidDataError, match="lower is above upper in row 1"):
        conformal_quantiles(torch.zeros(2), torch.tensor([0.0, 2.0]), torch.ones(2))
    probs, labels = classes(20, 0)
    with pytest.raises(InvalidOptionError, match="lac, aps"):
        conformal_classes(probs, labels, score="raps")
    with pytest.raises(InvalidOptionError, match="nothing to draw"):
        conformal_classes(probs, labels, generator=seeded())
    with pytest.raises(InvalidOptionError, match="pass one here as well"):
        conformal_classes(probs, labels, score="aps", generator=seeded()).sets(probs)
    with pytest.raises(InvalidDataError, match="labels is -1"):
        conformal_classes(probs, -torch.ones(20))
    with pytest.raises(InvalidDataError, match="probs sums to"):
        conformal_classes(probs / 2, labels)
    with pytest.raises(ShapeError, match="n x C"):
        conformal_classes(probs.unsqueeze(0), labels.unsqueeze(0))
