"""Scores against closed forms, numerical integration and definitions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqbdl.diagnostics import (
    best_so_far,
    calibration_curve,
    coverage,
    coverage_interval,
    coverage_mixture,
    crps_gaussian,
    crps_mixture,
    crps_samples,
    cumulative_regret,
    gaussian_log_density,
    miscalibration_area,
    miscalibration_area_mixture,
    mixture_cdf,
    mixture_log_density,
    nlpd,
    nlpd_mixture,
    r_squared,
    rmse,
    simple_regret,
)
from seqbdl.errors import InvalidDataError, InvalidOptionError, ShapeError


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_rmse_and_r_squared() -> None:
    y, mean = tensor(1.0, 2.0, 3.0), tensor(1.0, 2.0, 5.0)
    assert rmse(y, mean) == pytest.approx(math.sqrt(4 / 3))
    assert r_squared(y, mean) == pytest.approx(1 - 4 / 2)
    assert r_squared(y, y) == 1.0
    with pytest.raises(InvalidDataError, match="constant"):
        r_squared(tensor(1.0, 1.0), tensor(1.0, 2.0))


def test_log_density_is_that_of_torch() -> None:
    y, mean, std = tensor(0.3, -2.0), tensor(0.0, 1.0), tensor(0.5, 2.0)
    expected = torch.distributions.Normal(mean, std).log_prob(y)
    assert torch.allclose(gaussian_log_density(y, mean, std), expected)
    assert nlpd(y, mean, std) == pytest.approx(-float(expected.mean()))


@settings(max_examples=20, deadline=None)
@given(st.floats(-3, 3), st.floats(-2, 2), st.floats(0.1, 3))
def test_crps_of_a_gaussian_is_the_integral_of_its_definition(y: float, mean: float, std: float) -> None:
    grid = torch.linspace(-30, 30, 60001, dtype=torch.float64)
    cdf = torch.special.ndtr((grid - mean) / std)
    step = (grid >= y).double()
    integral = float(torch.trapezoid((cdf - step).square(), grid))
    assert crps_gaussian(tensor(y), tensor(mean), tensor(std)) == pytest.approx(integral, abs=1e-3)


def test_crps_of_samples_approaches_that_of_the_gaussian() -> None:
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(20000, 3, generator=generator, dtype=torch.float64) * 0.5 + 1.0
    y = tensor(0.0, 1.0, 2.5)
    exact = crps_gaussian(y, torch.ones(3, dtype=torch.float64), torch.full((3,), 0.5, dtype=torch.float64))
    assert crps_samples(y, samples) == pytest.approx(exact, abs=0.01)


def test_crps_of_samples_is_the_pairwise_definition() -> None:
    generator = torch.Generator().manual_seed(1)
    samples = torch.randn(7, 4, generator=generator, dtype=torch.float64)
    y = torch.randn(4, generator=generator, dtype=torch.float64)
    pairs = (samples.unsqueeze(0) - samples.unsqueeze(1)).abs().sum((0, 1)) / (7 * 6)
    expected = (samples - y).abs().mean(0) - 0.5 * pairs
    assert crps_samples(y, samples) == pytest.approx(float(expected.mean()))


def test_coverage_counts_and_calibration_of_calibrated_predictions() -> None:
    assert coverage(tensor(0.0, 3.0), tensor(0.0, 0.0), tensor(1.0, 1.0)) == 0.5
    generator = torch.Generator().manual_seed(2)
    y = torch.randn(20000, generator=generator, dtype=torch.float64)
    mean, std = torch.zeros_like(y), torch.ones_like(y)
    levels, shares = calibration_curve(y, mean, std)
    assert max(abs(a - b) for a, b in zip(levels, shares, strict=True)) < 0.02
    assert miscalibration_area(y, mean, std) < 0.01
    assert miscalibration_area(y, mean, 0.5 * std) > 0.1


def test_miscalibration_area_is_the_integral_between_the_curves() -> None:
    generator = torch.Generator().manual_seed(3)
    y = torch.randn(9, generator=generator, dtype=torch.float64)
    mean, std = torch.zeros_like(y), torch.full_like(y, 0.7)
    levels = [(i + 0.5) / 20000 for i in range(20000)]
    nominal, real = calibration_curve(y, mean, std, levels)
    brute = sum(abs(a - b) for a, b in zip(nominal, real, strict=True)) / len(levels)
    assert miscalibration_area(y, mean, std) == pytest.approx(brute, abs=1e-3)


def mixture(members: int, *shape: int, seed: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Outcomes, means, standard deviations and log weights that are not normalized."""
    generator = torch.Generator().manual_seed(seed)
    y, means = torch.randn(*shape, generator=generator), 2 * torch.randn(members, *shape, generator=generator)
    stds = 0.2 + torch.rand(members, *shape, generator=generator)
    log_weights = torch.randn(members, generator=generator) + 3.0
    return y.double(), means.double(), stds.double(), log_weights.double()


