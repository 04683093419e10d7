"""Wishart densities of every rank, the bound of the deep Wishart process, and its frozen functions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from seqbdl.inference import infinite_width
from seqbdl.inference.deep_wishart import (
    DeepWishart,
    Parameters,
    WishartSettings,
    linear_gram,
    log_bound,
    sample_layer,
    start_parameters,
    train_wishart,
)
from seqbdl.inference.infinite_width import WidthScales, default_scales
from seqbdl.inference.wishart import Bartlett, draw, log_posterior, log_wishart, prior_bartlett
from seqbdl.inference.wishart_functions import FrozenLayers, freeze


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scale_matrix(P: int, seed: int = 0) -> Tensor:
    root = torch.randn(P, P, generator=rng(seed), dtype=torch.float64)
    return root @ root.T + torch.eye(P).double()


def data(n: int = 12) -> tuple[Tensor, Tensor]:
    generator = rng()
    X = torch.rand(n, 2, generator=generator, dtype=torch.float64)
    Y = torch.sin(4 * X.sum(-1, keepdim=True)) + 0.1 * torch.randn(n, 1, generator=generator, dtype=torch.float64)
    return X, Y


@pytest.mark.parametrize(("P", "nu"), [(4, 9), (4, 4), (5, 3), (6, 2), (5, 1), (3, 1000)])
def test_the_posterior_at_prior_parameters_is_the_prior(P: int, nu: int) -> None:
    factor = torch.linalg.cholesky(scale_matrix(P)).expand(3, -1, -1)
    q = prior_bartlett(P, nu, factor)
    A = draw(q, 3, rng())
    log_Q = log_posterior(A, factor.diagonal(dim1=-2, dim2=-1).log(), q)
    log_P = log_wishart(factor @ A, nu, factor)
    torch.testing.assert_close(log_Q, log_P, rtol=1e-12, atol=1e-11)
    if nu >= P:
        G = factor @ A @ (factor @ A).transpose(-1, -2)
        torch.testing.assert_close(log_P, torch.distributions.Wishart(nu, scale_matrix(P)).log_prob(G), rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize(("P", "nu"), [(3, 7), (4, 2)])
def test_draws_have_the_moments_of_gaussian_features(P: int, nu: int) -> None:
    S = scale_matrix(P)
    A = draw(prior_bartlett(P, nu, S), 20_000, rng())
    image = torch.linalg.cholesky(S) @ A
    G = image @ image.transpose(-1, -2)
    variance = nu * (S.square() + S.diagonal()[:, None] * S.diagonal())
    assert float(((G.mean(0) - nu * S).abs() / (variance / 20_000).sqrt()).max()) < 4.5
    torch.testing.assert_close(G.var(0), variance, rtol=0.15, atol=0)


def test_gradients_reach_every_parameter_of_the_bartlett_factor() -> None:
    shape = torch.tensor([2.0, 1.5]).double().requires_grad_(True)
    rate = torch.tensor([0.5, 0.7]).double().requires_grad_(True)
    mean, sd = (torch.full((3, 2), v).double().requires_grad_(True) for v in (0.2, 0.8))
    A = draw(Bartlett(shape, rate, mean, sd), 4000, rng())
    second = A.square().mean(0)
    gradients = torch.autograd.grad(second[0, 0] + second[1, 1] + second[2, 0], (shape, rate, mean, sd))
    # E[A_jj^2] = shape / rate, E[A_20^2] = mean^2 + sd^2
    torch.testing.assert_close(gradients[0], (1 / rate).detach(), rtol=0.1, atol=0)
    torch.testing.assert_close(gradients[1], (-shape / rate.square()).detach(), rtol=0.1, atol=0)
    assert float(gradients[2][2, 0]) == pytest.approx(0.4, rel=0.1)
    assert float(gradients[3][2, 0]) == pytest.approx(1.6, rel=0.1)


def at_the_prior(nus: tuple[int, ...], X: Tensor, Y: Tensor) -> tuple[DeepWishart, Parameters, WidthScales, Tensor]:
    scales, noise = default_scales(2, len(nus) + 1, 1), torch.tensor([0.02]).double()
    model = DeepWishart(nus, "erf", X)
    parameters = start_parameters(model, scales, noise, Y, 1.0, rng())
    for layer, nu in enumerate(nus):
        q = prior_bartlett(X.shape[0], nu, X)
        parameters[f"mix{layer}"] = X.new_tensor(-60.0)
        parameters[f"shape{layer}"], parameters[f"rate{layer}"] = q.shape.log(), q.rate.log()
        parameters[f"mean{layer}"], parameters[f"sd{layer}"] = q.mean, q.sd.log()
    return model, parameters, scales, noise


def evidence(scales: WidthScales, X: Tensor, Y: Tensor, noise: Tensor) -> float:
    K = infinite_width.kernel(scales, X, X, "erf")[0] + noise * torch.eye(X.shape[0]).double()
    return float(torch.distributions.MultivariateNormal(torch.zeros(X.shape[0]).double(), K).log_prob(Y[:, 0]))


def test_without_hidden_layers_the_bound_is_the_evidence_of_the_process() -> None:
    X, Y = data()
    model, parameters, scales, noise = at_the_prior((), X, Y)
    bound = log_bound(model, parameters, X, Y, None, 1.0, 1, rng())
    assert float(bound) == pytest.approx(evidence(scales, X, Y, noise), abs=0.01)


def test_the_wide_limit_is_the_evidence_of_the_infinitely_wide_network() -> None:
    X, Y = data()
    gaps = []
    for nu in (30, 20_000):
        model, parameters, scales, noise = at_the_prior((nu,), X, Y)
        with torch.no_grad():
            bounds = torch.stack([log_bound(model, parameters, X, Y, None, 1.0, 4, rng(seed)) for seed in range(8)])
        gaps.append(evidence(scales, X, Y, noise) - float(bounds.mean()))
    assert gaps[0] > 3 * gaps[1]
    assert abs(gaps[1]) < 0.1


def test_training_raises_the_bound_and_rows_beyond_the_inducing_inputs_are_seen_in_batches() -> None:
    X, Y = data(40)
    model = DeepWishart((4,), "erf", X[:10])
    start = start_parameters(model, default_scales(2, 2, 1), torch.tensor([0.02]).double(), Y[:10], 4.0, rng())
    before = log_bound(model, start, X, Y, None, 1.0, 32, rng())
    fit = train_wishart(model, start, X, Y, None, rng(), WishartSettings(80, batch_size=16))
    after = log_bound(model, fit, X, Y, None, 1.0, 32, rng())
    assert after > before + 10
    halves = [log_bound(model, fit, X[i::2], Y[i::2], None, 2.0, 64, rng(i)) for i in range(2)]
    spread = 0.1 * abs(float(after)) + 10
    assert abs(float(sum(halves)) / 2 - float(after)) < spread


def test_frozen_functions_go_through_their_features_and_keep_the_layers_law() -> None:
    X, Y = data(6)
    model, parameters, scales, _ = at_the_prior((5,), X, Y)
    frozen = freeze(model, parameters, 800, 64, rng())
    at_Z = frozen.hidden(X)
    assert float((at_Z - frozen.images[0]).abs().max()) < 0.02
    points = torch.rand(3, 2, generator=rng(5), dtype=torch.float64)
    phi = frozen.hidden(points)
    assert phi.shape == (800, 3, 5)
    hidden = WidthScales(scales.inputs, scales.weights[:, :1], scales.biases[:, :2], scales.noise)
    K = infinite_width.kernel(hidden, points, points, "erf")[0]
    G = phi @ phi.transpose(-1, -2)
    error = 4.5 * G.std(0) / math.sqrt(800) + 0.02 * K.abs()
    assert bool(((G.mean(0) - K).abs() < error).all())
    again = FrozenLayers.of(frozen.tree(), "erf", (5,))
    assert torch.equal(again.hidden(points), phi)


def test_a_layer_of_huge_width_is_its_kernel() -> None:
    X, Y = data(6)
    model, parameters, scales, _ = at_the_prior((200_000,), X, Y)
    sample = sample_layer(model, parameters, 0, linear_gram(scales, X, X).expand(2, -1, -1), 2, rng())
    hidden = WidthScales(scales.inputs, scales.weights[:, :1], scales.biases[:, :2], scales.noise)
    K = infinite_width.kernel(hidden, X, X, "erf")[0]
    torch.testing.assert_close(sample.image @ sample.image.transpose(-1, -2), K.expand(2, -1, -1), rtol=0.03, atol=0.03)
