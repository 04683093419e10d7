"""Deep kernels as functions of Gram matrices, with learned Gram matrices between the layers.

The kernel of an infinitely wide network depends on its inputs through Gram matrices only, ``K_l = v_l + u_l
F(G_{l-1})``. In the network ``G_l = K_l``: nothing is learned between the layers. A deep kernel machine (Yang et al. 2023)
frees ``G_l`` at inducing inputs ``Z``, in whitened coordinates ``G_l = L T_l T_l^T L^T`` with ``L = chol K_l``, and every
other point follows by its conditional expectation under the prior::

    B = L^{-1} K_zx,     G_zx = L T T^T B,     G_xx' = K_xx' - B^T B' + (T^T B)^T (T^T B')

All blocks are carried, so the kernel that comes out is positive definite for any points together. ``T = I`` is the
infinitely wide network. Rows are vectors, or images with convolutions (:mod:`seqbdl.inference.gram_layout`); matrices then have
one block per pixel, on the axis before the last two.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from seqbdl.inference.gram_layout import Images, Vectors
from seqbdl.inference.infinite_width import WidthScales, expected_product, expected_square
from seqbdl.networks.activations import centred
from seqbdl.posteriors.joint_gaussian import jittered_cholesky

SQUARED_EXPONENTIAL = "squared-exponential"
_PROJECTION_JITTER = 1e-4  # relative to the mean diagonal: large combinations of features would amplify learned changes


@dataclass(frozen=True)
class GramKernel:
    """A deep kernel, or a batch of them (of vectors only).

    Attributes:
        scales: Of one group; behind the axis of the group a batch of kernels has its batch.
        roots: ``(depth - 1) x batch x P x P`` lower-triangular ``T_l``; ``0 x ...`` for the infinitely wide network.
        Z: ``batch x P x d`` inducing inputs in the unit cube.
        activation: ``"erf"``, ``"relu"``, ``"leaky_relu"`` or ``"squared-exponential"``.
        layout: What the rows are.
    """

    scales: WidthScales
    roots: Tensor
    Z: Tensor
    activation: str
    layout: Vectors | Images = field(default_factory=Vectors)

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
        cross: ``... x P x q``, their Gram matrix with the inducing inputs; empty where nothing is learned.
        diagonal: ``... x q``.
    """

    cross: Tensor
    diagonal: Tensor


def identity_roots(depth: int, Z: Tensor) -> Tensor:
    """``T = I`` in every hidden layer."""
    return torch.eye(Z.shape[0]).to(Z).expand(depth - 1, -1, -1).clone()


def lower_logs(roots: Tensor) -> Tensor:
    """``T`` with the logarithm of its diagonal in place of the diagonal: free parameters, ``0`` for ``T = I``."""
    return roots.tril(-1) + torch.diag_embed(roots.diagonal(dim1=-2, dim2=-1).log())


def lower_root(logs: Tensor) -> Tensor:
    """``T`` of :func:`lower_logs`."""
    return logs.tril(-1) + torch.diag_embed(logs.diagonal(dim1=-2, dim2=-1).exp())


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
    return _gram_and_diagonal(kernel, X1, X2)[0]


def _gram_and_diagonal(kernel: GramKernel, X1: Tensor, X2: Tensor) -> tuple[Tensor, Tensor]:
    """The kernel, and ``k(x, x)`` of ``X2``."""
    layout, (rows1, rows2) = kernel.layout, (first_rows(kernel, X) for X in (X1, X2))
    G12 = _bias(kernel, 0) + rows1 @ rows2.mT
    one, two, G_ii = _side(kernel, rows1), _side(kernel, rows2), _inducing_start(kernel)
    for layer in range(kernel.scales.depth):
        last = layer + 1 == kernel.scales.depth
        F = product(G12, one.diagonal.unsqueeze(-1), two.diagonal.unsqueeze(-2), kernel.activation)
        K12 = _affine(kernel, layer, layout.between(F, last))
        if last:
            return K12, _layer_diagonal(kernel, layer, two.diagonal)
        if not kernel.learned:
            G12 = K12
            one, two = (replace(s, diagonal=_layer_diagonal(kernel, layer, s.diagonal)) for s in (one, two))
            continue
        anchor = _anchor(kernel, layer, G_ii)
        (one, B1, C1), (two, B2, C2) = (_through(kernel, layer, anchor, G_ii, side) for side in (one, two))
        G12 = K12 - B1.mT @ B2 + C1.mT @ C2
        G_ii = anchor.image @ anchor.image.mT
    raise AssertionError("a network has at least one layer")


