"""The mode of latent values under labels, counts and outliers, against gradients and against closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from seqbdl.likelihoods import LIKELIHOODS, get_likelihood
from seqbdl.posteriors import JointGaussian
from seqbdl.posteriors.mode import log_predictive, mode_given

NOISE = torch.tensor([0.3]).double()


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def prior(n: int, latents: int, batch: tuple[int, ...] = ()) -> JointGaussian:
    root = normals(*batch, 1, n * latents, n * latents + 2)
    return JointGaussian(normals(*batch, n, latents, seed=1), root @ root.mT / (n * latents))


def outcomes(name: str, n: int, m: int, batch: tuple[int, ...] = ()) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    if name == "categorical":
        return torch.randint(m, (*batch, n, 1), generator=generator).double()
    if name in ("bernoulli", "poisson"):
        return torch.randint(2, (*batch, n, m), generator=generator).double()
    return normals(*batch, n, m, seed=3)


@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_no_gradient_is_left(name: str, batch: tuple[int, ...]) -> None:
    m, n = 3 if name == "categorical" else 2, 4
    lik = get_likelihood(name)
    joint, Y = prior(n, lik.num_latents(m), batch[1:]), outcomes(name, n, m, batch)
    f = mode_given(joint, Y, lik, NOISE, max_iterations=300, tolerance=1e-13)
    assert f.shape == (*batch, n, lik.num_latents(m))
    assert not f.requires_grad
    f = f.requires_grad_(True)
    change = (f - joint.mean).flatten(-2).unsqueeze(-1)
    penalty = 0.5 * (change * torch.linalg.solve(joint.covariance.squeeze(-3).expand(*batch, -1, -1), change)).sum()
    (gradient,) = torch.autograd.grad(penalty - lik.log_prob(f, Y, NOISE).sum(), f)
    assert gradient.abs().max() < 1e-4


def test_gaussian_observations_need_one_step() -> None:
    joint, Y = prior(4, 1), outcomes("gaussian", 4, 1)
    C = joint.covariance.squeeze(0)
    expected = joint.mean + C @ torch.linalg.solve(C + 0.3 * torch.eye(4).double(), Y - joint.mean)
    torch.testing.assert_close(mode_given(joint, Y, get_likelihood("gaussian"), NOISE, max_iterations=1), expected)


def test_outliers_under_variable_noise_do_not_throw_it_off() -> None:
    """Twenty standard deviations of the noise and of the mean away: the noise explains it, as far as its prior lets it."""
    covariance = torch.tensor([[0.01, 0.0], [0.0, 1.0]]).double()
    joint = JointGaussian(torch.zeros(1, 2).double(), covariance.unsqueeze(0))
    Y = torch.tensor([[-2.0]]).double()
    f = mode_given(joint, Y, get_likelihood("heteroscedastic"), torch.tensor([0.01]).double())
    grid = torch.cartesian_prod(torch.linspace(-2, 1, 601).double(), torch.linspace(-3, 7, 1001).double())
    score = get_likelihood("heteroscedastic").log_prob(grid, Y, torch.tensor([0.01]).double())
    best = grid[(score - 0.5 * (grid.square() / covariance.diagonal()).sum(-1)).argmax()]
    torch.testing.assert_close(f[0], best, rtol=0, atol=0.02)
    assert float(f[0, 1]) > 2.0


def test_a_singular_covariance_is_no_trouble() -> None:
    """One point seen three times."""
    ones = torch.ones(1, 3, 3).double()
    f = mode_given(JointGaussian(torch.zeros(3, 1).double(), ones), torch.ones(3, 1).double(), get_likelihood("bernoulli"), NOISE)
    torch.testing.assert_close(f, f[:1].expand(3, 1))
    # f = 3 (1 - sigmoid(f))
    torch.testing.assert_close(f[0], 3 * torch.sigmoid(-f[0]), rtol=1e-2, atol=1e-2)


def test_predictive_density_of_gaussian_observations_is_exact() -> None:
    joint, Y, noise = prior(4, 2, (3,)), outcomes("gaussian", 4, 2, (5, 3)), torch.tensor([0.3, 0.1]).double()
    C = joint.covariance.squeeze(-3) + torch.diag(noise.repeat(4))
    exact = torch.distributions.MultivariateNormal(joint.mean.flatten(-2), C).log_prob(Y.flatten(-2))
    torch.testing.assert_close(log_predictive(joint, Y, get_likelihood("gaussian"), noise), exact)


@pytest.mark.parametrize("name", ["bernoulli", "poisson"])
def test_predictive_density_of_labels_is_near_the_integral(name: str) -> None:
    """Two points, by a fine grid over both latent values."""
    lik, joint = get_likelihood(name), prior(2, 1)
    Y = torch.tensor([[1.0], [0.0]]).double()
    axis = torch.linspace(-8, 8, 401).double()
    grid = torch.cartesian_prod(axis, axis)
    density = torch.distributions.MultivariateNormal(joint.mean.flatten(), joint.covariance.squeeze(0)).log_prob(grid)
    values = lik.log_prob(grid.unsqueeze(-1), Y, NOISE).sum(-1)
    exact = torch.logsumexp(density + values, 0) + 2 * torch.log(axis[1] - axis[0])
    # Laplace's relative error, of a prior with a standard deviation of about 1.
    assert abs(float(log_predictive(joint, Y, lik, NOISE) - exact)) < 0.1
