"""Epinets: the linear one on linear models, where its spread is that of Bayesian regression; the MLP; training together."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from seqbdl.inference.adam import AdamSettings
from seqbdl.inference.epinet import Epinet, fit_epinet, train_epinet
from seqbdl.inference.indexed import PriorFunctions, draw_indices, draw_signals, targets
from seqbdl.inference.lbfgs import LBFGSSettings
from seqbdl.inference.observations import Joined, Remembered
from seqbdl.likelihoods import get_likelihood
from seqbdl.networks import HeadedNetwork, LinearHead, Network

GAUSSIAN = get_likelihood("gaussian")
LIKE = torch.zeros(1).double()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linear_model(linear: SimpleNamespace, m: int) -> tuple[SimpleNamespace, Network]:
    """The linear problem, and a network whose last hidden layer and constant are its inputs: features of prior scale."""
    p = linear.problem(m=m)
    network = HeadedNetwork(nn.Identity(), 2, m)
    head = LinearHead(lambda X: network.hidden(torch.zeros(1, network.num_params).double(), X)[0], 2, 3, m)
    return p, head


@pytest.mark.parametrize("m", [1, 2])
def test_the_linear_epinet_recovers_bayesian_regression(m: int, linear: SimpleNamespace) -> None:
    """Base network at the posterior mean: every index dimension holds one sample of the posterior, before and after an
    update; the update moves the mean to that of all rows."""
    p, head = linear_model(linear, m)
    dim, J = 400, linear.jacobian(head, p.X)
    z, c = draw_indices(dim + 50, dim, generator(), LIKE), draw_signals(8, m, dim, generator(1), LIKE)
    prior = PriorFunctions(head, torch.randn(dim, head.num_params, generator=generator(2), dtype=torch.float64), 1.0)
    epinet, one = Epinet(2, 3, m, dim), LBFGSSettings(max_iterations=1)
    start = epinet.initial(generator(), LIKE)
    assert not bool(start.any())

    first = slice(0, 5)
    mean, covariance, _ = linear.conditioned(J[: 5 * m], p.Y[first], p.variance[first])
    base, features = head.forward(mean.unsqueeze(0), p.X), head.tangents(mean.unsqueeze(0), p.X).parts
    offset = base + prior(p.X, z)
    seen = targets(GAUSSIAN, p.Y[first], p.variance[first], z, c[first])
    params = fit_epinet(epinet, p.X[first], features[first], seen, z, offset[:, first], start, start, one)
    skip = epinet.skip_weights(params)
    assert not bool(skip[0].any())  # the mean is the base network's
    linear.assert_samples(dim**0.5 * skip[1:] + prior.weights, torch.zeros_like(mean), covariance)

    values = (epinet(params, p.X, features, z) + offset)[:, first]
    held = Remembered(values, p.variance[first].rsqrt().expand_as(values))
    both = Joined(held, targets(GAUSSIAN, p.Y[5:], p.variance[5:], z, c[5:]), 5)
    params = fit_epinet(epinet, p.X, features, both, z, offset, params, params, one, move_mean=True)
    exact_mean, exact_covariance, _ = linear.conditioned(J, p.Y, p.variance)
    skip = epinet.skip_weights(params)
    torch.testing.assert_close(mean + skip[0], exact_mean, rtol=0, atol=1e-8)
    linear.assert_samples(dim**0.5 * skip[1:] + prior.weights, torch.zeros_like(mean), exact_covariance)


def test_the_function_of_the_weights(linear: SimpleNamespace) -> None:
    """Against a loop over indices, points and layers."""
    epinet = Epinet(2, 4, 3, 5, (6, 7))
    params, X, features = linear.normals(epinet.num_params), linear.normals(8, 2).sigmoid(), linear.normals(8, 4, seed=1)
    z = linear.normals(3, 5, seed=2)
    values = epinet(params, X, features, z)
    skip = params[: epinet.num_skip].reshape(6, 4, 3)
    sizes = [(12, 6), (7, 7), (8, 15)]
    first, second, last = (w.reshape(s) for w, s in zip(params[epinet.num_skip :].split([72, 49, 120]), sizes, strict=True))
    for s in range(3):
        for n in range(8):
            seen = torch.cat([z[s] / 5**0.5, (2 * X[n] - 1) / 2**0.5, features[n], torch.ones(1).double()])
            h = torch.erf(0.5 * torch.pi**0.5 * seen @ first)
            h = torch.erf(0.5 * torch.pi**0.5 * torch.cat([h / 6**0.5, torch.ones(1).double()]) @ second)
            out = (torch.cat([h / 7**0.5, torch.ones(1).double()]) @ last).reshape(3, 5)
            expected = out @ z[s] / 5**0.5 + features[n] @ skip[0] + sum(z[s, i] * features[n] @ skip[1 + i] for i in range(5))
            torch.testing.assert_close(values[s, n], expected)


@pytest.mark.parametrize("skip", [True, False])
def test_it_starts_at_zero_with_random_hidden_layers(skip: bool, linear: SimpleNamespace) -> None:
    epinet = Epinet(2, 4, 3, 5, (6, 7), skip)
    start = epinet.initial(generator(), LIKE)
    values = epinet(start, linear.normals(8, 2).sigmoid(), linear.normals(8, 4), linear.normals(3, 5))
    assert values.shape == (3, 8, 3)
    assert not bool(values.any())
    assert int((start != 0).sum()) == 72 + 49


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize(("name", "m"), [("gaussian", 2), ("categorical", 3), ("poisson", 1), ("heteroscedastic", 1)])
def test_the_objective_is_minimized(name: str, m: int, skip: bool, linear: SimpleNamespace) -> None:
    likelihood = get_likelihood(name)
    latents = likelihood.num_latents(m)
    epinet = Epinet(2, 3, latents, 3, (5, 4), skip)
    X, features, noise = linear.normals(9, 2).sigmoid(), linear.normals(9, 3, seed=1), torch.full((9, m), 0.2).double()
    Y = likelihood.sample(linear.normals(9, latents, seed=2), noise, generator())
    z, c = draw_indices(12, 3, generator(), LIKE), draw_signals(9, m, 3, generator(1), LIKE)
    offset = (z @ linear.normals(3, 9 * latents, seed=3)).reshape(12, 9, latents)
    seen, start = targets(likelihood, Y, noise, z, c), epinet.initial(generator(), LIKE)
    settings = LBFGSSettings(max_iterations=150, tolerance=1e-10)
    params = fit_epinet(epinet, X, features, seen, z, offset, start, start, settings, move_mean=True)

    def slope(params: Tensor) -> float:
        leaf = params.clone().requires_grad_(True)
        misfit = seen.misfit(epinet(leaf, X, features, z) + offset).mean()
        return float(torch.autograd.grad(misfit + 0.5 * (leaf - start).square().sum(), leaf)[0].norm())

    # Mean and log-variance trade along a curved valley, which is long.
    assert slope(params) < (0.05 if name == "heteroscedastic" else 1e-3) * slope(start)


def test_mini_batches_train_base_and_epinet_together(linear: SimpleNamespace) -> None:
    """On the linear problem: the mean to a fraction of a posterior deviation; the spread over indices to a third."""
    p, head = linear_model(linear, 1)
    variance = 10 * p.variance
    dim, J = 30, linear.jacobian(head, p.X)
    mean, covariance, _ = linear.conditioned(J, p.Y, variance)
    prior = PriorFunctions(head, torch.randn(dim, head.num_params, generator=generator(2), dtype=torch.float64), 1.0)
    c, epinet = draw_signals(8, 1, dim, generator(1), LIKE), Epinet(2, 3, 1, dim)
    settings = AdamSettings(steps=300, learning_rate=0.08, batch_size=4)
    base, params = train_epinet(
        epinet,
        head,
        p.X,
        p.Y,
        variance,
        GAUSSIAN,
        c,
        prior,
        torch.zeros(1, head.num_params).double(),
        epinet.initial(generator(), LIKE),
        8,
        generator(),
        settings,
    )
    assert float(((base[0] - mean) / covariance.diagonal().sqrt()).abs().max()) < 0.25
    skip = epinet.skip_weights(params)
    assert not bool(skip[0].any())
    z = draw_indices(100, dim, generator(), LIKE)
    offset = head.forward(mean.unsqueeze(0), p.X) + prior(p.X, z)
    start = epinet.initial(generator(), LIKE)
    features = head.tangents(base, p.X).parts
    exact = fit_epinet(epinet, p.X, features, targets(GAUSSIAN, p.Y, variance, z, c), z, offset, start, start)
    spread = [(s[1:] + prior.weights / dim**0.5).square().sum(0).sqrt() for s in (skip, epinet.skip_weights(exact))]
    assert float((spread[0] / spread[1]).log().abs().max()) < 0.3
