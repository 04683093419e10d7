"""Split conformal prediction: sets that hold the outcome with probability at least ``1 - alpha``, whatever the model.

The guarantee is finite-sample and free of assumptions but one: the calibration rows and the new row are exchangeable, and
the model has seen none of them. Rows that a sequential loop chose are NOT exchangeable with those that it will choose next.
The guarantee is on average over calibration sets and new rows; it is not for each input by itself. With several outputs it
is for each output, not for all of them at once.

References: V. Vovk, A. Gammerman and G. Shafer, "Algorithmic Learning in a Random World", Springer 2005; J. Lei, M. G'Sell,
A. Rinaldo, R. Tibshirani and L. Wasserman, "Distribution-free predictive inference for regression", JASA 2018; Y. Romano,
E. Patterson and E. Candès, "Conformalized quantile regression", NeurIPS 2019; M. Sadinle, J. Lei and L. Wasserman, "Least
ambiguous set-valued classifiers with bounded error levels", JASA 2019; Y. Romano, M. Sesia and E. Candès, "Classification
with valid and adaptive coverage", NeurIPS 2020.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from seqbdl.diagnostics import _inputs
from seqbdl.errors import InvalidDataError, InvalidOptionError, ShapeError

CLASS_SCORES = ("lac", "aps")


def conformal_quantile(scores: Tensor, alpha: float) -> Tensor:
    """The ``ceil((n + 1)(1 - alpha))``-th smallest of ``n`` scores, that is their ``ceil((n + 1)(1 - alpha)) / n`` quantile.

    A new score that is exchangeable with them is no larger with probability at least ``1 - alpha``, and, without ties, at
    most ``1 - alpha + 1 / (n + 1)``.

    Args:
        scores: ``n x ...``; each trailing entry has its own quantile, ``...``.
        alpha: Allowed share of misses.

    Raises:
        InvalidDataError: Too few rows: no finite quantile has that guarantee.
    """
    _inputs.level("alpha", alpha)
    scores = _inputs.finite("scores", scores).detach()
    n = scores.shape[0]
    # Exact in the decimals that alpha was written in: (n + 1) * (1 - alpha) in floating point may pass a whole number.
    rank = math.ceil((n + 1) * (1 - Fraction(str(alpha))))
    if rank > n:
        needed = math.ceil(1 / Fraction(str(alpha))) - 1
        raise InvalidDataError(
            f"{n} calibration rows cannot guarantee alpha={alpha}; that takes at least {needed} rows, "
            f"or alpha of at least {1 / (n + 1):.4g}"
        )
    return scores.kthvalue(rank, dim=0).values


@dataclass(frozen=True)
class ConformalIntervals:
    """Calibrated intervals for regression.

    Attributes:
        threshold: ``m`` (or a single number, for outcomes without columns) by which intervals reach out.
        alpha: Allowed share of misses.
        normalized: Whether the reach is in units of the predictive standard deviation.
    """

    threshold: Tensor
    alpha: float
    normalized: bool

    def interval(self, mean: Tensor, std: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Lower and upper ends, the shape of ``mean``.

        Args:
            mean: Predictions, ``... x m``.
            std: Predictive standard deviations, for normalized intervals.
        """
        reach = self.threshold.to(mean)
        if self.normalized:
            if std is None:
                raise InvalidOptionError("std is missing; these intervals were calibrated in units of it")
            _inputs.same_shape("mean", mean, "std", std)
            reach = reach * std
        elif std is not None:
            raise InvalidOptionError("std is not used; these intervals were calibrated on absolute residuals")
        return mean - reach, mean + reach


