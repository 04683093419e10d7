"""A trained network plus multiples of frozen ones: randomized prior functions (Osband et al. 2018)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from seqbdl.networks.network import Network, Tangents


class FrozenSum(Network):
    """``f(x; z) = g(x; u) + sum_k s_k p_k(x; v_k)`` with ``z = (u, v_1, v_2, ...)``: of the Jacobian only the columns of ``u``
    count, the others are zero.

    An optimizer that follows gradients therefore never moves the ``v_k``, and a penalty anchored at ``(., v_1, ...)`` leaves them
    out; every member carries its own frozen functions in its weight vector.

    Args:
        trained: ``g``, over ``P`` weights.
        frozen: ``p_k``, with as many inputs and outputs.
        scales: ``s_k``.
    """

    def __init__(self, trained: Network, frozen: Sequence[Network], scales: Sequence[float]) -> None:
        self.trained, self.frozen, self.scales = trained, tuple(frozen), tuple(scales)
        self.input_dim, self.num_outputs = trained.input_dim, trained.num_outputs
        self.num_params = trained.num_params + sum(part.num_params for part in frozen)
        self.matrix_free = trained.matrix_free and all(part.matrix_free for part in frozen)

    def _split(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return z[..., : self.trained.num_params], z[..., self.trained.num_params :]

    def with_trained(self, u: Tensor, z: Tensor) -> Tensor:
        """The weights ``z: S x P`` with other trained ones, ``u: S x P_u`` (or longer: the rest is left out)."""
        return torch.cat([self._split(u)[0], self._split(z)[1]], -1)

    def prior(self, z: Tensor, X: Tensor) -> Tensor:
        """``sum_k s_k p_k(x; v_k)``, ``S x batch x q x m``."""
        parts = self._split(z)[1].split([part.num_params for part in self.frozen], -1)
        terms = [s * part.forward(v, X) for s, part, v in zip(self.scales, self.frozen, parts, strict=True)]
        return torch.stack(terms).sum(0)

    def _grow(self, u: Tensor) -> Tensor:
        """Weights of the trained part, ``... x P_u``, followed by zeros."""
        return torch.nn.functional.pad(u, (0, self.num_params - self.trained.num_params))

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
