"""Features learned through the bound of their head."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from seqbdl.errors import InvalidOptionError
from seqbdl.inference.gaussian_head import absorb, prior_head
from seqbdl.inference.vbll import VBLLSettings, feature_gradient, learn_features, tune_noise
from seqbdl.likelihoods import LIKELIHOODS, Likelihood, get_likelihood

GAUSSIAN = get_likelihood("gaussian")


def problem(name: str = "gaussian", n: int = 8, F: int = 4, m: int = 2) -> tuple[Likelihood, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    likelihood = get_likelihood(name)
    phi = torch.randn(n, F, generator=generator, dtype=torch.float64)
    f = phi @ torch.randn(F, likelihood.num_latents(m), generator=generator, dtype=torch.float64)
    noise = torch.linspace(0.1, 0.5, m, dtype=torch.float64).expand(n, m)
    return likelihood, phi, likelihood.sample(0.5 * f, noise, generator), noise


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_the_gradient_is_that_of_the_maximal_bound(name: str) -> None:
    """The head counts as held where it is best: finite differences of the re-fitted maximum agree."""
    likelihood, phi, Y, noise = problem(name)
    gradient, fit = feature_gradient(phi, likelihood, Y, noise, max_iterations=500)
    prior = prior_head(4, likelihood.num_latents(2), phi)
    torch.testing.assert_close(fit.bound, absorb(prior, phi, likelihood, Y, noise)[1], rtol=1e-6, atol=1e-6)
    step = 1e-3
    for row, column in ((0, 0), (3, 2), (7, 1)):
        shift = torch.zeros_like(phi)
        shift[row, column] = step
        high, low = (feature_gradient(phi + s, likelihood, Y, noise, fit.sites, 500)[1].bound for s in (shift, -shift))
        # Bounds are converged to 1e-9 of themselves, so that their difference is good to some 1e-5 of the slope.
        torch.testing.assert_close(gradient[row, column], (high - low) / (2 * step), rtol=1e-3, atol=1e-3)


def ridge(z: Tensor, X: Tensor) -> Tensor:
    """``sin`` units with learned directions, and a constant."""
    units = torch.sin(3 * X @ z[0].unflatten(-1, (2, -1)))
    return torch.cat([units, torch.ones_like(units[:, :1])], -1)


def targets(n: int = 30) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    X = torch.rand(n, 2, generator=generator, dtype=torch.float64)
    Y = torch.sin(6 * X[:, :1]) + 0.1 * torch.randn(n, 1, generator=generator, dtype=torch.float64)
    return X, Y, torch.full_like(Y, 0.01)


def penalized(z: Tensor, start: Tensor, X: Tensor, Y: Tensor, noise: Tensor) -> Tensor:
    phi = ridge(z, X)
    return absorb(prior_head(phi.shape[1], 1, phi), phi, GAUSSIAN, Y, noise)[1] - 0.5 * (z - start).square().sum()


@pytest.mark.parametrize("batch_size", [None, 10])
def test_features_climb_the_bound(batch_size: int | None) -> None:
    X, Y, noise = targets()
    start = torch.randn(1, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    settings = VBLLSettings(steps=150, batch_size=batch_size)
    z = learn_features(ridge, start, X, GAUSSIAN, Y, noise, torch.Generator().manual_seed(0), settings)
    before, after = penalized(start, start, X, Y, noise), penalized(z, start, X, Y, noise)
    assert after > before + 10
    if batch_size is None:  # a stationary point: no step along any weight gains
        step = 1e-3
        for i in range(8):
            shift = torch.zeros_like(z)
            shift[0, i] = step
            slope = (penalized(z + shift, start, X, Y, noise) - penalized(z - shift, start, X, Y, noise)) / (2 * step)
            first = (penalized(start + shift, start, X, Y, noise) - penalized(start - shift, start, X, Y, noise)) / (2 * step)
            assert slope.abs() < 0.1 * first.abs() + 0.5


def test_no_steps_leave_the_features() -> None:
    X, Y, noise = targets(4)
    start = torch.ones(1, 8, dtype=torch.float64)
    assert torch.equal(learn_features(ridge, start, X, GAUSSIAN, Y, noise, torch.Generator(), VBLLSettings(steps=0)), start)


def test_noise_maximizes_the_evidence() -> None:
    _, phi, Y, _ = problem(n=40)
    first = torch.tensor([0.02, 3.0], dtype=torch.float64)
    noise = tune_noise(phi, Y, first, rows=1e-6)

    def evidence(c: int, value: float) -> float:
        marginal = phi @ phi.T + value * torch.eye(40, dtype=torch.float64)
        return float(MultivariateNormal(torch.zeros(40).double(), marginal).log_prob(Y[:, c]))

    for c in range(2):
        best = float(noise[c])
        assert evidence(c, best) >= evidence(c, best * 1.11)  # the grid's step is 5 %
        assert evidence(c, best) >= evidence(c, best / 1.11)
    torch.testing.assert_close(tune_noise(phi, Y, first, rows=1e6), first)  # an estimate that counts for a million rows stays


def test_bad_settings_are_refused() -> None:
    for bad in ({"steps": -1}, {"learning_rate": 0.0}):
        with pytest.raises(InvalidOptionError):
            VBLLSettings(**bad)
