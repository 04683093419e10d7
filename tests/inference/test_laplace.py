"""The linearized Laplace posterior against linear regression and against dense formulas."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from seqbdl.inference import laplace
from seqbdl.inference.gauss_newton import GaussNewtonSettings
from seqbdl.networks import MLP, Network

SETTINGS = GaussNewtonSettings(max_iterations=100, tolerance=1e-12)
X_TEST = torch.rand(5, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def dense_jacobian(network: Network, z: Tensor, X: Tensor) -> Tensor:
    rows = torch.autograd.functional.jacobian(lambda w: network.forward(w.unsqueeze(0), X)[0], z[0])
    assert isinstance(rows, Tensor)
    return rows.flatten(0, 1)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 7.0])
@pytest.mark.parametrize("m", [1, 2])
def test_linear_networks_are_exact(m: int, alpha: float, linear: SimpleNamespace) -> None:
    p = linear.problem(m=m)
    mean, covariance, evidence = linear.conditioned(p.J, p.Y, p.variance, alpha)
    zeros = torch.zeros(1, p.network.num_params).double()
    fit = laplace.fit_laplace(p.network, p.X, p.Y, p.variance, zeros, zeros, alpha, SETTINGS)
    torch.testing.assert_close(fit.z[0], mean, rtol=0, atol=1e-8)
    torch.testing.assert_close(fit.log_evidence, evidence, rtol=0, atol=1e-8)
    joint = laplace.joint(p.network, fit, p.network.tangents(fit.z, p.X), X_TEST)
    J = linear.jacobian(p.network, X_TEST)
    torch.testing.assert_close(joint.mean.flatten(), J @ mean, rtol=0, atol=1e-8)
    torch.testing.assert_close(joint.covariance[0], J @ covariance @ J.T, rtol=0, atol=1e-8)


def test_the_centre_of_the_prior_counts(linear: SimpleNamespace) -> None:
    p = linear.problem()
    centre = linear.normals(1, p.network.num_params)
    fit = laplace.fit_laplace(p.network, p.X, p.Y, p.variance, centre, centre, 2.0, SETTINGS)
    residual = p.Y - p.network.forward(centre, p.X)[0]
    mean, _, evidence = linear.conditioned(p.J, residual, p.variance, 2.0)
    torch.testing.assert_close(fit.z - centre, mean.unsqueeze(0), rtol=0, atol=1e-8)
    torch.testing.assert_close(fit.log_evidence, evidence, rtol=0, atol=1e-8)


def make_mlp(m: int) -> MLP:
    ones = torch.ones(4).double()
    return MLP((7, 6), 3 * ones[:2], ones[:2], ones[:3], m)


@pytest.mark.parametrize("m", [1, 2])
def test_nonlinear_networks_against_dense_formulas(m: int, linear: SimpleNamespace) -> None:
    network, p, alpha = make_mlp(m), linear.problem(m=m), 0.7
    z, centre = linear.normals(1, network.num_params), linear.normals(1, network.num_params, seed=1)
    fit = laplace.curvature(network, z, centre, alpha, p.X, p.Y, p.variance)
    J, J_test, rows = dense_jacobian(network, z, p.X), dense_jacobian(network, z, X_TEST), p.variance.flatten()
    precision = J.T @ (J / rows[:, None]) + alpha * torch.eye(network.num_params).double()
    joint = laplace.joint(network, fit, network.tangents(z, p.X), X_TEST)
    torch.testing.assert_close(joint.mean, network.forward(z, X_TEST)[0])
    torch.testing.assert_close(joint.covariance[0], J_test @ torch.linalg.solve(precision, J_test.T), rtol=1e-7, atol=1e-8)
    log_likelihood = torch.distributions.Normal(network.forward(z, p.X)[0], p.variance.sqrt()).log_prob(p.Y).sum()
    log_prior = -0.5 * alpha * (z - centre).square().sum() + 0.5 * network.num_params * math.log(alpha)
    expected = log_likelihood + log_prior - 0.5 * torch.logdet(precision)
    torch.testing.assert_close(fit.log_evidence, expected, rtol=1e-9, atol=1e-7)


def test_batches_of_points(linear: SimpleNamespace) -> None:
    network, p = make_mlp(2), linear.problem(m=2)
    z = linear.normals(1, network.num_params)
    fit = laplace.curvature(network, z, 0 * z, 1.0, p.X, p.Y, p.variance)
    at_rows = network.tangents(z, p.X)
    X = torch.rand(3, 2, 4, 2, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    together = laplace.joint(network, fit, at_rows, X)
    for i in range(3):
        for j in range(2):
            alone = laplace.joint(network, fit, at_rows, X[i, j])
            torch.testing.assert_close(together.mean[i, j], alone.mean)
            torch.testing.assert_close(together.covariance[i, j], alone.covariance, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("m", [1, 2])
def test_weight_draws_have_the_inverse_precision_as_covariance(m: int, linear: SimpleNamespace) -> None:
    p, n, alpha = linear.problem(m=m, level=0.3), 20_000, 2.5
    _, covariance, _ = linear.conditioned(p.J, p.Y, p.variance, alpha)
    zeros = torch.zeros(1, p.network.num_params).double()
    fit = laplace.fit_laplace(p.network, p.X, p.Y, p.variance, zeros, zeros, alpha, SETTINGS)
    at_rows = p.network.tangents(fit.z, p.X)
    prior, noise = linear.normals(n, p.network.num_params), linear.normals(n, *p.Y.shape, seed=1)
    delta = laplace.weight_draws(p.network, fit, at_rows, prior, noise)
    linear.assert_samples(delta, torch.zeros(p.network.num_params).double(), covariance)


def test_the_prior_answers_before_data(linear: SimpleNamespace) -> None:
    network, n, alpha = make_mlp(1), 20_000, 4.0
    z = linear.normals(1, network.num_params)
    prior = laplace.prior_laplace(network, z, z, alpha)
    J = dense_jacobian(network, z, X_TEST)
    torch.testing.assert_close(laplace.joint(network, prior, None, X_TEST).covariance[0], J @ J.T / alpha)
    draws = laplace.weight_draws(network, prior, None, linear.normals(n, network.num_params), linear.normals(n, 0, 1))
    linear.assert_samples(draws @ J.T, torch.zeros(5).double(), J @ J.T / alpha)


def test_tuned_precision_maximizes_the_evidence(linear: SimpleNamespace) -> None:
    """Of a linear network, under the hyper-prior N(0, 3^2) on log alpha: a fine scan agrees."""
    p = linear.problem(n=20, level=0.1)
    zeros = torch.zeros(1, p.network.num_params).double()
    fit = laplace.fit_laplace(p.network, p.X, p.Y, p.variance, zeros, zeros, None, SETTINGS, rounds=50)

    def score(log_alpha: float) -> float:
        return float(linear.conditioned(p.J, p.Y, p.variance, math.exp(log_alpha))[2]) - 0.5 * (log_alpha / 3) ** 2

    scan = [i * 0.02 - 6 for i in range(600)]
    best = max(score(x) for x in scan)
    # Alternation stops when log alpha moves by less than 0.1.
    assert score(math.log(float(fit.precision))) > best - 0.02


def test_evidence_prefers_the_scale_that_made_the_data(linear: SimpleNamespace) -> None:
    """Data from weights of variance 1 / 25: tuning ends near alpha = 25, not near 1."""
    p = linear.problem(n=60, d=8, level=1e-3)
    weights = linear.normals(1, p.network.num_params, seed=4) / 5
    Y = p.network.forward(weights, p.X)[0] + p.variance.sqrt() * linear.normals(60, 1, seed=5)
    zeros = torch.zeros_like(weights)
    fit = laplace.fit_laplace(p.network, p.X, Y, p.variance, zeros, zeros, None, SETTINGS, rounds=20)
    # Nine weights estimate a variance to within a factor of about 2.
    assert 8.0 < float(fit.precision) < 80.0
