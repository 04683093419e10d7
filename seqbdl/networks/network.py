"""What inference needs of a network: values, linearization and their products, for many weight vectors at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from seqbdl.errors import InvalidOptionError
from seqbdl.networks.jacobian_rows import DenseRows, JacobianRows


class Network(ABC):
    """A network over WHITENED weights: the prior of every weight is standard normal, scales live inside the network.

    Weight vectors come stacked, ``S x P``; inputs are shared by all members, ``batch x q x d`` in the unit cube;
    outputs are ``S x batch x q x m``. A network holds no weights and changes nothing.
    """

    input_dim: int
    num_outputs: int
    num_params: int
    matrix_free: bool = False
    """Whether products with the Jacobian are made of layers, in the floating-point type of ``z`` and ``X``; otherwise
    :meth:`tangents` forms ``S x N x m x P`` numbers, in float64."""

    @abstractmethod
    def forward(self, z: Tensor, X: Tensor) -> Tensor:
        """Values, ``S x batch x q x m``."""

    def pullback(self, z: Tensor, X: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Values ``S x N x m``, and a function from cotangents ``S x N x m`` to gradients ``S x P``.

        One forward and one backward pass, for the gradient of a loss; nothing of it is differentiable again.

        Args:
            z: ``S x P``.
            X: ``N x d``.
        """
        with torch.enable_grad():
            leaf = z.detach().requires_grad_(True)
            values = self.forward(leaf, X)

        def back(cotangent: Tensor) -> Tensor:
            return torch.autograd.grad(values, leaf, cotangent, retain_graph=True)[0]

        return values.detach(), back

    def members_at_once(self, X: Tensor) -> int | None:
        """How many members a gradient should take at a time, for their activations to stay in the processor's cache;
        ``None``: any number.

        Args:
            X: ``N x d``.
        """
        return None

    def input_masks(self, keep: Tensor) -> Tensor:
        """Factors on whitened weights that switch units off: a unit is off when every weight that leaves it is zero.

        Args:
            keep: ``S x U`` factors of the ``U`` units (see :attr:`num_units`): hidden units, first layer first.

        Raises:
            InvalidOptionError: The network has no units to switch off.
        """
        raise InvalidOptionError("this network has no hidden units that masks could switch off")

    @property
    def num_units(self) -> int:
        """``U``, units that :meth:`input_masks` can switch off."""
        return 0

    @abstractmethod
    def tangents(self, z: Tensor, X: Tensor) -> Tangents:
        """Values and linearization at ``z``."""

    @abstractmethod
    def tangent_kernel(self, first: Tangents, second: Tangents) -> Tensor:
        """``J J'^T`` of all points of one against all of the other, ``S x (N m) x (N' m)``, the point running
        slower."""

    @abstractmethod
    def tangent_gram(self, tangents: Tangents, batch: torch.Size, q: int) -> Tensor:
        """``J J^T`` within each batch element, ``S x batch x (q m) x (q m)``."""

    @abstractmethod
    def jvp(self, tangents: Tangents, v: Tensor) -> Tensor:
        """``J v`` for ``v: S' x P`` (``S'`` broadcasts with ``S``), ``S' x N x m``."""

    @abstractmethod
    def vjp(self, tangents: Tangents, alpha: Tensor) -> Tensor:
        """``J^T alpha`` for ``alpha: S x N x m``, ``S x P``."""

    def jacobian(self, tangents: Tangents) -> Tensor:
        """``J`` itself, ``S x N x m x P``, differentiable in the inputs: for methods that need the weights one by one."""
        S, N, m = tangents.values.shape
        eye = torch.eye(N * m).to(tangents.values).reshape(N * m, 1, N, m)
        return torch.stack([self.vjp(tangents, row.expand(S, -1, -1)) for row in eye], 1).unflatten(1, (N, m))

    def rows(self, tangents: Tangents) -> JacobianRows:
        """The Jacobian of one weight vector, ``(N m) x P``, the point running slower, for products that may not need it whole."""
        return DenseRows(self.jacobian(tangents)[0].flatten(0, 1))

    @property
    def blocks(self) -> tuple[WeightBlock, ...]:
        """The matrices that the weights consist of, in order: one per layer with its biases, or one per weight tensor."""
        return (WeightBlock(1, self.num_params, 0),)

    @property
    def num_groups(self) -> int:
        """Layers (or weight tensors) that may each have a prior precision of their own."""
        return 1 + max(block.group for block in self.blocks)

    def group_of_weights(self, like: Tensor) -> Tensor:
        """The group of every weight, ``P`` indices on the device of ``like``."""
        sizes = torch.tensor([block.rows * block.cols for block in self.blocks])
        groups = torch.tensor([block.group for block in self.blocks])
        return groups.repeat_interleave(sizes).to(like.device)

    def group_kernels(self, tangents: Tangents) -> Tensor:
        """``J_g J_g^T`` of every group of weights for one weight vector, ``G x (N m) x (N m)``; their sum is the tangent
        kernel."""
        rows = self.jacobian(tangents)[0].flatten(0, 1)
        group = self.group_of_weights(rows)
        parts = [rows[:, group == g] for g in range(self.num_groups)]
        return torch.stack([part @ part.T for part in parts])

    def kronecker_factors(self, tangents: Tangents, root: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Factors ``(A, B, c)`` per block with ``J^T R R^T J`` near ``A (x) B / c``, for one weight vector; all three add up
        over rows.

        Here from the Jacobians ``G`` (``a x b`` matrices) of the whitened outputs, ``A = sum G G^T``, ``B = sum G^T G`` and
        ``c`` the trace of both: any weight tensor has them, and the trace is right. Networks that know their layers use
        activations and backward signals instead.

        Args:
            tangents: At ``N`` rows.
            root: ``N x m`` or ``N x m x m``, ``R``.
        """
        rows = self.jacobian(tangents)[0]  # N x m x P
        white = root.unsqueeze(-1) * rows if root.dim() == 2 else root.transpose(-1, -2) @ rows
        factors = []
        for block, piece in zip(self.blocks, white.split([b.rows * b.cols for b in self.blocks], -1), strict=True):
            G = piece.flatten(0, 1).unflatten(-1, (block.rows, block.cols))
            left, right = torch.einsum("nab,ncb->ac", G, G), torch.einsum("nab,nac->bc", G, G)
            factors.append((left, right, left.trace()))
        return factors

    def row_squares(self, tangents: Tangents, root: Tensor) -> Tensor:
        """The diagonal of ``J^T R R^T J`` for one weight vector, summed over rows, ``P``.

        Args:
            tangents: At ``N`` rows.
            root: ``N x m`` or ``N x m x r``, ``R``.
        """
        rows = self.jacobian(tangents)[0]  # N x m x P
        white = root.unsqueeze(-1) * rows if root.dim() == 2 else root.transpose(-1, -2) @ rows
        return white.square().sum((0, 1))

    def linear_variance(self, tangents: Tangents, variance: Tensor) -> Tensor:
        """The variances of the linearized outputs under independent weights, the diagonal of ``J diag(v) J^T``, ``S x N x m``;
        differentiable in ``variance: S x P``."""
        return (self.jacobian(tangents).square() * variance[:, None, None, :]).sum(-1)

    @property
    def tangent_size(self) -> int:
        """Numbers that a row of :meth:`tangents` holds: how many rows fit in memory at once."""
        return self.num_outputs * self.num_params

    def active_weights(self, X: Tensor) -> Tensor:
        """Which weights the values at these rows depend on, ``P`` booleans: all, but for heads of other tasks.

        Args:
            X: ``N x d``.
        """
        return torch.ones(self.num_params, dtype=torch.bool, device=X.device)

    def rescaled(self, factors: Tensor) -> Network:
        """The network with the prior scales of every group multiplied by ``factors: G``; the same function has whitened
        weights divided by them.

        Raises:
            InvalidOptionError: The scales of this network are fixed.
        """
        raise InvalidOptionError("this network's prior scales are fixed")

    @abstractmethod
    def hidden(self, z: Tensor, X: Tensor) -> Tensor:
        """The last hidden layer and a constant, what a linear head sees, ``S x batch x q x F``."""


@dataclass(frozen=True)
class WeightBlock:
    """A matrix of weights, stored row by row.

    Attributes:
        rows: Of the matrix.
        cols: Of the matrix.
        group: Index of the layer or weight tensor that shares one prior precision.
    """

    rows: int
    cols: int
    group: int


@dataclass(frozen=True)
class Tangents:
    """A network linearized at ``S`` weight vectors and ``N`` points.

    Attributes:
        values: ``S x N x m``.
        parts: What the network needs for products with its Jacobian.
    """

    values: Tensor
    parts: Any
