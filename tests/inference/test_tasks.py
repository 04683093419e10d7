"""What task methods share: multiples of precisions of every structure, tempering, memories as trees, masked descents."""

from __future__ import annotations

import pytest
import torch

from seqbdl.errors import InvalidOptionError
from seqbdl.inference.adam import AdamSettings
from seqbdl.inference.laplace import Rows
from seqbdl.inference.online_laplace import OnlineLaplace
from seqbdl.inference.tasks import HeldRows, TaskMemory, first_prior, fortified, off_zero, penalized_mode, scaled
from seqbdl.likelihoods import get_likelihood
from seqbdl.posteriors.gaussian_weights import GaussianWeights
from seqbdl.posteriors.kronecker import Kronecker
from seqbdl.posteriors.operators import Dense, Diagonal, LowRank, PositiveOperator
from seqbdl.surrogates.network_prior import NetworkBuilder


def normals(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def precisions() -> list[PositiveOperator]:
    """Of six weights, none below the first prior's."""
    one, half = torch.ones((), dtype=torch.float64), normals(6, 6)
    left, right = normals(2, 2, seed=1), normals(3, 3, seed=2)
    return [
        Diagonal(1 + normals(6).square()),
        Dense.of(torch.eye(6, dtype=torch.float64) + half @ half.T),
        Kronecker.of([(left @ left.T, right @ right.T)], [one]),
    ]


@pytest.mark.parametrize("precision", precisions(), ids=["diagonal", "dense", "kronecker"])
def test_multiples_and_tempering(precision: PositiveOperator) -> None:
    eye, A = torch.eye(6, dtype=torch.float64), precision.dense()
    torch.testing.assert_close(fortified(precision, 3.0).dense(), eye + 3 * (A - eye))
    torch.testing.assert_close(scaled(precision, 0.4).dense(), 0.4 * A)
    assert fortified(precision, 1.0) is precision
    mean = normals(6, seed=3)
    memory = TaskMemory(mean, precision, GaussianWeights(mean, precision))
    half = OnlineLaplace().tempered(memory, 0.5, inflate=1.0)
    mixed = 0.5 * A + 0.5 * eye
    torch.testing.assert_close(half.z, torch.linalg.solve(mixed, 0.5 * A @ mean))
    torch.testing.assert_close(half.prior.precision.dense(), 0.5 * mixed)


def test_structures_without_multiples_are_refused() -> None:
    with pytest.raises(InvalidOptionError, match="low-rank"):
        fortified(LowRank(torch.ones(3), torch.ones(3, 1)), 2.0)


def test_memories_as_trees() -> None:
    mean = normals(6)
    held = HeldRows(normals(2, 3), normals(2, 1), torch.ones(2, 1))
    for spread in (*precisions(), None):
        memory = TaskMemory(mean, spread, first_prior(mean), (held,), torch.ones(1))
        twin = TaskMemory.from_tree(memory.tree())
        white = normals(4, 6, seed=5)
        assert torch.equal(memory.draws(white), twin.draws(white))
        assert torch.equal(twin.held[0].X, held.X)


def test_heads_of_other_tasks_stay() -> None:
    builder = NetworkBuilder({"widths": (40,), "heads": 2}, 9, 2, "relu")
    network = builder.build(builder.initial())
    X = torch.rand(30, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    X[:, -1] = 1.0
    rows = Rows(get_likelihood("categorical"), X, (X[:, :1] > 0.5).double(), torch.ones(30, 2, dtype=torch.float64))
    z, generator = normals(network.num_params), torch.Generator().manual_seed(0)
    descent = AdamSettings(steps=20, learning_rate=0.05, batch_size=10)
    found = penalized_mode(network, rows, z, first_prior(z), descent, generator)
    active = network.active_weights(X)
    assert bool((found[~active] == z[~active]).all())
    assert bool((found[active] != z[active]).all())


def test_weights_at_zero_start_anew() -> None:
    z = torch.tensor([0.0, 2.0, 0.0])
    out = off_zero(z, torch.Generator().manual_seed(0))
    assert out[1] == 2.0
    assert bool((out[[0, 2]] != 0).all())
