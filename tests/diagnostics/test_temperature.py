"""Temperatures of exact samples, in closed form, and of a sampler whose discretization error is known."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from seqbdl.diagnostics import configurational_temperature, kinetic_interval, kinetic_temperature
from seqbdl.errors import InvalidDataError, InvalidOptionError, ShapeError


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_exact_gaussian_samples_have_their_temperature(temperature: float) -> None:
    """``P v^2 / M`` and ``(theta - mode) . grad U`` of Gaussians are ``T`` times chi-squared with P degrees of freedom."""
    draws, chains, P = 500, 4, 20
    mass = torch.linspace(0.5, 3.0, P, dtype=torch.float64)
    momenta = (temperature * mass).sqrt() * normals(draws, chains, P)
    precision = torch.linspace(0.1, 10.0, P, dtype=torch.float64)
    mode = torch.linspace(-2.0, 2.0, P, dtype=torch.float64)
    positions = mode + (temperature / precision).sqrt() * normals(draws, chains, P, seed=1)
    gradients = precision * (positions - mode)
    exact_error = temperature * math.sqrt(2 / (P * draws * chains))
    for found in (kinetic_temperature(momenta, mass), configurational_temperature(positions, gradients, centre=mode)):
        assert abs(found.estimate - temperature) < 4 * exact_error
        assert found.agrees(temperature, errors=4)
        # The effective sample size of 2,000 independent draws is known to a relative sqrt(6 / 2000) (Sokal 1997).
        assert found.standard_error == pytest.approx(exact_error, rel=4 * math.sqrt(6 / (draws * chains)))
        assert found.values.shape == (draws, chains)
        assert found.num_coordinates == P
    # About the origin the average is the same, and its variance has mode^T precision mode T / P^2 more.
    about_zero = configurational_temperature(positions, gradients)
    variance = 2 * temperature**2 / P + temperature * float((mode.square() * precision).sum()) / P**2
    assert abs(about_zero.estimate - temperature) < 4 * math.sqrt(variance / (draws * chains))


def test_values_are_the_averages_over_coordinates() -> None:
    v, g = normals(10, 2, 3), normals(10, 2, 3, seed=1)
    assert torch.allclose(kinetic_temperature(v, 2.0).values, v.square().sum(-1) / 6)
    assert torch.allclose(configurational_temperature(v, g).values, (v * g).sum(-1) / 3)
    assert kinetic_temperature(v).estimate == pytest.approx(float(v.square().mean()))


def test_langevin_steps_that_are_too_large_are_too_hot() -> None:
    """On N(0, 1) Euler-Maruyama's stationary variance is ``1 / (1 - step / 2)``, and so is its temperature."""
    step, chains, P, draws = 0.5, 4, 50, 400
    generator = torch.Generator().manual_seed(0)
    expected = 1 / (1 - step / 2)
    theta = math.sqrt(expected) * torch.randn(chains, P, generator=generator, dtype=torch.float64)
    positions = []
    for _ in range(draws):
        noise = torch.randn(chains, P, generator=generator, dtype=torch.float64)
        theta = theta - step * theta + math.sqrt(2 * step) * noise
        positions.append(theta)
    stacked = torch.stack(positions)
    found = configurational_temperature(stacked, stacked)
    # theta^2 has the squared autocorrelation (1 - step)^(2 t).
    inflation = (1 + (1 - step) ** 2) / (1 - (1 - step) ** 2)
    error = expected * math.sqrt(2 * inflation / (P * chains * draws))
    assert abs(found.estimate - expected) < 4 * error
    assert not found.agrees(1.0)


def test_interval_of_one_step_is_that_of_chi_squared() -> None:
    low, high = kinetic_interval(50, temperature=2.0, level=0.9)
    inside = stats.chi2.cdf(high * 50 / 2, 50) - stats.chi2.cdf(low * 50 / 2, 50)
    assert inside == pytest.approx(0.9)
    assert low < 2.0 < high


def test_bad_input_is_named() -> None:
    good = normals(10, 2, 3)
    with pytest.raises(ShapeError, match=r"momenta has shape \(10, 2\).*unsqueeze"):
        kinetic_temperature(good[..., 0])
    with pytest.raises(ShapeError, match="at least 10 draws"):
        kinetic_temperature(good[:9])
    with pytest.raises(ShapeError, match="mass has shape"):
        kinetic_temperature(good, torch.ones(4))
    with pytest.raises(InvalidDataError, match="mass is zero or negative at entry 1"):
        kinetic_temperature(good, torch.tensor([1.0, 0.0, 1.0]))
    with pytest.raises(ShapeError, match="gradients has"):
        configurational_temperature(good, good[:, :1])
    with pytest.raises(ShapeError, match="centre has shape"):
        configurational_temperature(good, good, torch.ones(2))
    bad = good.clone()
    bad[9, 1, 0] = math.inf
    with pytest.raises(InvalidDataError, match="gradients has 1 NaN"):
        configurational_temperature(good, bad)
    with pytest.raises(InvalidOptionError, match="num_coordinates"):
        kinetic_interval(0)
    with pytest.raises(InvalidOptionError, match="level"):
        kinetic_interval(3, level=1.0)
