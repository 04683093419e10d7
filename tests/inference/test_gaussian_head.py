"""Gaussian heads on features: the bound, its maximum, and how rows add."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from seqbdl.inference.gaussian_head import FeatureSpace, Head, RowSpace, absorb, fit_sites, head_bound, prior_head
from seqbdl.likelihoods import LIKELIHOODS, get_likelihood

GAUSSIAN = get_likelihood("gaussian")


def problem(name: str = "gaussian", n: int = 9, F: int = 5, m: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Features ``n x F``, targets, and noise that differs by output."""
    generator = torch.Generator().manual_seed(0)
    likelihood = get_likelihood(name)
    phi = torch.randn(n, F, generator=generator, dtype=torch.float64)
    f = 0.5 * phi @ torch.randn(F, likelihood.num_latents(m), generator=generator, dtype=torch.float64)
    noise = torch.linspace(0.1, 2.0, m, dtype=torch.float64).expand(n, m)
    return phi, likelihood.sample(f, noise, generator), noise


def some_head(F: int = 5, l: int = 3) -> Head:  # noqa: E741 - the library's letter
    generator = torch.Generator().manual_seed(1)
    root = torch.randn(l, F, F, generator=generator, dtype=torch.float64)
    factor = torch.linalg.cholesky(root @ root.transpose(-1, -2) + torch.eye(F))
    return Head(torch.randn(F, l, generator=generator, dtype=torch.float64), factor)


def distributions(head: Head) -> MultivariateNormal:
    return MultivariateNormal(head.mean.T, precision_matrix=head.factor @ head.factor.transpose(-1, -2))


def test_the_bound_of_several_outputs_by_monte_carlo() -> None:
    """Each output's variance meets its OWN noise, and likelihoods are summed over outputs."""
    phi, Y, noise = problem()
    head, prior, draws = some_head(), prior_head(5, 3, phi), 40_000
    samples = distributions(head).sample
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = samples(torch.Size([draws]))  # draws x outputs x F
    values = GAUSSIAN.log_prob(torch.einsum("nf,scf->snc", phi, weights), Y, noise).sum(-1)
    kl = kl_divergence(distributions(head), distributions(prior)).sum()
    torch.testing.assert_close(head.kl(prior), kl)
    bound = head_bound(head, prior, phi, GAUSSIAN, Y, noise)
    assert (bound - (values.mean() - kl)).abs() < 4.5 * values.std() / draws**0.5


@pytest.mark.parametrize("n", [3, 9])  # fewer rows than features, and more
def test_gaussian_noise_is_exact(n: int) -> None:
    """The maximum of the bound is the evidence; the head is Bayesian linear regression."""
    phi, Y, noise = problem(n=n)
    head, bound = absorb(prior_head(5, 3, phi), phi, GAUSSIAN, Y, noise)
    evidence = 0.0
    for c in range(3):
        marginal = phi @ phi.T + noise[:, c].diag()
        evidence += MultivariateNormal(torch.zeros(n).double(), marginal).log_prob(Y[:, c])
        precision = torch.eye(5, dtype=torch.float64) + phi.T @ phi / noise[0, c]
        torch.testing.assert_close(head.factor[c] @ head.factor[c].T, precision, rtol=1e-10, atol=1e-10)
        mean = torch.linalg.solve(precision, phi.T @ Y[:, c] / noise[0, c])
        torch.testing.assert_close(head.mean[:, c], mean, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(bound, torch.as_tensor(evidence), rtol=1e-10, atol=0)
    torch.testing.assert_close(head_bound(head, prior_head(5, 3, phi), phi, GAUSSIAN, Y, noise), bound, rtol=1e-10, atol=0)


def test_natural_parameters_add() -> None:
    """In portions, in any order, or at once; the bounds of portions add to the evidence."""
    phi, Y, noise = problem()
    prior = prior_head(5, 3, phi)
    whole, evidence = absorb(prior, phi, GAUSSIAN, Y, noise)
    for order in ([0, 1, 2, 3, 4, 5, 6, 7, 8], [8, 2, 5, 0, 1, 7, 6, 4, 3]):
        head, total = prior, torch.zeros(()).double()
        for part in torch.tensor(order).split([2, 1, 6]):
            head, bound = absorb(head, phi[part], GAUSSIAN, Y[part], noise[part])
            total = total + bound
        torch.testing.assert_close(head.mean, whole.mean, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(head.factor, whole.factor, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(total, evidence, rtol=1e-8, atol=0)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_no_head_nearby_is_better(name: str) -> None:
    """The problem is concave in means and root covariances (not for noise that varies), so the maximum is one everywhere."""
    phi, Y, noise = problem(name)
    likelihood = get_likelihood(name)
    prior = prior_head(5, likelihood.num_latents(3), phi)
    head, bound = absorb(prior, phi, likelihood, Y, noise)
    torch.testing.assert_close(head_bound(head, prior, phi, likelihood, Y, noise), bound)
    generator = torch.Generator().manual_seed(2)
    for size in (1e-2, 1e-1, 1.0):
        for _ in range(20):
            change = torch.randn(head.mean.shape, generator=generator, dtype=torch.float64)
            scale = torch.exp(size * torch.randn(head.factor.shape[0], 1, 5, generator=generator, dtype=torch.float64))
            other = Head(head.mean + size * change, head.factor * scale)
            assert head_bound(other, prior, phi, likelihood, Y, noise) < bound


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_rows_and_features_give_one_answer(name: str) -> None:
    """Under a prior that is not the first one, too."""
    phi, Y, noise = problem(name)
    likelihood = get_likelihood(name)
    prior = some_head(l=likelihood.num_latents(3))
    white = torch.linalg.solve_triangular(prior.factor, phi.T, upper=False)
    by_rows = fit_sites(RowSpace(phi @ prior.mean, white.transpose(-1, -2) @ white), likelihood, Y, noise, max_iterations=200)
    by_features = fit_sites(FeatureSpace(prior, phi), likelihood, Y, noise, max_iterations=200)
    torch.testing.assert_close(by_rows.bound, by_features.bound, rtol=1e-8, atol=0)
    torch.testing.assert_close(by_rows.mean, by_features.mean, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(by_rows.variance, by_features.variance, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["bernoulli", "categorical", "poisson"])
def test_the_bound_is_below_the_evidence(name: str) -> None:
    """The evidence by simple Monte Carlo over the prior, which four rows allow."""
    phi, Y, noise = problem(name, n=4)
    likelihood = get_likelihood(name)
    prior = prior_head(5, 3, phi)
    _, bound = absorb(prior, phi, likelihood, Y, noise)
    weights = torch.randn(200_000, 5, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    values = likelihood.log_prob(phi @ weights, Y, noise).sum(-1).exp()
    error = 4.5 * values.std() / values.mean() / values.shape[0] ** 0.5
    assert bound < values.mean().log() + error
    assert bound > head_bound(prior, prior, phi, likelihood, Y, noise)
