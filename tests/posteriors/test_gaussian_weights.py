"""Gaussian posteriors over weights and their operators, against dense matrices."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from seqbdl.errors import ShapeError, StateError
from seqbdl.posteriors.gaussian_weights import GaussianWeights
from seqbdl.posteriors.kronecker import Kronecker
from seqbdl.posteriors.operators import Dense, Diagonal, Inverse, LowRank, PositiveOperator, operator_from_tree
from seqbdl.serialization import load_tree, save_tree

SIZE = 12
KINDS = ["dense", "diagonal", "low-rank", "rank zero", "kronecker", "inverse"]


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def wishart(size: int, seed: int, rank: int | None = None) -> Tensor:
    root = normals(size, rank or size + 2, seed=seed)
    return root @ root.T


def operator(kind: str) -> tuple[PositiveOperator, Tensor]:
    """An operator and the matrix that it stands for, written out."""
    d, W = normals(SIZE, seed=1).square() + 0.1, normals(SIZE, 3, seed=2)
    if kind == "dense":
        matrix = wishart(SIZE, 3)
        return Dense.of(matrix), matrix
    if kind == "diagonal":
        return Diagonal(d), torch.diag(d)
    if kind == "low-rank":
        return LowRank(d, W), torch.diag(d) + W @ W.T
    if kind == "rank zero":
        return LowRank(d, W[:, :0]), torch.diag(d)
    if kind == "inverse":
        return Inverse(LowRank(d, W)), torch.linalg.inv(torch.diag(d) + W @ W.T)
    factors = [(wishart(3, 4, rank=1), wishart(2, 5)), (wishart(2, 6), wishart(3, 7))]
    shifts = [torch.tensor(0.7).double(), torch.tensor(2.0).double()]
    blocks = [torch.kron(a, b) + s * torch.eye(6).double() for (a, b), s in zip(factors, shifts, strict=True)]
    return Kronecker.of(factors, shifts), torch.block_diag(*blocks)


@pytest.mark.parametrize("kind", KINDS)
def test_operators_against_their_matrices(kind: str) -> None:
    A, matrix = operator(kind)
    inverse, v = torch.linalg.inv(matrix), normals(2, 4, SIZE, seed=8)
    eye = torch.eye(SIZE).double()
    assert A.size == SIZE
    torch.testing.assert_close(A.dense(), matrix)
    torch.testing.assert_close(A.matmul(v), v @ matrix)
    torch.testing.assert_close(A.solve(v), v @ inverse, rtol=1e-7, atol=1e-9)
    # Row i of root(I) is column i of S.
    S, T = A.root(eye).T, A.inverse_root(eye).T
    torch.testing.assert_close(S @ S.T, matrix)
    torch.testing.assert_close(T @ T.T, inverse, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(A.root_transposed(v), v @ S)
    torch.testing.assert_close(A.inverse_root_transposed(v), v @ T)
    torch.testing.assert_close(A.log_det, torch.logdet(matrix))
    torch.testing.assert_close(A.diagonal, matrix.diagonal())
    torch.testing.assert_close(A.inverse_diagonal, inverse.diagonal(), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_have_the_inverse_precision_as_covariance(kind: str) -> None:
    """All entries, mean and covariance, to within 4.5 Monte Carlo errors."""
    A, matrix = operator(kind)
    posterior, n = GaussianWeights(normals(SIZE, seed=9), A), 40_000
    draws = posterior.sample(n, torch.Generator().manual_seed(0))
    covariance = torch.linalg.inv(matrix)
    sd = covariance.diagonal().sqrt()
    assert ((draws.mean(0) - posterior.mean).abs() / sd).max() < 4.5 / n**0.5
    spread = ((sd[:, None] * sd).square() + covariance.square()).sqrt() / n**0.5
    assert ((draws.T.cov() - covariance).abs() / spread).max() < 4.5
    torch.testing.assert_close(draws, posterior.sample(n, torch.Generator().manual_seed(0)), rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_densities_scores_and_covariances_of_linear_functions(kind: str) -> None:
    A, matrix = operator(kind)
    posterior = GaussianWeights(normals(SIZE, seed=9), A)
    exact = torch.distributions.MultivariateNormal(posterior.mean, precision_matrix=matrix)
    z = normals(5, SIZE, seed=10).requires_grad_(True)
    torch.testing.assert_close(posterior.log_prob(z), exact.log_prob(z), rtol=1e-8, atol=1e-8)
    (gradient,) = torch.autograd.grad(posterior.log_prob(z).sum(), z)
    torch.testing.assert_close(posterior.score(z), gradient, rtol=1e-8, atol=1e-8)
    J, other = normals(2, 3, SIZE, seed=11), normals(2, 4, SIZE, seed=12)
    covariance = torch.linalg.inv(matrix)
    torch.testing.assert_close(posterior.covariance_of(J), J @ covariance @ J.transpose(-1, -2), rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(posterior.covariance_of(J, other), J @ covariance @ other.transpose(-1, -2), rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(posterior.variance, covariance.diagonal(), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_a_posterior_is_a_prior(kind: str) -> None:
    posterior = GaussianWeights(normals(SIZE, seed=9), operator(kind)[0])
    prior, z = posterior.as_prior(), normals(3, SIZE, seed=10)
    torch.testing.assert_close(prior.log_prob(z), posterior.log_prob(z), rtol=0, atol=0)
    torch.testing.assert_close(prior.score(z), posterior.score(z), rtol=0, atol=0)
    draws = prior.sample(4, SIZE, torch.Generator().manual_seed(1), z)
    torch.testing.assert_close(draws, posterior.sample(4, torch.Generator().manual_seed(1)), rtol=0, atol=0)
    with pytest.raises(ShapeError, match="12 weights"):
        prior.sample(4, SIZE + 1, torch.Generator(), z)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_restored(kind: str, tmp_path: Path) -> None:
    posterior = GaussianWeights(normals(SIZE, seed=9), operator(kind)[0])
    save_tree(tmp_path / "posterior", posterior.tree())
    again = GaussianWeights.from_tree(load_tree(tmp_path / "posterior"))
    z = normals(3, SIZE, seed=10)
    torch.testing.assert_close(again.log_prob(z), posterior.log_prob(z), rtol=1e-14, atol=1e-14)
    assert type(again.precision) is type(posterior.precision)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ShapeError, match="3 weights"):
        GaussianWeights(normals(2), Diagonal(torch.ones(3).double()))
    with pytest.raises(StateError, match="unknown"):
        operator_from_tree({"kind": "banded"})


def test_a_nearly_flat_direction_keeps_its_variance() -> None:
    """Low rank with a precision of 1e12 beside one of 1: the small variance is not lost in the difference of large numbers."""
    W = torch.zeros(3, 1).double()
    W[0] = 1e6
    A = LowRank(torch.ones(3).double(), W)
    v = torch.tensor([1.0, 0.0, 0.0]).double()
    assert abs(float(A.inverse_root(A.inverse_root_transposed(v))[0]) * 1e12 - 1) < 1e-3