def gram_diagonal(kernel: GramKernel, X: Tensor) -> Tensor:
    """``k(x, x)``, ``... x q``."""
    side, _ = _to_the_top(kernel, X)
    return _layer_diagonal(kernel, kernel.scales.depth - 1, side.diagonal)


def inducing_blocks(kernel: GramKernel, X: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The top layer's kernel among the inducing inputs ``P x P``, with ``X: n x d``, ``P x n``, and its diagonal there.

    Inducing inputs of the top layer are rows as they are: for images, whole ones.
    """
    if isinstance(kernel.layout, Images) or not kernel.learned:
        K, diagonal = _gram_and_diagonal(kernel, kernel.Z, torch.cat([kernel.Z, X]))
        P = kernel.Z.shape[0]
        return K[:, :P], K[:, P:], diagonal[P:]
    (side, G_ii), last = _to_the_top(kernel, X), kernel.scales.depth - 1
    diagonal = _layer_diagonal(kernel, last, side.diagonal)
    return _inducing_layer(kernel, last, G_ii), _layer_cross(kernel, last, G_ii, side), diagonal


def inducing_gram(kernel: GramKernel) -> Tensor:
    """The kernel among the inducing inputs, ``P x P``, by themselves (cheaper)."""
    if isinstance(kernel.layout, Images):
        return gram(kernel, kernel.Z, kernel.Z)
    G, last = _inducing_start(kernel), kernel.scales.depth - 1
    for layer in range(last):
        if kernel.learned:
            image = _anchor(kernel, layer, G).image
            G = image @ image.mT
        else:
            G = _inducing_layer(kernel, layer, G)
    return _inducing_layer(kernel, last, G)


def divergences(roots: Tensor) -> Tensor:
    """``KL(N(0, G_l) || N(0, K_l))`` of every hidden layer: ``(|T|^2 - P) / 2 - log det T``."""
    log_det = roots.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)
    return 0.5 * (roots.square().sum((-2, -1)) - roots.shape[-1]) - log_det


def first_rows(kernel: GramKernel, X: Tensor) -> Tensor:
    """What the first layer's Gram matrix, less its bias, is the inner products of: ``... x q x D``."""
    return kernel.layout.rows(centred(X)) * _root_variances(kernel)


def with_mixers(kernel: GramKernel) -> GramKernel:
    """Images: the combinations of inducing features that stand for the neighbours of every inducing pixel, found in the
    infinitely wide network at the present scales."""
    layout = kernel.layout
    assert isinstance(layout, Images)
    P, plain = kernel.Z.shape[0], replace(kernel, roots=kernel.roots[:0])
    rows = first_rows(plain, kernel.Z)
    own = layout.inducing_rows(centred(kernel.Z)) * _root_variances(plain)
    G_ii, cross = (_bias(plain, 0) + own @ other.mT for other in (own, rows))
    diagonal = _bias(plain, 0).squeeze(-1) + rows.square().sum(-1)
    every = torch.arange(P, device=kernel.Z.device)
    mixers: list[Tensor] = []
    for layer in range(kernel.scales.depth - 1):
        at = G_ii.diagonal()
        F_ii = product(G_ii, at.unsqueeze(-1), at.unsqueeze(-2), kernel.activation)
        F_cross = product(cross, at.unsqueeze(-1), diagonal.unsqueeze(-2), kernel.activation)  # S x P x P
        neighbours = torch.stack([shifted[layout.pixels, :, every] for _, shifted in layout.shifts(F_cross)])
        mixers.append(torch.cholesky_solve(neighbours.mT, jittered_cholesky(F_ii, _PROJECTION_JITTER)).mT)
        plain = replace(plain, layout=replace(layout, mixers=torch.stack(mixers)))
        cross = _affine(plain, layer, plain.layout.across(F_cross, layer))
        G_ii = _affine(plain, layer, plain.layout.inducing(F_ii, layer))
        diagonal = _layer_diagonal(plain, layer, diagonal)
    return replace(kernel, layout=plain.layout)


def _root_variances(kernel: GramKernel) -> Tensor:
    return kernel.layout.variances(kernel.scales.inputs[0]).sqrt().unsqueeze(-2)


def _inducing_start(kernel: GramKernel) -> Tensor:
    rows = kernel.layout.inducing_rows(centred(kernel.Z)) * _root_variances(kernel)
    return _bias(kernel, 0) + rows @ rows.mT


def _bias(kernel: GramKernel, layer: int) -> Tensor:
    return kernel.scales.biases[0, ..., layer, None, None]


def _affine(kernel: GramKernel, layer: int, F: Tensor) -> Tensor:
    """``v + u F``."""
    return _bias(kernel, layer + 1) + kernel.scales.weights[0, ..., layer, None, None] * F


def _side(kernel: GramKernel, rows: Tensor) -> Side:
    diagonal = _bias(kernel, 0).squeeze(-1) + rows.square().sum(-1)
    if not kernel.learned:
        return Side(rows.new_zeros(0), diagonal)
    own = kernel.layout.inducing_rows(centred(kernel.Z)) * _root_variances(kernel)
    return Side(_bias(kernel, 0) + own @ rows.mT, diagonal)


def _layer_diagonal(kernel: GramKernel, layer: int, k: Tensor) -> Tensor:
    last = layer + 1 == kernel.scales.depth
    return _affine(kernel, layer, kernel.layout.between(square(k, kernel.activation).unsqueeze(-1), last)).squeeze(-1)


def _inducing_layer(kernel: GramKernel, layer: int, G: Tensor) -> Tensor:
    diagonal = G.diagonal(dim1=-2, dim2=-1)
    F = product(G, diagonal.unsqueeze(-1), diagonal.unsqueeze(-2), kernel.activation)
    return _affine(kernel, layer, kernel.layout.inducing(F, layer))


def _layer_cross(kernel: GramKernel, layer: int, G_ii: Tensor, side: Side) -> Tensor:
    at = G_ii.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)
    F = product(side.cross, at, side.diagonal.unsqueeze(-2), kernel.activation)
    return _affine(kernel, layer, kernel.layout.across(F, layer))


