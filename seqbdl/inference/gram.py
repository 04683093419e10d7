"""Deep kernels as functions of Gram matrices, with learned Gram matrices between the layers.

The kernel of an infinitely wide network depends on its inputs through Gram matrices only, ``K_l = v_l + u_l
F(G_{l-1})``. In the network ``G_l = K_l``: nothing is learned between the layers. A deep kernel machine (Yang et al. 2023)
frees ``G_l`` at inducing inputs ``Z``, in whitened coordinates ``G_l = L T_l T_l^T L^T`` with ``L = chol K_l``, and every
other point follows by its conditional expectation under the prior::

    B = L^{-1} K_zx,     G_zx = L T T^T B,     G_xx' = K_xx' - B^T B' + (T^T B)^T (T^T B')

All blocks are carried, so the kernel that comes out is positive definite for any points together. ``T = I`` is the
infinitely wide network.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from seqbdl.inference.infinite_width import WidthScales, expected_product, expected_square
from seqbdl.networks.activations import activate, centred
from seqbdl.posteriors.joint_gaussian import safe_cholesky

SQUARED_EXPONENTIAL = "squared-exponential"
JITTER = 1e-6  # relative to the mean diagonal: the Gram matrices of layers at the inducing inputs


@dataclass(frozen=True)
class GramKernel:
    """A deep kernel.

    Attributes:
        scales: Of one group.
        roots: ``(depth - 1) x P x P`` lower-triangular ``T_l``; ``0 x P x P`` for the infinitely wide network.
        Z: ``P x d`` inducing inputs in the unit cube.
        activation: ``"erf"``, ``"relu"``, ``"leaky_relu"`` or ``"squared-exponential"``.
    """

    scales: WidthScales
    roots: Tensor
    Z: Tensor
    activation: str

    @property
    def learned(self) -> bool:
        return self.roots.shape[0] > 0


@dataclass(frozen=True)
class Anchor:
    """A hidden layer at the inducing inputs.

    Attributes:
        factor: ``L``, ``P x P``.
        root: ``T``, ``P x P``.
        image: ``L T``, ``P x P``.
    """

    factor: Tensor
    root: Tensor
    image: Tensor


@dataclass(frozen=True)
class Side:
    """Points on their way through the layers.

    Attributes:
        cross: ``... x P x q``, their Gram matrix with the inducing inputs.
        diagonal: ``... x q``.
    """

    cross: Tensor
    diagonal: Tensor


def identity_roots(depth: int, Z: Tensor) -> Tensor:
    """``T = I`` in every hidden layer."""
    return torch.eye(Z.shape[0]).to(Z).expand(depth - 1, -1, -1).clone()


def product(k: Tensor, k1: Tensor, k2: Tensor, activation: str) -> Tensor:
    """``F(k, k1, k2)``, all broadcast."""
    if activation == SQUARED_EXPONENTIAL:
        return torch.exp(-0.5 * (k1 + k2 - 2 * k).clamp_min(0.0))
    return expected_product(k, k1, k2, activation)


def square(k: Tensor, activation: str) -> Tensor:
    """``F(k, k, k)``."""
    return torch.ones_like(k) if activation == SQUARED_EXPONENTIAL else expected_square(k, activation)


def gram(kernel: GramKernel, X1: Tensor, X2: Tensor) -> Tensor:
    """The kernel, ``... x q1 x q2`` for ``X1: ... x q1 x d`` and ``X2: ... x q2 x d`` in the unit cube."""
    scales, learned = kernel.scales, kernel.learned
    G12 = _linear(scales, X1, X2)
    one, two = _side(kernel, X1), _side(kernel, X2)
    G_ii = _linear(scales, kernel.Z, kernel.Z)
    for layer in range(scales.depth):
        last = layer + 1 == scales.depth
        K12 = _layer(kernel, layer, G12, one.diagonal.unsqueeze(-1), two.diagonal.unsqueeze(-2))
        if last:
            return K12
        if not learned:
            G12 = K12
            one, two = (replace(s, diagonal=_layer_diagonal(kernel, layer, s.diagonal)) for s in (one, two))
            continue
        anchor, G_next = _anchor(kernel, layer, G_ii)
        (one, B1, C1), (two, B2, C2) = (_through(kernel, layer, anchor, G_ii, side) for side in (one, two))
        G12 = K12 - B1.transpose(-1, -2) @ B2 + C1.transpose(-1, -2) @ C2
        G_ii = G_next
    raise AssertionError("a network has at least one layer")


def gram_diagonal(kernel: GramKernel, X: Tensor) -> Tensor:
    """``k(x, x)``, ``... x q``."""
    return _features(kernel, X)[2]


def inducing_blocks(kernel: GramKernel, X: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The top layer's kernel among the inducing inputs ``P x P``, with ``X: n x d``, ``P x n``, and its diagonal there."""
    return _features(kernel, X)


