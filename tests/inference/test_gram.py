"""Deep kernels over Gram matrices against dense formulas, differences and random networks."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from seqbdl.inference import infinite_width
from seqbdl.inference.gram import (
    SQUARED_EXPONENTIAL,
    GramKernel,
    divergences,
    gram,
    gram_diagonal,
    identity_roots,
    inducing_blocks,
    inducing_gram,
)
from seqbdl.inference.gram_draws import prior_draws
from seqbdl.inference.infinite_width import WidthScales
from seqbdl.posteriors.joint_gaussian import KERNEL_JITTER

KINDS = ("erf", "relu", "leaky_relu", SQUARED_EXPONENTIAL)


def points(n: int, seed: int = 0, d: int = 2) -> Tensor:
    return torch.rand(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def machine(activation: str, depth: int = 3, P: int = 6, seed: int = 1) -> GramKernel:
    generator = torch.Generator().manual_seed(seed)

    def positive(*shape: int) -> Tensor:
        return 0.4 + torch.rand(*shape, generator=generator, dtype=torch.float64)

    scales = WidthScales(2 * positive(1, 2), positive(1, depth), 0.5 * positive(1, depth + 1), positive(1) / 50)
    Z = points(P, 3)
    noise = 0.4 * torch.randn(depth - 1, P, P, generator=generator, dtype=torch.float64)
    roots = noise.tril(-1) + torch.diag_embed(noise.diagonal(dim1=-2, dim2=-1).exp())
    return GramKernel(scales, roots, Z, activation)


def plain(kernel: GramKernel) -> GramKernel:
    return replace(kernel, roots=kernel.roots[:0])


@pytest.mark.parametrize("activation", KINDS)
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_without_roots_it_is_the_infinitely_wide_network(activation: str, depth: int) -> None:
    kernel = plain(machine(activation, depth))
    K = gram(kernel, points(5), points(4, 1))
    if activation == SQUARED_EXPONENTIAL:
        if depth > 1:
            return
        s = kernel.scales
        distance = ((points(5)[:, None] - points(4, 1)) * 2 * s.inputs[0].sqrt()).square().sum(-1)
        expected = s.biases[0, 1] + s.weights[0, 0] * torch.exp(-0.5 * distance)
    else:
        expected = infinite_width.kernel(kernel.scales, points(5), points(4, 1), activation)[0]
    torch.testing.assert_close(K, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("activation", KINDS)
def test_identity_roots_change_nothing(activation: str) -> None:
    kernel = machine(activation)
    trivial = replace(kernel, roots=identity_roots(3, kernel.Z))
    X = points(7)
    torch.testing.assert_close(gram(trivial, X, X), gram(plain(kernel), X, X), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("activation", KINDS)
def test_one_layer_is_the_conditional_expectation_with_explicit_inverses(activation: str) -> None:
    kernel, X = machine(activation, 2), points(5)
    hidden = replace(plain(kernel), scales=_first_layer(kernel.scales))
    every = torch.cat([kernel.Z, X])
    K = gram(hidden, every, every)
    P = kernel.Z.shape[0]
    K_ii, K_ti, K_tt = K[:P, :P], K[P:, :P], K[P:, P:]
    K_ii = K_ii + KERNEL_JITTER * K_ii.diagonal().mean() * torch.eye(P).double()
    L = torch.linalg.cholesky(K_ii)
    G_ii = L @ kernel.roots[0] @ kernel.roots[0].T @ L.T
    W = K_ti @ torch.linalg.inv(K_ii)
    G = K_tt - W @ K_ti.T + W @ G_ii @ W.T
    diagonal = G.diagonal()
    s = kernel.scales
    if activation == SQUARED_EXPONENTIAL:
        F = torch.exp(-0.5 * (diagonal[:, None] + diagonal - 2 * G))
    else:
        F = infinite_width.expected_product(G, diagonal[:, None], diagonal[None], activation)
    expected = s.biases[0, 2] + s.weights[0, 1] * F
    torch.testing.assert_close(gram(kernel, X, X), expected, rtol=1e-6, atol=1e-6)


def _first_layer(scales: WidthScales) -> WidthScales:
    return WidthScales(scales.inputs, scales.weights[:, :1], scales.biases[:, :2], scales.noise)


@pytest.mark.parametrize("activation", KINDS)
def test_blocks_and_diagonals_are_those_of_the_full_kernel(activation: str) -> None:
    for kernel in (machine(activation), plain(machine(activation))):
        X, Z = points(9), kernel.Z
        K_ii, cross, diagonal = inducing_blocks(kernel, X)
        # At the inducing inputs the conditional expectation returns their own Gram matrix up to the jitter.
        torch.testing.assert_close(K_ii, gram(kernel, Z, Z), rtol=2e-4, atol=2e-4)
        torch.testing.assert_close(cross, gram(kernel, Z, X), rtol=2e-4, atol=2e-4)
        torch.testing.assert_close(diagonal, gram(kernel, X, X).diagonal(), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(gram_diagonal(kernel, X), diagonal, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(inducing_gram(kernel), K_ii, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("activation", KINDS)
def test_many_points_together_are_positive_semi_definite_and_batches_do_not_matter(activation: str) -> None:
    kernel, X = machine(activation), points(200)
    K = gram(kernel, X, X)
    assert torch.linalg.eigvalsh(0.5 * (K + K.T)).min() > -1e-8 * K.diagonal().mean()
    batched = gram(kernel, X.reshape(4, 50, 2), X[:10])
    torch.testing.assert_close(batched.reshape(200, 10), K[:, :10], rtol=1e-9, atol=1e-9)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(gram(kernel, X[order], X[order]), K[order][:, order], rtol=1e-9, atol=1e-9)


def test_whitened_divergence_is_the_dense_one() -> None:
    kernel = machine("relu", 2)
    hidden = replace(plain(kernel), scales=_first_layer(kernel.scales))
    K = gram(hidden, kernel.Z, kernel.Z)
    L, T = torch.linalg.cholesky(K), kernel.roots[0]
    zero = torch.zeros(6, dtype=torch.float64)
    normal = torch.distributions.MultivariateNormal
    expected = torch.distributions.kl_divergence(normal(zero, scale_tril=L @ T), normal(zero, K))
    torch.testing.assert_close(divergences(kernel.roots)[0], expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(divergences(identity_roots(3, kernel.Z)), zero[:2], rtol=0, atol=0)


@pytest.mark.parametrize("activation", KINDS)
def test_gradients_against_differences_at_coincident_and_opposite_inputs(activation: str) -> None:
    kernel = machine(activation)
    fixed = torch.tensor([[0.2, 0.7], [0.5, 0.5]], dtype=torch.float64)
    for X in (fixed, 1.0 - fixed, points(2, 5)):
        inputs = X.clone().requires_grad_(True)
        weight = torch.tensor([[1.0, -0.5], [0.3, 2.0]], dtype=torch.float64)
        (gradient,) = torch.autograd.grad((weight * gram(kernel, inputs, fixed)).sum(), inputs)
        assert bool(gradient.isfinite().all())
        for d in range(2):
            shift = torch.zeros_like(X)
            shift[0, d] = 1e-5
            with torch.no_grad():
                up, down = (weight * gram(kernel, X + shift, fixed)).sum(), (weight * gram(kernel, X - shift, fixed)).sum()
            assert abs(float(gradient[0, d] - (up - down) / 2e-5)) < 1e-4


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("activation", KINDS)
def test_random_features_have_the_kernel_as_covariance(activation: str, learned: bool) -> None:
    """In the mean; features of finite width bias a learned layer and the layers behind another by ``O(depth / width)``."""
    kernel = machine(activation) if learned else plain(machine(activation))
    X, n, width = points(3, 8), 1500, 128
    draw = prior_draws(kernel, n, width, torch.Generator().manual_seed(0))
    values = draw(X)
    assert values.shape == (n, 3)
    torch.testing.assert_close(draw(X.unsqueeze(0))[:, 0], values)
    products, K = values[:, :, None] * values[:, None, :], gram(kernel, X, X)
    error = 4.5 * products.std(0) / math.sqrt(n) + (12.0 if learned else 6.0) / width * K.diagonal().mean()
    assert bool(((products.mean(0) - K).abs() < error).all())
