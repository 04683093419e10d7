"""The evidence as a function of precisions and noise: every form of it against dense determinants."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from seqbdl.inference.curvature import curvature_at, kronecker_sums, white_rows
from seqbdl.inference.evidence import NoiseTerms, evidence_at, maximize
from seqbdl.likelihoods import get_likelihood
from seqbdl.networks import MLP


def make(widths: tuple[int, ...] = (4, 3), m: int = 2, branches: int = 1) -> MLP:
    ones = torch.ones(4).double()
    depth = len(widths)
    return MLP(widths, 3 * ones[:2], ones[:depth], ones[: depth + 1], m, branches=branches)


def case(n: int, linear: SimpleNamespace, m: int = 2) -> tuple[MLP, Tensor, Tensor, Tensor, Tensor]:
    network = make(m=m)
    z, centre = linear.normals(1, network.num_params), linear.normals(1, network.num_params, seed=1)
    X = torch.rand(n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    root = get_likelihood("categorical").root(network.forward(z, X)[0], torch.ones(1).double())
    return network, z, centre, X, root


def dense(network: MLP, z: Tensor, X: Tensor, root: Tensor, structure: str) -> Tensor:
    """``G``, ``P x P``."""
    rows = torch.cat(list(white_rows(network, z, X, root)))
    if structure == "full":
        return rows.T @ rows
    if structure == "diag":
        return torch.diag(rows.square().sum(0))
    return torch.block_diag(*(torch.kron(A, B) / c for A, B, c in kronecker_sums(network, z, X, root)))


@pytest.mark.parametrize("layerwise", [False, True])
@pytest.mark.parametrize("structure", ["full", "kron", "diag"])
@pytest.mark.parametrize("n", [5, 40])
def test_against_dense_determinants(n: int, structure: str, layerwise: bool, linear: SimpleNamespace) -> None:
    network, z, centre, X, root = case(n, linear)
    terms = NoiseTerms(7, torch.tensor(2.5).double(), torch.tensor(-1.0).double())
    evidence = evidence_at(network, z, centre, X, root, structure, layerwise, terms)
    G = 3 if layerwise else 1
    log_alpha, log_s = linear.normals(G, seed=4), torch.tensor(0.4).double()
    group = network.group_of_weights(z) if layerwise else torch.zeros(network.num_params, dtype=torch.long)
    alpha = log_alpha.exp()[group]
    curvature = dense(network, z, X, root, structure) / log_s.exp()
    log_det = torch.logdet(torch.diag(alpha) + curvature) - alpha.log().sum()
    expected = -0.5 * (alpha * (z - centre)[0].square()).sum() - 0.5 * log_det - 0.5 * 2.5 / log_s.exp() - 0.5 * 7 * log_s
    torch.testing.assert_close(evidence(log_alpha, log_s), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("structure", ["full", "kron", "diag"])
def test_at_unit_precision_it_is_that_of_the_curvature(structure: str, linear: SimpleNamespace) -> None:
    network, z, centre, X, root = case(6, linear)
    evidence = evidence_at(network, z, centre, X, root, structure, False)
    zero = torch.zeros(1).double()
    expected = -0.5 * (z - centre).square().sum() - 0.5 * curvature_at(network, z, X, root, structure).log_det
    torch.testing.assert_close(evidence(zero, zero[0]), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize("layerwise", [False, True])
def test_the_maximum_is_one(layerwise: bool, noise: bool, linear: SimpleNamespace) -> None:
    """Hyper-priors included, no neighbour is better; a start other than zero is seen from there."""
    network, z, centre, X, root = case(10, linear)
    terms = NoiseTerms(20, torch.tensor(3.0).double(), torch.tensor(-1.0).double()) if noise else None
    evidence = evidence_at(network, z, centre, X, root, "full", layerwise, terms)
    start = 0.5 * torch.ones(3 if layerwise else 1).double()

    def score(log_alpha: Tensor, log_s: Tensor) -> float:
        prior = ((log_alpha + start) / 3).square().sum() + ((log_s - 1.0 + 4.0).square() if noise else 0.0)
        return float(evidence(log_alpha, log_s) - 0.5 * prior)

    log_alpha, log_s = maximize(evidence, start)
    best = score(log_alpha, log_s)
    for i in range(start.shape[0]):
        for step in (-0.05, 0.05):
            moved = log_alpha.clone()
            moved[i] += step
            assert score(moved, log_s) < best + 1e-9
    assert noise or float(log_s) == 0.0
    if noise:
        assert max(score(log_alpha, log_s + step) for step in (-0.05, 0.05)) < best


def test_one_eigendecomposition_serves_every_precision_and_noise(
    linear: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred evaluations with gradients: sums over eigenvalues, no algebra."""
    network, z, centre, X, root = case(9, linear)
    terms = NoiseTerms(20, torch.tensor(3.0).double(), torch.tensor(-1.0).double())
    evidence = evidence_at(network, z, centre, X, root, "full", False, terms)
    for name in ("eigh", "eigvalsh", "cholesky", "cholesky_ex", "solve", "slogdet"):
        monkeypatch.setattr(torch.linalg, name, None)
    theta = torch.zeros(2).double().requires_grad_(True)
    for _ in range(100):
        (gradient,) = torch.autograd.grad(evidence(theta[:1], theta[1]), theta)
    assert bool(gradient.isfinite().all())
