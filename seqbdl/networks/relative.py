"""A network read relative to where it started, so that its function prior has mean zero at a random initialization."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from seqbdl.errors import ShapeError
from seqbdl.networks.jacobian_rows import JacobianRows
from seqbdl.networks.network import Network, Tangents, WeightBlock


class RelativeNetwork(Network):
    """``f(x; z) - f(x; a)``: the same Jacobian, and the value zero at ``z = a``.

    A prior ``z ~ N(a, I)`` around a random start has a linearization in which every unit is alive (around ``z = 0`` most
    derivatives vanish), and around it the function prior is the centred Gaussian process with the tangent kernel.

    Args:
        network: The network.
        start: ``1 x P``, ``a``; or ``M x P``, and the start of member ``s`` of a stack is that of index ``s mod M``.
    """

    def __init__(self, network: Network, start: Tensor) -> None:
        self.network, self.start = network, start
        self.input_dim, self.num_outputs, self.num_params = network.input_dim, network.num_outputs, network.num_params
        self.matrix_free = network.matrix_free

    def _at_start(self, X: Tensor, members: int) -> Tensor:
        values = self.network.forward(self.start.to(X), X)
        M = values.shape[0]
        if M in (1, members):
            return values
        if members % M:
            raise ShapeError(f"z holds {members} weight vectors; with {M} starts it must hold whole rounds of {M}")
        return values.repeat(members // M, *[1] * (values.dim() - 1))

    def forward(self, z: Tensor, X: Tensor) -> Tensor:
        return self.network.forward(z, X) - self._at_start(X, z.shape[0])

    def pullback(self, z: Tensor, X: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        values, back = self.network.pullback(z, X)
        return values - self._at_start(X, z.shape[0]), back

    def members_at_once(self, X: Tensor) -> int | None:
        return self.network.members_at_once(X)

    def tangents(self, z: Tensor, X: Tensor) -> Tangents:
        tangents = self.network.tangents(z, X)
        return Tangents(tangents.values - self._at_start(X.reshape(-1, self.input_dim), z.shape[0]), tangents.parts)

    def tangent_kernel(self, first: Tangents, second: Tangents) -> Tensor:
        return self.network.tangent_kernel(first, second)

    def tangent_gram(self, tangents: Tangents, batch: torch.Size, q: int) -> Tensor:
        return self.network.tangent_gram(tangents, batch, q)

    def jacobian(self, tangents: Tangents) -> Tensor:
        return self.network.jacobian(tangents)

    def rows(self, tangents: Tangents) -> JacobianRows:
        return self.network.rows(tangents)

    def jvp(self, tangents: Tangents, v: Tensor) -> Tensor:
        return self.network.jvp(tangents, v)

    def vjp(self, tangents: Tangents, alpha: Tensor) -> Tensor:
        return self.network.vjp(tangents, alpha)

    @property
    def blocks(self) -> tuple[WeightBlock, ...]:
        return self.network.blocks

    def group_kernels(self, tangents: Tangents) -> Tensor:
        return self.network.group_kernels(tangents)

    def kronecker_factors(self, tangents: Tangents, root: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        return self.network.kronecker_factors(tangents, root)

    def rescaled(self, factors: Tensor) -> RelativeNetwork:
        """The start stays the same function; its whitened weights are divided by the factors."""
        start = self.start.to(factors)
        return RelativeNetwork(self.network.rescaled(factors), start / factors[self.group_of_weights(factors)])

    def hidden(self, z: Tensor, X: Tensor) -> Tensor:
        return self.network.hidden(z, X)
