"""Variational processes on inducing inputs, against exact and one-dimensional answers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from seqbdl.inference.expected_log_likelihood import expected_log_prob
from seqbdl.inference.features import squared_exponential
from seqbdl.inference.inducing import (
    BoundSettings,
    Parameters,
    absorb_rows,
    log_predictive_density,
    moments,
    spread_rows,
    train_bound,
)
from seqbdl.likelihoods import get_likelihood
from seqbdl.posteriors.inducing import InducingSums, add_gaussian, no_rows, project
from seqbdl.posteriors.joint_gaussian import jittered_cholesky


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def inputs(n: int = 15) -> Tensor:
    return torch.linspace(0, 4, n, dtype=torch.float64).unsqueeze(-1)


def empty(Z: Tensor, latents: int) -> InducingSums:
    K = squared_exponential(Z, Z) + 1e-8 * torch.eye(Z.shape[0]).double()
    return no_rows(torch.linalg.cholesky(K).unsqueeze(0), latents)


def rows_of(sums: InducingSums, Z: Tensor) -> object:
    def rows(X: Tensor) -> tuple[Tensor, Tensor]:
        return project(sums.factor[0], squared_exponential(Z, X)), X.new_ones(X.shape[0])

    return rows


def labels(name: str, X: Tensor) -> tuple[Tensor, int]:
    f = 2 * torch.sin(2 * X)
    if name == "bernoulli":
        return (torch.rand(X.shape[0], 1, generator=rng(), dtype=torch.float64) < torch.sigmoid(f)).double(), 1
    if name == "categorical":
        return (X / 4.01 * 3).floor(), 3
    if name == "poisson":
        return torch.poisson(f.exp(), generator=rng()), 1
    return f + 0.1 * torch.randn(f.shape, generator=rng(), dtype=torch.float64), 1


def test_gaussian_rows_by_sites_are_the_exact_sums() -> None:
    X, Z = inputs(), inputs(5)
    Y, _ = labels("gaussian", X)
    noise = torch.full_like(Y, 0.01)
    start = empty(Z, 1)
    rows = rows_of(start, Z)
    A, diagonal = rows(X)  # type: ignore[operator]
    exact = add_gaussian(start, A[None], diagonal[None], Y.T, noise.T)
    ours = absorb_rows(start, rows, X, Y, get_likelihood("gaussian"), noise)  # type: ignore[arg-type]
    torch.testing.assert_close(ours.phi, exact.phi, rtol=1e-9, atol=1e-6)
    torch.testing.assert_close(ours.b, exact.b, rtol=1e-9, atol=1e-6)
    torch.testing.assert_close(ours.bound, exact.bound, rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize("name", ["bernoulli", "categorical", "poisson"])
def test_the_bound_is_at_its_maximum_and_is_what_it_says(name: str) -> None:
    X, Z = inputs(), inputs(6)
    likelihood = get_likelihood(name)
    Y, latents = labels(name, X)
    start = empty(Z, latents)
    noise = torch.ones(15, latents).double()
    rows = rows_of(start, Z)
    sums = absorb_rows(start, rows, X, Y, likelihood, noise, chunk=4)  # type: ignore[arg-type]
    A, diagonal = rows(X)  # type: ignore[operator]
    factor = sums.precision_factor
    mean = sums.mean(factor)
    covariance = torch.cholesky_inverse(factor)

    def bound(m: Tensor, root: Tensor) -> Tensor:
        S = root @ root.transpose(-1, -2)
        f, variance = A.T @ m.T, ((diagonal - A.square().sum(0)).unsqueeze(-1) + (A * (S @ A)).sum(1).T)
        gaussian = torch.distributions.MultivariateNormal
        prior = gaussian(torch.zeros(6).double(), torch.eye(6).double())
        kl = sum(torch.distributions.kl_divergence(gaussian(m[i], S[i]), prior) for i in range(latents))
        return expected_log_prob(likelihood, f, variance, Y, noise).sum() - kl

    m, root = mean.clone().requires_grad_(True), torch.linalg.cholesky(covariance).requires_grad_(True)
    value = bound(m, root)
    torch.testing.assert_close(value.detach(), sums.bound.sum(), rtol=1e-8, atol=1e-8)
    for gradient in torch.autograd.grad(value, (m, root)):
        assert float(gradient.tril().abs().max() if gradient.dim() == 3 else gradient.abs().max()) < 0.05


def test_rows_in_two_calls_are_online_conditioning() -> None:
    X, Z = inputs(), inputs(6)
    Y, _ = labels("bernoulli", X)
    likelihood, noise = get_likelihood("bernoulli"), torch.ones(15, 1).double()
    start = empty(Z, 1)
    rows = rows_of(start, Z)
    once = absorb_rows(start, rows, X, Y, likelihood, noise)  # type: ignore[arg-type]
    first = absorb_rows(start, rows, X[:8], Y[:8], likelihood, noise[:8])  # type: ignore[arg-type]
    second = absorb_rows(first, rows, X[8:], Y[8:], likelihood, noise[8:])  # type: ignore[arg-type]
    sd = torch.cholesky_inverse(once.precision_factor)[0].diagonal().sqrt()
    gap = (second.mean(second.precision_factor) - once.mean(once.precision_factor))[0].abs() / sd
    assert float(gap.max()) < 0.25


def test_moments_are_those_of_the_dense_process() -> None:
    Z, X = inputs(5), inputs(4)
    sums = empty(Z, 1)
    A, diagonal = rows_of(sums, Z)(X)  # type: ignore[operator]
    sums = add_gaussian(sums, A[None], diagonal[None], torch.ones(1, 4).double(), torch.full((1, 4), 0.1).double())
    factor = sums.precision_factor
    mean, variance = moments(A, diagonal, sums.mean(factor), factor)
    state, cross = sums.conditioning(), squared_exponential(X, Z)
    torch.testing.assert_close(mean[:, 0], cross @ state.weights[0])
    torch.testing.assert_close(variance[:, 0], 1 - (cross @ state.whitener[0].T).square().sum(-1))


@pytest.mark.parametrize("batch_size", [400, 100])
def test_training_finds_the_lengthscale(batch_size: int) -> None:
    """From a start that is four times too long, with all rows and with batches."""
    generator = rng()
    X = 6 * torch.rand(400, 1, generator=generator, dtype=torch.float64)
    Y = torch.sin(2.5 * X) + 0.1 * torch.randn(400, 1, generator=generator, dtype=torch.float64)
    Z = torch.linspace(0, 6, 20, dtype=torch.float64).unsqueeze(-1)

    def blocks(p: Parameters, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scale = (-p["lengthscale"]).exp()
        U, V = rows * scale, Z * scale
        return squared_exponential(V, V), squared_exponential(V, U), torch.ones(len(rows)).double()

    start = {"lengthscale": torch.tensor(3.0).double().log(), "noise": torch.tensor([0.0]).double()}
    held = torch.arange(0, 400, 10)
    settings = BoundSettings(150, 0.05, batch_size)
    fit = train_bound(blocks, lambda p: X.new_zeros(()), start, X, Y, get_likelihood("gaussian"), None, held, rng(), settings)
    assert fit.score > fit.base + 0.5
    assert 0.3 < float(fit.parameters["lengthscale"].exp()) < 1.5
    assert 0.05 < float(fit.parameters["noise"].exp().sqrt()) < 0.2
    assert start["noise"].item() == 0.0


@pytest.mark.parametrize("name", ["gaussian", "bernoulli", "categorical", "poisson"])
def test_predictive_densities_against_sampling(name: str) -> None:
    likelihood = get_likelihood(name)
    Y, latents = labels(name, inputs(4))
    f = torch.randn(4, latents, generator=rng(1), dtype=torch.float64)
    variance = torch.full((4, latents), 0.3).double()
    noise = torch.full((4, latents), 0.2).double()
    samples = f + variance.sqrt() * torch.randn(200_000, 4, latents, generator=rng(2), dtype=torch.float64)
    expected = likelihood.log_prob(samples, Y, noise).exp().mean(0).log()
    torch.testing.assert_close(log_predictive_density(likelihood, f, variance, Y, noise), expected, rtol=0, atol=0.03)


def test_spread_rows_leave_out_duplicates_and_explain_most() -> None:
    X = torch.cat([inputs(30), inputs(30)])
    K = squared_exponential(X, X)
    picks = spread_rows(K, 10)
    assert len(picks) == 10
    assert picks.tolist() == sorted(set(picks.tolist()))

    def unexplained(rows: Tensor) -> float:
        cross = project(jittered_cholesky(K[rows][:, rows]), K[rows])
        return float((1 - cross.square().sum(0)).mean())

    assert unexplained(picks) < 0.2 * unexplained(torch.arange(10))
    assert len(spread_rows(torch.ones(5, 5).double(), 3)) == 1
