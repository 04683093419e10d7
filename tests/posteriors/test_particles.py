"""Weighted particles against brute force."""

from __future__ import annotations

import pytest
import torch
from botorch.sampling.get_sampler import get_sampler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seqbdl.posteriors import ParticlePosterior

S = 16


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_every_particle_is_drawn_once() -> None:
    """S equal particles, S draws, S a power of two: quasi-Monte-Carlo picks are a permutation."""
    values = torch.arange(float(S)).double().reshape(S, 1, 1).expand(S, 3, 2)
    posterior = ParticlePosterior(values)
    for seed in range(5):
        samples = get_sampler(posterior, torch.Size([S]), seed=seed)(posterior)
        assert samples.shape == (S, 3, 2)
        assert sorted(samples[:, 0, 0].tolist()) == list(range(S))
        assert bool((samples == samples[:, :1, :1]).all())  # one particle for all points and outputs


def test_picks_follow_the_weights() -> None:
    weights = torch.tensor([0.5, 0.25, 0.125, 0.125], dtype=torch.float64)
    posterior = ParticlePosterior(torch.arange(4.0).double().reshape(4, 1, 1), weights.log() + 3.0)
    samples = get_sampler(posterior, torch.Size([64]), seed=0)(posterior).flatten().long()
    assert torch.bincount(samples, minlength=4).tolist() == [32, 16, 8, 8]


def test_equal_points_have_equal_values_in_every_slot_of_the_batch() -> None:
    values = random(S, 1, 3, 2).expand(-1, 5, -1, -1)
    posterior = ParticlePosterior(values, random(S, seed=1), torch.full((1, 2), 0.1).double())
    samples = get_sampler(posterior, torch.Size([8]), seed=0)(posterior)
    assert samples.shape == (8, 5, 3, 2)
    assert bool((samples == samples[:, :1]).all())
    assert not bool((samples[:, 0, 0] == samples[:, 0, 1]).any())


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("batch", [(), (3,)])
def test_moments_against_brute_force(noisy: bool, batch: tuple[int, ...]) -> None:
    values, log_weights = random(S, *batch, 4, 2), random(S, *batch, seed=1)
    noise = 0.1 + torch.rand(4, 2, generator=torch.Generator().manual_seed(2)).double() if noisy else None
    posterior = ParticlePosterior(values, log_weights, noise)
    flat, weights = values.reshape(S, -1, 8), log_weights.exp().reshape(S, -1)
    for b in range(flat.shape[1]):
        w = weights[:, b] / weights[:, b].sum()
        mean = sum(w[s] * flat[s, b] for s in range(S))
        covariance = sum(w[s] * torch.outer(flat[s, b] - mean, flat[s, b] - mean) for s in range(S))
        assert isinstance(mean, Tensor)
        assert isinstance(covariance, Tensor)
        if noise is not None:
            covariance = covariance + torch.diag(noise.flatten())
        torch.testing.assert_close(posterior.mean.reshape(-1, 8)[b], mean)
        torch.testing.assert_close(posterior.variance.reshape(-1, 8)[b], covariance.diagonal())
        joint = posterior.moments.covariance.reshape(-1, 8, 8)[b]
        torch.testing.assert_close(joint, covariance, rtol=1e-5, atol=1e-5)
        ess = posterior.effective_sample_size.reshape(-1)[b]
        torch.testing.assert_close(ess, 1 / w.square().sum())


def test_the_gaussian_view_of_two_outputs_keeps_their_order() -> None:
    values = random(2000, 3, 2) * torch.tensor([1.0, 5.0]).double() + torch.tensor([0.0, 100.0]).double()
    distribution = ParticlePosterior(values).distribution
    torch.testing.assert_close(distribution.mean, values.mean(0))
    torch.testing.assert_close(distribution.variance, values.var(0, correction=0), rtol=1e-4, atol=1e-4)
    samples = distribution.sample(torch.Size([2000]))
    assert float((samples.flatten(1).T.corrcoef() - torch.eye(6)).abs().max()) < 0.15


def test_quantiles_of_the_particles() -> None:
    """Equal weights: numpy's hazen quantiles; a particle of weight 2/(S+1) counts twice."""
    values = random(S, 3, 1)
    levels = torch.tensor([0.1, 0.5, 0.77], dtype=torch.float64)
    ours = ParticlePosterior(values).quantile(levels)
    assert ours.shape == (3, 3, 1)
    import numpy as np

    expected = np.quantile(values.numpy(), levels.numpy(), axis=0, method="hazen")
    torch.testing.assert_close(ours, torch.from_numpy(expected), rtol=1e-9, atol=1e-9)
    assert ParticlePosterior(values).quantile(torch.tensor(0.5)).shape == (3, 1)
    assert ParticlePosterior(values).quantile(torch.tensor([0.5])).shape == (1, 3, 1)


