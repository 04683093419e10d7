"""What the samplers share: curvature by power iteration, accepting, and refusing chains that explode."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from seqbdl.errors import DivergedError
from seqbdl.inference.chains import check_stable, jittered_steps, largest_curvature, lowest, metropolis
from seqbdl.inference.log_joint import LogJoint
from seqbdl.inference.metrics import DiagonalMetric, gauss_newton_metric
from seqbdl.likelihoods import get_likelihood
from seqbdl.priors import get_prior


@dataclass(frozen=True)
class Quadratic:
    """``-1/2 z^T H z``."""

    H: Tensor
    num_rows: int = 0

    def value_and_gradient(self, z: Tensor, index: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return -0.5 * ((z @ self.H) * z).sum(-1), -z @ self.H


def test_largest_curvature_is_the_largest_eigenvalue(linear: SimpleNamespace) -> None:
    A = linear.normals(6, 6)
    H, mass = A @ A.T, torch.linspace(0.5, 3.0, 6, dtype=torch.float64)
    z, source = linear.normals(3, 6, seed=1), torch.Generator().manual_seed(0)
    whitened = H / torch.outer(mass.sqrt(), mass.sqrt())
    ours = largest_curvature(Quadratic(H), z, DiagonalMetric(mass), source, iterations=60)
    torch.testing.assert_close(ours, torch.linalg.eigvalsh(whitened)[-1].expand(3), rtol=1e-4, atol=0)


def test_a_linear_network_has_curvature_one_in_its_gauss_newton_matrix(linear: SimpleNamespace) -> None:
    p = linear.problem()
    joint = LogJoint(p.network, get_likelihood("gaussian"), get_prior("gaussian"), p.X, p.Y, p.variance)
    z, source = linear.normals(4, p.network.num_params), torch.Generator().manual_seed(0)
    ours = largest_curvature(joint, z, gauss_newton_metric(joint, z, source), source)
    torch.testing.assert_close(ours, torch.ones(4).double(), rtol=1e-6, atol=0)


def test_metropolis_rejects_what_is_not_finite() -> None:
    error = torch.tensor([0.0, -5.0, torch.nan, torch.inf, 1001.0], dtype=torch.float64)
    accept, probability, diverged = metropolis(error, torch.Generator().manual_seed(0))
    assert accept.tolist() == [True, True, False, False, False]
    torch.testing.assert_close(probability, torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0]).double())
    assert diverged == 3


def test_trajectories_vary_in_length_up_to_a_limit() -> None:
    source, step = torch.Generator().manual_seed(0), torch.full((3,), 0.1)
    counts = {jittered_steps(5.0, step, 1000, source) for _ in range(200)}
    assert min(counts) == 30
    assert max(counts) == 50
    assert len(counts) > 15
    assert jittered_steps(5.0, step, 7, source) == 7


def test_chains_that_explode_are_refused() -> None:
    z, target = torch.zeros(2, 3), Quadratic(torch.eye(3))
    floor = lowest(torch.zeros(2), z, target)
    check_stable(torch.tensor([0.0, -500.0]), floor, 10, torch.ones(2))
    for bad in (torch.nan, -1e9):
        with pytest.raises(DivergedError, match="chain 1 exploded within 10 steps of learning_rate=1;"):
            check_stable(torch.tensor([0.0, bad]), floor, 10, torch.ones(2))
