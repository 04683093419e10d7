"""Weight priors: densities that integrate to one, scores that are gradients, samples from the density."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import exp1

from seqbdl.errors import InvalidOptionError, UnknownNameError
from seqbdl.priors import PRIORS, FactorizedPrior, HorseshoePrior, StudentTPrior, get_prior


def entry(prior: FactorizedPrior, z: float) -> float:
    return float(prior.entry_log_prob(torch.tensor([z], dtype=torch.float64)).exp())


@pytest.mark.parametrize("name", PRIORS)
def test_density_integrates_to_one(name: str) -> None:
    prior = get_prior(name)
    assert isinstance(prior, FactorizedPrior)
    total = 2 * sum(
        quad(lambda z: entry(prior, z), a, b, limit=200)[0] for a, b in ((1e-14, 1e-3), (1e-3, 1), (1, 50), (50, 1e6))
    )
    assert abs(total - 1) < 1e-5


@pytest.mark.parametrize("name", PRIORS)
def test_score_is_the_gradient(name: str) -> None:
    prior = get_prior(name)
    z = torch.randn(3, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    leaf = z.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(prior.log_prob(leaf).sum(), leaf)
    torch.testing.assert_close(prior.score(z), gradient)
    assert prior.log_prob(z).shape == (3,)


@pytest.mark.parametrize("name", PRIORS)
def test_samples_follow_the_density(name: str) -> None:
    prior, n = get_prior(name), 40_000
    assert isinstance(prior, FactorizedPrior)
    z = prior.sample(n // 4, 4, torch.Generator().manual_seed(0), torch.zeros(1, dtype=torch.float64)).flatten()
    for low, high in ((0.1, 0.5), (0.5, 1.5), (1.5, 4.0), (-1.0, -0.2)):
        mass = quad(lambda v: entry(prior, v), low, high)[0]
        share = float(((z > low) & (z < high)).double().mean())
        assert abs(share - mass) < 5 * (mass * (1 - mass) / n) ** 0.5


def test_horseshoe_is_the_scale_mixture() -> None:
    z = np.geomspace(1e-4, 30, 50)
    expected = np.exp(z**2 / 2) * exp1(z**2 / 2) / np.sqrt(2 * np.pi**3)
    values = HorseshoePrior().entry_log_prob(torch.from_numpy(z)).exp().numpy()
    np.testing.assert_allclose(values, expected, rtol=1e-10)


def test_bad_priors_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="prior"):
        get_prior("gausian")
    with pytest.raises(InvalidOptionError, match="degrees_of_freedom"):
        StudentTPrior(0.0)