@pytest.mark.parametrize("noisy", [False, True])
def test_weights_shift_quantiles(noisy: bool) -> None:
    """Against the empirical quantiles of many draws, with an error from the binomial distribution of the level."""
    values, log_weights, n = random(S, 1, 1), random(S, seed=5), 200_000
    noise = torch.full((1, 1), 0.2).double() if noisy else None
    posterior = ParticlePosterior(values, log_weights, noise)
    generator = torch.Generator().manual_seed(1)
    picks = torch.multinomial(log_weights.softmax(0), n, replacement=True, generator=generator)
    draws = values[picks].flatten()
    if noisy:
        draws = draws + 0.2**0.5 * torch.randn(n, generator=generator, dtype=torch.float64)
    for p in (0.05, 0.3, 0.5, 0.9):
        quantile = posterior.quantile(torch.tensor(p, dtype=torch.float64)).flatten()
        level = (draws <= quantile).double().mean()
        # Without noise the level can only be right to within the weight of one particle.
        slack = 0.0 if noisy else float(log_weights.softmax(0).max())
        assert abs(float(level) - p) < 4 * (p * (1 - p) / n) ** 0.5 + slack


def test_quantiles_of_one_noisy_particle_are_normal() -> None:
    posterior = ParticlePosterior(torch.full((1, 1, 1), 2.0).double(), None, torch.full((1, 1), 0.25).double())
    expected = 2.0 + 0.5 * torch.special.ndtri(torch.tensor([0.025, 0.5, 0.9]).double())
    levels = torch.tensor([0.025, 0.5, 0.9]).double()
    torch.testing.assert_close(posterior.quantile(levels).flatten(), expected, rtol=1e-8, atol=1e-8)


def test_noise_in_samples_is_independent_and_has_its_variance() -> None:
    noise = torch.tensor([[0.1, 0.4], [0.2, 0.9]], dtype=torch.float64)
    posterior = ParticlePosterior(torch.zeros(4, 2, 2).double(), None, noise)
    n = 8192
    samples = get_sampler(posterior, torch.Size([n]), seed=3)(posterior).flatten(1)
    expected = torch.diag(noise.flatten())
    scale = (torch.outer(noise.flatten(), noise.flatten()) * 2 / n).sqrt()
    assert bool(((samples.T.cov() - expected).abs() < 4 * scale).all())


def test_density_is_that_of_the_mixture() -> None:
    values, log_weights = random(3, 1, 1), random(3, seed=2)
    posterior = ParticlePosterior(values, log_weights, torch.full((1, 1), 0.3).double())
    grid = torch.linspace(-10, 10, 4001, dtype=torch.float64)
    density = torch.stack([posterior.density(x.reshape(1, 1)).squeeze() for x in grid])
    assert abs(float(torch.trapezoid(density, grid)) - 1) < 1e-8
    assert abs(float(torch.trapezoid(grid * density, grid)) - float(posterior.mean)) < 1e-8
    with pytest.raises(ValueError, match="observation_noise=True"):
        ParticlePosterior(values).density(torch.zeros(1, 1).double())


def test_samples_are_differentiable_in_the_values() -> None:
    values = random(S, 2, 1).requires_grad_(True)
    posterior = ParticlePosterior(values)
    samples = get_sampler(posterior, torch.Size([S]), seed=0)(posterior)
    (gradient,) = torch.autograd.grad(samples.sum(), values)
    torch.testing.assert_close(gradient, torch.ones_like(gradient))  # every particle once


@settings(max_examples=20, deadline=None)
@given(
    particles=st.integers(1, 6),
    batch=st.lists(st.integers(1, 3), max_size=2),
    q=st.integers(1, 3),
    m=st.integers(1, 2),
    n=st.integers(1, 5),
    noisy=st.booleans(),
)
def test_shapes(particles: int, batch: list[int], q: int, m: int, n: int, noisy: bool) -> None:
    noise = torch.ones(m).double() if noisy else None
    posterior = ParticlePosterior(random(particles, *batch, q, m), random(particles), noise)
    event = (*batch, q, m)
    assert posterior.mean.shape == posterior.variance.shape == event
    assert get_sampler(posterior, torch.Size([n]), seed=0)(posterior).shape == (n, *event)
    assert posterior.rsample(torch.Size([n, 2])).shape == (n, 2, *event)
    assert posterior.rsample().shape == (1, *event)
    assert posterior.quantile(torch.tensor([0.2, 0.8])).shape == (2, *event)
