"""Sums on inducing inputs: the collapsed posterior, its continuation, and its limits."""

from __future__ import annotations

import torch
from torch import Tensor

from seqbdl.inference.features import squared_exponential
from seqbdl.posteriors import kernel_conditioning
from seqbdl.posteriors.inducing import InducingSums, add_gaussian, best_noise, no_rows, project, with_inputs


def problem(n: int = 20, P: int = 6) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    X = 3 * torch.rand(n, 1, generator=generator, dtype=torch.float64)
    y = torch.sin(2 * X).T + 0.1 * torch.randn(1, n, generator=generator, dtype=torch.float64)
    noise = 0.01 * (0.5 + torch.rand(1, n, generator=generator, dtype=torch.float64))
    return X, X[:P] if n > P else X, y, noise


def absorbed(X: Tensor, Z: Tensor, y: Tensor, noise: Tensor, parts: list[Tensor] | None = None) -> InducingSums:
    K = squared_exponential(Z, Z) + 1e-10 * torch.eye(Z.shape[0]).double()
    sums = no_rows(torch.linalg.cholesky(K).unsqueeze(0), 1)
    for rows in parts or [torch.arange(X.shape[0])]:
        A = project(sums.factor[0], squared_exponential(Z, X[rows]))
        sums = add_gaussian(sums, A[None], torch.ones(1, len(rows)).double(), y[:, rows], noise[:, rows])
    return sums


def moments(state: kernel_conditioning.KernelConditioning, Z: Tensor, X: Tensor) -> tuple[Tensor, Tensor]:
    cross = squared_exponential(X, Z)
    half = cross @ state.whitener[0].T
    return cross @ state.weights[0], squared_exponential(X, X) - half @ half.T


def test_with_all_inputs_it_is_the_exact_process() -> None:
    X, _, y, noise = problem(8)
    sums = absorbed(X, X, y, noise)
    exact = kernel_conditioning.condition_exact(squared_exponential(X, X)[None], y, noise)
    X_test = torch.linspace(0, 3, 15, dtype=torch.float64).unsqueeze(-1)
    for ours, expected in zip(moments(sums.conditioning(), X, X_test), moments(exact, X, X_test), strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(sums.bound, exact.log_evidence, rtol=0, atol=1e-5)


def test_the_bound_is_titsias_formula() -> None:
    X, Z, y, noise = problem()
    K = squared_exponential(Z, Z) + 1e-10 * torch.eye(6).double()
    Q = squared_exponential(X, Z) @ torch.linalg.solve(K, squared_exponential(Z, X))
    marginal = torch.distributions.MultivariateNormal(torch.zeros(20).double(), Q + torch.diag(noise[0]))
    expected = marginal.log_prob(y[0]) - 0.5 * ((1 - Q.diagonal()) / noise[0]).sum()
    torch.testing.assert_close(absorbed(X, Z, y, noise).bound[0], expected, rtol=1e-8, atol=1e-8)


def test_chunks_in_any_order_give_the_same() -> None:
    X, Z, y, noise = problem()
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    once, often = absorbed(X, Z, y, noise), absorbed(X, Z, y, noise, list(order.split(3)))
    torch.testing.assert_close(often.phi, once.phi, rtol=1e-10, atol=1e-8)
    torch.testing.assert_close(often.bound, once.bound, rtol=1e-10, atol=1e-8)


def test_a_larger_basis_beside_zeros_leaves_predictions_unchanged() -> None:
    X, Z, y, noise = problem()
    sums = absorbed(X, Z, y, noise)
    larger = torch.cat([Z, torch.tensor([[0.4], [2.9]]).double()])
    K = squared_exponential(larger, larger) + 1e-10 * torch.eye(8).double()
    A = project(sums.factor, K[None, :6, 6:])
    grown = with_inputs(sums, A, torch.linalg.cholesky(K[6:, 6:] - A.mT @ A))
    torch.testing.assert_close(grown.factor[0], torch.linalg.cholesky(K), rtol=0, atol=1e-9)
    torch.testing.assert_close(grown.bound, sums.bound)
    X_test = torch.linspace(0, 3, 15, dtype=torch.float64).unsqueeze(-1)
    for ours, expected in zip(
        moments(grown.conditioning(), larger, X_test), moments(sums.conditioning(), Z, X_test), strict=True
    ):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)


def test_draws_have_the_posterior_of_the_whitened_weights() -> None:
    sums = absorbed(*problem())
    white = torch.randn(20000, 1, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    v = sums.draw(white)[:, 0]
    precision = torch.eye(6).double() + sums.phi[0]
    covariance = torch.linalg.inv(precision)
    sd = covariance.diagonal().sqrt()
    assert float(((v.mean(0) - covariance @ sums.b[0]).abs() / sd).max()) < 4.5 / 20000**0.5
    assert float(((v.T.cov() - covariance) / sd / sd[:, None]).abs().max()) < 5 * (2 / 20000) ** 0.5


def test_the_best_noise_predicts_held_out_rows_best() -> None:
    """By conditioning on the other rows the dense way, at noises around it."""
    generator = torch.Generator().manual_seed(0)
    A = 0.3 * torch.randn(6, 80, generator=generator, dtype=torch.float64)
    Y = torch.stack([A.T @ torch.ones(6).double(), torch.zeros(80).double()])
    Y = Y + torch.tensor([[0.1], [0.5]]).double() * torch.randn(2, 80, generator=generator, dtype=torch.float64)
    diagonal = A.square().sum(0) + 0.01
    prior = lambda logs: -0.5 * (logs + 2.0).square()  # noqa: E731
    best = best_noise(A, diagonal, Y, 30, prior)

    def score(noise: Tensor) -> Tensor:
        values = []
        for y, s2 in zip(Y, noise, strict=True):
            C = A[:, :50].T @ A[:, :50] + s2 * torch.eye(50).double()
            gain = torch.linalg.solve(C, A[:, :50].T @ A[:, 50:]).T
            variance = diagonal[50:] - (gain * (A[:, 50:].T @ A[:, :50])).sum(-1) + s2
            values.append(torch.distributions.Normal(gain @ y[:50], variance.sqrt()).log_prob(y[50:]).sum() + prior(s2.log()))
        return torch.stack(values)

    for factor in (0.9, 1.1):  # the grid of values is finer
        assert bool((score(factor * best) < score(best)).all())
