"""Feature spaces for batches: sketched to a few hundred dimensions, and conditioned on training points.

A kernel is known through features: ``k(x, x') = phi(x) . phi(x')``. Gradients have a dimension for each weight of a network; a
sparse random projection keeps their inner products up to a relative error of about ``sqrt(2 / D)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from seqbdl.acquisition._pool_inputs import VALUES_AT_ONCE, check_generator, check_matrix
from seqbdl.errors import InvalidDataError, InvalidOptionError, ShapeError

_NONZEROS = 8  # entries of each column of the projection


@dataclass(frozen=True, eq=False)
class Sketch:
    """A sparse random projection from ``P`` to ``D`` dimensions that keeps inner products in expectation.

    Every input dimension goes, with random signs, to a few output dimensions: Kane and Nelson, "Sparser
    Johnson-Lindenstrauss transforms", JACM 2014. It costs ``O(P)`` for a point and for its own memory.

    Attributes:
        places: ``s x P`` output dimensions.
        signs: ``s x P``, plus or minus ``1 / sqrt(s)``.
        dim: ``D``.
    """

    places: Tensor
    signs: Tensor
    dim: int

    def __call__(self, features: Tensor) -> Tensor:
        """``N x P`` to ``N x D``, in float64."""
        rows = check_matrix("features", features, columns=self.places.shape[1])
        result = rows.new_zeros(rows.shape[0], self.dim)
        for places, signs in zip(self.places, self.signs, strict=True):
            result.index_add_(1, places, rows * signs)
        return result


def make_sketch(num_features: int, dim: int, generator: torch.Generator, device: torch.device | None = None) -> Sketch:
    """A projection from ``num_features`` to ``dim`` dimensions.

    Args:
        num_features: ``P``.
        dim: ``D``.
        generator: Of places and signs.
        device: Of the features.
    """
    if num_features < 1 or dim < _NONZEROS:
        raise InvalidOptionError(f"num_features={num_features} and dim={dim}; give at least 1 and {_NONZEROS}")
    shape = (_NONZEROS, num_features)
    source = check_generator(generator, "a random projection")
    # One place in each of s equal blocks of the output: a feature never meets itself.
    block = dim // _NONZEROS
    places = torch.randint(block, shape, generator=source, device=source.device)
    places += block * torch.arange(_NONZEROS, device=source.device).unsqueeze(-1)
    coins = torch.randint(2, shape, generator=source, device=source.device)
    signs = (2.0 * coins.double() - 1.0) / math.sqrt(_NONZEROS)
    device = torch.device("cpu") if device is None else device
    return Sketch(places.to(device), signs.to(device), dim)


def evaluate_features(
    function: Callable[[Tensor], Tensor],
    X: Tensor,
    dim: int | None,
    generator: torch.Generator,
    sketch: Sketch | None = None,
) -> tuple[Tensor, Sketch | None]:
    """Features of many points, a chunk at a time, sketched where they have more than ``dim`` dimensions.

    Args:
        function: ``k x d`` to ``k x P``; several rows for each point, one for each output, are put side by side.
        X: ``N x d``.
        dim: ``D``, or ``None`` for no sketch.
        generator: Of the sketch.
        sketch: One made before, to be used again.

    Returns:
        ``N x min(P, D)`` in float64, and the sketch.
    """
    width = _rows(function, X[:1]).shape[1]
    if sketch is None and dim is not None and width > dim:
        sketch = make_sketch(width, dim, generator, X.device)
    size = max(1, VALUES_AT_ONCE // width)
    parts = []
    for part in X.split(size):
        rows = _rows(function, part)
        parts.append(rows if sketch is None else sketch(rows))
    return torch.cat(parts), sketch


def _rows(function: Callable[[Tensor], Tensor], X: Tensor) -> Tensor:
    with torch.no_grad():
        values = function(X)
    if values.dim() != 2 or values.shape[0] % X.shape[0] != 0:
        raise ShapeError(f"features of {tuple(X.shape)} inputs have shape {tuple(values.shape)}; they need a row for each input")
    return check_matrix("features", values.reshape(X.shape[0], -1))


def unit_scale(train_features: Tensor) -> float:
    """The factor on features that makes the mean of ``k(x, x)`` over training points one.

    Args:
        train_features: ``n x D``.
    """
    mean = float(check_matrix("train_features", train_features).square().sum(-1).mean())
    if not mean > 0.0:
        raise InvalidDataError("train_features are zero at every row; their scale has no meaning")
    return 1.0 / math.sqrt(mean)


def posterior_features(features: Tensor, train_features: Tensor, noise: float) -> Tensor:
    """Features of the kernel that remains after observing training points, ``N x D``.

    ``k(x, x') - k(x, X) (k(X, X) + noise I)^{-1} k(X, x')`` is, in weight space, ``phi A^{-1} phi'`` with
    ``A = I + Phi_X' Phi_X / noise``; a triangular root of ``A`` gives its features.

    Args:
        features: ``N x D``.
        train_features: ``n x D``.
        noise: Variance, positive.
    """
    rows = check_matrix("features", features)
    train = check_matrix("train_features", train_features, columns=rows.shape[1])
    if not noise > 0.0:
        raise InvalidOptionError(f"noise={noise} is a variance; it must be positive")
    precision = torch.eye(rows.shape[1], dtype=torch.float64, device=rows.device) + train.T @ train / noise
    factor = torch.linalg.cholesky(precision)
    return torch.linalg.solve_triangular(factor, rows.T, upper=False).T
