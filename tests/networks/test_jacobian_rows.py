"""Rows of Jacobians by blocks: outer products against the matrix, of one layer, of networks, of wrapped networks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from seqbdl.networks import MLP, DenseRows, JacobianRows, MultiHeadMLP, Network, RelativeNetwork, TangentNetwork
from seqbdl.networks import mlp as mlp_module
from seqbdl.networks.jacobian_rows import OuterRows


def normals(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def check(rows: JacobianRows, J: Tensor, block: int = 8) -> None:
    k, P = J.shape
    assert rows.num_rows == k
    torch.testing.assert_close(rows.dense(), J)
    v, a, V, w = normals(P), normals(k, seed=1), normals(3, P, seed=2), normals(P, seed=3).exp()
    torch.testing.assert_close(rows.times(v), J @ v)
    torch.testing.assert_close(rows.pull(a), a @ J)
    parts = [part.part for part in rows.blocks(block)]
    assert [part.start for part in parts] == [0, *(part.stop for part in parts[:-1])]
    assert parts[-1].stop == P
    torch.testing.assert_close(sum(b.against(V[:, b.part]) for b in rows.blocks(block)), V @ J.T)
    torch.testing.assert_close(sum(b.gram() for b in rows.blocks(block)), J @ J.T)
    torch.testing.assert_close(sum(b.gram(w[b.part]) for b in rows.blocks(block)), (J * w) @ J.T)
    torch.testing.assert_close(torch.cat([b.squares() for b in rows.blocks(block)]), J.square().sum(0))
    torch.testing.assert_close(torch.cat([b.pull(a.expand(2, -1)) for b in rows.blocks(block)], 1), (a @ J).expand(2, -1))
    M = normals(k, k, seed=4)
    torch.testing.assert_close(rows.mixed(lambda A: M @ A).dense(), M @ J)


@pytest.mark.parametrize("block", [4, 7, 8192])
def test_blocks_are_the_matrix(block: int) -> None:
    check(DenseRows(normals(4, 30)), normals(4, 30), block)
    layers = ((normals(5), normals(3, 2, seed=1)), (normals(1), normals(3, 9, seed=2)))
    whole = [torch.einsum("i,kj->kij", a, D).flatten(1) for a, D in layers]
    check(OuterRows(layers), torch.cat(whole, 1), block)


def network(kind: str) -> Network:
    ones = torch.ones(3).double()
    options = {"activation": "relu"} if kind == "relu" else {}
    if kind == "heads":
        return MultiHeadMLP((6, 5), 3 * ones[:2], ones[:2], ones, 2, heads=3)
    plain = MLP((6, 5), 3 * ones[:2], ones[:2], ones, 2, branches=3 if kind == "branches" else 1, **options)
    start = normals(1, plain.num_params, seed=7)
    return (
        {"relative": RelativeNetwork, "tangent": TangentNetwork}[kind](plain, start) if kind in ("relative", "tangent") else plain
    )


@pytest.mark.parametrize("kind", ["erf", "relu", "branches", "heads", "relative", "tangent"])
@pytest.mark.parametrize("n", [1, 3])
def test_rows_of_networks(kind: str, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outer products of one row from where they pay; of more rows, and of small networks, the matrix."""
    net = network(kind)
    X = normals(n, 2, seed=5)
    X[:, 1] = 0.5 if kind == "heads" else X[:, 1]  # the second of three tasks
    here = net.tangents(normals(1, net.num_params), X)
    J = net.jacobian(here)[0].flatten(0, 1)
    assert isinstance(net.rows(here), DenseRows)
    monkeypatch.setattr(mlp_module, "_MANY_WEIGHTS", 0)
    rows = net.rows(here)
    assert isinstance(rows, OuterRows) == (n == 1)
    check(rows, J)
