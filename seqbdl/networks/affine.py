"""Networks over fewer, or over other, weights: an affine map puts the weights of a network in their place.

``f(x; base + A u)``. With ``A`` the unit columns of some weights this is a parameter mask: the others stay as they are. With
``A A^T`` the covariance of an earlier posterior and ``base`` its mean, that posterior is the standard normal prior of ``u``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from seqbdl.networks.network import Network, Tangents


class AffineNetwork(Network):
    """A network as a function of ``u``, with weights ``base + A u``.

    Args:
        network: Over ``P`` weights.
        base: ``1 x P``.
        apply: ``A``, from ``... x k`` to ``... x P``.
        transpose: ``A^T``, from ``... x P`` to ``... x k``.
        num_params: ``k``.
    """

    def __init__(
        self,
        network: Network,
        base: Tensor,
        apply: Callable[[Tensor], Tensor],
        transpose: Callable[[Tensor], Tensor],
        num_params: int,
    ) -> None:
        self.network, self.base, self._map, self._transpose = network, base, apply, transpose
        self.input_dim, self.num_outputs, self.num_params = network.input_dim, network.num_outputs, num_params

    def weights(self, u: Tensor) -> Tensor:
        """``base + A u``, ``S x P``."""
        return self.base.to(u) + self._map(u)

    def forward(self, z: Tensor, X: Tensor) -> Tensor:
        return self.network.forward(self.weights(z), X)

    def pullback(self, z: Tensor, X: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        values, back = self.network.pullback(self.weights(z), X)
        return values, lambda cotangent: self._transpose(back(cotangent))

    def tangents(self, z: Tensor, X: Tensor) -> Tangents:
        inner = self.network.tangents(self.weights(z), X)
        return Tangents(inner.values, self._transpose(self.network.jacobian(inner)))  # S x N x m x k

    def jacobian(self, tangents: Tangents) -> Tensor:
        dense: Tensor = tangents.parts
        return dense

    def tangent_kernel(self, first: Tangents, second: Tangents) -> Tensor:
        kernel: Tensor = first.parts.flatten(1, 2) @ second.parts.flatten(1, 2).transpose(-1, -2)
        return kernel

    def tangent_gram(self, tangents: Tangents, batch: torch.Size, q: int) -> Tensor:
        S, _, m, k = tangents.parts.shape
        rows = tangents.parts.reshape(S, *batch, q * m, k)
        gram: Tensor = rows @ rows.transpose(-1, -2)
        return gram

    def jvp(self, tangents: Tangents, v: Tensor) -> Tensor:
        rows: Tensor = tangents.parts.flatten(1, 2)  # S x (N m) x k
        product = v @ rows[0].T if rows.shape[0] == 1 else (rows @ v.unsqueeze(-1)).squeeze(-1)
        return product.unflatten(-1, tangents.parts.shape[1:3])

    def vjp(self, tangents: Tangents, alpha: Tensor) -> Tensor:
        rows: Tensor = tangents.parts.flatten(1, 2)
        flat = alpha.flatten(1)
        return flat @ rows[0] if rows.shape[0] == 1 else (flat.unsqueeze(-2) @ rows).squeeze(-2)

    def hidden(self, z: Tensor, X: Tensor) -> Tensor:
        return self.network.hidden(self.weights(z), X)


def masked(network: Network, base: Tensor, index: Tensor) -> AffineNetwork:
    """The network as a function of the weights ``index: k`` alone; the others stay as in ``base: 1 x P``.

    Its weight vectors are the values of these weights themselves, not changes of them.
    """
    rest = base.index_fill(-1, index.to(base.device), 0.0)

    def put(u: Tensor) -> Tensor:
        zeros = u.new_zeros(*u.shape[:-1], network.num_params)
        return zeros.index_copy(-1, index.to(u.device), u)

    return AffineNetwork(network, rest, put, lambda v: v.index_select(-1, index.to(v.device)), index.shape[0])
