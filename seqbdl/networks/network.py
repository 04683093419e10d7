"""What inference needs of a network: values, linearization and their products, for many weight vectors at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


class Network(ABC):
    """A network over WHITENED weights: the prior of every weight is standard normal, scales live inside the network.

    Weight vectors come stacked, ``S x P``; inputs are shared by all members, ``batch x q x d`` in the unit cube;
    outputs are ``S x batch x q x m``. A network holds no weights and changes nothing.
    """

    input_dim: int
    num_outputs: int
    num_params: int

    @abstractmethod
    def forward(self, z: Tensor, X: Tensor) -> Tensor:
        """Values, ``S x batch x q x m``."""

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

    @abstractmethod
    def hidden(self, z: Tensor, X: Tensor) -> Tensor:
        """The last hidden layer and a constant, what a linear head sees, ``S x batch x q x F``."""


@dataclass(frozen=True)
class Tangents:
    """A network linearized at ``S`` weight vectors and ``N`` points.

    Attributes:
        values: ``S x N x m``.
        parts: What the network needs for products with its Jacobian.
    """

    values: Tensor
    parts: Any
