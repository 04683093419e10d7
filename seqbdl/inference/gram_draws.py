"""Functions drawn from the prior of a deep kernel, by random features layer by layer, every draw its own.

A hidden layer's random features ``psi`` have the kernel as Gram matrix in expectation; a learned Gram matrix is laid on them by
their part that the inducing inputs span::

    phi = [psi - Psi_z^T (Psi_z Psi_z^T)^{-1} Psi_z psi,    T^T chol(Psi_z Psi_z^T)^{-1} Psi_z psi]

For images the features of a pixel's patch are never written out: they are needed in products with random weights and with
``Psi_z`` only, which are convolutions.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from seqbdl.inference.gram import SQUARED_EXPONENTIAL, GramKernel, first_rows
from seqbdl.inference.gram_layout import Images
from seqbdl.networks.activations import activate, centred
from seqbdl.posteriors.joint_gaussian import jittered_cholesky

_MOST_NUMBERS = 4_000_000  # of features of images held at once


def prior_draws(kernel: GramKernel, n: int, width: int, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """``n`` functions of the prior with that kernel, ``X: batch x q x d`` in the unit cube to ``n x batch x q``.

    Args:
        kernel: The kernel.
        n: How many.
        width: Features per layer (and pixel).
        generator: Source of randomness.
    """

    def normal(*shape: int) -> Tensor:
        return torch.randn(n, *shape, generator=generator, dtype=torch.float64).to(kernel.Z)

    P, layout = kernel.Z.shape[0], kernel.layout
    dims = layout.variances(kernel.scales.inputs[0]).shape[-1] + 1
    weights, phases = [], []
    for layer in range(kernel.scales.depth):
        weights.append(normal(dims, width))
        phases.append(2 * math.pi * torch.rand(n, 1, width, generator=generator, dtype=torch.float64).to(kernel.Z))
        patch = layout.size**2 if isinstance(layout, Images) else 1
        dims = patch * width + 1 + (P if kernel.learned and layer + 1 < kernel.scales.depth else 0)
    if isinstance(layout, Images):
        return ImageFeatures(kernel, weights, phases, normal(layout.num_pixels, width, 1), normal(1))
    return RandomFeatures(kernel, weights, phases, normal(width + 1, 1))


def activated(kernel: GramKernel, layer: int, a: Tensor, phases: Tensor) -> Tensor:
    """Hidden units whose inner products, over their number, have ``u F`` as mean."""
    width = a.shape[-1]
    if kernel.activation == SQUARED_EXPONENTIAL:
        h = math.sqrt(2.0) * torch.cos(a + phases)
    else:
        h = activate(a, kernel.activation)
    return h * (kernel.scales.weights[0, layer] / width).sqrt()


def with_bias(kernel: GramKernel, layer: int, h: Tensor) -> Tensor:
    """One more feature, whose square is the bias variance."""
    return torch.cat([h, kernel.scales.biases[0, layer].sqrt().expand(*h.shape[:-1], 1)], -1)


class RandomFeatures:
    """Of vectors."""

    def __init__(self, kernel: GramKernel, weights: list[Tensor], phases: list[Tensor], head: Tensor) -> None:
        self._kernel, self._weights, self._phases, self._head = kernel, weights, phases, head
        self._maps: list[tuple[Tensor, Tensor]] = []  # per hidden layer: Psi_z (n x P x F) and its factor
        if kernel.learned:
            phi = self._first(kernel.Z)
            for layer in range(kernel.scales.depth - 1):
                psi = self._psi(layer, phi)
                self._maps.append((psi, jittered_cholesky(psi @ psi.mT)))
                phi = self._learned(layer, psi)

    def _first(self, X: Tensor) -> Tensor:
        return with_bias(self._kernel, 0, first_rows(self._kernel, X))

    def _psi(self, layer: int, phi: Tensor) -> Tensor:
        h = activated(self._kernel, layer, phi @ self._weights[layer], self._phases[layer])
        return with_bias(self._kernel, layer + 1, h)

    def _learned(self, layer: int, psi: Tensor) -> Tensor:
        psi_z, factor = self._maps[layer]
        B = torch.linalg.solve_triangular(factor, psi_z @ psi.mT, upper=False)  # n x P x N
        spanned = torch.linalg.solve_triangular(factor.mT, B, upper=True).mT @ psi_z
        return torch.cat([psi - spanned, (self._kernel.roots[layer].T @ B).mT], -1)

    def features(self, X: Tensor) -> Tensor:
        """``N x d`` to ``n x N x (M + 1)``, whose inner products have the kernel as mean."""
        phi = self._first(X)
        for layer in range(self._kernel.scales.depth):
            phi = self._psi(layer, phi)
            if self._maps and layer + 1 < self._kernel.scales.depth:
                phi = self._learned(layer, phi)
        return phi

    def __call__(self, X: Tensor) -> Tensor:
        values = (self.features(X.reshape(-1, X.shape[-1])) @ self._head).squeeze(-1)  # n x N
        return values.unflatten(-1, X.shape[:-1])


class ImageFeatures:
    """The same of images: callable, ``X: batch x q x d -> n x batch x q``.

    Hidden units ``h`` are ``n x S x N x M``, pixels second.
    """

    def __init__(self, kernel: GramKernel, weights: list[Tensor], phases: list[Tensor], head: Tensor, head_bias: Tensor) -> None:
        self._kernel, self._weights, self._phases, self._head, self._head_bias = kernel, weights, phases, head, head_bias
        self._maps: list[tuple[Tensor, Tensor, Tensor]] = []  # Psi_z by place of the patch, its factor, what B is weighted with
        layout = kernel.layout
        assert isinstance(layout, Images)
        self._layout, self._patch = layout, layout.size**2
        if kernel.learned:
            own = layout.inducing_rows(centred(kernel.Z)) * layout.variances(kernel.scales.inputs[0]).sqrt()
            h = activated(kernel, 0, with_bias(kernel, 0, own) @ weights[0], phases[0])  # n x P x M
            for layer in range(kernel.scales.depth - 1):
                places = layout.mixers[layer] @ h.unsqueeze(-3) / layout.size  # n x k^2 x P x M
                K = kernel.scales.biases[0, layer + 1] + (places @ places.mT).sum(-3)
                plain, of_inducing = self._split(layer + 1)
                mean = (places @ plain.unflatten(-2, (self._patch, -1))).sum(-3) + self._bias_row(layer + 1)
                factor = jittered_cholesky(K)
                whitened = torch.linalg.solve_triangular(factor, mean, upper=False)
                # a = psi W - B^T L^{-1} Psi_z W + B^T T W_t with B = L^{-1} Psi_z psi, which is L^T at the inducing points.
                self._maps.append((places, factor, kernel.roots[layer] @ of_inducing - whitened))
                h = activated(kernel, layer + 1, factor @ (kernel.roots[layer] @ of_inducing), phases[layer + 1])

    def _split(self, layer: int) -> tuple[Tensor, Tensor]:
        """Weights on the features of a patch, ``n x k^2 M x M``, and on what is learned, ``n x P x M``."""
        size = self._patch * self._weights[0].shape[-1]
        return self._weights[layer][:, :size], self._weights[layer][:, size + 1 :]

    def _bias_row(self, layer: int) -> Tensor:
        size = self._patch * self._weights[0].shape[-1]
        return self._kernel.scales.biases[0, layer].sqrt() * self._weights[layer][:, size : size + 1]

    def _next(self, layer: int, h: Tensor) -> Tensor:
        """Inputs of a layer's hidden units."""
        plain, _ = self._split(layer)
        plain = plain.unflatten(-2, (self._patch, -1))
        a = self._bias_row(layer).unsqueeze(1)
        cross = self._kernel.scales.biases[0, layer]
        for place, seen in self._layout.shifts(h, axis=1):
            a = a + seen @ plain[:, place].unsqueeze(1) / self._layout.size
            if self._maps:
                cross = cross + self._maps[layer - 1][0][:, place].unsqueeze(1) @ seen.mT / self._layout.size
        if not self._maps:
            return a
        _, factor, weights = self._maps[layer - 1]
        B = torch.linalg.solve_triangular(factor.unsqueeze(1), cross, upper=False)
        return a + B.mT @ weights.unsqueeze(1)

    def _some(self, rows: Tensor) -> Tensor:
        """``N x d`` to ``n x N``."""
        kernel = self._kernel
        phi = with_bias(kernel, 0, first_rows(kernel, rows))  # S x N x D
        h = activated(kernel, 0, phi @ self._weights[0].unsqueeze(1), self._phases[0].unsqueeze(1))
        for layer in range(1, kernel.scales.depth):
            h = activated(kernel, layer, self._next(layer, h), self._phases[layer].unsqueeze(1))
        pooled = (h @ self._head).squeeze(-1).sum(1) / math.sqrt(self._layout.num_pixels)
        return pooled + kernel.scales.biases[0, -1].sqrt() * self._head_bias

    def __call__(self, X: Tensor) -> Tensor:
        rows = X.reshape(-1, X.shape[-1])
        each = self._weights[0].shape[0] * self._layout.num_pixels * max(self._weights[0].shape[-1], self._kernel.Z.shape[0])
        chunk = max(1, _MOST_NUMBERS // each)
        values = torch.cat([self._some(part) for part in rows.split(chunk)], -1)
        return values.unflatten(-1, X.shape[:-1])
