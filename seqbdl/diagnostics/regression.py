"""Scores of predictions of real-valued outcomes, and regrets. Lower is better unless said otherwise.

Gaussian predictions are a mean and a standard deviation of the shape of the outcomes. Mixtures, such as particles with
noise, have one leading axis of ``S`` members more: ``means`` and ``stds`` are ``S x`` the shape of ``y``, and
``log_weights`` (``S``, or broadcastable to ``means``; need not be normalized) are equal by default. All scores average
over all outcomes.

References: T. Gneiting and A. Raftery, "Strictly proper scoring rules, prediction, and estimation", JASA 2007;
E. Grimit, T. Gneiting, V. Berrocal and N. Johnson, "The continuous ranked probability score for circular variables and
its application to mesoscale forecast ensemble verification", Q. J. R. Meteorol. Soc. 2006.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from seqbdl._checks import check_finite
from seqbdl.diagnostics import _inputs
from seqbdl.errors import InvalidDataError, ShapeError

_LEVELS = tuple(i / 20 for i in range(1, 20))
_PAIRS_AT_ONCE = 2**21
"""Pairs of members times outcomes that are held at once by the CRPS of mixtures: 16 MiB a tensor."""


def rmse(y: Tensor, mean: Tensor) -> float:
    """Root mean squared error."""
    _check_mean(y, mean)
    return float((y - mean).square().mean().sqrt())


def r_squared(y: Tensor, mean: Tensor) -> float:
    """Share of the outcomes' variance that the predictions explain; higher is better, 1 is perfect, may be negative."""
    _check_mean(y, mean)
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
    return float(crps_gaussian_values(y, mean, std).mean())


