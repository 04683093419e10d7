"""Conditioning Gaussian processes: all at once, in chunks, and through a basis."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from seqbdl.posteriors.kernel_conditioning import (
    KernelConditioning,
    absorb_sparse,
    append_exact,
    condition_exact,
    empty,
)


def k(A: Tensor, B: Tensor) -> Tensor:
    """Two groups with different lengthscales, ``2 x n x n'``."""
    distance = (A.unsqueeze(-2) - B.unsqueeze(-3)).square().sum(-1)
    return torch.stack([torch.exp(-3 * distance), 2.0 * torch.exp(-distance)])


def problem(n: int = 30) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    X = torch.rand(n, 2, generator=generator, dtype=torch.float64)
    residual = torch.sin(5 * X).T + 0.1 * torch.randn(2, n, generator=generator, dtype=torch.float64)
    noise = 0.01 + 0.1 * torch.rand(2, n, generator=generator, dtype=torch.float64)
    return X, residual, noise


def answers(state: KernelConditioning, Z: Tensor, X_test: Tensor) -> tuple[Tensor, Tensor]:
    cross = k(X_test, Z)
    projected = cross @ state.whitener.mT
    return (cross @ state.weights.unsqueeze(-1)).squeeze(-1), k(X_test, X_test) - projected @ projected.mT


def brute_force(X: Tensor, residual: Tensor, noise: Tensor, X_test: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    inverse = torch.linalg.inv(k(X, X) + torch.diag_embed(noise))
    cross = k(X_test, X)
    mean = (cross @ inverse @ residual.unsqueeze(-1)).squeeze(-1)
    marginal = torch.distributions.MultivariateNormal(torch.zeros_like(residual), k(X, X) + torch.diag_embed(noise))
    return mean, k(X_test, X_test) - cross @ inverse @ cross.mT, marginal.log_prob(residual)


X_TEST = torch.rand(7, 2, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def test_all_at_once() -> None:
    X, residual, noise = problem()
    state = condition_exact(k(X, X), residual, noise)
    mean, covariance, evidence = brute_force(X, residual, noise, X_TEST)
    torch.testing.assert_close(answers(state, X, X_TEST), (mean, covariance), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(state.log_evidence, evidence, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sizes", [(10, 20), (1,) * 30, (0, 5, 25)])
def test_chunks_equal_all_at_once(sizes: tuple[int, ...]) -> None:
    X, residual, noise = problem()
    if sizes[0]:
        first = slice(0, sizes[0])
        state = condition_exact(k(X[first], X[first]), residual[:, first], noise[:, first])
    else:
        state = empty(2, X)
    done = sizes[0]
    for size in sizes[1:]:
        new, old = slice(done, done + size), slice(0, done)
        state = append_exact(state, k(X[new], X[new]), k(X[new], X[old]), residual[:, new], noise[:, new])
        done += size
    mean, covariance, evidence = brute_force(X, residual, noise, X_TEST)
    torch.testing.assert_close(answers(state, X, X_TEST), (mean, covariance), rtol=0, atol=1e-8)
    torch.testing.assert_close(state.log_evidence, evidence, rtol=0, atol=1e-8)


def test_sparse_is_exact_when_the_basis_holds_every_point() -> None:
    X, residual, noise = problem(12)
    again = slice(4, 9)  # more observations of points that the basis has
    state = condition_exact(k(X, X), residual, noise)
    new_residual = residual[:, again] + 0.3
    state = absorb_sparse(state, k(X, X), k(X[again], X[again]), k(X[again], X), new_residual, noise[:, again])
    X_all = torch.cat([X, X[again]])
    mean, covariance, evidence = brute_force(
        X_all, torch.cat([residual, new_residual], -1), torch.cat([noise, noise[:, again]], -1), X_TEST
    )
    torch.testing.assert_close(answers(state, X, X_TEST), (mean, covariance), rtol=0, atol=1e-6)
    torch.testing.assert_close(state.log_evidence, evidence, rtol=0, atol=1e-6)


def test_sparse_equals_the_collapsed_posterior() -> None:
    """Titsias' formula with explicit inverses, rows in two chunks and in another order."""
    X, residual, noise = problem()
    Z, rows = X[:8], torch.arange(8, 30)
    start = condition_exact(k(Z, Z), residual[:, :8], noise[:, :8])

    def absorb(state: KernelConditioning, pick: Tensor) -> KernelConditioning:
        new = X[pick]
        return absorb_sparse(state, k(Z, Z), k(new, new), k(new, Z), residual[:, pick], noise[:, pick])

    forward = absorb(absorb(start, rows[:5]), rows[5:])
    backward = absorb(absorb(start, rows.flip(0)[:13]), rows.flip(0)[13:])
    K = k(Z, Z)
    scaled = k(Z, X) / noise.unsqueeze(-2)
    A = torch.linalg.inv(K + scaled @ k(X, Z))
    cross = k(X_TEST, Z)
    mean = (cross @ A @ scaled @ residual.unsqueeze(-1)).squeeze(-1)
    covariance = k(X_TEST, X_TEST) - cross @ (torch.linalg.inv(K) - A) @ cross.mT
    for state in (forward, backward):
        torch.testing.assert_close(answers(state, Z, X_TEST), (mean, covariance), rtol=0, atol=1e-6)


def test_more_rows_never_raise_the_sparse_variance() -> None:
    X, residual, noise = problem()
    Z = X[:10]
    state = condition_exact(k(Z, Z), residual[:, :10], noise[:, :10])
    before = answers(state, Z, X_TEST)[1].diagonal(dim1=-2, dim2=-1)
    for pick in (slice(10, 15), slice(15, 30)):
        state = absorb_sparse(state, k(Z, Z), k(X[pick], X[pick]), k(X[pick], Z), residual[:, pick], noise[:, pick])
        after = answers(state, Z, X_TEST)[1].diagonal(dim1=-2, dim2=-1)
        assert bool((after <= before + 1e-9).all())
        assert bool((after > 0).all())
        before = after


def test_nothing_is_the_prior() -> None:
    X, _, _ = problem(3)
    state = empty(2, X)
    assert state.num_rows == 0
    mean, covariance = answers(state, X[:0], X_TEST)
    assert torch.equal(mean, torch.zeros(2, 7).double())
    torch.testing.assert_close(covariance, k(X_TEST, X_TEST))
    assert float(state.log_evidence.sum()) == 0.0
