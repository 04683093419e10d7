"""A linear head on fixed features, as a network: its only weights are the head's."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from seqbdl.networks.network import Network, Tangents, WeightBlock


class LinearHead(Network):
    """``f(x) = scale W^T phi(x)``, ``W: F x m`` stored row by row.

    Args:
        features: ``batch x q x d`` to ``batch x q x F``, differentiable.
        input_dim: ``d``.
        num_features: ``F``.
        num_outputs: ``m``.
        scale: Prior standard deviation of an entry of ``W``.
    """

    def __init__(
        self, features: Callable[[Tensor], Tensor], input_dim: int, num_features: int, num_outputs: int = 1, scale: float = 1.0
    ) -> None:
        self._features, self.num_features, self.scale = features, num_features, scale
        self.input_dim, self.num_outputs, self.num_params = input_dim, num_outputs, num_features * num_outputs

    def _head(self, z: Tensor) -> Tensor:
        return self.scale * z.unflatten(-1, (self.num_features, self.num_outputs))

    def forward(self, z: Tensor, X: Tensor) -> Tensor:
        values = self._features(X.reshape(-1, self.input_dim)) @ self._head(z)  # S x N x m
        return values.unflatten(1, X.shape[:-1])

    def pullback(self, z: Tensor, X: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        features = self._features(X.reshape(-1, self.input_dim))
        return features @ self._head(z), lambda cotangent: self.scale * (features.T @ cotangent).flatten(1)

    def tangents(self, z: Tensor, X: Tensor) -> Tangents:
        features = self._features(X.reshape(-1, self.input_dim))
        return Tangents(features @ self._head(z), features)

    def _spread(self, kernel: Tensor) -> Tensor:
        """``... x N x N'`` kernels of the features as ``... x (N m) x (N' m)``: outputs have heads of their own."""
        eye = torch.eye(self.num_outputs).to(kernel)
        outer = kernel[..., :, None, :, None] * eye[:, None, :]
        return self.scale**2 * outer.flatten(-4, -3).flatten(-2)

    def tangent_kernel(self, first: Tangents, second: Tangents) -> Tensor:
        return self._spread(first.parts @ second.parts.T).unsqueeze(0)

    def tangent_gram(self, tangents: Tangents, batch: torch.Size, q: int) -> Tensor:
        rows = tangents.parts.reshape(*batch, q, self.num_features)
        return self._spread(rows @ rows.transpose(-1, -2)).unsqueeze(0)

    def jacobian(self, tangents: Tangents) -> Tensor:
        eye = torch.eye(self.num_outputs).to(tangents.parts)
        rows = self.scale * tangents.parts[:, None, :, None] * eye[:, None, :]  # N x m x F x m
        return rows.flatten(-2).unsqueeze(0)

    def jvp(self, tangents: Tangents, v: Tensor) -> Tensor:
        values: Tensor = tangents.parts @ self._head(v)
        return values

    def vjp(self, tangents: Tangents, alpha: Tensor) -> Tensor:
        product: Tensor = self.scale * (tangents.parts.T @ alpha).flatten(1)
        return product

    @property
    def blocks(self) -> tuple[WeightBlock, ...]:
        return (WeightBlock(self.num_features, self.num_outputs, 0),)

    def group_kernels(self, tangents: Tangents) -> Tensor:
        return self.tangent_kernel(tangents, tangents)

    def kronecker_factors(self, tangents: Tangents, root: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Exact when all rows have the same ``R``: one layer, whose inputs are the features."""
        signals = torch.diag_embed(root) if root.dim() == 2 else root  # N x m x m
        right = torch.einsum("nac,nbc->ab", signals, signals)
        return [(self.scale**2 * tangents.parts.T @ tangents.parts, right, root.new_tensor(float(root.shape[0])))]

    def rescaled(self, factors: Tensor) -> LinearHead:
        scale = self.scale * float(factors.reshape(-1)[0])
        return LinearHead(self._features, self.input_dim, self.num_features, self.num_outputs, scale)

    def hidden(self, z: Tensor, X: Tensor) -> Tensor:
        return self._features(X).unsqueeze(0)
