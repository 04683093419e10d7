"""Gauss-Newton curvature around a mode: the precision ``I + G`` of whitened weights, ``G = J^T R R^T J``, in four structures.

``full`` is exact and lives wherever it is smaller: as rows in function space, where the ``P x P`` matrix is never formed, or
as that matrix once rows times outputs outnumber the weights. ``diag`` keeps the diagonal of ``G``, ``kron`` a Kronecker
product per layer (Martens and Grosse 2015; Ritter et al. 2018). With ``R R^T`` the Fisher information of the likelihood this
is the generalized Gauss-Newton matrix (Schraudolph 2002; Khan et al. 2019).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from seqbdl.errors import StateError
from seqbdl.likelihoods import apply_root, apply_root_transposed, whiten_both, whiten_rows
from seqbdl.networks import Network, Tangents
from seqbdl.posteriors import Dense, Diagonal, Kronecker, LowRank, PositiveOperator
from seqbdl.posteriors.joint_gaussian import remaining, safe_cholesky
from seqbdl.posteriors.operators import operator_from_tree

STRUCTURES = ("full", "kron", "diag")
_ENTRIES = 4_000_000  # of a block of Jacobian rows: 32 MB
_DRAWS = 32  # that are made at once


@dataclass(frozen=True)
class FunctionSpace:
    """``I + G`` by its rows.

    Attributes:
        X: ``n x d``.
        root: ``n x l`` or ``n x l x l``, ``R``.
        whitener: ``(n l) x (n l)``, the inverse Cholesky factor of ``B = I + R^T J J^T R``.
        at_rows: The network linearized at the mode and the rows; ``None`` without rows.
    """

    X: Tensor
    root: Tensor
    whitener: Tensor
    at_rows: Tangents | None

    @property
    def log_det(self) -> Tensor:
        """``log det (I + G)``, which is ``log det B``."""
        return -2 * self.whitener.diagonal().log().sum()

    def covariance(self, network: Network, here: Tangents, batch: torch.Size, q: int, lift: bool = True) -> Tensor:
        """``J (I + G)^{-1} J^T`` within each batch element, ``batch x (q l) x (q l)``; ``lift``: with what
        :func:`~seqbdl.posteriors.joint_gaussian.remaining` adds, so that it can be factorized."""
        prior = network.tangent_gram(here, batch, q)[0]
        if self.at_rows is None:
            return prior
        cross = network.tangent_kernel(self.at_rows, here)[0]  # (n l) x (N l)
        projected = self.whitener @ whiten_rows(self.root, cross, network.num_outputs)
        projected = projected.T.reshape(*batch, q * network.num_outputs, -1)
        explained = projected @ projected.transpose(-1, -2)
        return remaining(prior, explained) if lift else prior - explained

    def sample(self, network: Network, n: int, generator: torch.Generator, like: Tensor) -> Tensor:
        """``n x P`` deviations from the mode, without a ``P x P`` matrix: sample prior and noise, then condition
        (Matheron's rule)."""
        prior = _normals(n, network.num_params, generator=generator, like=like)
        noise = _normals(n, self.X.shape[0], network.num_outputs, generator=generator, like=like)
        if self.at_rows is None:
            return prior
        root, deltas = self.root.unsqueeze(0), []
        for e, w in zip(prior.split(_DRAWS), noise.split(_DRAWS), strict=True):
            seen = apply_root_transposed(root, network.jvp(self.at_rows, e)) + w
            solved = (seen.flatten(1) @ self.whitener.T @ self.whitener).reshape(seen.shape)
            deltas.append(e - network.vjp(self.at_rows, apply_root(root, solved)))
        return torch.cat(deltas)

    def tree(self) -> dict[str, Any]:
        """Tensors, for :func:`curvature_from_tree`."""
        return {"kind": "function-space", "X": self.X, "root": self.root, "whitener": self.whitener}


@dataclass(frozen=True)
class WeightSpace:
    """``I + G`` as an operator on weights.

    Attributes:
        precision: ``P x P``.
        counts: Of ``kron``, per block, what the first factor was divided by (see
            :meth:`seqbdl.networks.Network.kronecker_factors`); empty otherwise.
    """

    precision: PositiveOperator
    counts: Tensor

    @property
    def log_det(self) -> Tensor:
        """``log det (I + G)``."""
        return self.precision.log_det

    def covariance(self, network: Network, here: Tangents, batch: torch.Size, q: int, lift: bool = True) -> Tensor:
        """``J (I + G)^{-1} J^T`` within each batch element, ``batch x (q l) x (q l)``; a Gram matrix, which needs no lift."""
        rows = network.jacobian(here)[0].reshape(*batch, q * network.num_outputs, network.num_params)
        white = self.precision.inverse_root_transposed(rows)
        return white @ white.transpose(-1, -2)

    def sample(self, network: Network, n: int, generator: torch.Generator, like: Tensor) -> Tensor:
        """``n x P`` deviations from the mode."""
        return self.precision.inverse_root(_normals(n, network.num_params, generator=generator, like=like))

    def tree(self) -> dict[str, Any]:
        """Tensors, for :func:`curvature_from_tree`."""
        return {"kind": "weight-space", "precision": self.precision.tree(), "counts": self.counts}


Curvature = FunctionSpace | WeightSpace


def no_curvature(network: Network, like: Tensor) -> FunctionSpace:
    """Before any data: ``G = 0``."""
    return FunctionSpace(like.new_zeros(0, network.input_dim), like.new_zeros(0, network.num_outputs), like.new_zeros(0, 0), None)


def curvature_at(network: Network, z: Tensor, X: Tensor, root: Tensor, structure: str) -> Curvature:
    """The curvature of rows whose latent values have Fisher roots ``root``.

    Args:
        network: Over whitened weights.
        z: ``1 x P``, the mode.
        X: ``n x d``.
        root: ``n x l`` or ``n x l x l``.
        structure: One of :data:`STRUCTURES`.
    """
    if structure == "full" and X.shape[0] * network.num_outputs < network.num_params:
        at_rows = network.tangents(z, X)
        B = whiten_both(root, network.tangent_kernel(at_rows, at_rows)[0], network.num_outputs)
        B.diagonal().add_(1.0)
        factor = safe_cholesky(B)
        whitener = torch.linalg.solve_triangular(factor, torch.eye(B.shape[0]).to(B), upper=False)
        return FunctionSpace(X, root, whitener, at_rows)
    nothing = WeightSpace(Diagonal(torch.ones_like(z[0])), z.new_zeros(0))
    return add_curvature(network, nothing, z, X, root, structure)


def add_curvature(network: Network, old: WeightSpace, z: Tensor, X: Tensor, root: Tensor, structure: str) -> WeightSpace:
    """The curvature of ``old`` plus that of new rows at ``z``. ``full`` and ``diag`` add exactly; the Kronecker factors of
    ``kron`` are averaged over all rows, whose sum of products is no product."""
    if structure == "diag":
        return WeightSpace(Diagonal(old.precision.diagonal + gauss_newton_diagonal(network, z, X, root)), old.counts)
    if structure == "kron":
        return _add_kronecker(network, old, z, X, root)
    total = old.precision.dense()
    for rows in white_rows(network, z, X, root):
        total = total + rows.T @ rows
    return WeightSpace(Dense.of(total), old.counts)


def gauss_newton_diagonal(network: Network, z: Tensor, X: Tensor, root: Tensor) -> Tensor:
    """The diagonal of ``G``, ``P``."""
    total, size = torch.zeros_like(z[0]), max(1, _ENTRIES // network.tangent_size)
    for x, r in zip(X.split(size), root.split(size), strict=True) if X.shape[0] else ():
        total = total + network.row_squares(network.tangents(z, x), r)
    return total


def white_rows(network: Network, z: Tensor, X: Tensor, root: Tensor) -> Iterator[Tensor]:
    """``R^T J`` in blocks of at most some ten megabytes, each ``(rows l) x P``."""
    size = max(1, _ENTRIES // (network.num_params * network.num_outputs))
    for x, r in zip(X.split(size), root.split(size), strict=True) if X.shape[0] else ():
        yield whiten_rows(r, network.jacobian(network.tangents(z, x))[0].flatten(0, 1), network.num_outputs)


def kronecker_sums(network: Network, z: Tensor, X: Tensor, root: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Kronecker factors ``(A, B, c)`` of every block, summed over rows."""
    size = max(1, _ENTRIES // network.tangent_size)
    total: list[tuple[Tensor, Tensor, Tensor]] = []
    for x, r in zip(X.split(size), root.split(size), strict=True):
        new = network.kronecker_factors(network.tangents(z, x), r)
        total = [(a + A, b + B, c + C) for (a, b, c), (A, B, C) in zip(total, new, strict=True)] if total else new
    return total


def _add_kronecker(network: Network, old: WeightSpace, z: Tensor, X: Tensor, root: Tensor) -> WeightSpace:
    sums = kronecker_sums(network, z, X, root)
    if isinstance(old.precision, Kronecker):
        sums = [
            (block.left * count + A, block.right + B, count + c)
            for block, count, (A, B, c) in zip(old.precision.blocks, old.counts, sums, strict=True)
        ]
    # A count of zero: a weight that no row's output depends on; its A is zero too.
    factors = [(A / c.clamp_min(torch.finfo(c.dtype).tiny), B) for A, B, c in sums]
    return WeightSpace(Kronecker.of(factors, [z.new_ones(())] * len(factors)), torch.stack([c for _, _, c in sums]))


def precision_of(network: Network, z: Tensor, curvature: Curvature) -> PositiveOperator:
    """``I + G`` as an operator on weights, exactly, in either form: by rows it is the identity plus low rank."""
    if isinstance(curvature, WeightSpace):
        return curvature.precision
    rows = [block.T for block in white_rows(network, z, curvature.X, curvature.root)]
    return LowRank(torch.ones_like(z[0]), torch.cat(rows, -1) if rows else z.new_zeros(z.shape[1], 0))


def curvature_from_tree(network: Network, z: Tensor, tree: Mapping[str, Any]) -> Curvature:
    """Restore the tree of a curvature at the mode ``z``.

    Raises:
        StateError: It is not such a tree.
    """
    if tree.get("kind") == "weight-space":
        return WeightSpace(operator_from_tree(tree["precision"]), tree["counts"])
    if tree.get("kind") != "function-space":
        raise StateError(f"a curvature of kind {tree.get('kind')!r} is unknown")
    X = tree["X"]
    at_rows = network.tangents(z, X) if X.shape[0] else None
    return FunctionSpace(X, tree["root"], tree["whitener"], at_rows)


def _normals(*shape: int, generator: torch.Generator, like: Tensor) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(like)
