"""Kronecker-factored operators: one eigen-decomposed block per layer (Martens and Grosse 2015; Ritter et al. 2018)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from seqbdl.posteriors.operators import PositiveOperator


@dataclass(frozen=True)
class KroneckerBlock:
    """``A (x) B + delta I`` on an ``a x b`` matrix of weights stored row by row, in the eigenbases of ``A`` and ``B``.

    Attributes:
        left_values: ``a``, eigenvalues of ``A``.
        left_vectors: ``a x a``, eigenvectors as columns.
        right_values: ``b``.
        right_vectors: ``b x b``.
        shift: Scalar, ``delta``.
    """

    left_values: Tensor
    left_vectors: Tensor
    right_values: Tensor
    right_vectors: Tensor
    shift: Tensor

    @classmethod
    def of(cls, left: Tensor, right: Tensor, shift: Tensor) -> KroneckerBlock:
        """From the factors themselves, ``a x a`` and ``b x b``, positive semi-definite, and the scalar ``delta``."""
        left_values, left_vectors = torch.linalg.eigh(left)
        right_values, right_vectors = torch.linalg.eigh(right)
        # Below zero is the rounding of semi-definite factors.
        return cls(left_values.clamp_min(0.0), left_vectors, right_values.clamp_min(0.0), right_vectors, shift)

    @property
    def shape(self) -> tuple[int, int]:
        return self.left_values.shape[0], self.right_values.shape[0]

    @property
    def left(self) -> Tensor:
        """``A``."""
        return self.left_vectors * self.left_values @ self.left_vectors.T

    @property
    def right(self) -> Tensor:
        """``B``."""
        return self.right_vectors * self.right_values @ self.right_vectors.T

    @property
    def eigenvalues(self) -> Tensor:
        """Of the block, ``a x b``."""
        return self.left_values.unsqueeze(-1) * self.right_values + self.shift

    def into(self, v: Tensor) -> Tensor:
        """Coordinates of ``v: ... x (a b)`` in the eigenbasis, ``... x a x b``."""
        return self.left_vectors.T @ v.unflatten(-1, self.shape) @ self.right_vectors

    def back(self, v: Tensor) -> Tensor:
        """``... x a x b`` coordinates back to ``... x (a b)``."""
        return (self.left_vectors @ v @ self.right_vectors.T).flatten(-2)

    def diagonal_of(self, values: Tensor) -> Tensor:
        """The diagonal of the operator with these eigenvalues, ``a x b`` to ``a b``."""
        return (self.left_vectors.square() @ values @ self.right_vectors.square().T).flatten()


@dataclass(frozen=True)
class Kronecker(PositiveOperator):
    """Block-diagonal, every block a Kronecker product plus a multiple of the identity: one block per layer.

    Attributes:
        blocks: In the order of the weights; each speaks of the next ``a b`` of them.
    """

    blocks: tuple[KroneckerBlock, ...]
    kind: ClassVar[str] = "kronecker"

    @classmethod
    def of(cls, factors: Sequence[tuple[Tensor, Tensor]], shifts: Sequence[Tensor]) -> Kronecker:
        """From ``(A, B)`` and ``delta`` of every block."""
        return cls(tuple(KroneckerBlock.of(a, b, d) for (a, b), d in zip(factors, shifts, strict=True)))

    @property
    def size(self) -> int:
        return sum(self._sizes)

    @property
    def _sizes(self) -> list[int]:
        return [block.shape[0] * block.shape[1] for block in self.blocks]

    def _apply(self, v: Tensor, power: float, into: bool = True, back: bool = True) -> Tensor:
        pieces = []
        for block, piece in zip(self.blocks, v.split(self._sizes, -1), strict=True):
            here = block.into(piece) if into else piece.unflatten(-1, block.shape)
            here = here * block.eigenvalues.pow(power)
            pieces.append(block.back(here) if back else here.flatten(-2))
        return torch.cat(pieces, -1)

    def matmul(self, v: Tensor) -> Tensor:
        return self._apply(v, 1.0)

    def solve(self, v: Tensor) -> Tensor:
        return self._apply(v, -1.0)

    def root(self, v: Tensor) -> Tensor:
        return self._apply(v, 0.5, into=False)

    def root_transposed(self, v: Tensor) -> Tensor:
        return self._apply(v, 0.5, back=False)

    def inverse_root(self, v: Tensor) -> Tensor:
        return self._apply(v, -0.5, into=False)

    def inverse_root_transposed(self, v: Tensor) -> Tensor:
        return self._apply(v, -0.5, back=False)

    @property
    def log_det(self) -> Tensor:
        return torch.stack([block.eigenvalues.log().sum() for block in self.blocks]).sum()

    @property
    def diagonal(self) -> Tensor:
        return torch.cat([block.diagonal_of(block.eigenvalues) for block in self.blocks])

    @property
    def inverse_diagonal(self) -> Tensor:
        return torch.cat([block.diagonal_of(1 / block.eigenvalues) for block in self.blocks])

    def tree(self) -> dict[str, Any]:
        return {"kind": self.kind, "blocks": [dict(block.__dict__) for block in self.blocks]}

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> Kronecker:
        return cls(tuple(KroneckerBlock(**block) for block in tree["blocks"]))
