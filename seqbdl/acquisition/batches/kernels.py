"""Inner products between the points of a pool, in whatever form they are cheap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from seqbdl.acquisition._pool_inputs import check_matrix
from seqbdl.errors import InvalidDataError, ShapeError


@dataclass(frozen=True, eq=False)
class PoolKernel:
    """A positive semi-definite kernel on the ``R`` rows of a pool (and of points that come with it).

    Attributes:
        diagonal: ``R``.
        columns: ``k`` row indices to the ``R x k`` values between all rows and those.
    """

    diagonal: Tensor
    columns: Callable[[Tensor], Tensor]

    @property
    def size(self) -> int:
        return self.diagonal.shape[0]

    def squared_distances(self, index: Tensor) -> Tensor:
        """Squared distances in feature space between all rows and those, ``R x k``, not negative."""
        apart = self.diagonal.unsqueeze(-1) + self.diagonal[index] - 2.0 * self.columns(index)
        return apart.clamp_min(0.0)

    @classmethod
    def of_features(cls, features: Tensor) -> PoolKernel:
        """``features: R x D``, the kernel their inner products."""
        rows = check_matrix("features", features)
        return cls(rows.square().sum(-1), lambda index: rows @ rows[index].T)

    @classmethod
    def of_covariance(cls, covariance: Tensor) -> PoolKernel:
        """``covariance: R x R``, as it is."""
        matrix = check_matrix("covariance", covariance)
        if matrix.shape[0] != matrix.shape[1]:
            raise ShapeError(f"covariance has shape {tuple(matrix.shape)}; it needs N x N")
        diagonal = matrix.diagonal()
        if bool((diagonal < 0).any()):
            raise InvalidDataError(f"covariance has a negative variance at point {int((diagonal < 0).nonzero()[0])}")
        return cls(diagonal, lambda index: matrix[:, index])

    @classmethod
    def of_outer_products(cls, left: Tensor, right: Tensor) -> PoolKernel:
        """Features ``left_i (x) right_i``, never formed: ``<g_a, g_b> = <left_a, left_b> <right_a, right_b>``.

        Args:
            left: ``R x F``.
            right: ``R x C``.
        """
        a = check_matrix("left", left)
        b = check_matrix("right", right, rows=a.shape[0])
        return cls(a.square().sum(-1) * b.square().sum(-1), lambda index: (a @ a[index].T) * (b @ b[index].T))


def as_kernel(value: PoolKernel | Tensor) -> PoolKernel:
    """A kernel as it is, or that of features ``N x D``."""
    return value if isinstance(value, PoolKernel) else PoolKernel.of_features(value)


def stacked(features: Tensor, centres: Tensor | None) -> Tensor:
    """Rows of the pool, then those of points that are centres already."""
    rows = check_matrix("features", features)
    if centres is None:
        return rows
    return torch.cat([rows, check_matrix("centres", centres, columns=rows.shape[1])])
