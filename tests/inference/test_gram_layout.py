"""Convolutional Gram layers against wide random convolutional networks and explicit patches."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from seqbdl.inference.gram import (
    SQUARED_EXPONENTIAL,
    GramKernel,
    gram,
    gram_diagonal,
    identity_roots,
    inducing_blocks,
    inducing_gram,
    lower_root,
    product,
    with_mixers,
)
from seqbdl.inference.gram_draws import prior_draws
from seqbdl.inference.gram_layout import Images
from seqbdl.inference.infinite_width import WidthScales
from seqbdl.networks.activations import activate
from seqbdl.posteriors.joint_gaussian import KERNEL_JITTER

C, H, W = 2, 4, 3
SHAPE = (C, H, W)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int, seed: int = 0) -> Tensor:
    return torch.rand(n, C * H * W, generator=rng(seed), dtype=torch.float64)


def machine(activation: str, depth: int = 2, P: int = 6) -> GramKernel:
    generator = rng(1)

    def positive(*shape: int) -> Tensor:
        return 0.4 + torch.rand(*shape, generator=generator, dtype=torch.float64)

    scales = WidthScales(4 * positive(1, C), positive(1, depth), 0.5 * positive(1, depth + 1), positive(1))
    Z, pixels = images(P, 3), torch.randint(H * W, (P,), generator=generator)
    plain = GramKernel(scales, Z.new_zeros(0, P, P), Z, activation, Images(SHAPE, 3, pixels, Z.new_zeros(0, 9, P, P)))
    return with_mixers(plain)


def learned(kernel: GramKernel) -> GramKernel:
    P = kernel.Z.shape[0]
    noise = 0.4 * torch.randn(kernel.scales.depth - 1, P, P, generator=rng(2), dtype=torch.float64)
    return replace(kernel, roots=lower_root(noise))


@pytest.mark.parametrize("activation", ["erf", "relu"])
def test_without_roots_it_is_that_of_wide_random_convolutional_networks(activation: str) -> None:
    """PyTorch's own convolutions, three layers, zeros beyond the border; the mean over independent networks."""
    kernel, X, width = machine(activation, depth=3), images(4), 256
    scales, conv = replace(kernel.scales, biases=0.05 * kernel.scales.biases), torch.nn.functional.conv2d
    kernel = replace(kernel, scales=scales)
    products = []
    for seed in range(24):
        generator = rng(seed)

        def normal(*shape: int, generator: torch.Generator = generator) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        h = 2 * X.reshape(-1, *SHAPE) - 1
        spread = (scales.inputs[0] / 9).sqrt()[:, None, None]
        for layer in range(3):
            weight = spread * normal(width, h.shape[1], 3, 3)
            a = conv(h, weight, scales.biases[0, layer].sqrt() * normal(width), padding=1)
            h, spread = activate(a, activation), (scales.weights[0, layer] / (9 * width)).sqrt()
        flat = h.flatten(1)
        products.append(scales.biases[0, 3] + scales.weights[0, 2] * flat @ flat.T / flat.shape[1])
    values, K = torch.stack(products), gram(kernel, X, X)
    # Beside the Monte Carlo error: networks of finite width are biased by O(depth / width).
    error = 4.5 * values.std(0) / len(values) ** 0.5 + 3.0 / width * K.diagonal().mean()
    assert bool(((values.mean(0) - K).abs() < error).all())
    assert float(error.max()) < 0.3 * float(K.max() - K.min())


