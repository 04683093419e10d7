"""Online Laplace on linear networks: sequential equals batch where it must, and its recursion where it need not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from seqbdl.errors import InvalidOptionError
from seqbdl.inference.laplace import Rows
from seqbdl.inference.online_laplace import OnlineLaplace
from seqbdl.likelihoods import get_likelihood
from seqbdl.networks import ModuleNetwork

GAUSSIAN = get_likelihood("gaussian")


def in_turn(method, network, rows, chunks):  # type: ignore[no-untyped-def]
    generator = torch.Generator().manual_seed(0)
    memory = method.begin(network, generator, rows.X)
    for chunk in chunks:
        memory = method.learn(network, rows.pick(chunk), memory, generator)
    return memory


@pytest.mark.parametrize("chunks", [[[0, 1, 2], [3, 4, 5, 6, 7]], [[7], [3, 4], [0, 1, 2, 5, 6]], [list(range(8))]])
def test_full_is_exact_in_any_order(linear, chunks: list[list[int]]) -> None:  # type: ignore[no-untyped-def]
    p = linear.problem(m=2, correlated=True)
    memory = in_turn(OnlineLaplace(structure="full"), p.network, Rows(GAUSSIAN, p.X, p.Y, p.variance), map(torch.tensor, chunks))
    torch.testing.assert_close(memory.z, p.mean, rtol=0, atol=1e-10)
    torch.testing.assert_close(torch.linalg.inv(memory.spread.dense()), p.covariance, rtol=0, atol=1e-10)


def test_one_kronecker_factor_is_exact(linear) -> None:  # type: ignore[no-untyped-def]
    """Of one output and no constant, the curvature of the only layer IS a Kronecker product."""
    p = linear.problem(d=3)
    network = ModuleNetwork(nn.Linear(3, 1, bias=False), 3)
    mean, covariance, _ = linear.conditioned(linear.jacobian(network, p.X), p.Y, p.variance)
    halves = [torch.arange(4), torch.arange(4, 8)]
    memory = in_turn(OnlineLaplace(structure="kron"), network, Rows(GAUSSIAN, p.X, p.Y, p.variance), halves)
    torch.testing.assert_close(memory.z, mean, rtol=0, atol=1e-10)
    torch.testing.assert_close(torch.linalg.inv(memory.spread.dense()), covariance, rtol=0, atol=1e-10)


@pytest.mark.parametrize("strength", [1.0, 7.0])
def test_the_recursion_of_the_diagonal(linear, strength: float) -> None:  # type: ignore[no-untyped-def]
    p = linear.problem()
    halves = [torch.arange(4), torch.arange(4, 8)]
    memory = in_turn(OnlineLaplace(strength=strength), p.network, Rows(GAUSSIAN, p.X, p.Y, p.variance), halves)
    mean, precision = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    for rows in halves:
        J, noise = p.J[rows], p.variance[rows, 0]
        G, held = J.T @ (J / noise[:, None]), torch.diag(1 + strength * (precision - 1))
        mean = torch.linalg.solve(held + G, held @ mean + J.T @ (p.Y[rows, 0] / noise))
        precision = precision + G.diagonal()
    torch.testing.assert_close(memory.z, mean, rtol=0, atol=1e-10)
    torch.testing.assert_close(memory.spread.diagonal, precision, rtol=0, atol=1e-10)


def test_options() -> None:
    for wrong in ({"structure": "dense"}, {"strength": 0.0}):
        with pytest.raises(InvalidOptionError):
            OnlineLaplace(**wrong)
