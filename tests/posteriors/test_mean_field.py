"""Mean-field Gaussians: sums over weights, draws in pairs, and posteriors as priors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from seqbdl.errors import ShapeError
from seqbdl.posteriors.mean_field import MeanField, antithetic_normals


def some(K: int = 2, P: int = 5, seed: int = 0) -> MeanField:
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(K, P, generator=generator, dtype=torch.float64)
    return MeanField(mean, 0.1 + torch.rand(K, P, generator=generator, dtype=torch.float64))


def white(n: int, q: MeanField, seed: int = 1) -> Tensor:
    return antithetic_normals(n, q.num_components, q.num_params, torch.Generator().manual_seed(seed), q.mean)


def test_the_divergence_is_a_sum_over_weights() -> None:
    """A mean over weights, or over layers, would be smaller by their number."""
    q, prior = some(2, 1517), some(2, 1517, seed=1)
    expected = kl_divergence(Normal(q.mean, q.sd), Normal(prior.mean, prior.sd)).sum(-1)
    torch.testing.assert_close(q.kl(prior), expected)
    torch.testing.assert_close(q.kl(q), torch.zeros(2).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(q.entropy, Normal(q.mean, q.sd).entropy().sum(-1))


def test_draws_have_the_components_moments() -> None:
    q, n = some(), 40_000
    draws = q.draws(white(n, q)).unflatten(0, (-1, 2))  # rounds x components x P
    torch.testing.assert_close(draws.mean(0), q.mean)  # pairs of opposite sign: exact
    # Pairs share their square: n / 2 rounds make n / 4 independent ones, each of relative variance 2.
    assert ((draws.var(0, correction=0) / q.sd.square() - 1).abs() < 4.5 * (2 / (n / 4)) ** 0.5).all()
    # Components are independent of one another, weights too.
    standard = ((draws - q.mean) / q.sd).flatten(1)[::2]
    correlation = standard.T @ standard / standard.shape[0] - torch.eye(standard.shape[1])
    assert correlation.fill_diagonal_(0.0).abs().max() < 4.5 * (1 / (n / 4)) ** 0.5


@pytest.mark.parametrize("n", [2, 3, 4, 7])
def test_any_number_of_draws_is_spread_over_components(n: int) -> None:
    q = some(2)
    assert white(n, q).shape == (n, 5)
    counts = torch.bincount(q.owners(n), minlength=2)
    assert counts.max() - counts.min() <= 1
    if n == 4:
        torch.testing.assert_close(white(n, q)[:2], -white(n, q)[2:])


def test_as_a_prior() -> None:
    q = some(3)
    prior = q.as_prior()
    z = torch.randn(6, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64).requires_grad_(True)
    expected = Normal(q.mean.repeat(2, 1), q.sd.repeat(2, 1)).log_prob(z).sum(-1)
    torch.testing.assert_close(prior.log_prob(z), expected)
    torch.testing.assert_close(prior.score(z.detach()), torch.autograd.grad(expected.sum(), z)[0])
    draws = prior.sample(30_000, 5, torch.Generator().manual_seed(3), q.mean).unflatten(0, (-1, 3))
    assert ((draws.mean(0) - q.mean).abs() / q.sd < 4.5 / 10_000**0.5).all()
    with pytest.raises(ShapeError, match="num_params=4"):
        prior.sample(2, 4, torch.Generator(), q.mean)


def test_one_component_is_gaussian_weights() -> None:
    q = some()
    alone = q.component(1)
    torch.testing.assert_close(alone.mean, q.mean[1])
    torch.testing.assert_close(alone.variance, q.sd[1].square())


def test_the_tree_restores_it_and_shapes_are_checked() -> None:
    q = some()
    twin = MeanField.from_tree(q.tree())
    assert torch.equal(twin.mean, q.mean)
    assert torch.equal(twin.sd, q.sd)
    with pytest.raises(ShapeError, match="K x P"):
        MeanField(q.mean, q.sd[0])
