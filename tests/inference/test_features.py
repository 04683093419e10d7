"""Random Fourier features and the kernel they stand for."""

from __future__ import annotations

import torch
from torch import Tensor

from seqbdl.inference.features import fourier_draw, squared_exponential

SCALES = torch.tensor([[0.5, 2.0], [1.0, 0.3]], dtype=torch.float64)  # m x d


def feature_map(X: Tensor) -> Tensor:
    return X.unsqueeze(-3) / SCALES.unsqueeze(-2)


def points(*shape: int) -> Tensor:
    return torch.rand(*shape, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_kernel_entry_by_entry() -> None:
    A, B = points(3, 4), points(3, 4) + 0.3
    K = squared_exponential(A, B)
    for i in range(3):
        for j in range(4):
            for k in range(4):
                expected = torch.exp(-0.5 * (A[i, j] - B[i, k]).square().sum())
                torch.testing.assert_close(K[i, j, k], expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(squared_exponential(A, A).diagonal(dim1=-2, dim2=-1), torch.ones(3, 4).double())


def test_gradient_at_coincident_inputs_is_finite_and_right() -> None:
    X = points(3).requires_grad_(True)
    (gradient,) = torch.autograd.grad(squared_exponential(X, X.detach().clone()).sum(), X)
    expected = torch.zeros_like(X)
    for i in range(3):
        for j in range(3):
            difference = (X[i] - X[j]).detach()
            expected[i] -= difference * torch.exp(-0.5 * difference.square().sum())
    torch.testing.assert_close(gradient, expected, rtol=1e-8, atol=1e-8)


def test_draws_have_the_kernel_as_covariance() -> None:
    n = 20_000
    draw = fourier_draw(feature_map, 2, 2, n, 4, torch.Generator().manual_seed(1), torch.zeros(1))
    X = points(4)
    values = draw(X)
    assert values.shape == (n, 4, 2)
    K = squared_exponential(feature_map(X), feature_map(X))  # m x 4 x 4
    for a in range(2):
        for b in range(2):
            products = values[:, :, None, a] * values[:, None, :, b]
            expected = K[a] if a == b else torch.zeros_like(K[0])  # outputs are independent
            error = products.std(0) / n**0.5
            assert bool(((products.mean(0) - expected).abs() < 4.5 * error).all())
    assert bool((values.mean(0).abs() < 4.5 / n**0.5).all())


def test_draws_are_functions() -> None:
    draw = fourier_draw(feature_map, 2, 2, 3, 16, torch.Generator().manual_seed(1), torch.zeros(1))
    X = points(5, 2)
    assert draw(X).shape == (3, 5, 2, 2)
    torch.testing.assert_close(draw(X)[:, 2], draw(X[2]))
    torch.testing.assert_close(draw(X.flip(0)), draw(X).flip(1))