def _anchor(kernel: GramKernel, layer: int, G: Tensor) -> Anchor:
    factor, root = jittered_cholesky(_inducing_layer(kernel, layer, G)), kernel.roots[layer]
    return Anchor(factor, root, factor @ root)


def _through(kernel: GramKernel, layer: int, anchor: Anchor, G_ii: Tensor, side: Side) -> tuple[Side, Tensor, Tensor]:
    """The points behind the layer, and their ``B`` and ``T^T B``."""
    B = torch.linalg.solve_triangular(anchor.factor, _layer_cross(kernel, layer, G_ii, side), upper=False)
    C = anchor.root.mT @ B
    rest = (_layer_diagonal(kernel, layer, side.diagonal) - B.square().sum(-2)).clamp_min(0.0)
    return Side(anchor.image @ C, rest + C.square().sum(-2)), B, C


def _to_the_top(kernel: GramKernel, X: Tensor) -> tuple[Side, Tensor]:
    """Points in front of the last layer, and the inducing inputs' Gram matrix there."""
    side, G_ii = _side(kernel, first_rows(kernel, X)), _inducing_start(kernel)
    for layer in range(kernel.scales.depth - 1):
        if kernel.learned:
            anchor = _anchor(kernel, layer, G_ii)
            side, _, _ = _through(kernel, layer, anchor, G_ii, side)
            G_ii = anchor.image @ anchor.image.mT
        else:
            side = replace(side, diagonal=_layer_diagonal(kernel, layer, side.diagonal))
    return side, G_ii
