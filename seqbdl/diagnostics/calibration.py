"""Recalibration on held-out rows: one temperature for class probabilities, one scale for predictive spreads.

Both have one parameter, fitted by maximum likelihood on rows that the model was not trained on. Neither changes which
class or which value is predicted, only how sure of it the model is.

References: C. Guo, G. Pleiss, Y. Sun and K. Weinberger, "On calibration of modern neural networks", ICML 2017;
M.-H. Laves, S. Ihler, J. Fast, L. Kahrs and T. Ortmaier, "Well-calibrated regression uncertainty in medical imaging with
deep learning", MIDL 2020.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from seqbdl.diagnostics import _inputs
from seqbdl.errors import InvalidDataError, ShapeError

_ITERATIONS = 200
"""More than bisection alone would need; Newton's steps are few."""


@dataclass(frozen=True)
class TemperatureScaling:
    """Logits divided by one temperature; above 1 predictions become less sure.

    Attributes:
        temperature: What logits are divided by.
    """

    temperature: float

    def log_probs(self, logits: Tensor) -> Tensor:
        """Calibrated log-probabilities ``... x C``, differentiable in ``logits``."""
        return (logits / self.temperature).log_softmax(-1)


@dataclass(frozen=True)
class SpreadScaling:
    """Predictive standard deviations times one factor; above 1 predictions become less sure.

    Attributes:
        scale: What standard deviations are multiplied by.
    """

    scale: float

    def std(self, std: Tensor) -> Tensor:
        """Calibrated standard deviations."""
        return self.scale * std


def fit_temperature(logits: Tensor, labels: Tensor) -> TemperatureScaling:
    """The temperature that minimizes the log loss of held-out rows, by Newton's method.

    The log loss is convex in the inverse temperature ``b``: its slope is the sum over rows of the mean logit under
    ``softmax(b logits)`` minus the label's, its curvature that of the logits' variances. Newton steps are
    kept inside a shrinking bracket of the root.

    Args:
        logits: ``n x C``, or log-probabilities, such as :func:`~seqbdl.diagnostics.predictive_log_probs` of draws.
        labels: ``n`` class indices.

    Raises:
        InvalidDataError: NaN, labels out of range; or labels for which no temperature is best: all of them have the
            largest logit of their row (it would be 0), or logits say nothing about them (infinite).
        ShapeError: Logits are not ``n x C``, or there is not one label for each row.
    """
    values = _inputs.finite("logits", logits).detach()
    if values.dim() != 2 or values.shape[1] < 2:
        raise ShapeError(f"logits has shape {tuple(values.shape)}; it needs n x C with C >= 2 classes")
    labels = _inputs.labels("labels", labels, values.shape[:1], values.shape[1])
    values = values - values.gather(1, labels.unsqueeze(1))  # relative to the label's own
    if bool((values.amax(-1) <= 0).all()):
        raise InvalidDataError(
            "every label has the largest logit of its row, so that the best temperature is 0; "
            "calibrate on more held-out rows, with some that the model gets wrong"
        )
    if float(values.mean()) >= 0:
        raise InvalidDataError(
            "logits of the labels are no larger than the others' on average, so that the best temperature is infinite; "
            "check that labels and logits are of the same rows and classes"
        )
    scale = float(values.abs().amax())
    b = _root(values / scale) / scale
    return TemperatureScaling(temperature=1.0 / b)


def fit_spread(y: Tensor, mean: Tensor, std: Tensor) -> SpreadScaling:
    """The factor on standard deviations that minimizes the Gaussian negative log density of held-out rows.

    In closed form: the root mean square of ``(y - mean) / std``.

    Args:
        y: Outcomes, any shape; all of them share the factor.
        mean: Predictive means, the shape of ``y``.
        std: Predictive standard deviations of an observation, the shape of ``y``.

    Raises:
        InvalidDataError: NaN, a spread that is not positive, or predictions that are all exact (the factor would be 0).
    """
    y, mean, std = _inputs.finite("y", y), _inputs.finite("mean", mean), _inputs.positive("std", std)
    _inputs.same_shape("y", y, "mean", mean)
    _inputs.same_shape("y", y, "std", std)
    scale = float(((y - mean) / std).square().mean().sqrt())
    if not scale > 0:
        raise InvalidDataError("mean equals y everywhere, so that the best spread is 0; calibrate on held-out rows")
    return SpreadScaling(scale=scale)


def _root(values: Tensor) -> float:
    """Where the mean of ``values`` (``n x C``) under ``softmax(b values)`` averages to zero over rows, ``b > 0``."""

    def slope(b: float) -> tuple[float, float]:
        p = (b * values).softmax(-1)
        mean = (p * values).sum(-1, keepdim=True)
        return float(mean.mean()), float((p * (values - mean).square()).sum(-1).mean())

    # The slope is negative at zero and positive in the limit: grow the bracket until it holds the root.
    low, high = 0.0, 1.0
    while slope(high)[0] < 0:
        low, high = high, 2.0 * high
    b = 0.5 * (low + high)
    for _ in range(_ITERATIONS):
        gradient, curvature = slope(b)
        low, high = (b, high) if gradient < 0 else (low, b)
        step = gradient / curvature if curvature > 0 else torch.inf
        proposal = b - step
        new = proposal if low < proposal < high else 0.5 * (low + high)
        if abs(new - b) <= 1e-12 * b:
            return new
        b = new
    return b