def test_mixtures_have_the_density_and_distribution_of_torch() -> None:
    y, means, stds, log_weights = mixture(5, 3, 2)
    components = torch.distributions.Normal(means.movedim(0, -1), stds.movedim(0, -1))
    expected = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(logits=log_weights), components)
    assert torch.allclose(mixture_log_density(y, means, stds, log_weights), expected.log_prob(y))
    assert torch.allclose(mixture_cdf(y, means, stds, log_weights), expected.cdf(y))
    assert nlpd_mixture(y, means, stds, log_weights) == pytest.approx(-float(expected.log_prob(y).mean()))
    by_row = log_weights.reshape(5, 1, 1).expand(5, 3, 2)
    assert torch.allclose(mixture_log_density(y, means, stds, by_row), expected.log_prob(y))


def test_crps_of_a_mixture_is_the_integral_of_its_definition() -> None:
    y, means, stds, log_weights = mixture(4, 3)
    grid = torch.linspace(-15, 15, 60001, dtype=torch.float64)
    total = 0.0
    for i in range(3):
        column = (part[:, i : i + 1].expand(4, grid.shape[0]) for part in (means, stds))
        cdf = mixture_cdf(grid, *column, log_weights)
        total += float(torch.trapezoid((cdf - (grid >= y[i]).double()).square(), grid)) / 3
    # The trapezoid rule is off by at most one step of the grid at the jump.
    assert crps_mixture(y, means, stds, log_weights) == pytest.approx(total, abs=30 / 60000)


def test_crps_of_many_members_is_summed_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    y, means, stds, log_weights = mixture(6, 10, 2)
    whole = crps_mixture(y, means, stds, log_weights)
    monkeypatch.setattr("seqbdl.diagnostics.regression._PAIRS_AT_ONCE", 3 * 36)
    assert crps_mixture(y, means, stds, log_weights) == pytest.approx(whole, rel=1e-12)


def test_a_mixture_of_equal_members_is_that_gaussian() -> None:
    y, means, stds, _ = mixture(1, 20)
    same = {"means": means.expand(3, 20), "stds": stds.expand(3, 20)}
    mean, std = means[0], stds[0]
    assert crps_mixture(y, **same) == pytest.approx(crps_gaussian(y, mean, std))
    assert nlpd_mixture(y, **same) == pytest.approx(nlpd(y, mean, std))
    assert coverage_mixture(y, **same, level=0.5) == coverage(y, mean, std, 0.5)
    assert miscalibration_area_mixture(y, **same) == pytest.approx(miscalibration_area(y, mean, std))
    assert coverage_mixture(y, means, stds[:, :1].expand(1, 20)) == coverage_mixture(y, means, stds[:, :1])