@dataclass(frozen=True)
class ConformalQuantiles:
    """Calibrated versions of two predicted quantiles.

    Attributes:
        threshold: ``m`` (or a single number) by which both quantiles move outwards; negative if they were too wide.
        alpha: Allowed share of misses.
    """

    threshold: Tensor
    alpha: float

    def interval(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Lower and upper ends; a lower end above the upper one means the empty set, which a negative threshold allows."""
        _inputs.same_shape("lower", lower, "upper", upper)
        reach = self.threshold.to(lower)
        return lower - reach, upper + reach


@dataclass(frozen=True)
class ConformalClasses:
    """Calibrated sets of classes.

    Attributes:
        threshold: A class is in the set if its score is no larger.
        alpha: Allowed share of misses.
        score: ``"lac"`` or ``"aps"``.
        randomized: Whether scores share out the probability of a class at random (``"aps"`` only).
    """

    threshold: float
    alpha: float
    score: str
    randomized: bool

    def sets(self, probs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Which classes are in the set of each row, ``n x C`` booleans.

        Args:
            probs: ``n x C`` predicted probabilities.
            generator: One uniform number for each row, if the scores are randomized.
        """
        values = _rows(probs)
        if self.randomized != (generator is not None):
            raise InvalidOptionError(
                f"these sets were calibrated with{'' if self.randomized else 'out'} a generator; "
                f"pass {'one' if self.randomized else 'none'} here as well"
            )
        return _class_scores(values, self.score, generator) <= self.threshold


def conformal_intervals(y: Tensor, mean: Tensor, std: Tensor | None = None, alpha: float = 0.1) -> ConformalIntervals:
    """Calibrate intervals around predictions on held-out rows.

    Without ``std`` the score is the absolute residual, and all intervals have one width; with it, the residual over the
    standard deviation, and intervals are wide where the model is unsure (Lei et al. 2018).

    Args:
        y: ``n`` or ``n x m`` outcomes of held-out rows.
        mean: Predictions of the same shape.
        std: Predictive standard deviations of the same shape.
        alpha: Allowed share of misses.

    Raises:
        InvalidDataError: NaN, a spread that is not positive, or too few rows for ``alpha``.
        ShapeError: Shapes differ.
    """
    y, mean = _outcomes(y), _inputs.finite("mean", mean)
    _inputs.same_shape("y", y, "mean", mean)
    scores = (y - mean).abs()
    if std is not None:
        std = _inputs.positive("std", std)
        _inputs.same_shape("y", y, "std", std)
        scores = scores / std
    return ConformalIntervals(conformal_quantile(scores, alpha), alpha, normalized=std is not None)


def conformal_quantiles(y: Tensor, lower: Tensor, upper: Tensor, alpha: float = 0.1) -> ConformalQuantiles:
    """Calibrate two predicted quantiles on held-out rows; the score is how far an outcome is outside of them.

    Args:
        y: ``n`` or ``n x m`` outcomes of held-out rows.
        lower: Predicted lower quantiles, the same shape.
        upper: Predicted upper quantiles, the same shape.
        alpha: Allowed share of misses.

    Raises:
        InvalidDataError: NaN, a lower quantile above its upper one, or too few rows for ``alpha``.
        ShapeError: Shapes differ.
    """
    y, lower, upper = _outcomes(y), _inputs.finite("lower", lower), _inputs.finite("upper", upper)
    _inputs.same_shape("y", y, "lower", lower)
    _inputs.same_shape("y", y, "upper", upper)
    if bool((lower > upper).any()):
        row = int((lower > upper).nonzero()[0, 0])
        raise InvalidDataError(f"lower is above upper in row {row}; sort the two quantiles")
    return ConformalQuantiles(conformal_quantile(torch.maximum(lower - y, y - upper), alpha), alpha)


def conformal_classes(
    probs: Tensor, labels: Tensor, alpha: float = 0.1, score: str = "lac", generator: torch.Generator | None = None
) -> ConformalClasses:
    """Calibrate sets of classes on held-out rows.

    Args:
        probs: ``n x C`` predicted probabilities of held-out rows.
        labels: ``n`` class indices.
        alpha: Allowed share of misses.
        score: ``"lac"``: one minus the label's probability, the smallest sets on average (Sadinle et al. 2019);
            ``"aps"``: the probability of all classes down to the label, sets that adapt to how hard a row is (Romano
            et al. 2020).
        generator: For ``"aps"``: count a uniform share of the label's own probability, so that coverage is not exceeded;
            sets may then be empty. Without one all of it is counted, and sets are larger.

    Raises:
        InvalidDataError: NaN, probabilities that do not sum to one, labels out of range, too few rows for ``alpha``.
        ShapeError: There is not one label for each row.
        InvalidOptionError: An unknown score, or a generator where nothing is random.
    """
    _inputs.one_of("score", score, CLASS_SCORES)
    values = _rows(probs)
    labels = _inputs.labels("labels", labels, values.shape[:1], values.shape[1])
    if generator is not None and score == "lac":
        raise InvalidOptionError('generator has nothing to draw for score="lac"; leave it out')
    scores = _class_scores(values, score, generator).gather(1, labels.unsqueeze(1)).squeeze(1)
    threshold = float(conformal_quantile(scores, alpha))
    return ConformalClasses(threshold, alpha, score, randomized=generator is not None)


def _class_scores(probs: Tensor, score: str, generator: torch.Generator | None) -> Tensor:
    """How unusual each class would be as a label, ``n x C``."""
    if score == "lac":
        return 1 - probs
    ordered, order = probs.sort(dim=-1, descending=True, stable=True)
    # One minus what comes after, so that the last class has exactly one, whatever the rounding of the sum.
    after = ordered[:, 1:].flip(-1).cumsum(-1).flip(-1)
    down_to = 1 - torch.cat([after, torch.zeros_like(ordered[:, :1])], -1)
    if generator is not None:
        share = torch.rand(probs.shape[0], 1, generator=generator, device=generator.device, dtype=probs.dtype)
        down_to = down_to - share.to(probs.device) * ordered
    return torch.empty_like(probs).scatter_(-1, order, down_to)


def _outcomes(y: Tensor) -> Tensor:
    values = _inputs.finite("y", y)
    if values.dim() > 2:
        raise ShapeError(f"y has shape {tuple(values.shape)}; it needs n or n x m, one row for each held-out outcome")
    return values


def _rows(probs: Tensor) -> Tensor:
    values = _inputs.probabilities("probs", probs).detach()
    if values.dim() != 2:
        raise ShapeError(f"probs has shape {tuple(values.shape)}; it needs n x C")
    return values
