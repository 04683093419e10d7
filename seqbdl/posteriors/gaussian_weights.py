"""Gaussian posteriors over weights: a mean and a precision operator, whatever the method that found them.

``GaussianWeights(mean, Diagonal(d))`` is what mean-field variational inference and a diagonal Laplace approximation return;
``LowRank`` serves recursive filters with low-rank precision, ``Inverse(LowRank(d, W))`` the low-rank COVARIANCE of weight
trajectories, ``Kronecker`` one factor pair per layer, ``Dense`` everything small. All speak of whitened weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from seqbdl.errors import ShapeError
from seqbdl.posteriors.operators import PositiveOperator, operator_from_tree
from seqbdl.priors import Prior


@dataclass(frozen=True)
class GaussianWeights:
    """``N(mean, precision^{-1})``.

    Attributes:
        mean: ``P``.
        precision: ``P x P``, of any structure.

    Raises:
        ShapeError: The mean is not a vector of the operator's size.
    """

    mean: Tensor
    precision: PositiveOperator

    def __post_init__(self) -> None:
        if self.mean.shape != (self.precision.size,):
            raise ShapeError(f"mean has shape {tuple(self.mean.shape)}; the precision is of {self.precision.size} weights")

    @property
    def num_params(self) -> int:
        """``P``."""
        return self.mean.shape[0]

    @property
    def variance(self) -> Tensor:
        """Marginal variances, ``P``."""
        return self.precision.inverse_diagonal

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """``n x P`` draws; the normals come from a CPU generator."""
        white = torch.randn(n, self.num_params, generator=generator, dtype=torch.float64).to(self.mean)
        return self.mean + self.precision.inverse_root(white)

    def covariance_of(self, J: Tensor, J_other: Tensor | None = None) -> Tensor:
        """``J Sigma J'^T``, the covariance of linear functions of the weights.

        Args:
            J: ``... x k x P``.
            J_other: ``... x k' x P``; ``None``: ``J``.

        Returns:
            ``... x k x k'``.
        """
        white = self.precision.inverse_root_transposed(J)
        other = white if J_other is None else self.precision.inverse_root_transposed(J_other)
        return white @ other.transpose(-1, -2)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density of ``z: S x P``, ``S``; differentiable."""
        white = self.precision.root_transposed(z - self.mean)
        constant = 0.5 * self.precision.log_det - 0.5 * self.num_params * math.log(2 * math.pi)
        return constant - 0.5 * white.square().sum(-1)

    def score(self, z: Tensor) -> Tensor:
        """``d log p / d z``, ``S x P``."""
        return -self.precision.matmul(z - self.mean)

    def as_prior(self) -> Prior:
        """The same density as a prior: what was learned before new data."""
        return PosteriorPrior(self)

    def tree(self) -> dict[str, Any]:
        """Tensors and plain values, for saving."""
        return {"mean": self.mean, "precision": self.precision.tree()}

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> GaussianWeights:
        """Restore :meth:`tree`.

        Raises:
            StateError: It is not such a tree.
        """
        return cls(tree["mean"], operator_from_tree(tree["precision"]))


class PosteriorPrior(Prior):
    """A Gaussian posterior over weights as the prior of what comes next.

    Args:
        posterior: Over the same whitened weights.
    """

    name = "gaussian-weights"

    def __init__(self, posterior: GaussianWeights) -> None:
        self.posterior = posterior

    def log_prob(self, z: Tensor) -> Tensor:
        return self.posterior.log_prob(z)

    def score(self, z: Tensor) -> Tensor:
        return self.posterior.score(z)

    def sample(self, n: int, num_params: int, generator: torch.Generator, like: Tensor) -> Tensor:
        if num_params != self.posterior.num_params:
            raise ShapeError(f"num_params={num_params}; this prior is a posterior over {self.posterior.num_params} weights")
        return self.posterior.sample(n, generator).to(like)
