"""Expected log-likelihoods under Gaussian latent values against Monte Carlo and finite differences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from seqbdl.errors import InvalidOptionError
from seqbdl.inference.expected_log_likelihood import expected, expected_log_prob
from seqbdl.likelihoods import LIKELIHOODS, Gaussian, get_likelihood


def problem(name: str, n: int = 4, m: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Means, variances, targets and noise."""
    generator = torch.Generator().manual_seed(0)
    likelihood = get_likelihood(name)
    l = likelihood.num_latents(m)  # noqa: E741 - the library's letter
    mean = torch.randn(n, l, generator=generator, dtype=torch.float64)
    variance = 0.1 + torch.rand(n, l, generator=generator, dtype=torch.float64)
    noise = 0.5 + torch.rand(n, m, generator=generator, dtype=torch.float64)
    Y = likelihood.sample(mean, noise, generator)
    return mean, variance, Y, noise


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_against_monte_carlo(name: str) -> None:
    mean, variance, Y, noise = problem(name)
    likelihood, draws = get_likelihood(name), 200_000
    white = torch.randn(draws, *mean.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    samples = likelihood.log_prob(mean + variance.sqrt() * white, Y, noise)
    error = 4.5 * samples.std(0) / draws**0.5
    value = expected_log_prob(likelihood, mean, variance, Y, noise)
    if name == "categorical":  # a lower bound, and close to what it bounds at variances of about one half
        assert (value < samples.mean(0) + error).all()
        assert (value > samples.mean(0) - 0.5 * variance.sum(-1)).all()
    else:
        assert ((value - samples.mean(0)).abs() < error).all()


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_without_spread_it_is_the_log_likelihood(name: str) -> None:
    mean, variance, Y, noise = problem(name)
    likelihood = get_likelihood(name)
    value = expected_log_prob(likelihood, mean, 0 * variance, Y, noise)
    torch.testing.assert_close(value, likelihood.log_prob(mean, Y, noise))


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_derivatives(name: str) -> None:
    mean, variance, Y, noise = problem(name)
    likelihood, step = get_likelihood(name), 1e-5
    answer = expected(likelihood, mean, variance, Y, noise)
    assert (answer.precision >= 0).all()
    for column in range(mean.shape[-1]):
        shift = torch.zeros_like(mean)
        shift[:, column] = step

        def value(m: Tensor, v: Tensor) -> Tensor:
            return expected_log_prob(likelihood, m, v, Y, noise)

        slope = (value(mean + shift, variance) - value(mean - shift, variance)) / (2 * step)
        torch.testing.assert_close(answer.gradient[:, column], slope, rtol=1e-5, atol=1e-7)
        slope = (value(mean, variance + shift) - value(mean, variance - shift)) / (2 * step)
        torch.testing.assert_close(answer.precision[:, column], -2 * slope, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(answer.value, expected_log_prob(likelihood, mean, variance, Y, noise))


def test_of_gaussian_noise_the_precision_is_that_of_the_noise() -> None:
    """Summed over outputs, each with its own noise: no output sees another's."""
    mean, variance, Y, noise = problem("gaussian", m=3)
    torch.testing.assert_close(expected(Gaussian(), mean, variance, Y, noise).precision, 1 / noise)


def test_unknown_likelihoods_are_refused() -> None:
    class Other(Gaussian):
        name = "other"

    with pytest.raises(InvalidOptionError, match="other"):
        expected_log_prob(Other(), *problem("gaussian"))