def test_coverage_of_a_mixture_is_that_of_its_quantiles() -> None:
    n, level = 4000, 0.8
    y, means, stds, log_weights = mixture(3, n)
    generator = torch.Generator().manual_seed(5)
    member = torch.multinomial(log_weights.softmax(0), n, replacement=True, generator=generator)
    rows = torch.arange(n)
    y = means[member, rows] + stds[member, rows] * torch.randn(n, generator=generator, dtype=torch.float64)
    found = coverage_mixture(y, means, stds, level, log_weights)
    assert abs(found - level) < 4 * math.sqrt(level * (1 - level) / n)
    # At each level p the share is off by 0.8 sqrt(p (1 - p) / n) on average, at most 0.4 / sqrt(n).
    assert miscalibration_area_mixture(y, means, stds, log_weights) < 4 * 0.4 / math.sqrt(n)
    low, high = torch.full_like(y, -50.0), torch.full_like(y, 50.0)
    ends = []
    for share in (0.1, 0.9):
        a, b = low, high
        for _ in range(60):
            middle = 0.5 * (a + b)
            below = mixture_cdf(middle, means, stds, log_weights) < share
            a, b = torch.where(below, middle, a), torch.where(below, b, middle)
        ends.append(0.5 * (a + b))
    assert found == coverage_interval(y, *ends)


def test_coverage_of_intervals_counts_ends_and_takes_infinite_ones() -> None:
    y = tensor(0.0, 1.0, 2.0, 3.0)
    assert coverage_interval(y, tensor(0.0, -math.inf, 2.5, 0.0), tensor(1.0, math.inf, 3.0, 2.9)) == 0.5


def test_regrets_ignore_failed_trials() -> None:
    values = tensor(1.0, math.nan, 0.5, 2.0)
    assert best_so_far(values).tolist() == [1.0, 1.0, 1.0, 2.0]
    assert simple_regret(values, 3.0).tolist() == [2.0, 2.0, 2.0, 1.0]
    assert cumulative_regret(tensor(1.0, 2.0), 3.0).tolist() == [2.0, 3.0]


def test_bad_input_is_named() -> None:
    with pytest.raises(ShapeError, match="mean has"):
        rmse(tensor(1.0), tensor(1.0, 2.0))
    with pytest.raises(ShapeError, match="empty"):
        rmse(tensor(), tensor())
    with pytest.raises(InvalidDataError, match="entry 1"):
        nlpd(tensor(1.0, 1.0), tensor(1.0, 1.0), tensor(1.0, 0.0))
    with pytest.raises(InvalidOptionError, match="level"):
        coverage(tensor(1.0), tensor(1.0), tensor(1.0), level=1.5)
    with pytest.raises(ShapeError, match="s >= 2"):
        crps_samples(tensor(1.0), tensor(1.0).unsqueeze(0))
    with pytest.raises(InvalidDataError, match=r"mean has 1 NaN.*row 1"):
        rmse(tensor(1.0, 1.0), tensor(1.0, math.nan))
    with pytest.raises(InvalidDataError, match="y has 1 NaN"):
        coverage(tensor(math.inf), tensor(1.0), tensor(1.0))
    with pytest.raises(InvalidDataError, match="samples has 1 NaN"):
        crps_samples(tensor(1.0), torch.tensor([[1.0], [math.nan]]))
    with pytest.raises(InvalidDataError, match="upper is NaN at entry 0"):
        coverage_interval(tensor(1.0), tensor(1.0), tensor(math.nan))
    y, means, stds, log_weights = mixture(3, 4)
    with pytest.raises(ShapeError, match=r"means has shape.*S x \(4,\)"):
        nlpd_mixture(y, means[:, :3], stds[:, :3])
    with pytest.raises(ShapeError, match="stds has shape"):
        crps_mixture(y, means, stds[:2])
    with pytest.raises(InvalidDataError, match=r"stds is zero or negative at entry \(0, 2\)"):
        mixture_cdf(y, means, torch.where(torch.arange(4) == 2, 0.0, stds))
    with pytest.raises(ShapeError, match="log_weights has shape"):
        mixture_log_density(y, means, stds, log_weights[:2])
    with pytest.raises(InvalidOptionError, match="level"):
        coverage_mixture(y, means, stds, level=0.0)
