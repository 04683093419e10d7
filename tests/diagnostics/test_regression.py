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
    crps_gaussian,
    crps_samples,
    cumulative_regret,
    gaussian_log_density,
    miscalibration_area,
    nlpd,
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
