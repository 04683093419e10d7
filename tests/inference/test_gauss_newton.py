"""Gauss-Newton in the dual and randomize-then-optimize against linear regression in closed form."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from seqbdl.inference.gauss_newton import GaussNewtonSettings, _linear_minimizer, gauss_newton, minimize
from seqbdl.inference.observations import Joined, Labels, Remembered, Squares
from seqbdl.likelihoods import get_likelihood
from seqbdl.networks import MLP, ModuleNetwork

ONE_STEP = GaussNewtonSettings(max_iterations=1)


@pytest.mark.parametrize("m", [1, 2])
def test_one_step_finds_the_posterior_mean_of_a_linear_network(m: int, linear: SimpleNamespace) -> None:
    p = linear.problem(m=m)
    zeros = torch.zeros(1, p.network.num_params).double()
    far = 10 * linear.normals(1, p.network.num_params)
    for start in (zeros, far):
        result = gauss_newton(p.network, p.X, p.Y.unsqueeze(0), p.variance, zeros, start, ONE_STEP)
        torch.testing.assert_close(result.z[0], p.mean, rtol=0, atol=1e-8)
    misfit = ((p.Y - p.network.forward(result.z, p.X)[0]).square() / p.variance).sum()
    torch.testing.assert_close(result.loss[0], 0.5 * misfit + 0.5 * result.z.square().sum())


@pytest.mark.parametrize("m", [1, 2])
def test_randomized_members_are_exact_posterior_samples_of_a_linear_network(m: int, linear: SimpleNamespace) -> None:
    p, S = linear.problem(m=m, level=0.3), 20_000
    anchors = linear.normals(S, p.network.num_params, seed=1)
    targets = p.Y + p.variance.sqrt() * linear.normals(S, *p.Y.shape, seed=2)
    members = gauss_newton(p.network, p.X, targets, p.variance, anchors, anchors, ONE_STEP).z
    linear.assert_samples(members, p.mean, p.covariance)


def test_without_target_noise_the_spread_is_too_small(linear: SimpleNamespace) -> None:
    """Anchors alone: covariance S S instead of S, S the posterior covariance under a standard normal prior."""
    p, S = linear.problem(level=0.3), 20_000
    anchors = linear.normals(S, p.network.num_params, seed=1)
    members = gauss_newton(p.network, p.X, p.Y.unsqueeze(0), p.variance, anchors, anchors, ONE_STEP).z
    linear.assert_samples(members, p.mean, p.covariance @ p.covariance)
    assert float((p.covariance @ p.covariance).trace()) < 0.97 * float(p.covariance.trace())


def test_members_do_not_mix(linear: SimpleNamespace) -> None:
    network = ModuleNetwork(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)), 2)
    p, starts = linear.problem(), linear.normals(4, network.num_params)
    targets = p.Y + linear.normals(4, *p.Y.shape, seed=3)
    settings = GaussNewtonSettings(max_iterations=8, tolerance=0.0)
    together = gauss_newton(network, p.X, targets, p.variance, starts, starts, settings)
    for i in range(4):
        one = slice(i, i + 1)
        alone = gauss_newton(network, p.X, targets[one], p.variance, starts[one], starts[one], settings)
        torch.testing.assert_close(together.z[i], alone.z[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("activation", ["erf", "relu"])
def test_nonlinear_networks_descend_to_a_stationary_point(activation: str, linear: SimpleNamespace) -> None:
    ones = torch.ones(4).double()
    network = MLP((8, 8), 4 * ones[:2], ones[:2], ones[:3], 1, activation)
    p, starts = linear.problem(n=12), linear.normals(6, network.num_params)
    previous = torch.full((6,), torch.inf).double()
    for iterations in (1, 3, 10, 200):
        settings = GaussNewtonSettings(max_iterations=iterations, tolerance=1e-12)
        result = gauss_newton(network, p.X, p.Y.unsqueeze(0), p.variance, starts, starts, settings)
        assert bool((result.loss <= previous + 1e-9).all())
        previous = result.loss
    if activation == "erf":  # a kink of ReLU may be where the loss is least
        z = result.z.clone().requires_grad_(True)
        loss = (0.5 * (p.Y - network.forward(z, p.X)).square() / p.variance).sum() + 0.5 * (z - starts).square().sum()
        (gradient,) = torch.autograd.grad(loss, z)
        assert float(gradient.abs().max()) < 1e-2 * (1 + float(result.loss.max()))


def test_damping_does_not_move_the_minimizer(linear: SimpleNamespace) -> None:
    p = linear.problem()
    zeros = torch.zeros(1, p.network.num_params).double()
    settings = GaussNewtonSettings(max_iterations=60, tolerance=1e-14, damping=5.0)
    result = gauss_newton(p.network, p.X, p.Y.unsqueeze(0), p.variance, zeros, zeros, settings)
    torch.testing.assert_close(result.z[0], p.mean, rtol=0, atol=1e-5)


def test_labels_reach_the_mode_of_logistic_regression(linear: SimpleNamespace) -> None:
    """Against Newton's method on the dense problem."""
    network = ModuleNetwork(nn.Linear(2, 3), 2, 3)
    generator = torch.Generator().manual_seed(0)
    X = torch.rand(30, 2, generator=generator, dtype=torch.float64)
    Y = (X[:, :1] * 2.999).floor()
    likelihood, noise = get_likelihood("categorical"), torch.ones(30, 3, dtype=torch.float64)
    zeros = torch.zeros(2, network.num_params, dtype=torch.float64)
    starts = linear.normals(2, network.num_params)
    settings = GaussNewtonSettings(max_iterations=60, tolerance=1e-14)
    for precision in (1.0, 0.3):
        found = minimize(network, X, Labels(likelihood, Y, noise), zeros, starts, settings, precision).z

        def loss(z: Tensor, precision: float = precision) -> Tensor:
            f = network.forward(z.unsqueeze(0), X)
            return -likelihood.log_prob(f, Y, noise).sum() + 0.5 * precision * z.square().sum()

        z = torch.zeros(network.num_params, dtype=torch.float64)
        for _ in range(30):
            gradient = torch.autograd.functional.jacobian(loss, z)
            z = z - torch.linalg.solve(torch.autograd.functional.hessian(loss, z), gradient)
        torch.testing.assert_close(found, z.expand(2, -1), rtol=0, atol=1e-6)


