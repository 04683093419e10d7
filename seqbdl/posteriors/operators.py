"""Symmetric positive-definite operators on weight vectors: one small class per structure.

Vectors are the last axis of a tensor, ``... x P``; anything before it is a batch. Each operator ``A`` knows ``A v``,
``A^{-1} v``, a square root on either side (``A = S S^T``, ``A^{-1} = T T^T``) and its log-determinant, at the cost that its
structure allows; nothing of size ``P x P`` is formed unless the operator is dense.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from seqbdl.errors import StateError
from seqbdl.posteriors.joint_gaussian import safe_cholesky

_KINDS: dict[str, type[PositiveOperator]] = {}


class PositiveOperator(ABC):
    """``A``, symmetric and positive definite, ``P x P``."""

    kind: ClassVar[str] = ""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.kind:
            _KINDS[cls.kind] = cls

    @property
    @abstractmethod
    def size(self) -> int:
        """``P``."""

    @abstractmethod
    def matmul(self, v: Tensor) -> Tensor:
        """``A v`` for ``v: ... x P``."""

    @abstractmethod
    def solve(self, v: Tensor) -> Tensor:
        """``A^{-1} v``."""

    @abstractmethod
    def root(self, v: Tensor) -> Tensor:
        """``S v`` with ``S S^T = A``."""

    @abstractmethod
    def root_transposed(self, v: Tensor) -> Tensor:
        """``S^T v``."""

    @abstractmethod
    def inverse_root(self, v: Tensor) -> Tensor:
        """``T v`` with ``T T^T = A^{-1}``: of white ``v``, a sample with covariance ``A^{-1}``."""

    @abstractmethod
    def inverse_root_transposed(self, v: Tensor) -> Tensor:
        """``T^T v``."""

    @property
    @abstractmethod
    def log_det(self) -> Tensor:
        """``log det A``, scalar."""

    @property
    @abstractmethod
    def diagonal(self) -> Tensor:
        """The diagonal of ``A``, ``P``."""

    @property
    @abstractmethod
    def inverse_diagonal(self) -> Tensor:
        """The diagonal of ``A^{-1}``, ``P``."""

    @abstractmethod
    def tree(self) -> dict[str, Any]:
        """Tensors and plain values that :func:`operator_from_tree` restores it from."""

    @classmethod
    @abstractmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> PositiveOperator:
        """Restore :meth:`tree`."""

    def dense(self) -> Tensor:
        """``P x P``: for tests and for small networks."""
        return self.matmul(torch.eye(self.size).to(self.diagonal))


@dataclass(frozen=True)
class Dense(PositiveOperator):
    """``A = L L^T``.

    Attributes:
        factor: ``P x P``, ``L``, lower triangular.
    """

    factor: Tensor
    kind: ClassVar[str] = "dense"

    @classmethod
    def of(cls, matrix: Tensor) -> Dense:
        """From ``A`` itself, ``P x P``."""
        return cls(safe_cholesky(matrix))

    @property
    def size(self) -> int:
        return self.factor.shape[0]

    def matmul(self, v: Tensor) -> Tensor:
        return (v @ self.factor) @ self.factor.T

    def solve(self, v: Tensor) -> Tensor:
        return self.inverse_root(self.inverse_root_transposed(v))

    def root(self, v: Tensor) -> Tensor:
        return v @ self.factor.T

    def root_transposed(self, v: Tensor) -> Tensor:
        return v @ self.factor

    def inverse_root(self, v: Tensor) -> Tensor:
        return _from_right(self.factor, v, upper=False)  # (L^{-T} v)^T = v^T L^{-1}

    def inverse_root_transposed(self, v: Tensor) -> Tensor:
        return _from_right(self.factor.T, v, upper=True)

    @property
    def log_det(self) -> Tensor:
        return 2 * self.factor.diagonal().log().sum()

    @property
    def diagonal(self) -> Tensor:
        return self.factor.square().sum(-1)

    @property
    def inverse_diagonal(self) -> Tensor:
        eye = torch.eye(self.size).to(self.factor)
        return torch.linalg.solve_triangular(self.factor, eye, upper=False).square().sum(0)

    def tree(self) -> dict[str, Any]:
        return {"kind": self.kind, "factor": self.factor}

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> Dense:
        return cls(tree["factor"])


def _from_right(factor: Tensor, v: Tensor, upper: bool) -> Tensor:
    """``v M^{-1}`` for triangular ``M`` and ``v: ... x P``."""
    flat = torch.linalg.solve_triangular(factor, v.reshape(-1, v.shape[-1]), upper=upper, left=False)
    return flat.reshape(v.shape)


@dataclass(frozen=True)
class Diagonal(PositiveOperator):
    """``A = diag(d)``.

    Attributes:
        entries: ``P``, ``d``, positive.
    """

    entries: Tensor
    kind: ClassVar[str] = "diagonal"

    @property
    def size(self) -> int:
        return self.entries.shape[0]

    def matmul(self, v: Tensor) -> Tensor:
        return v * self.entries

    def solve(self, v: Tensor) -> Tensor:
        return v / self.entries

    def root(self, v: Tensor) -> Tensor:
        return v * self.entries.sqrt()

    def root_transposed(self, v: Tensor) -> Tensor:
        return self.root(v)

    def inverse_root(self, v: Tensor) -> Tensor:
        return v * self.entries.rsqrt()

    def inverse_root_transposed(self, v: Tensor) -> Tensor:
        return self.inverse_root(v)

    @property
    def log_det(self) -> Tensor:
        return self.entries.log().sum()

    @property
    def diagonal(self) -> Tensor:
        return self.entries

    @property
    def inverse_diagonal(self) -> Tensor:
        return 1 / self.entries

    def tree(self) -> dict[str, Any]:
        return {"kind": self.kind, "entries": self.entries}

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> Diagonal:
        return cls(tree["entries"])


@dataclass(frozen=True)
class LowRank(PositiveOperator):
    """``A = diag(d) + W W^T``, by Woodbury's identity: ``O(P L)`` a product.

    The square roots are ``diag(d)^{1/2} (I + V V^T)^{1/2}`` and ``diag(d)^{-1/2} (I + V V^T)^{-1/2}`` with ``V = diag(d)^{-1/2}
    W``, whose powers act in the ``L`` dimensions that ``V`` spans.

    Attributes:
        entries: ``P``, ``d``, positive.
        factor: ``P x L``, ``W``; ``L = 0`` is allowed.
    """

    entries: Tensor
    factor: Tensor
    kind: ClassVar[str] = "low-rank"

    @property
    def size(self) -> int:
        return self.entries.shape[0]

    @cached_property
    def _scaled(self) -> Tensor:
        return self.factor * self.entries.rsqrt().unsqueeze(-1)  # V

    @cached_property
    def _spectrum(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues and eigenvectors of ``V^T V``."""
        values, vectors = torch.linalg.eigh(self._scaled.T @ self._scaled)
        return values.clamp_min(0.0), vectors  # a Gram matrix: below zero is rounding

    def _power(self, v: Tensor, coefficient: Tensor) -> Tensor:
        """``v + V Q diag(coefficient) Q^T V^T v``."""
        basis = self._scaled @ self._spectrum[1]
        return v + (v @ basis * coefficient) @ basis.T

    def matmul(self, v: Tensor) -> Tensor:
        return v * self.entries + v @ self.factor @ self.factor.T

    def solve(self, v: Tensor) -> Tensor:
        white = v * self.entries.rsqrt()
        return self._power(white, -1 / (1 + self._spectrum[0])) * self.entries.rsqrt()

    def root(self, v: Tensor) -> Tensor:
        return self._power(v, self._root_coefficient) * self.entries.sqrt()

    def root_transposed(self, v: Tensor) -> Tensor:
        return self._power(v * self.entries.sqrt(), self._root_coefficient)

    def inverse_root(self, v: Tensor) -> Tensor:
        return self._power(v, self._inverse_root_coefficient) * self.entries.rsqrt()

    def inverse_root_transposed(self, v: Tensor) -> Tensor:
        return self._power(v * self.entries.rsqrt(), self._inverse_root_coefficient)

    @property
    def _root_coefficient(self) -> Tensor:
        return 1 / (1 + (1 + self._spectrum[0]).sqrt())  # (sqrt(1 + e) - 1) / e, finite at e = 0

    @property
    def _inverse_root_coefficient(self) -> Tensor:
        root = (1 + self._spectrum[0]).sqrt()
        return -1 / (root * (1 + root))

    @property
    def log_det(self) -> Tensor:
        return self.entries.log().sum() + self._spectrum[0].log1p().sum()

    @property
    def diagonal(self) -> Tensor:
        return self.entries + self.factor.square().sum(-1)

    @property
    def inverse_diagonal(self) -> Tensor:
        values, vectors = self._spectrum
        basis = self._scaled @ vectors
        return (1 - (basis.square() / (1 + values)).sum(-1)) / self.entries

    def tree(self) -> dict[str, Any]:
        return {"kind": self.kind, "entries": self.entries, "factor": self.factor}

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> LowRank:
        return cls(tree["entries"], tree["factor"])


