"""Likelihoods against automatic differentiation, enumeration and Monte Carlo."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from seqbdl.errors import InvalidDataError, InvalidOptionError, UnknownNameError
from seqbdl.likelihoods import (
    LIKELIHOODS,
    Likelihood,
    apply_root,
    apply_root_transposed,
    get_likelihood,
    whiten_both,
    whiten_rows,
)


def latents(likelihood: Likelihood, *shape: int, m: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, likelihood.num_latents(m), generator=generator, dtype=torch.float64)


NOISE = torch.tensor([[0.3, 1.0, 2.0]], dtype=torch.float64)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_score_and_root_are_the_gradient(name: str) -> None:
    likelihood = get_likelihood(name)
    f = latents(likelihood, 4, 6)
    Y = likelihood.sample(f[0], NOISE, torch.Generator().manual_seed(1))
    assert Y.shape == (6, likelihood.num_targets(3))
    likelihood.check_targets(Y, 3)
    leaf = f.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(likelihood.log_prob(leaf, Y, NOISE).sum(), leaf)
    torch.testing.assert_close(likelihood.score(f, Y, NOISE), gradient)
    root, white = likelihood.root(f, NOISE), likelihood.whitened_score(f, Y, NOISE)
    torch.testing.assert_close(apply_root(root, white), gradient)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_root_squares_to_the_fisher_information(name: str) -> None:
    """The covariance of the score over observations drawn from the model, by Monte Carlo."""
    likelihood, n = get_likelihood(name), 200_000
    f = 0.7 * latents(likelihood, 1)
    many = f.expand(n, -1)
    Y = likelihood.sample(many, NOISE, torch.Generator().manual_seed(2))
    score = likelihood.score(many, Y, NOISE)
    products = score.unsqueeze(-1) * score.unsqueeze(-2)
    root = likelihood.root(f, NOISE)[0]
    full = torch.diag(root) if root.dim() == 1 else root
    error = (products.mean(0) - full @ full.T).abs()
    assert (error <= 5 * products.std(0) / n**0.5 + 1e-12).all()
    assert (score.mean(0).abs() <= 5 * score.std(0) / n**0.5).all()


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_samples_have_the_stated_moments(name: str) -> None:
    likelihood, n = get_likelihood(name), 100_000
    f = 0.5 * latents(likelihood, 1, seed=3)
    Y = likelihood.sample(f.expand(n, -1), NOISE, torch.Generator().manual_seed(4))
    if name == "categorical":
        Y = (torch.arange(3) == Y).double()
    mean, variance = likelihood.mean_variance(f, NOISE)
    assert ((Y.mean(0) - mean[0]).abs() < 5 * (variance[0] / n).sqrt()).all()
    assert ((Y.var(0) / variance[0] - 1).abs() < 0.06).all()


@pytest.mark.parametrize("name", ["bernoulli", "categorical"])
def test_class_log_probs_are_those_of_the_density(name: str) -> None:
    likelihood = get_likelihood(name)
    f = latents(likelihood, 5)
    log_probs = likelihood.class_log_probs(f)
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones_like(log_probs[..., 0]))
    for c in range(log_probs.shape[-1]):
        Y = torch.full((5, likelihood.num_targets(3)), float(c), dtype=torch.float64)
        expected = log_probs[..., c] if name == "categorical" else log_probs[..., c].sum(-1)
        torch.testing.assert_close(likelihood.log_prob(f, Y, NOISE), expected)
    assert get_likelihood("bernoulli").class_log_probs(f[:, :1]).shape == (5, 2)


def test_extreme_logits_stay_finite() -> None:
    for name in ("bernoulli", "categorical"):
        likelihood = get_likelihood(name)
        f = torch.tensor([[60.0, -60.0, 0.0]], dtype=torch.float64)
        Y = torch.zeros(1, likelihood.num_targets(3), dtype=torch.float64)
        for value in (likelihood.log_prob(f, Y, NOISE), likelihood.score(f, Y, NOISE), likelihood.root(f, NOISE)):
            assert bool(value.isfinite().all())


@pytest.mark.parametrize("full", [False, True])
def test_whitening_of_matrices_is_that_of_rows(full: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    S, n, latent = 2, 4, 3
    shape = (S, n, latent, latent) if full else (S, n, latent)
    root = torch.randn(*shape, generator=generator, dtype=torch.float64)
    K = torch.randn(S, n * latent, n * latent, generator=generator, dtype=torch.float64)
    blocks = root if full else torch.diag_embed(root)
    dense = torch.stack([torch.block_diag(*b) for b in blocks])
    torch.testing.assert_close(whiten_rows(root, K, latent), dense.mT @ K)
    torch.testing.assert_close(whiten_both(root, K, latent), dense.mT @ K @ dense)
    v = torch.randn(S, n, latent, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(apply_root_transposed(root, v).flatten(1), (dense.mT @ v.flatten(1).unsqueeze(-1)).squeeze(-1))


def test_bad_labels_name_the_row() -> None:
    for name, bad in (("bernoulli", 0.5), ("categorical", 3.0), ("poisson", -1.0), ("poisson", 1.5)):
        Y = torch.zeros(4, 1, dtype=torch.float64)
        Y[2] = bad
        with pytest.raises(InvalidDataError, match="row 2"):
            get_likelihood(name).check_targets(Y, 3)
    with pytest.raises(InvalidOptionError, match="number of classes"):
        get_likelihood("categorical").check_targets(torch.zeros(2, 1), 1)
    with pytest.raises(InvalidOptionError, match="no classes"):
        get_likelihood("poisson").class_log_probs(torch.zeros(2, 1))
    with pytest.raises(UnknownNameError, match="likelihood"):
        get_likelihood("gausian")
