"""What ties the outputs of networks to data at fixed rows: misfits with their curvature in root form.

``misfit(f)`` is what the rows contribute to a loss; ``root`` and ``whitened_score`` are ``R`` and ``u`` with ``R R^T`` the
(generalized Gauss-Newton) curvature in ``f`` and ``-R u`` the gradient of the misfit, see :mod:`seqbdl.likelihoods`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from seqbdl.inference.replicates import distinct_rows
from seqbdl.likelihoods import Likelihood, apply_root, apply_root_transposed

T = TypeVar("T")


class Observations(Protocol):
    """Rows that pull the outputs ``f: S x n x l`` of ``S`` networks."""

    def misfit(self, f: Tensor) -> Tensor:
        """``S``."""

    def root(self, f: Tensor) -> Tensor:
        """``S x n x l``, or ``S x n x l x l``."""

    def whitened_score(self, f: Tensor) -> Tensor:
        """``S x n x l``."""


@dataclass(frozen=True)
class Squares:
    """``1/2 sum (y - f)^2 / noise``.

    Attributes:
        targets: ``S x n x l`` (or ``1 x n x l``).
        noise: ``n x l``.
    """

    targets: Tensor
    noise: Tensor

    def misfit(self, f: Tensor) -> Tensor:
        return 0.5 * ((self.targets - f).square() / self.noise).sum((-1, -2))

    def root(self, f: Tensor) -> Tensor:
        return self.noise.rsqrt().expand_as(f)

    def whitened_score(self, f: Tensor) -> Tensor:
        return (self.targets - f) * self.noise.rsqrt()


@dataclass(frozen=True)
class Labels:
    """``-sum log p(y | f)``.

    Attributes:
        likelihood: Of an observation.
        Y: ``n x t`` (or ``S x n x t``).
        noise: ``n x m``.
    """

    likelihood: Likelihood
    Y: Tensor
    noise: Tensor

    def misfit(self, f: Tensor) -> Tensor:
        return -self.likelihood.log_prob(f, self.Y, self.noise).sum(-1)

    def root(self, f: Tensor) -> Tensor:
        return self.likelihood.root(f, self.noise)

    def whitened_score(self, f: Tensor) -> Tensor:
        return self.likelihood.whitened_score(f, self.Y, self.noise)


@dataclass(frozen=True)
class Randomized:
    """``-sum w log p(y | f) - sum sqrt(w) e . g(f)``: every network has its own weights of rows and its own noise on the targets
    (see :mod:`seqbdl.inference.randomize`); ``g`` is the variance-stabilizing transform of the likelihood.

    Attributes:
        likelihood: Of an observation.
        Y: ``n x t``, or ``S x n x t``.
        noise: ``n x m``.
        white: ``S x n x l`` standard normals, ``e``, or ``None``.
        weights: ``S x n``, ``w``, or ``None``.
    """

    likelihood: Likelihood
    Y: Tensor
    noise: Tensor
    white: Tensor | None = None
    weights: Tensor | None = None

    def rows(self, index: Tensor) -> Randomized:
        """Some of the rows."""
        white = None if self.white is None else self.white[:, index]
        weights = None if self.weights is None else self.weights[:, index]
        return Randomized(self.likelihood, self.Y[..., index, :], self.noise[index], white, weights)

    def misfit(self, f: Tensor) -> Tensor:
        terms = self.likelihood.log_prob(f, self.Y, self.noise)
        if self.weights is not None:
            terms = self.weights * terms
        if self.white is not None:
            pushes = (self.white * self.likelihood.stabilized(f, self.noise)).sum(-1)
            terms = terms + (pushes if self.weights is None else self.weights.sqrt() * pushes)
        return -terms.sum(-1)

    def root(self, f: Tensor) -> Tensor:
        root = self.likelihood.root(f, self.noise)
        return root if self.weights is None else root * self.weights.sqrt().reshape(*self.weights.shape, *[1] * (root.dim() - 2))

    def whitened_score(self, f: Tensor) -> Tensor:
        score = self.likelihood.whitened_score(f, self.Y, self.noise)
        if self.weights is not None:
            score = self.weights.sqrt().unsqueeze(-1) * score
        return (score if self.white is None else score + self.white).expand_as(f)

    def score(self, f: Tensor) -> Tensor:
        """``S x n x l``, minus the gradient of the misfit."""
        score = self.likelihood.score(f, self.Y, self.noise)
        if self.weights is not None:
            score = self.weights.unsqueeze(-1) * score
        return (score if self.white is None else score + apply_root(self.root(f), self.white)).expand_as(f)


@dataclass(frozen=True)
class Remembered:
    """``1/2 |R^T (f - g)|^2``: every network keeps the values that it had, as firmly as the data there once demanded.

    Attributes:
        values: ``S x n x l``, ``g``.
        fixed_root: ``S x n x l`` or ``S x n x l x l``.
    """

    values: Tensor
    fixed_root: Tensor

    def misfit(self, f: Tensor) -> Tensor:
        return 0.5 * self.whitened_score(f).square().sum((-1, -2))

    def root(self, f: Tensor) -> Tensor:
        return self.fixed_root.expand(f.shape[0], *self.fixed_root.shape[1:])

    def whitened_score(self, f: Tensor) -> Tensor:
        return apply_root_transposed(self.root(f), self.values - f)

    def score(self, f: Tensor) -> Tensor:
        """``S x n x l``, minus the gradient of the misfit."""
        return apply_root(self.root(f), self.whitened_score(f))

    def rows(self, index: Tensor) -> Remembered:
        """Some of the rows."""
        return Remembered(self.values[:, index], self.fixed_root[:, index])

    def sample(self, X: Tensor, most: int, generator: torch.Generator) -> tuple[Tensor, Remembered]:
        """An even sample where there are more than ``most`` rows, each for several.

        Args:
            X: ``n x d``, the inputs of the rows.
            most: Rows to keep.
            generator: Chooses.
        """
        n = X.shape[0]
        if n <= most:
            return X, self
        keep = torch.randperm(n, generator=generator)[:most].sort().values.to(X.device)
        some = self.rows(keep)
        return X[keep], Remembered(some.values, some.fixed_root * (n / most) ** 0.5)

    def distinct(self, X: Tensor) -> tuple[Tensor, Remembered]:
        """Rows of equal inputs as one row, with the same misfit (see :mod:`seqbdl.inference.replicates`).

        Args:
            X: ``n x d``, the inputs of the rows.

        Returns:
            ``r x d``, ``r <= n``, and the rows there.
        """
        inputs, root, place = distinct_rows(X, self.fixed_root)
        if inputs is X:
            return X, self
        values = self.values.new_zeros(self.values.shape[0], inputs.shape[0], self.values.shape[-1])
        values[:, place] = self.values
        return inputs, Remembered(values, root)


@dataclass(frozen=True)
class Joined:
    """Rows of one kind followed by rows of another.

    Attributes:
        first: The first ``split`` rows.
        second: The others.
        split: How many.
    """

    first: Observations
    second: Observations
    split: int

    def misfit(self, f: Tensor) -> Tensor:
        return self.first.misfit(f[..., : self.split, :]) + self.second.misfit(f[..., self.split :, :])

    def root(self, f: Tensor) -> Tensor:
        roots = [self.first.root(f[..., : self.split, :]), self.second.root(f[..., self.split :, :])]
        if roots[0].dim() != roots[1].dim():  # a diagonal beside blocks
            roots = [torch.diag_embed(r) if r.dim() == f.dim() else r for r in roots]
        return torch.cat(roots, 1)

    def whitened_score(self, f: Tensor) -> Tensor:
        scores = [self.first.whitened_score(f[..., : self.split, :]), self.second.whitened_score(f[..., self.split :, :])]
        return torch.cat(scores, -2)


def cast(observations: T, dtype: torch.dtype) -> T:
    """The same observations with their tensors in another floating-point type."""

    def convert(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(dtype)
        return cast(value, dtype) if hasattr(value, "__dataclass_fields__") else value

    changes = {f.name: convert(getattr(observations, f.name)) for f in fields(observations)}  # type: ignore[arg-type]
    return replace(observations, **changes)  # type: ignore[type-var]
