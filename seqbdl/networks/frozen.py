"""A trained network plus a multiple of a frozen one: randomized prior functions (Osband et al. 2018)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from seqbdl.networks.network import Network, Tangents


class FrozenSum(Network):
    """``f(x; z) = g(x; u) + s p(x; v)`` with ``z = (u, v)``: of the Jacobian only the columns of ``u`` count, those of ``v`` are
    zero.

    An optimizer that follows gradients therefore never moves ``v``, and a penalty anchored at ``(., v)`` leaves it out; every
    member carries its own prior function in its weight vector.

    Args:
        trained: ``g``, over ``P`` weights.
        frozen: ``p``, over ``P'`` weights, with as many inputs and outputs.
        scale: ``s``, a number or one per output, ``m``.
    """

    def __init__(self, trained: Network, frozen: Network, scale: float | Tensor = 1.0) -> None:
        self.trained, self.frozen, self.scale = trained, frozen, scale
        self.input_dim, self.num_outputs = trained.input_dim, trained.num_outputs
        self.num_params = trained.num_params + frozen.num_params
        self.matrix_free = trained.matrix_free and frozen.matrix_free

    def _split(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return z[..., : self.trained.num_params], z[..., self.trained.num_params :]

    def _grow(self, u: Tensor) -> Tensor:
        """Weights of the trained part, ``... x P``, with zeros for the frozen part."""
        return torch.cat([u, u.new_zeros(*u.shape[:-1], self.frozen.num_params)], -1)

    def prior(self, z: Tensor, X: Tensor) -> Tensor:
        """``s p(x; v)``, ``S x batch x q x m``."""
        values = self.frozen.forward(self._split(z)[1], X)
        return values * (self.scale.to(values) if isinstance(self.scale, Tensor) else self.scale)

    def forward(self, z: Tensor, X: Tensor) -> Tensor:
        return self.trained.forward(self._split(z)[0], X) + self.prior(z, X)

    def pullback(self, z: Tensor, X: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        values, back = self.trained.pullback(self._split(z)[0], X)
        with torch.no_grad():
            prior = self.prior(z, X)
        return values + prior, lambda cotangent: self._grow(back(cotangent))

    def members_at_once(self, X: Tensor) -> int | None:
        return self.trained.members_at_once(X)

    def tangents(self, z: Tensor, X: Tensor) -> Tangents:
        inner = self.trained.tangents(self._split(z)[0], X)
        return Tangents(inner.values + self.prior(z, X.reshape(-1, self.input_dim)), inner)

    def jacobian(self, tangents: Tangents) -> Tensor:
        return self._grow(self.trained.jacobian(tangents.parts))

    def tangent_kernel(self, first: Tangents, second: Tangents) -> Tensor:
        return self.trained.tangent_kernel(first.parts, second.parts)

    def tangent_gram(self, tangents: Tangents, batch: torch.Size, q: int) -> Tensor:
        return self.trained.tangent_gram(tangents.parts, batch, q)

    def jvp(self, tangents: Tangents, v: Tensor) -> Tensor:
        return self.trained.jvp(tangents.parts, self._split(v)[0])

    def vjp(self, tangents: Tangents, alpha: Tensor) -> Tensor:
        return self._grow(self.trained.vjp(tangents.parts, alpha))

    def hidden(self, z: Tensor, X: Tensor) -> Tensor:
        """Of the trained part."""
        return self.trained.hidden(self._split(z)[0], X)
