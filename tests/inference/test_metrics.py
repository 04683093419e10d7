"""Mass matrices against dense ones."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from seqbdl.inference import metrics
from seqbdl.inference.log_joint import LogJoint
from seqbdl.inference.metrics import DiagonalMetric, diagonal_metric, gauss_newton_metric
from seqbdl.likelihoods import LIKELIHOODS, get_likelihood
from seqbdl.networks import MLP
from seqbdl.priors import get_prior

S, N = 3, 7


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def joint(name: str, weights: bool = False) -> LogJoint:
    likelihood = get_likelihood(name)
    m = 3 if name == "categorical" else 1
    ones = torch.ones(4, dtype=torch.float64)
    network = MLP((4,), ones[:2], ones[:1], ones[:2], likelihood.num_latents(m))
    X = torch.rand(N, 2, generator=source(), dtype=torch.float64)
    Y = (X.sum(-1, keepdim=True) * (1.4 if name == "categorical" else 0.9)).floor()
    noise = torch.full((N, m), 0.2, dtype=torch.float64) * (1 + X[:, :1])
    rows = torch.linspace(0.5, 3.0, N, dtype=torch.float64) if weights else None
    return LogJoint(network, likelihood, get_prior("gaussian"), X, Y, noise, rows)


def dense(target: LogJoint, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``J^T L J``, gradient of the log-likelihood and of the log-likelihood's quadratic model at 0, per chain."""
    tangents = target.network.tangents(z, target.X)
    J = target.network.jacobian(tangents)  # S x N x l x P
    root = target.likelihood.root(tangents.values, target.noise)
    root = torch.diag_embed(root) if root.dim() == 3 else root
    weights = torch.ones(N).double() if target.row_weights is None else target.row_weights
    rows = (root.transpose(-1, -2) @ J) * weights.sqrt()[:, None, None]
    G = torch.einsum("snlp,snlq->spq", rows, rows)
    gradient = target.likelihood_value_and_gradient(z)[1]
    return G, gradient, gradient + torch.einsum("spq,sq->sp", G, z)


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_gauss_newton_metric_is_the_dense_one(name: str, weights: bool, linear: SimpleNamespace) -> None:
    target = joint(name, weights)
    P = target.network.num_params
    z, v = linear.normals(S, P), linear.normals(S, P, seed=1)
    metric = gauss_newton_metric(target, z, source())
    G, _, linear_term = dense(target, z)
    M = torch.eye(P).double() + G
    torch.testing.assert_close(metric.square(v), torch.einsum("sp,spq,sq->s", v, M, v))
    torch.testing.assert_close(metric.solve(v), torch.linalg.solve(M, v))
    torch.testing.assert_close(metric.centre, torch.linalg.solve(M, linear_term))


def test_draws_have_the_inverse_as_covariance(linear: SimpleNamespace) -> None:
    target = joint("categorical")
    z = linear.normals(1, target.network.num_params)
    M = torch.eye(z.shape[1]).double() + dense(target, z)[0][0]
    n = 4000
    metric = gauss_newton_metric(target, z.expand(n, -1), source())
    covariance = torch.linalg.inv(M)
    linear.assert_samples(metric.draw(z.expand(n, -1), source(1)), torch.zeros(z.shape[1]).double(), covariance)
    diagonal = DiagonalMetric(M.diagonal())
    expected = torch.diag(1 / M.diagonal())
    linear.assert_samples(diagonal.draw(z.expand(n, -1), source(2)), torch.zeros(z.shape[1]).double(), expected)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_the_diagonal_is_that_of_the_gauss_newton_matrix(name: str, linear: SimpleNamespace) -> None:
    target = joint(name, weights=True)
    z = linear.normals(S, target.network.num_params)
    expected = 1 + dense(target, z)[0].diagonal(dim1=-2, dim2=-1).mean(0)
    probes = 3000
    ours = diagonal_metric(target, z, source(), probes).mass
    # A probe's square has a relative standard deviation of at most sqrt(2).
    assert float((ours / expected - 1).abs().max()) < 4.5 * (2 / probes) ** 0.5


def test_a_sample_of_the_rows_stands_for_all(linear: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MAX_METRIC_ROWS", 3)
    target = joint("gaussian")
    z = linear.normals(S, target.network.num_params)
    G = dense(target, z)[0]
    v = linear.normals(S, z.shape[1], seed=1)
    squares = torch.stack([gauss_newton_metric(target, z, source(i)).square(v) for i in range(400)])
    expected = v.square().sum(-1) + torch.einsum("sp,spq,sq->s", v, G, v)
    error = squares.std(0) / 20
    assert bool(((squares.mean(0) - expected).abs() < 4 * error).all())