def test_remembered_rows_are_the_old_posterior(linear: SimpleNamespace) -> None:
    """Old rows by the values that a member had there, new rows by their data: the posterior of both, exactly."""
    p = linear.problem(m=2, n=10)
    P = p.network.num_params
    zeros = torch.zeros(1, P, dtype=torch.float64)
    first = minimize(p.network, p.X[:6], Squares(p.Y[:6].unsqueeze(0), p.variance[:6]), zeros, zeros, ONE_STEP).z
    values = p.network.forward(first, p.X[:6])
    old = Remembered(values, p.variance[:6].rsqrt().expand_as(values))
    both = Joined(old, Squares(p.Y[6:].unsqueeze(0), p.variance[6:]), 6)
    second = minimize(p.network, p.X, both, first, first, ONE_STEP).z
    torch.testing.assert_close(second[0], p.mean, rtol=0, atol=1e-8)


@pytest.mark.parametrize("likelihood", ["bernoulli", "categorical"])
def test_more_rows_than_weights_are_solved_by_weights(likelihood: str, linear: SimpleNamespace) -> None:
    """A step of both forms, seven weights and up to a hundred and twenty whitened residuals, three members."""
    lik, m = get_likelihood(likelihood), 3
    network = MLP((1,), *(torch.ones(k).double() for k in (2, 1, 2)), m)
    assert network.num_params < 40 * m
    X = torch.rand(40, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    f, z = linear.normals(3, 40, m), linear.normals(3, network.num_params, seed=1)
    root = lik.root(f, torch.ones(1).double())
    residual, tangents = linear.normals(3, 40, m, seed=2), network.tangents(z, X)
    ridge = torch.tensor([[1.0], [0.3], [2.0]]).double()
    ours = _linear_minimizer(network, tangents, root, residual, ridge)
    full = torch.diag_embed(root) if root.dim() == 3 else root
    for s in range(3):
        J = network.jacobian(tangents)[s]
        rows = (full[s].transpose(-1, -2) @ J).flatten(0, 1)
        dual = rows.T @ torch.linalg.solve(rows @ rows.T + ridge[s] * torch.eye(40 * m).double(), residual[s].flatten())
        torch.testing.assert_close(ours[s], dual, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("seed", [0, 2, 3])
def test_a_step_cut_short_is_no_minimum(seed: int) -> None:
    """Steep units on a rough function: steps stay short for long, and a loss that falls slowly still falls far."""
    generator = torch.Generator().manual_seed(seed)
    X = torch.rand(150, 2, generator=generator, dtype=torch.float64)
    Y = torch.sin(25 * X[:, :1]) * torch.sign(X[:, 1:] - 0.5)
    ones = torch.ones(2, dtype=torch.float64)
    network = MLP((20,), 100 * ones, ones[:1], torch.tensor([50.0, 1.0]).double())
    start = torch.randn(1, network.num_params, generator=generator, dtype=torch.float64)
    problem = (network, X, Y.unsqueeze(0), torch.full_like(Y, 1e-3), torch.zeros_like(start), start)
    stopped, patient = (gauss_newton(*problem, GaussNewtonSettings(150, tolerance)) for tolerance in (1e-3, 0.0))
    assert float(stopped.loss) < 1.02 * float(patient.loss)


def test_cut_steps_that_get_on_are_not_damped() -> None:
    """Where a rough function starts far off, forty steps come within three times what four times as many reach; damped at every
    cut they stop at four to five times."""
    generator = torch.Generator().manual_seed(0)
    X = torch.rand(300, 2, generator=generator, dtype=torch.float64)
    Y = 2.0 * torch.sin(25.0 * X).prod(-1, keepdim=True)
    scales = torch.tensor([2.0, 60.0, 1.0], dtype=torch.float64)
    network = MLP((50, 50), torch.full((2,), 200.0, dtype=torch.float64), torch.full((2,), 4.0, dtype=torch.float64), scales)
    start = torch.randn(2, network.num_params, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = torch.full((300, 1), 1e-3, dtype=torch.float64)
    few, many = (
        gauss_newton(network, X, Y.unsqueeze(0), noise, start, start, GaussNewtonSettings(max_iterations=steps)).loss
        for steps in (40, 160)
    )
    assert bool((few < 3.0 * many).all())
