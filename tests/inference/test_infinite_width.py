"""Kernels of infinitely wide networks against sampled networks; their evidence against a plain formula."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from seqbdl.errors import UnknownNameError
from seqbdl.inference.infinite_width import (
    WidthScales,
    default_scales,
    expected_product,
    expected_slopes,
    expected_square,
    kernel,
    learn_scales,
    learn_scales_of_latents,
    prior_draw,
)
from seqbdl.likelihoods import get_likelihood
from seqbdl.networks import MLP
from seqbdl.networks.activations import ACTIVATIONS, activate, activation_slope


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def points(n: int, d: int = 2, seed: int = 0) -> Tensor:
    return torch.rand(n, d, generator=generator(seed), dtype=torch.float64)


def scales_of(depth: int, groups: int = 1, d: int = 2) -> WidthScales:
    def positive(*shape: int) -> Tensor:
        return 0.3 + torch.rand(*shape, generator=rng, dtype=torch.float64)

    rng = generator(3)
    return WidthScales(2 * positive(groups, d), positive(groups, depth), positive(groups, depth + 1), positive(groups) / 50)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("correlation", [-0.95, -0.3, 0.0, 0.6, 0.99])
def test_expectations_against_sampling(activation: str, correlation: float) -> None:
    n, k1, k2 = 400_000, 1.7, 0.4
    k = correlation * math.sqrt(k1 * k2)
    white = torch.randn(2, n, generator=generator(), dtype=torch.float64)
    a = math.sqrt(k1) * white[0]
    b = math.sqrt(k2) * (correlation * white[0] + math.sqrt(1 - correlation**2) * white[1])
    arguments = [torch.tensor(v, dtype=torch.float64) for v in (k, k1, k2)]
    for ours, samples in (
        (expected_product(*arguments, activation), activate(a, activation) * activate(b, activation)),
        (expected_slopes(*arguments, activation), activation_slope(a, activation) * activation_slope(b, activation)),
        (expected_square(arguments[1], activation), activate(a, activation).square()),
    ):
        assert abs(float(ours - samples.mean())) < 4.5 * float(samples.std()) / n**0.5


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_coincident_inputs_are_the_limit(activation: str) -> None:
    k = torch.tensor([0.01, 1.0, 50.0], dtype=torch.float64)
    torch.testing.assert_close(expected_product(k, k, k, activation), expected_square(k, activation), rtol=1e-12, atol=0)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_prior_draws_have_the_kernel_as_covariance(depth: int, activation: str) -> None:
    """Exact at depth 1; deeper, up to O(depth / width) of the variance."""
    scales, X, n, width = scales_of(depth, 2), points(3), 2500, 64
    values = prior_draw(scales, n, width, activation, generator(5))(X)
    assert values.shape == (n, 3, 2)
    K = kernel(scales, X, X, activation)
    for group in range(2):
        products = values[:, :, None, group] * values[:, None, :, group]
        error = 4.5 * products.std(0) / n**0.5 + (depth - 1) * 2.0 / width * K[group].abs()
        assert bool(((products.mean(0) - K[group]).abs() < error).all())
    cross = values[..., 0] * values[..., 1]  # groups are independent
    assert bool((cross.mean(0).abs() < 4.5 * cross.std(0) / n**0.5).all())


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_finite_networks_have_both_kernels_in_the_mean(activation: str) -> None:
    """The prior of the MLP and its mean tangent kernel are those of the infinite width with the same variances."""
    scales, X, n, width = scales_of(2), points(3), 1500, 96
    network = MLP((width, width), scales.inputs[0], scales.weights[0], scales.biases[0], 1, activation)
    z = torch.randn(n, network.num_params, generator=generator(1), dtype=torch.float64)
    values = network.forward(z, X)[..., 0]
    products, K = values[:, :, None] * values[:, None, :], kernel(scales, X, X, activation)[0]
    assert bool(((products.mean(0) - K).abs() < 4.5 * products.std(0) / n**0.5 + 2.0 / width * K.abs()).all())
    tangents = network.tangents(z[:300], X)
    grams = network.tangent_kernel(tangents, tangents)
    theta = kernel(scales, X, X, activation, tangent=True)[0]
    assert bool(((grams.mean(0) - theta).abs() < 4.5 * grams.std(0) / 300**0.5 + 2.0 / width * theta.abs()).all())


def test_draws_are_functions() -> None:
    draw = prior_draw(scales_of(2, 2), 3, 16, "erf", generator())
    X = points(10).reshape(5, 2, 2)
    assert draw(X).shape == (3, 5, 2, 2)
    torch.testing.assert_close(draw(X)[:, 3], draw(X[3]))


@pytest.mark.parametrize("tangent", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("depth", [1, 3])
def test_gradients_at_coincident_inputs(depth: int, activation: str, tangent: bool) -> None:
    """The same points on both sides: finite, and equal to central differences of the kernel, which is smooth there for erf."""
    scales, X = scales_of(depth), points(3)
    inputs = X.clone().requires_grad_(True)
    K = kernel(scales, inputs, X, activation, tangent)
    (gradient,) = torch.autograd.grad(K.diagonal(dim1=-2, dim2=-1).sum(), inputs)
    assert bool(gradient.isfinite().all())
    step = 1e-4
    for d in range(2):
        shift = torch.zeros_like(X)
        shift[:, d] = step
        up, down = (kernel(scales, X + s * shift, X, activation, tangent) for s in (1, -1))
        difference = (up - down)[0].diagonal() / (2 * step)
        # The slope of ReLU jumps: the tangent kernel has a cone at coincident inputs, whose two sides cancel in the difference.
        torch.testing.assert_close(gradient[:, d], difference, rtol=1e-3, atol=1e-3)


def test_gradients_reach_the_scales_with_duplicated_rows() -> None:
    for activation in ACTIVATIONS:
        X = points(3).repeat(2, 1)
        scales = scales_of(2)
        weights = scales.weights.clone().requires_grad_(True)
        K = kernel(replace(scales, weights=weights), X, X, activation)
        (gradient,) = torch.autograd.grad(K.square().sum(), weights)
        assert bool(gradient.isfinite().all())


def test_batches() -> None:
    scales = scales_of(2, 3)
    A, B = points(24).reshape(2, 3, 4, 2), points(30, seed=1).reshape(2, 3, 5, 2)
    K = kernel(scales, A, B)
    assert K.shape == (2, 3, 3, 4, 5)
    torch.testing.assert_close(K[1, 2], kernel(scales, A[1, 2], B[1, 2]))


def log_joint(scales: WidthScales, X: Tensor, Y: Tensor, activation: str, shared: bool) -> float:
    """Log evidence plus log hyper-prior, written plainly."""
    groups = 1 if shared else Y.shape[1]
    total = 0.0
    for i in range(Y.shape[1]):
        group = 0 if shared else i
        K = kernel(scales, X, X, activation)[group]
        # The floor is part of the model.
        C = K + (scales.noise[group] + 1e-7) * torch.eye(X.shape[0]).double()
        total += float(torch.distributions.MultivariateNormal(torch.zeros(X.shape[0]).double(), C).log_prob(Y[:, i]))
    centre = default_scales(X.shape[1], scales.depth, groups)
    for name, deviation in (("inputs", 1.7), ("weights", 1.5), ("biases", 1.5), ("noise", 1.0)):
        ratio = (getattr(scales, name) / getattr(centre, name)).log() / deviation
        total -= 0.5 * float(ratio.square().sum())
    return total


def data(n: int = 25) -> tuple[Tensor, Tensor]:
    X = points(n)
    Y = torch.stack([torch.sin(6 * X[:, 0]), X[:, 1].square() + X[:, 0]], -1)
    Y = Y + 0.1 * torch.randn(n, 2, generator=generator(9), dtype=torch.float64)
    return X, (Y - Y.mean(0)) / Y.std(0)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("depth", "activation"), [(1, "erf"), (2, "relu"), (3, "leaky_relu")])
def test_learned_scales_maximize_the_evidence(depth: int, activation: str, shared: bool) -> None:
    X, Y = data()
    scales, value = learn_scales(X, Y, depth=depth, activation=activation, shared=shared, max_iterations=300)
    plain = log_joint(scales, X, Y, activation, shared)
    assert abs(plain - value) < 1e-4 * abs(plain)
    rng = generator(2)
    for _ in range(20):  # nothing near is better
        nudged = {
            key: v * torch.exp(0.05 * torch.randn(v.shape, generator=rng, dtype=torch.float64))
            for key, v in scales.tree().items()
        }
        assert log_joint(WidthScales(**nudged), X, Y, activation, shared) < plain + 0.02


def test_warm_starts_end_no_lower_and_sooner() -> None:
    X, Y = data()
    scales, value = learn_scales(X, Y[:, :1])
    again, warm = learn_scales(X, Y[:, :1], start=scales, max_iterations=2)
    assert warm >= value - 1e-6
    _, cold = learn_scales(X, Y[:, :1], max_iterations=2)
    assert warm > cold
    nonsense = WidthScales(*(1e3 * v for v in again.tree().values()))
    _, recovered = learn_scales(X, Y[:, :1], start=nonsense)
    assert recovered > value - 0.5


def test_known_noise_stays_and_learned_noise_is_found() -> None:
    X, Y = data(80)
    known = torch.full((1, 2), 0.09, dtype=torch.float64)
    scales, _ = learn_scales(X, Y, known)
    torch.testing.assert_close(scales.noise, torch.full((2,), 0.09).double())
    X = points(120, seed=4)
    clean = torch.sin(4 * X[:, :1])
    Y = clean / clean.std() + 0.3 * torch.randn(120, 1, generator=generator(1), dtype=torch.float64)
    learned, _ = learn_scales(X, Y)
    # 0.09 to within four standard errors of a variance from about 110 degrees of freedom
    assert abs(float(learned.noise) / 0.09 - 1) < 4 * math.sqrt(2 / 110)


def test_irrelevant_inputs_get_small_variances() -> None:
    X = points(60, 3)
    Y = torch.sin(5 * X[:, :1])
    scales, _ = learn_scales(X, (Y - Y.mean()) / Y.std())
    assert float(scales.inputs[0, 1:].max()) < 0.05 * float(scales.inputs[0, 0])


def test_unknown_activations_are_refused() -> None:
    X, Y = data()
    with pytest.raises(UnknownNameError, match="tanh"):
        learn_scales(X, Y, activation="tanh")


def test_scales_of_labels_find_the_input_that_matters() -> None:
    """Classes and counts that depend on one of two inputs: the other gets a much smaller variance."""
    generator = torch.Generator().manual_seed(0)
    X = torch.rand(120, 2, generator=generator, dtype=torch.float64)
    f = 5 * torch.sin(6 * X[:, :1])
    labels = {
        "bernoulli": (torch.rand(120, 1, generator=generator, dtype=torch.float64) < torch.sigmoid(f)).double(),
        "poisson": torch.poisson((0.5 * f).exp(), generator=generator),
        "categorical": (X[:, :1] * 2.999).floor(),
    }
    for name, Y in labels.items():
        likelihood = get_likelihood(name)
        scales = learn_scales_of_latents(X, Y, likelihood, likelihood.num_latents(3 if name == "categorical" else 1))
        assert scales.inputs[0, 0] > 3 * scales.inputs[0, 1]
        assert bool(scales.weights.isfinite().all())


def test_known_noise_of_each_row_and_output_is_used() -> None:
    """Rows with enormous variances say nothing: the scales are those without them."""
    generator = torch.Generator().manual_seed(0)
    X = torch.rand(20, 2, generator=generator, dtype=torch.float64)
    Y = torch.cat([torch.sin(5 * X[:, :1]), X[:, 1:] ** 2], -1)
    noise = torch.full_like(Y, 0.01)
    noise[10:] = 1e9
    few, _ = learn_scales(X[:10], Y[:10], noise[:10], shared=True)
    all_, _ = learn_scales(X, Y, noise, shared=True)
    torch.testing.assert_close(all_.inputs, few.inputs, rtol=0.05, atol=0.05)
    torch.testing.assert_close(all_.weights, few.weights, rtol=0.05, atol=0.05)
