"""Scales between the user's units and the coordinates in which surrogates are fitted."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from botorch.models.transforms.outcome import Standardize
from torch import Tensor

_CONSTANT = 1e-12
"""Spreads below this share of the values are rounding."""


@dataclass(frozen=True)
class Scaling:
    """Inputs to the unit cube (about it, without bounds), outcomes to zero mean and unit standard deviation, all in float64.

    Attributes:
        x_offset: ``d``.
        x_scale: ``d``; the inner input is ``(x - x_offset) / x_scale``.
        y_mean: ``m``.
        y_std: ``m``; the inner outcome is ``(y - y_mean) / y_std``.
    """

    x_offset: Tensor
    x_scale: Tensor
    y_mean: Tensor
    y_std: Tensor

    @classmethod
    def identity(cls, input_dim: int, output_dim: int, bounds: Tensor | None, outcome_bounds: Tensor | None = None) -> Scaling:
        """Before any data: by the bounds where they are known, and as they are."""
        zeros = torch.zeros(input_dim, dtype=torch.float64)
        offset, scale = (zeros, zeros + 1.0) if bounds is None else _from_bounds(bounds.to(zeros))
        y = torch.zeros(output_dim, dtype=torch.float64)
        return cls(offset, scale, *((y, y + 1.0) if outcome_bounds is None else _from_range(outcome_bounds)))

    @classmethod
    def learn(
        cls, X: Tensor, Y: Tensor, bounds: Tensor | None, output_dim: int | None = None, outcome_bounds: Tensor | None = None
    ) -> Scaling:
        """By the bounds or the spread of the data, and BoTorch's ``Standardize``; constant columns keep the scale 1.

        Args:
            X: ``n x d`` in float64.
            Y: ``n x m`` in float64.
            bounds: ``2 x d``; ``None``: columns get the mean and the standard deviation of uniform ones in the unit cube. (By
                their range a few far rows of a skewed column would press all others into a corner, where a network tells
                them apart with enormous weights only.)
            output_dim: Outcomes stay as they are (labels, counts), for so many outputs; ``None``: standardized.
            outcome_bounds: ``2 x m`` that set location and scale of outcomes instead of the data.
        """
        offset, scale = _from_spread(X) if bounds is None else _from_bounds(bounds.to(X))
        if output_dim is not None:
            zeros = X.new_zeros(output_dim)
            return cls(offset, scale, zeros, zeros + 1.0)
        if outcome_bounds is not None:
            return cls(offset, scale, *_from_range(outcome_bounds.to(X)))
        standardize = Standardize(m=Y.shape[-1])
        standardize.train()
        standardize(Y)
        return cls(offset, scale, standardize.means.reshape(-1).clone(), standardize.stdvs.reshape(-1).clone())

    def inputs(self, X: Tensor) -> Tensor:
        """User's inputs to inner coordinates, ``... x d``; float64."""
        return (X.to(torch.float64) - self.x_offset) / self.x_scale

    def outcomes(self, Y: Tensor) -> Tensor:
        """User's outcomes to inner coordinates, ``... x m``; float64. Labels (which are not scaled) may have one column."""
        if Y.shape[-1] != self.y_mean.shape[0]:
            return Y.to(torch.float64)
        return (Y.to(torch.float64) - self.y_mean) / self.y_std

    def variances(self, Yvar: Tensor) -> Tensor:
        """User's noise variances to inner coordinates, ``... x m``; float64."""
        return Yvar.to(torch.float64) / self.y_std.square()


def _from_bounds(bounds: Tensor) -> tuple[Tensor, Tensor]:
    width = bounds[1] - bounds[0]
    return bounds[0].clone(), torch.where(width > 0, width, torch.ones_like(width))


def _from_spread(X: Tensor) -> tuple[Tensor, Tensor]:
    scale = math.sqrt(12.0) * X.std(0, correction=0)
    scale = torch.where(scale > _CONSTANT * X.abs().amax(0), scale, torch.ones_like(scale))
    return X.mean(0) - 0.5 * scale, scale


def _from_range(outcome_bounds: Tensor) -> tuple[Tensor, Tensor]:
    return outcome_bounds.mean(0), 0.5 * (outcome_bounds[1] - outcome_bounds[0])