@dataclass(frozen=True)
class Inverse(PositiveOperator):
    """``A^{-1}``: a covariance of some structure where a precision is asked for.

    Attributes:
        of: ``A``.
    """

    of: PositiveOperator
    kind: ClassVar[str] = "inverse"

    @property
    def size(self) -> int:
        return self.of.size

    def matmul(self, v: Tensor) -> Tensor:
        return self.of.solve(v)

    def solve(self, v: Tensor) -> Tensor:
        return self.of.matmul(v)

    def root(self, v: Tensor) -> Tensor:
        return self.of.inverse_root(v)

    def root_transposed(self, v: Tensor) -> Tensor:
        return self.of.inverse_root_transposed(v)

    def inverse_root(self, v: Tensor) -> Tensor:
        return self.of.root(v)

    def inverse_root_transposed(self, v: Tensor) -> Tensor:
        return self.of.root_transposed(v)

    @property
    def log_det(self) -> Tensor:
        return -self.of.log_det

    @property
    def diagonal(self) -> Tensor:
        return self.of.inverse_diagonal

    @property
    def inverse_diagonal(self) -> Tensor:
        return self.of.diagonal

    def tree(self) -> dict[str, Any]:
        return {"kind": self.kind, "of": self.of.tree()}

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> Inverse:
        return cls(operator_from_tree(tree["of"]))


def operator_from_tree(tree: Mapping[str, Any]) -> PositiveOperator:
    """The operator whose :meth:`PositiveOperator.tree` this is.

    Raises:
        StateError: The tree is not that of an operator.
    """
    kind = tree.get("kind")
    if kind not in _KINDS:
        raise StateError(f"an operator of kind {kind!r} is unknown; the known ones are {', '.join(_KINDS)}")
    return _KINDS[kind].from_tree(tree)
