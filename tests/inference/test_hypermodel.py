"""Linear hypermodels on linear networks, where their spread is that of Bayesian regression; and their objective."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from seqbdl.inference.adam import AdamSettings
from seqbdl.inference.hypermodel import fit_hypermodel, generated_weights, mean_curvature, train_hypermodel
from seqbdl.inference.indexed import PriorFunctions, draw_indices, draw_signals, targets
from seqbdl.inference.lbfgs import LBFGSSettings
from seqbdl.inference.observations import Joined, Remembered
from seqbdl.likelihoods import get_likelihood
from seqbdl.networks import MLP

GAUSSIAN = get_likelihood("gaussian")
LIKE = torch.zeros(1).double()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fitted(p: SimpleNamespace, dim: int, rows: slice = slice(None)) -> tuple[Tensor, PriorFunctions, Tensor, Tensor]:
    """Parameters of the linear problem, its prior functions, indices and signals."""
    P = p.network.num_params
    z, c = draw_indices(dim + 50, dim, generator(), LIKE), draw_signals(8, p.Y.shape[1], dim, generator(1), LIKE)
    prior = PriorFunctions(p.network, torch.randn(dim, P, generator=generator(2), dtype=torch.float64), 1.0)
    seen = targets(GAUSSIAN, p.Y[rows], p.variance[rows], z, c[rows])
    zeros, X = torch.zeros(1 + dim, P).double(), p.X[rows]
    theta = fit_hypermodel(p.network, X, seen, z, prior(X, z), zeros, zeros, LBFGSSettings(max_iterations=1))
    return theta, prior, z, c


@pytest.mark.parametrize("m", [1, 2])
def test_linear_networks_in_one_step(m: int, linear: SimpleNamespace) -> None:
    """The mean is exact; each index dimension holds one sample of the posterior, so that the covariance over indices is a
    sample covariance of ``D`` of them."""
    p, dim = linear.problem(m=m), 400
    theta, prior, _, _ = fitted(p, dim)
    torch.testing.assert_close(theta[0], p.mean, rtol=0, atol=1e-8)
    samples = dim**0.5 * theta[1:] + prior.weights
    linear.assert_samples(samples, torch.zeros_like(p.mean), p.covariance)


def test_updates_of_linear_networks_are_exact(linear: SimpleNamespace) -> None:
    """A quadratic around the old parameters, and new rows with signals of their own: the posterior of all rows."""
    p, dim = linear.problem(m=2), 400
    old, prior, z, c = fitted(p, dim, slice(0, 5))
    held_X, new_X = p.X[:5], p.X[5:]
    values = p.network.forward(generated_weights(old, z), held_X) + prior(held_X, z)
    held = Remembered(values, p.variance[:5].rsqrt().expand_as(values))
    seen = Joined(held, targets(GAUSSIAN, p.Y[5:], p.variance[5:], z, c[5:]), 5)
    X = torch.cat([held_X, new_X])
    theta = fit_hypermodel(p.network, X, seen, z, prior(X, z), old, old, LBFGSSettings(max_iterations=1))
    torch.testing.assert_close(theta[0], p.mean, rtol=0, atol=1e-8)
    linear.assert_samples(dim**0.5 * theta[1:] + prior.weights, torch.zeros_like(p.mean), p.covariance)


def mlp(m: int) -> MLP:
    ones = torch.ones(3).double()
    return MLP((6, 5), 3 * ones[:2], ones[:2], ones, m)


@pytest.mark.parametrize(
    ("name", "m"), [("gaussian", 2), ("heteroscedastic", 1), ("bernoulli", 2), ("categorical", 3), ("poisson", 1)]
)
def test_the_objective_is_minimized_for_every_likelihood(name: str, m: int, linear: SimpleNamespace) -> None:
    """Its gradient, by autograd through the plain definition, vanishes at the end."""
    likelihood = get_likelihood(name)
    network = mlp(likelihood.num_latents(m))
    X, noise = linear.normals(9, 2).sigmoid(), torch.full((9, m), 0.2).double()
    truth = network.forward(linear.normals(1, network.num_params), X)[0]
    Y = likelihood.sample(truth, noise, generator())
    z, c = draw_indices(12, 3, generator(), LIKE), draw_signals(9, m, 3, generator(1), LIKE)
    prior = PriorFunctions(network, linear.normals(3, network.num_params, seed=3), 0.5)
    anchor = torch.cat([linear.normals(1, network.num_params, seed=4), torch.zeros(3, network.num_params).double()])
    seen = targets(likelihood, Y, noise, z, c)
    settings = LBFGSSettings(max_iterations=200, tolerance=1e-10)

    def loss(theta: Tensor) -> Tensor:
        total = 0.5 * (theta - anchor).square().sum()
        for s in range(12):
            f = network.forward((theta[0] + z[s] @ theta[1:]).unsqueeze(0), X)[0] + prior(X, z[s : s + 1])[0]
            target = Y + (c @ z[s]) * noise.sqrt() if name == "gaussian" else Y
            total = total - likelihood.log_prob(f, target, noise).sum() / 12
        return total

    def slope(theta: Tensor) -> float:
        leaf = theta.clone().requires_grad_(True)
        return float(torch.autograd.grad(loss(leaf), leaf)[0].norm())

    theta = fit_hypermodel(network, X, seen, z, prior(X, z), anchor, anchor, settings)
    assert float(loss(theta)) < float(loss(anchor))
    # Mean and log-variance trade along a curved valley, which is long.
    assert slope(theta) < (0.05 if name == "heteroscedastic" else 1e-3) * slope(anchor)


def test_the_preconditioner_is_the_inverse_curvature(linear: SimpleNamespace) -> None:
    network, likelihood = mlp(3), get_likelihood("categorical")
    X, z = linear.normals(5, 2).sigmoid(), draw_indices(6, 2, generator(), LIKE)
    Y, theta = torch.tensor([[0.0], [1.0], [2.0], [0.0], [1.0]]).double(), linear.normals(3, network.num_params)
    seen, offset = targets(likelihood, Y, torch.ones(5, 3).double(), z, None), torch.zeros(6, 5, 3).double()
    inverse = mean_curvature(network, X, seen, offset, theta).inverse_times
    tangents = network.tangents(theta[:1], X)
    J = network.jacobian(tangents)[0].flatten(0, 1)
    R = torch.block_diag(*likelihood.root(tangents.values[0], torch.ones(1).double()))
    curvature = torch.eye(network.num_params).double() + J.T @ R @ R.T @ J
    v = linear.normals(3, network.num_params, seed=2)
    torch.testing.assert_close(inverse(v), torch.linalg.solve(curvature, v.T).T, rtol=1e-7, atol=1e-9)


def test_mini_batches_reach_the_same_posterior(linear: SimpleNamespace) -> None:
    """Adam with four of eight rows and fresh indices: the mean to a fraction of a posterior deviation, the spread to a third."""
    p, dim = linear.problem(level=0.5), 30
    prior = PriorFunctions(p.network, torch.randn(dim, p.network.num_params, generator=generator(2), dtype=torch.float64), 1.0)
    c, zeros = draw_signals(8, 1, dim, generator(1), LIKE), torch.zeros(1 + dim, p.network.num_params).double()
    settings = AdamSettings(steps=300, learning_rate=0.08, batch_size=4)
    theta = train_hypermodel(p.network, p.X, p.Y, p.variance, GAUSSIAN, c, prior, zeros, zeros, 8, generator(), settings)
    sd = p.covariance.diagonal().sqrt()
    assert float(((theta[0] - p.mean) / sd).abs().max()) < 0.25
    z = draw_indices(100, dim, generator(), LIKE)
    seen = targets(GAUSSIAN, p.Y, p.variance, z, c)
    exact = fit_hypermodel(p.network, p.X, seen, z, prior(p.X, z), zeros, zeros)
    spread = [(t[1:] + prior.weights / dim**0.5).square().sum(0).sqrt() for t in (theta, exact)]
    assert float((spread[0] / spread[1]).log().abs().max()) < 0.3
