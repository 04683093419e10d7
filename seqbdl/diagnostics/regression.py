"""Scores of predictions of real-valued outcomes, and regrets. Lower is better unless said otherwise.

All functions take tensors of equal shape and average over all their entries.

References: T. Gneiting and A. Raftery, "Strictly proper scoring rules, prediction, and estimation", JASA 2007.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from seqbdl.errors import InvalidDataError, InvalidOptionError, ShapeError

_LEVELS = tuple(i / 20 for i in range(1, 20))


def rmse(y: Tensor, mean: Tensor) -> float:
    """Root mean squared error."""
    _same_shape("y", y, "mean", mean)
    return float((y - mean).square().mean().sqrt())


def r_squared(y: Tensor, mean: Tensor) -> float:
    """Share of the outcomes' variance that the predictions explain; higher is better, 1 is perfect, may be negative."""
    _same_shape("y", y, "mean", mean)
    total = (y - y.mean()).square().sum()
    if not bool(total > 0):
        raise InvalidDataError("y is constant, so there is no variance to explain; use rmse")
    return 1.0 - float((y - mean).square().sum() / total)


def gaussian_log_density(y: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Log density of each outcome under its Gaussian prediction, the shape of ``y``."""
    _check_gaussian(y, mean, std)
    return -0.5 * ((y - mean) / std).square() - std.log() - 0.5 * math.log(2 * math.pi)


def nlpd(y: Tensor, mean: Tensor, std: Tensor) -> float:
    """Mean negative log predictive density of Gaussian predictions, in nats per outcome."""
    return -float(gaussian_log_density(y, mean, std).mean())


def crps_gaussian(y: Tensor, mean: Tensor, std: Tensor) -> float:
    """Mean continuous ranked probability score of Gaussian predictions, in the units of ``y``."""
    _check_gaussian(y, mean, std)
    z = (y - mean) / std
    density = torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)
    score = std * (z * (2 * torch.special.ndtr(z) - 1) + 2 * density - 1 / math.sqrt(math.pi))
    return float(score.mean())


def crps_samples(y: Tensor, samples: Tensor) -> float:
    """Mean continuous ranked probability score of predictions given as samples (the unbiased estimate).

    Args:
        y: Outcomes, any shape.
        samples: ``s x`` the shape of ``y``, with ``s`` at least 2.
    """
    if samples.dim() != y.dim() + 1 or samples.shape[1:] != y.shape or samples.shape[0] < 2:
        raise ShapeError(f"samples has shape {tuple(samples.shape)}; it needs s x {tuple(y.shape)} with s >= 2")
    s = samples.shape[0]
    distance = (samples - y).abs().mean(dim=0)
    # Sum over pairs of |a - b| from the order statistics: s log s instead of s squared.
    ordered = samples.sort(dim=0).values
    weight = 2 * torch.arange(1, s + 1, dtype=samples.dtype, device=samples.device) - s - 1
    pairs = 2 * (weight.reshape(-1, *([1] * y.dim())) * ordered).sum(dim=0) / (s * (s - 1))
    return float((distance - 0.5 * pairs).mean())


def coverage(y: Tensor, mean: Tensor, std: Tensor, level: float = 0.95) -> float:
    """Share of outcomes inside the central Gaussian interval of that level; should be ``level``."""
    _check_gaussian(y, mean, std)
    if not 0 < level < 1:
        raise InvalidOptionError(f"level={level}; it lies strictly between 0 and 1")
    z = torch.special.ndtri(torch.tensor(0.5 + level / 2, dtype=torch.float64))
    return float((((y - mean) / std).abs().double() <= z).double().mean())


def calibration_curve(
    y: Tensor, mean: Tensor, std: Tensor, levels: Sequence[float] = _LEVELS
) -> tuple[list[float], list[float]]:
    """Nominal levels of central intervals, and the shares of outcomes that really lie inside."""
    return list(levels), [coverage(y, mean, std, level) for level in levels]


def miscalibration_area(y: Tensor, mean: Tensor, std: Tensor) -> float:
    """Mean distance between nominal and real coverage over all levels: 0 is perfect, 0.5 the worst.

    Exact: the coverage curve is the distribution function of ``2 Phi(|z|) - 1``, a step function.
    """
    _check_gaussian(y, mean, std)
    z = ((y - mean) / std).abs().flatten().double()
    steps = (2 * torch.special.ndtr(z) - 1).sort().values
    edges = torch.cat([steps.new_zeros(1), steps, steps.new_ones(1)])
    heights = torch.arange(edges.shape[0] - 1, dtype=torch.float64) / steps.shape[0]
    below = (edges[:-1] - heights.to(edges)) * (edges[:-1] - heights.to(edges)).abs()
    above = (edges[1:] - heights.to(edges)) * (edges[1:] - heights.to(edges)).abs()
    # The integral of |p - h| over [a, b] is (g(b) - g(a)) / 2 with g(p) = (p - h)|p - h|.
    return float(0.5 * (above - below).sum())


def best_so_far(values: Tensor) -> Tensor:
    """Running maximum along the last dimension; NaN (failed trials) never counts."""
    filled = torch.where(values.isnan(), torch.full_like(values, -torch.inf), values)
    return filled.cummax(dim=-1).values


def simple_regret(values: Tensor, optimal_value: float) -> Tensor:
    """How far the best value so far is from the optimum (maximization), along the last dimension."""
    return optimal_value - best_so_far(values)


def cumulative_regret(values: Tensor, optimal_value: float) -> Tensor:
    """Sum over trials of the distance to the optimum (maximization), along the last dimension."""
    return (optimal_value - values).cumsum(dim=-1)


def _same_shape(first: str, a: Tensor, second: str, b: Tensor) -> None:
    if a.shape != b.shape:
        raise ShapeError(f"{first} has shape {tuple(a.shape)}, {second} has {tuple(b.shape)}; they need the same")
    if a.numel() == 0:
        raise ShapeError(f"{first} is empty; there is nothing to score")


def _check_gaussian(y: Tensor, mean: Tensor, std: Tensor) -> None:
    _same_shape("y", y, "mean", mean)
    _same_shape("y", y, "std", std)
    if not bool((std > 0).all()):
        row = int((~(std > 0)).flatten().nonzero()[0])
        raise InvalidDataError(f"std is zero, negative or NaN at entry {row}; a prediction needs a positive spread")
