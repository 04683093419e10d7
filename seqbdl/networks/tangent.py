"""A network replaced by its linearization at a random start: a linear model whose features are the start's derivatives."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from seqbdl.networks.network import Tangents
from seqbdl.networks.relative import RelativeNetwork


class TangentNetwork(RelativeNetwork):
    """``J(x; a) (z - a)``: linear in the weights and zero at ``a``. Under the prior ``z ~ N(a, I)`` a Gaussian process with the
    tangent kernel of the finite network (Jacot, Gabriel and Hongler 2018), whose posterior is exact.

    Args:
        network: The network.
        start: ``1 x P``, ``a``.
    """

    def forward(self, z: Tensor, X: Tensor) -> Tensor:
        return self.tangents(z, X.reshape(-1, self.input_dim)).values.unflatten(1, X.shape[:-1])

    def pullback(self, z: Tensor, X: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        here = self.tangents(z, X)
        return here.values, lambda cotangent: self.network.vjp(here, cotangent)

    def tangents(self, z: Tensor, X: Tensor) -> Tangents:
        start = self.start.to(X)
        there = self.network.tangents(start, X)
        return Tangents(self.network.jvp(there, z - start), there.parts)

    def rescaled(self, factors: Tensor) -> TangentNetwork:
        relative = super().rescaled(factors)
        return TangentNetwork(relative.network, relative.start)