def crps_gaussian_values(y: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Continuous ranked probability score of each outcome, the shape of ``y``."""
    _check_gaussian(y, mean, std)
    z = (y - mean) / std
    density = torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)
    return std * (z * (2 * torch.special.ndtr(z) - 1) + 2 * density - 1 / math.sqrt(math.pi))


def crps_samples(y: Tensor, samples: Tensor) -> float:
    """Mean continuous ranked probability score of predictions given as samples (the unbiased estimate).

    Args:
        y: Outcomes, any shape.
        samples: ``s x`` the shape of ``y``, with ``s`` at least 2.
    """
    if samples.dim() != y.dim() + 1 or samples.shape[1:] != y.shape or samples.shape[0] < 2:
        raise ShapeError(f"samples has shape {tuple(samples.shape)}; it needs s x {tuple(y.shape)} with s >= 2")
    check_finite("y", torch.atleast_1d(y))
    check_finite("samples", samples)
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
    _inputs.level("level", level)
    z = torch.special.ndtri(torch.tensor(0.5 + level / 2, dtype=torch.float64))
    return float((((y - mean) / std).abs().double() <= z).double().mean())


def calibration_curve(y: Tensor, mean: Tensor, std: Tensor, levels: Sequence[float] = _LEVELS) -> tuple[list[float], list[float]]:
    """Nominal levels of central intervals, and the shares of outcomes that really lie inside."""
    return list(levels), [coverage(y, mean, std, level) for level in levels]


def miscalibration_area(y: Tensor, mean: Tensor, std: Tensor) -> float:
    """Mean distance between nominal and real coverage over all levels: 0 is perfect, 0.5 the worst.

    Exact: the coverage curve is the distribution function of ``2 Phi(|z|) - 1``, a step function.
    """
    _check_gaussian(y, mean, std)
    z = ((y - mean) / std).abs().double()
    return level_area(2 * torch.special.ndtr(z) - 1)


def mixture_log_density(y: Tensor, means: Tensor, stds: Tensor, log_weights: Tensor | None = None) -> Tensor:
    """Log density of each outcome under its mixture of Gaussians, the shape of ``y``, in float64.

    Raises:
        ShapeError: ``means`` or ``stds`` are not ``S x`` the shape of ``y``.
        InvalidDataError: NaN anywhere, or a spread that is not positive.
    """
    y, means, stds, log_weights = _check_mixture(y, means, stds, log_weights)
    parts = -0.5 * ((y - means) / stds).square() - stds.log() - 0.5 * math.log(2 * math.pi)
    return (parts + log_weights).logsumexp(0)


def nlpd_mixture(y: Tensor, means: Tensor, stds: Tensor, log_weights: Tensor | None = None) -> float:
    """Mean negative log predictive density of mixtures of Gaussians, in nats per outcome."""
    return -float(mixture_log_density(y, means, stds, log_weights).mean())


def mixture_cdf(y: Tensor, means: Tensor, stds: Tensor, log_weights: Tensor | None = None) -> Tensor:
    """Distribution function of each mixture at its outcome, the shape of ``y``, in float64.

    This is the probability integral transform: uniform when the predictions are right.
    """
    y, means, stds, log_weights = _check_mixture(y, means, stds, log_weights)
    return (log_weights.exp() * torch.special.ndtr((y - means) / stds)).sum(0)


def crps_mixture(y: Tensor, means: Tensor, stds: Tensor, log_weights: Tensor | None = None) -> float:
    """Mean continuous ranked probability score of mixtures of Gaussians, in the units of ``y``, in closed form.

    ``sum_i w_i A(y - mu_i, s_i^2) - 1/2 sum_ij w_i w_j A(mu_i - mu_j, s_i^2 + s_j^2)`` with
    ``A(mu, s^2) = E|N(mu, s^2)|`` (Grimit et al. 2006). Time grows with ``S^2``; outcomes are taken in chunks.
    """
    return float(crps_mixture_values(y, means, stds, log_weights).mean())


def crps_mixture_values(y: Tensor, means: Tensor, stds: Tensor, log_weights: Tensor | None = None) -> Tensor:
    """Continuous ranked probability score of each outcome under its mixture of Gaussians, the shape of ``y``, in float64."""
    y, means, stds, log_weights = _check_mixture(y, means, stds, log_weights)
    weights = log_weights.exp().expand(means.shape).flatten(1)
    shape, y, means, stds = y.shape, y.flatten(), means.flatten(1), stds.flatten(1)
    distance = (weights * _mean_absolute(y - means, stds)).sum(0)
    chunk = max(1, _PAIRS_AT_ONCE // means.shape[0] ** 2)
    pairs = []
    for mu, s, w in zip(means.split(chunk, 1), stds.split(chunk, 1), weights.split(chunk, 1), strict=True):
        spread = (s.square() + s.square().unsqueeze(1)).sqrt()
        pairs.append((w * w.unsqueeze(1) * _mean_absolute(mu - mu.unsqueeze(1), spread)).sum((0, 1)))
    return (distance - 0.5 * torch.cat(pairs)).reshape(shape)


def coverage_mixture(y: Tensor, means: Tensor, stds: Tensor, level: float = 0.95, log_weights: Tensor | None = None) -> float:
    """Share of outcomes inside the central (equal-tailed) interval of their mixture; should be ``level``."""
    _inputs.level("level", level)
    # An outcome lies between the two quantiles exactly if the distribution function there lies between their levels.
    return float(((2 * mixture_cdf(y, means, stds, log_weights) - 1).abs() <= level).double().mean())


def miscalibration_area_mixture(y: Tensor, means: Tensor, stds: Tensor, log_weights: Tensor | None = None) -> float:
    """As :func:`miscalibration_area`, for central intervals of mixtures of Gaussians."""
    return level_area((2 * mixture_cdf(y, means, stds, log_weights) - 1).abs())


def coverage_interval(y: Tensor, lower: Tensor, upper: Tensor) -> float:
    """Share of outcomes inside intervals, ends included, however they were made; ends may be infinite."""
    check_finite("y", torch.atleast_1d(y))
    for name, end in (("lower", lower), ("upper", upper)):
        _same_shape("y", y, name, end)
        if bool(end.isnan().any()):
            raise InvalidDataError(f"{name} is NaN at entry {int(end.isnan().flatten().nonzero()[0])}; remove that row")
    return float(((lower <= y) & (y <= upper)).double().mean())


def level_area(levels: Tensor) -> float:
    """Miscalibration area from the smallest level, 0 to 1, of a central interval that holds each outcome."""
    steps = levels.flatten().sort().values
    edges = torch.cat([steps.new_zeros(1), steps, steps.new_ones(1)])
    heights = torch.arange(edges.shape[0] - 1, dtype=steps.dtype, device=steps.device) / steps.shape[0]
    below = (edges[:-1] - heights) * (edges[:-1] - heights).abs()
    above = (edges[1:] - heights) * (edges[1:] - heights).abs()
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


def _mean_absolute(mean: Tensor, std: Tensor) -> Tensor:
    """``E|N(mean, std^2)|``."""
    z = mean / std
    return std * (2 * torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi) + z * (2 * torch.special.ndtr(z) - 1))


def _same_shape(first: str, a: Tensor, second: str, b: Tensor) -> None:
    _inputs.same_shape(first, a, second, b)
    if a.numel() == 0:
        raise ShapeError(f"{first} is empty; there is nothing to score")


def _check_mean(y: Tensor, mean: Tensor) -> None:
    _same_shape("y", y, "mean", mean)
    check_finite("y", torch.atleast_1d(y))
    check_finite("mean", torch.atleast_1d(mean))


def _check_gaussian(y: Tensor, mean: Tensor, std: Tensor) -> None:
    _check_mean(y, mean)
    _same_shape("y", y, "std", std)
    if not bool((std > 0).all()):
        row = int((~(std > 0)).flatten().nonzero()[0])
        raise InvalidDataError(f"std is zero, negative or NaN at entry {row}; a prediction needs a positive spread")


def _check_mixture(y: Tensor, means: Tensor, stds: Tensor, log_weights: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Everything in float64, with log weights that are normalized."""
    y, means, stds = _inputs.finite("y", y), _inputs.finite("means", means), _inputs.positive("stds", stds)
    if means.dim() != y.dim() + 1 or means.shape[1:] != y.shape:
        raise ShapeError(f"means has shape {tuple(means.shape)}; it needs S x {tuple(y.shape)}, one mean for each member")
    _inputs.broadcastable("stds", stds, "means", means)
    return y, means, stds.expand(means.shape), _inputs.normalized_weights(log_weights, means)