def inducing_gram(kernel: GramKernel) -> Tensor:
    """The kernel among the inducing inputs, ``P x P``, by themselves (cheaper)."""
    G = _linear(kernel.scales, kernel.Z, kernel.Z)
    for layer in range(kernel.scales.depth):
        if layer + 1 < kernel.scales.depth and kernel.learned:
            G = _anchor(kernel, layer, G)[1]
        else:
            G = _inducing_layer(kernel, layer, G)
    return G


def divergences(roots: Tensor) -> Tensor:
    """``KL(N(0, G_l) || N(0, K_l))`` of every hidden layer: ``(|T|^2 - P) / 2 - log det T``."""
    log_det = roots.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)
    return 0.5 * (roots.square().sum((-2, -1)) - roots.shape[-1]) - log_det


def _linear(scales: WidthScales, X1: Tensor, X2: Tensor) -> Tensor:
    root = scales.inputs[0].sqrt()
    return scales.biases[0, 0] + (centred(X1) * root) @ (centred(X2) * root).transpose(-1, -2)


def _side(kernel: GramKernel, X: Tensor) -> Side:
    scales = kernel.scales
    diagonal = scales.biases[0, 0] + (centred(X).square() * scales.inputs[0]).sum(-1)
    cross = _linear(scales, kernel.Z, X) if kernel.learned else X.new_zeros(0)
    return Side(cross, diagonal)


def _layer(kernel: GramKernel, layer: int, k: Tensor, k1: Tensor, k2: Tensor) -> Tensor:
    scales = kernel.scales
    return scales.biases[0, layer + 1] + scales.weights[0, layer] * product(k, k1, k2, kernel.activation)


def _layer_diagonal(kernel: GramKernel, layer: int, k: Tensor) -> Tensor:
    scales = kernel.scales
    return scales.biases[0, layer + 1] + scales.weights[0, layer] * square(k, kernel.activation)


def _inducing_layer(kernel: GramKernel, layer: int, G: Tensor) -> Tensor:
    diagonal = G.diagonal()
    return _layer(kernel, layer, G, diagonal.unsqueeze(-1), diagonal.unsqueeze(-2))


def _anchor(kernel: GramKernel, layer: int, G: Tensor) -> tuple[Anchor, Tensor]:
    K = _inducing_layer(kernel, layer, G)
    factor = safe_cholesky(K + torch.diag_embed((JITTER * K.diagonal().mean()).expand(K.shape[-1])))
    root = kernel.roots[layer]
    image = factor @ root
    return Anchor(factor, root, image), image @ image.T


def _through(kernel: GramKernel, layer: int, anchor: Anchor, G_ii: Tensor, side: Side) -> tuple[Side, Tensor, Tensor]:
    """The points behind the layer, and their ``B`` and ``T^T B``."""
    K_cross = _layer(kernel, layer, side.cross, G_ii.diagonal().unsqueeze(-1), side.diagonal.unsqueeze(-2))
    B = torch.linalg.solve_triangular(anchor.factor, K_cross, upper=False)
    C = anchor.root.T @ B
    rest = (_layer_diagonal(kernel, layer, side.diagonal) - B.square().sum(-2)).clamp_min(0.0)
    return Side(anchor.image @ C, rest + C.square().sum(-2)), B, C