@pytest.mark.parametrize("activation", ["erf", "relu", SQUARED_EXPONENTIAL])
def test_a_learned_layer_is_the_conditional_expectation_at_every_pixel(activation: str) -> None:
    """By explicit patches, neighbours and inverses, pixel by pixel."""
    kernel, X = learned(machine(activation)), images(4)
    scales, layout, P = kernel.scales, kernel.layout, kernel.Z.shape[0]
    assert isinstance(layout, Images)

    def patch(image: Tensor, i: int, j: int) -> Tensor:
        padded = torch.nn.functional.pad(2 * image.reshape(SHAPE) - 1, (1, 1, 1, 1))
        return (padded[:, i : i + 3, j : j + 3] * (scales.inputs[0] / 9).sqrt()[:, None, None]).flatten()

    cells = list(itertools.product(range(H), range(W)))
    inducing = torch.stack([patch(z, *cells[int(s)]) for z, s in zip(kernel.Z, layout.pixels, strict=True)])
    points = {cell: torch.stack([patch(x, *cell) for x in X]) for cell in cells}
    v0 = scales.biases[0, 0]

    def F(a: Tensor, b: Tensor) -> Tensor:
        squares = [v0 + value.square().sum(-1) for value in (a, b)]
        return product(v0 + a @ b.T, squares[0][:, None], squares[1][None], activation)

    steps = list(itertools.product((-1, 0, 1), repeat=2))
    mixers = layout.mixers[0]
    v, u = scales.biases[0, 1], scales.weights[0, 0]
    K_ii = v + u / 9 * sum((M @ F(inducing, inducing) @ M.T for M in mixers), torch.zeros(P, P).double())
    K_ii = K_ii + KERNEL_JITTER * K_ii.diagonal().mean() * torch.eye(P).double()
    L, T = torch.linalg.cholesky(K_ii), kernel.roots[0]
    total = torch.zeros(4, 4).double()
    for i, j in cells:
        K_it, K_tt = torch.zeros(P, 4).double() + v, torch.zeros(4, 4).double() + v
        for M, (di, dj) in zip(mixers, steps, strict=True):
            if (i + di, j + dj) in points:
                near = points[i + di, j + dj]
                K_it = K_it + u / 9 * M @ F(inducing, near)
                K_tt = K_tt + u / 9 * F(near, near)
        A = torch.linalg.solve(K_ii, K_it)
        G = K_tt - A.T @ K_it + A.T @ L @ T @ T.T @ L.T @ A
        at = G.diagonal()
        total = total + product(G, at[:, None], at[None], activation) / (H * W)
    expected = scales.biases[0, 2] + scales.weights[0, 1] * total
    torch.testing.assert_close(gram(kernel, X, X), expected, rtol=1e-6, atol=1e-6)


def test_mixers_project_neighbours_onto_the_inducing_features() -> None:
    """The centre of an inducing point's patch is the inducing point itself."""
    kernel = machine("erf")
    assert isinstance(kernel.layout, Images)
    centre = kernel.layout.mixers[0, 4]
    torch.testing.assert_close(centre, torch.eye(6).double(), rtol=0, atol=0.02)  # up to the projection's jitter


@pytest.mark.parametrize("activation", ["erf", "relu", SQUARED_EXPONENTIAL])
def test_identity_roots_change_nothing_and_blocks_agree(activation: str) -> None:
    plain, X = machine(activation, 3), images(7)
    trivial = replace(plain, roots=identity_roots(3, plain.Z))
    torch.testing.assert_close(gram(trivial, X, X), gram(plain, X, X), rtol=1e-9, atol=1e-9)
    for kernel in (plain, learned(plain)):
        K = gram(kernel, X, X)
        assert torch.linalg.eigvalsh(0.5 * (K + K.T)).min() > -1e-8 * K.diagonal().mean()
        K_ii, cross, diagonal = inducing_blocks(kernel, X)
        torch.testing.assert_close(diagonal, K.diagonal())
        torch.testing.assert_close(gram_diagonal(kernel, X), K.diagonal())
        torch.testing.assert_close(cross, gram(kernel, kernel.Z, X))
        torch.testing.assert_close(inducing_gram(kernel), K_ii)
        batched = gram(kernel, X[:6].reshape(2, 3, -1), X)
        torch.testing.assert_close(batched.flatten(0, 1), K[:6])


@pytest.mark.parametrize("with_roots", [False, True])
@pytest.mark.parametrize("activation", ["erf", SQUARED_EXPONENTIAL])
def test_random_features_have_the_kernel_as_covariance(activation: str, with_roots: bool) -> None:
    plain = machine(activation)
    kernel, X, n, width = (learned(plain) if with_roots else plain), images(3, 8), 600, 32
    draw = prior_draws(kernel, n, width, rng())
    values = draw(X)
    assert values.shape == (n, 3)
    torch.testing.assert_close(draw(X.unsqueeze(1))[..., 0], values)
    products, K = values[:, :, None] * values[:, None, :], gram(kernel, X, X)
    error = 4.5 * products.std(0) / math.sqrt(n) + 6.0 / width * K.diagonal().mean()
    assert bool(((products.mean(0) - K).abs() < error).all())


def test_gradients_against_differences() -> None:
    kernel = learned(machine("erf"))
    X = images(2, 5).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: gram(kernel, x, images(2, 6)), X)
