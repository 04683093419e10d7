"""Conditioning particles: plain re-weighting, exact Gaussian conditioning, and what lies between."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from seqbdl.posteriors import ParticlePosterior, condition_particles, particle_update

COVARIANCE = torch.tensor([[1.0, 0.7, 0.4], [0.7, 1.5, 0.2], [0.4, 0.2, 0.8]], dtype=torch.float64)
MEAN = torch.tensor([0.3, -0.2, 1.0], dtype=torch.float64)
NOISE = 0.3


def gaussian_particles(S: int) -> tuple[Tensor, Tensor]:
    """``S x 3 x 1`` values whose sample moments are exactly those of the Gaussian, and centred normals ``S x 2 x 1``."""
    generator = torch.Generator().manual_seed(0)
    white = torch.randn(S, 5, generator=generator, dtype=torch.float64)
    white = white - white.mean(0)
    white = white @ torch.linalg.inv(torch.linalg.cholesky(white.T @ white / S)).T  # uncorrelated, unit variance
    values = MEAN + white[:, :3] @ torch.linalg.cholesky(COVARIANCE).T
    return values.unsqueeze(-1), white[:, 3:].unsqueeze(-1)


def exact(Y: Tensor) -> tuple[Tensor, Tensor]:
    """Given observations of the last two values."""
    gain = COVARIANCE[:, 1:] @ torch.linalg.inv(COVARIANCE[1:, 1:] + NOISE * torch.eye(2).double())
    return MEAN + gain @ (Y - MEAN[1:]), COVARIANCE - gain @ COVARIANCE[1:]


def noise_like(Y: Tensor) -> Tensor:
    return torch.full_like(Y, NOISE)


def moments(values: Tensor, log_weights: Tensor) -> tuple[Tensor, Tensor]:
    joint = ParticlePosterior(values, log_weights).moments
    return joint.mean.squeeze(-1), joint.covariance.squeeze(-3)


def test_plain_reweighting_where_the_effective_sample_size_allows() -> None:
    values, normals = gaussian_particles(200)
    before = torch.randn(200, generator=torch.Generator().manual_seed(4)).double() * 0.1
    Y = torch.tensor([[0.1], [0.9]], dtype=torch.float64)
    update = condition_particles(values[:, 1:], before, Y, noise_like(Y), 5.0, normals)
    assert update.mix is None
    assert update.move(values) is values
    expected = torch.distributions.Normal(values[:, 1:], NOISE**0.5).log_prob(Y).sum((-1, -2))
    difference = update.log_weights - expected
    assert float((difference - difference[0]).abs().max()) < 1e-10  # weights up to a constant


def test_pure_transport_is_exact_for_gaussian_particles() -> None:
    """A floor at the present size leaves almost nothing to the weights; moments match up to sampling error of the products."""
    S = 3000
    values, normals = gaussian_particles(S)
    Y = torch.tensor([[2.5], [3.0]], dtype=torch.float64)
    update = condition_particles(values[:, 1:], torch.zeros(S).double(), Y, noise_like(Y), float(S), normals)
    assert update.mix is not None
    mean, covariance = moments(update.move(values), update.log_weights)
    expected_mean, expected_covariance = exact(Y.flatten())
    assert float((mean - expected_mean).abs().max()) < 4 * 1.3 / S**0.5
    assert float((covariance - expected_covariance).abs().max()) < 4 * 2 * 1.0 / S**0.5


@pytest.mark.parametrize("share_of_ess", [0.1, 0.3, 0.5, 0.8])
def test_tempering_and_transport_together_are_exact_for_gaussian_particles(share_of_ess: float) -> None:
    S = 3000
    values, normals = gaussian_particles(S)
    Y = torch.tensor([[2.5], [3.0]], dtype=torch.float64)
    update = condition_particles(values[:, 1:], torch.zeros(S).double(), Y, noise_like(Y), share_of_ess * S, normals)
    assert update.mix is not None
    mean, covariance = moments(update.move(values), update.log_weights)
    expected_mean, expected_covariance = exact(Y.flatten())
    # The effective sample size is at least share_of_ess * S.
    error = 4 * 1.3 / (share_of_ess * S) ** 0.5
    assert float((mean - expected_mean).abs().max()) < error
    assert float((covariance - expected_covariance).abs().max()) < 2 * error
    ess = update.log_weights.softmax(0).square().sum().reciprocal()
    assert float(ess) >= share_of_ess * S * (1 - 1e-6)


def test_every_fantasy_is_conditioned_alone() -> None:
    S = 50
    values, normals = gaussian_particles(S)
    Y = torch.tensor([0.1, 3.0, -2.0], dtype=torch.float64).reshape(3, 1, 1).expand(3, 2, 1)
    together = condition_particles(values[:, None, 1:], torch.zeros(S).double(), Y, noise_like(Y), 25.0, normals)
    moved = together.move(values[:, None])
    assert moved.shape == (S, 3, 3, 1)
    for i in range(3):
        alone = condition_particles(values[:, 1:], torch.zeros(S).double(), Y[i], noise_like(Y[i]), 25.0, normals)
        torch.testing.assert_close(together.log_weights[:, i], alone.log_weights, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(moved[:, i], alone.move(values), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("share", [1.0, 0.3])
def test_gradients_agree_with_finite_differences(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the conditioned moments, in the observations and in the function values. The exponent is a constant of the
    gradient by design, so it is held for the differences too."""
    S = 12
    values, normals = gaussian_particles(S)
    weights = 0.2 * torch.randn(S, generator=torch.Generator().manual_seed(1)).double()
    monkeypatch.setattr(particle_update, "_tempering", lambda *args: torch.tensor(share, dtype=torch.float64))

    def target(Y: Tensor, values: Tensor) -> Tensor:
        update = condition_particles(values[:, 1:], weights, Y, noise_like(Y), 1.0, normals)
        assert (update.mix is None) == (share == 1.0)
        mean, covariance = moments(update.move(values), weights + update.log_weights)
        return mean.sum() + covariance.square().sum()

    Y = torch.tensor([[0.4], [1.6]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(target, (Y, values.clone().requires_grad_(True)), eps=1e-6, atol=1e-5)


def test_outliers_are_survived() -> None:
    """Observations forty standard deviations away: finite, and the mean follows them."""
    values, normals = gaussian_particles(64)
    Y = torch.full((2, 1), 40.0, dtype=torch.float64)
    update = condition_particles(values[:, 1:], torch.zeros(64).double(), Y, noise_like(Y), 32.0, normals)
    mean, _ = moments(update.move(values), update.log_weights)
    assert float((mean[1:] - 40.0).abs().max()) < 15.0