def _features(kernel: GramKernel, X: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    always = replace(kernel, roots=kernel.roots if kernel.learned else identity_roots(2, kernel.Z))  # carry the cross block
    side, G_ii = _side(always, X), _linear(kernel.scales, kernel.Z, kernel.Z)
    for layer in range(kernel.scales.depth):
        if layer + 1 < kernel.scales.depth and kernel.learned:
            anchor, G_next = _anchor(kernel, layer, G_ii)
            side, _, _ = _through(kernel, layer, anchor, G_ii, side)
            G_ii = G_next
        else:
            cross = _layer(kernel, layer, side.cross, G_ii.diagonal().unsqueeze(-1), side.diagonal.unsqueeze(-2))
            side = Side(cross, _layer_diagonal(kernel, layer, side.diagonal))
            G_ii = _inducing_layer(kernel, layer, G_ii)
    return G_ii, side.cross, side.diagonal


def prior_draws(kernel: GramKernel, n: int, width: int, generator: torch.Generator) -> RandomFeatures:
    """``n`` functions of the prior with that kernel, by random features layer by layer, every draw its own.

    A hidden layer's random features ``psi`` have the kernel as Gram matrix in expectation; a learned Gram matrix is laid on
    them by their part that the inducing inputs span: ``phi = [psi - Psi_z^T (Psi_z Psi_z^T)^{-1} Psi_z psi,  T^T
    chol(Psi_z Psi_z^T)^{-1} Psi_z psi]``.

    Args:
        kernel: The kernel.
        n: How many.
        width: Features per layer.
        generator: Source of randomness.
    """

    def normal(*shape: int) -> Tensor:
        return torch.randn(n, *shape, generator=generator, dtype=torch.float64).to(kernel.Z)

    d, P = kernel.Z.shape[-1], kernel.Z.shape[0]
    dims = d + 1
    weights, phases = [], []
    for layer in range(kernel.scales.depth):
        weights.append(normal(dims, width))
        phases.append(2 * math.pi * torch.rand(n, 1, width, generator=generator, dtype=torch.float64).to(kernel.Z))
        dims = width + 1 + (P if kernel.learned and layer + 1 < kernel.scales.depth else 0)
    return RandomFeatures(kernel, weights, phases, normal(width + 1, 1))


class RandomFeatures:
    """Functions drawn from the prior of a deep kernel: callable, ``X: batch x q x d -> n x batch x q``."""

    def __init__(self, kernel: GramKernel, weights: list[Tensor], phases: list[Tensor], head: Tensor) -> None:
        self._kernel, self._weights, self._phases, self._head = kernel, weights, phases, head
        self._maps: list[tuple[Tensor, Tensor]] = []  # per hidden layer: Psi_z (n x P x F) and its factor
        if kernel.learned:
            phi = self._first(kernel.Z)
            for layer in range(kernel.scales.depth - 1):
                psi = self._psi(layer, phi)
                K = psi @ psi.transpose(-1, -2)
                lift = (JITTER * K.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True)).expand(K.shape[:-1])
                self._maps.append((psi, safe_cholesky(K + torch.diag_embed(lift))))
                phi = self._learned(layer, psi)

    def _first(self, X: Tensor) -> Tensor:
        scales = self._kernel.scales
        bias = scales.biases[0, 0].sqrt().expand(*X.shape[:-1], 1)
        return torch.cat([centred(X) * scales.inputs[0].sqrt(), bias], -1)

    def _psi(self, layer: int, phi: Tensor) -> Tensor:
        scales, a = self._kernel.scales, phi @ self._weights[layer]
        width = a.shape[-1]
        if self._kernel.activation == SQUARED_EXPONENTIAL:
            h = math.sqrt(2.0) * torch.cos(a + self._phases[layer])
        else:
            h = activate(a, self._kernel.activation)
        bias = scales.biases[0, layer + 1].sqrt().expand(*h.shape[:-1], 1)
        return torch.cat([h * (scales.weights[0, layer] / width).sqrt(), bias], -1)

    def _learned(self, layer: int, psi: Tensor) -> Tensor:
        psi_z, factor = self._maps[layer]
        B = torch.linalg.solve_triangular(factor, psi_z @ psi.transpose(-1, -2), upper=False)  # n x P x N
        spanned = torch.linalg.solve_triangular(factor.transpose(-1, -2), B, upper=True).transpose(-1, -2) @ psi_z
        return torch.cat([psi - spanned, (self._kernel.roots[layer].T @ B).transpose(-1, -2)], -1)

    def __call__(self, X: Tensor) -> Tensor:
        phi = self._first(X.reshape(-1, X.shape[-1]))
        for layer in range(self._kernel.scales.depth):
            phi = self._psi(layer, phi)
            if self._maps and layer + 1 < self._kernel.scales.depth:
                phi = self._learned(layer, phi)
        values = (phi @ self._head).squeeze(-1)  # n x N
        return values.unflatten(-1, X.shape[:-1])
