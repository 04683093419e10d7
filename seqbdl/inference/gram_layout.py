"""What the rows of a deep kernel are: vectors, or images whose layers are convolutions.

A layer's Gram matrix is ``v + u F(G)`` pointwise for vectors. For images it has one block per pixel, and a convolution of
infinitely many channels averages ``F`` over the patch around each pixel (Garriga-Alonso et al. 2019; Novak et al. 2019); the
dense layer at the end averages over all pixels. Both rows' pixels move together, so blocks between two different pixels are
never needed: there is no pooling.

Gram matrices are learned at inducing points that stand for a pixel with its patch, the same for all pixels of an image
(Milsom et al. 2024). In the first layer these are patches of images. Behind it, an inducing point's patch would need its
neighbours, which are no inducing points: each of the ``k^2`` places of the patch is a fixed linear combination of the
inducing features before (inter-domain inducing points). The combination is the neighbour's projection on these features in the
network that training starts from (:func:`with_mixers`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Vectors:
    """Rows are vectors: nothing is averaged."""

    def rows(self, X: Tensor) -> Tensor:
        """The numbers that the first layer sees, ``... x q x d``."""
        return X

    def inducing_rows(self, Z: Tensor) -> Tensor:
        """The same of the inducing points, ``P x d``."""
        return Z

    def variances(self, inputs: Tensor) -> Tensor:
        """The first layer's weight variance of each of these numbers, ``... x d``."""
        return inputs

    def between(self, F: Tensor, last: bool) -> Tensor:
        """Blocks between rows, ``... x q1 x q2``, behind the next layer's sum."""
        return F

    def across(self, F: Tensor, layer: int) -> Tensor:
        """Blocks between inducing points and rows, ``... x P x q``."""
        return F

    def inducing(self, F: Tensor, layer: int) -> Tensor:
        """Among inducing points, ``... x P x P``."""
        return F


@dataclass(frozen=True)
class Images:
    """Rows are images, channel by channel, each row by row.

    Attributes:
        shape: Channels ``C``, height ``H`` and width ``W``; ``S = H W`` pixels.
        size: ``k``, odd: convolutions see ``k x k`` pixels; beyond the border everything is zero.
        pixels: ``P``, the pixel that each inducing image contributes.
        mixers: ``(depth - 1) x k^2 x P x P``, the linear combinations.
    """

    shape: tuple[int, int, int]
    size: int
    pixels: Tensor
    mixers: Tensor

    @property
    def num_pixels(self) -> int:
        """``S``."""
        return self.shape[1] * self.shape[2]

    def rows(self, X: Tensor) -> Tensor:
        """The patch around every pixel, ``... x q x C S`` to ``... x S x q x C k^2``."""
        C, H, W = self.shape
        images = X.reshape(-1, C, H, W)
        patches = torch.nn.functional.unfold(images, self.size, padding=self.size // 2)  # rows x C k^2 x S
        return patches.unflatten(0, X.shape[:-1]).movedim(-1, -3)

    def inducing_rows(self, Z: Tensor) -> Tensor:
        """The patch that each inducing image contributes, ``P x C k^2``."""
        return self.rows(Z)[self.pixels, torch.arange(len(self.pixels))]

    def variances(self, inputs: Tensor) -> Tensor:
        """One variance per channel, the mean over a patch: ``... x C`` to ``... x C k^2``."""
        return inputs.repeat_interleave(self.size**2, -1) / self.size**2

    def between(self, F: Tensor, last: bool) -> Tensor:
        """Means over patches, ``... x S x q1 x q2``; over all pixels, ``... x q1 x q2``, in front of the dense layer."""
        if last:
            return F.mean(-3)
        total = torch.zeros_like(F)
        for _, shifted in self.shifts(F):
            total = total + shifted
        return total / self.size**2

    def across(self, F: Tensor, layer: int) -> Tensor:
        """``... x S x P x q``: the inducing point's combinations at each place of the pixel's patch."""
        total = torch.zeros_like(F)
        for place, shifted in self.shifts(F):
            total = total + self.mixers[layer, place] @ shifted
        return total / self.size**2

    def inducing(self, F: Tensor, layer: int) -> Tensor:
        """``P x P``."""
        mixers = self.mixers[layer]
        return (mixers @ F @ mixers.mT).mean(0)

    def shifts(self, F: Tensor, axis: int = -3) -> Iterator[tuple[int, Tensor]]:
        """What every pixel sees at each place of its patch, zeros beyond the border; ``F`` has pixels on one axis."""
        _, H, W = self.shape
        half = self.size // 2
        grid = F.movedim(axis, -1).unflatten(-1, (H, W))
        padded = torch.nn.functional.pad(grid, (half, half, half, half))
        for place, (i, j) in enumerate(itertools.product(range(self.size), repeat=2)):
            yield place, padded[..., i : i + H, j : j + W].flatten(-2).movedim(-1, axis)
