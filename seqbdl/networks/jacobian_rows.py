"""Rows of a Jacobian ``J: k x P``, read by blocks of columns that are small enough for the processor's cache.

Of one input, the rows that belong to a layer are outer products, ``J_(c, i j) = a_i D_cj`` with the layer's inputs ``a`` and
the backward signals ``D`` of the outputs. What a low-rank filter asks of ``J`` (products with other matrices, Gram matrices
under weights, sums of squares) then never needs its ``k P`` numbers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Mix = Callable[[Tensor], Tensor]
"""Other rows from these: linear along the leading axis of size ``k``."""

BLOCK = 8192
"""Columns of a block: of ten rows in single precision a third of a usual second-level cache."""


@dataclass(frozen=True)
class RowsBlock(ABC):
    """Columns ``part`` of ``J``, ``k x n``."""

    part: slice

    @abstractmethod
    def pull(self, a: Tensor) -> Tensor:
        """``a J`` for ``a: r x k``, ``r x n``."""

    @abstractmethod
    def against(self, V: Tensor) -> Tensor:
        """``V J^T`` for ``V: r x n``, ``r x k``."""

    @abstractmethod
    def gram(self, weights: Tensor | None = None) -> Tensor:
        """``J diag(weights) J^T``, ``k x k``; ``weights: n``, by default 1."""

    @abstractmethod
    def squares(self) -> Tensor:
        """Sums of squares of the columns, ``n``."""


@dataclass(frozen=True)
class DenseBlock(RowsBlock):
    """Attributes:
    rows: ``k x n``.
    """

    rows: Tensor

    def pull(self, a: Tensor) -> Tensor:
        return a @ self.rows

    def against(self, V: Tensor) -> Tensor:
        return V @ self.rows.T

    def gram(self, weights: Tensor | None = None) -> Tensor:
        return (self.rows if weights is None else self.rows * weights) @ self.rows.T

    def squares(self) -> Tensor:
        return self.rows.square().sum(0)


@dataclass(frozen=True)
class OuterBlock(RowsBlock):
    """``J_(c, i j) = inputs_i signals_cj``, ``i`` running slower.

    Attributes:
        inputs: ``i``.
        signals: ``k x j``.
    """

    inputs: Tensor
    signals: Tensor

    def _matrices(self, v: Tensor) -> Tensor:
        return v.unflatten(-1, (self.inputs.shape[0], self.signals.shape[1]))

    def pull(self, a: Tensor) -> Tensor:
        return (self.inputs.unsqueeze(-1) * (a @ self.signals).unsqueeze(-2)).flatten(-2)

    def against(self, V: Tensor) -> Tensor:
        return (self.inputs @ self._matrices(V)) @ self.signals.T

    def gram(self, weights: Tensor | None = None) -> Tensor:
        squares = self.inputs.square()
        scale = squares.sum() if weights is None else squares @ self._matrices(weights)
        return (self.signals * scale) @ self.signals.T

    def squares(self) -> Tensor:
        return torch.outer(self.inputs.square(), self.signals.square().sum(0)).flatten()


class JacobianRows(ABC):
    """``J``, ``k x P``."""

    @property
    @abstractmethod
    def num_rows(self) -> int:
        """``k``."""

    @abstractmethod
    def blocks(self, columns: int = BLOCK) -> Iterator[RowsBlock]:
        """Of all ``P`` columns, in order, about so many at a time."""

    @abstractmethod
    def dense(self) -> Tensor:
        """``k x P``."""

    @abstractmethod
    def mixed(self, mix: Mix) -> JacobianRows:
        """Other rows, mixtures of these."""

    def times(self, v: Tensor) -> Tensor:
        """``J v`` for ``v: P``, ``k``."""
        return torch.stack([block.against(v[None, block.part])[0] for block in self.blocks()]).sum(0)

    def pull(self, a: Tensor) -> Tensor:
        """``J^T a`` for ``a: k``, ``P``."""
        return torch.cat([block.pull(a.unsqueeze(0))[0] for block in self.blocks()])


@dataclass(frozen=True)
class DenseRows(JacobianRows):
    """Attributes:
    matrix: ``k x P``; blocks are views of it.
    """

    matrix: Tensor

    @property
    def num_rows(self) -> int:
        return self.matrix.shape[0]

    def blocks(self, columns: int = BLOCK) -> Iterator[RowsBlock]:
        size = self.matrix.shape[1]
        for start in range(0, size, columns):
            part = slice(start, min(start + columns, size))
            yield DenseBlock(part, self.matrix[:, part])

    def dense(self) -> Tensor:
        return self.matrix

    def mixed(self, mix: Mix) -> DenseRows:
        return DenseRows(mix(self.matrix))


@dataclass(frozen=True)
class OuterRows(JacobianRows):
    """Attributes:
    layers: Inputs ``i`` and signals ``k x j`` of every matrix of weights, in the order of the weights.
    """

    layers: tuple[tuple[Tensor, Tensor], ...]

    @property
    def num_rows(self) -> int:
        return self.layers[0][1].shape[0]

    def blocks(self, columns: int = BLOCK) -> Iterator[RowsBlock]:
        start = 0
        for inputs, signals in self.layers:
            for piece in inputs.split(max(1, columns // signals.shape[1])):
                stop = start + piece.shape[0] * signals.shape[1]
                yield OuterBlock(slice(start, stop), piece, signals)
                start = stop

    def dense(self) -> Tensor:
        eye = torch.eye(self.num_rows).to(self.layers[0][1])
        return torch.cat([block.pull(eye) for block in self.blocks()], 1)

    def mixed(self, mix: Mix) -> OuterRows:
        return replace(self, layers=tuple((inputs, mix(signals)) for inputs, signals in self.layers))
