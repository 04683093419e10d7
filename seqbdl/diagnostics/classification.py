"""Scores of predicted class probabilities, reliability, and what uncertainty is made of. Natural logarithms.

Predictions come first, labels (class indices, the shape of the predictions without their last dimension) second.
Predictions are the mean over draws: ``predictive_log_probs(log_probs)`` makes it of ``n x batch x C`` log-probabilities.

References: C. Guo, G. Pleiss, Y. Sun and K. Weinberger, "On calibration of modern neural networks", ICML 2017;
J. Nixon et al., "Measuring calibration in deep learning", CVPR workshops 2019; N. Houlsby, F. Huszár, Z. Ghahramani and
M. Lengyel, "Bayesian active learning for classification and preference learning", 2011.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from seqbdl.diagnostics import _inputs
from seqbdl.errors import ShapeError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BINNINGS = ("equal-width", "equal-mass")


def predictive_log_probs(log_probs: Tensor, log_weights: Tensor | None = None) -> Tensor:
    """Log of the mean probability over draws, ``batch x C``.

    Args:
        log_probs: ``n x batch x C`` class log-probabilities of n draws.
        log_weights: ``n``, of re-weighted draws; need not be normalized. Equal by default.
    """
    values = _draws(log_probs)
    return (values + _inputs.normalized_weights(log_weights, values)).logsumexp(0)


def accuracy(probs: Tensor, labels: Tensor) -> float:
    """Share of rows whose most probable class is the label; higher is better.

    Args:
        probs: ``batch x C`` probabilities.
        labels: ``batch`` class indices.
    """
    probs, labels = _check(probs, labels)
    return float((probs.argmax(-1) == labels).double().mean())


def log_loss(log_probs: Tensor, labels: Tensor) -> float:
    """Mean negative log-probability of the labels, nats per row; infinite if a label was ruled out.

    Args:
        log_probs: ``batch x C`` log-probabilities: their logarithm keeps what probabilities round to zero.
        labels: ``batch`` class indices.
    """
    log_probs = _inputs.log_probabilities("log_probs", log_probs)
    labels = _inputs.labels("labels", labels, log_probs.shape[:-1], log_probs.shape[-1])
    return -float(log_probs.gather(-1, labels.unsqueeze(-1)).mean())


def brier_score(probs: Tensor, labels: Tensor) -> float:
    """Mean over rows of the squared distance between probabilities and the label's indicator, summed over classes: 0 to 2.

    Args:
        probs: ``batch x C`` probabilities.
        labels: ``batch`` class indices.
    """
    probs, labels = _check(probs, labels)
    target = torch.nn.functional.one_hot(labels, probs.shape[-1])
    return float((probs - target).square().sum(-1).mean())


@dataclass(frozen=True)
class ReliabilityCurve:
    """How often the most probable class is right, in bins of its probability. Bins without rows are left out.

    Attributes:
        confidence: ``bins`` mean probability of the most probable class.
        accuracy: ``bins`` share of rows where it is the label.
        count: ``bins`` rows.
        binning: ``"equal-width"`` (of the unit interval) or ``"equal-mass"`` (of the rows).
    """

    confidence: Tensor = field(repr=False)
    accuracy: Tensor = field(repr=False)
    count: Tensor = field(repr=False)
    binning: str

    @property
    def expected_calibration_error(self) -> float:
        """Mean over rows of the distance between accuracy and confidence of their bin."""
        gap = (self.accuracy - self.confidence).abs()
        return float((gap * self.count).sum() / self.count.sum())

    @property
    def maximum_calibration_error(self) -> float:
        """Largest distance between accuracy and confidence of a bin."""
        return float((self.accuracy - self.confidence).abs().max())


def reliability_curve(probs: Tensor, labels: Tensor, num_bins: int = 15, binning: str = "equal-width") -> ReliabilityCurve:
    """Accuracy against confidence of the most probable class.

    Args:
        probs: ``batch x C`` probabilities.
        labels: ``batch`` class indices.
        num_bins: Bins, at least 1.
        binning: ``"equal-width"``: bins ``((b - 1) / B, b / B]`` of the confidence (Guo et al. 2017);
            ``"equal-mass"``: equally many rows in each (Nixon et al. 2019), rows of equal confidence kept together.

    Raises:
        InvalidDataError: NaN, probabilities that are negative or do not sum to one, labels out of range.
        ShapeError: There is not one label for each row.
        InvalidOptionError: An unknown binning, or no bins.
    """
    _inputs.at_least("num_bins", num_bins, 1)
    _inputs.one_of("binning", binning, BINNINGS)
    probs, labels = _check(probs, labels)
    confidence, guess = probs.flatten(0, -2).max(-1)
    right = (guess == labels.flatten()).double()
    if binning == "equal-width":
        position = (confidence * num_bins).ceil() - 1
    else:
        # By the middle rank of all rows with the same confidence, so that no order of the rows matters.
        _, inverse, counts = confidence.unique(return_inverse=True, return_counts=True)
        middle = (counts.cumsum(0) - 0.5 * counts).double()[inverse]
        position = (middle * num_bins / confidence.shape[0]).floor()
    bins = position.long().clamp(0, num_bins - 1)  # a probability of one plus rounding belongs to the last
    count = torch.bincount(bins, minlength=num_bins)
    used = count > 0
    return ReliabilityCurve(
        confidence=(torch.bincount(bins, confidence, minlength=num_bins) / count)[used],
        accuracy=(torch.bincount(bins, right, minlength=num_bins) / count)[used],
        count=count[used],
        binning=binning,
    )


def expected_calibration_error(probs: Tensor, labels: Tensor, num_bins: int = 15, binning: str = "equal-width") -> float:
    """Expected calibration error (ECE) of the most probable class; see :func:`reliability_curve` for the arguments.

    It is biased upwards for few rows: a perfect prediction of ``n`` rows has up to about ``0.4 sqrt(num_bins / n)``.
    Compare predictions of the same rows, with the same binning, or use a proper score.
    """
    return reliability_curve(probs, labels, num_bins, binning).expected_calibration_error


def plot_reliability(curve: ReliabilityCurve, ax: Axes | None = None, label: str | None = None) -> Axes:
    """Accuracy against confidence, with the share of rows in each bin; on the diagonal, predictions are calibrated."""
    if ax is None:
        from matplotlib.figure import Figure  # no global state, and no cost for who does not plot

        ax = Figure(figsize=(4.5, 4.5), layout="constrained").add_subplot()
    confidence, right = curve.confidence.cpu().numpy(), curve.accuracy.cpu().numpy()
    share = (curve.count / curve.count.sum()).cpu().numpy()
    ax.plot([0, 1], [0, 1], color="0.5", linewidth=1, zorder=0)
    (line,) = ax.plot(confidence, right, marker="o", markersize=4, label=label)
    ax.vlines(confidence, 0, share, color=line.get_color(), alpha=0.3, linewidth=6)
    ax.set_xlabel("probability of the most probable class")
    ax.set_ylabel("share right (line), share of rows (bars)")
    ax.set_title(f"ECE {curve.expected_calibration_error:.3f} ({len(confidence)} {curve.binning} bins)")
    if label is not None:
        ax.legend()
    return ax


@dataclass(frozen=True)
class UncertaintySplit:
    """Uncertainty of each row in nats, ``total = aleatoric + epistemic``.

    Attributes:
        total: ``batch`` entropy of the mean prediction.
        aleatoric: ``batch`` mean entropy of the draws: what no more data would take away.
        epistemic: ``batch`` mutual information of label and draw: what the draws disagree about.
    """

    total: Tensor
    aleatoric: Tensor
    epistemic: Tensor


def entropy(log_probs: Tensor) -> Tensor:
    """Entropy of each row in nats, ``batch``.

    Args:
        log_probs: ``batch x C`` class log-probabilities; minus infinity is a class ruled out, and adds nothing.
    """
    return _entropy(_inputs.log_probabilities("log_probs", log_probs))


def uncertainty_split(log_probs: Tensor, log_weights: Tensor | None = None) -> UncertaintySplit:
    """Entropy of the mean prediction, split into mean entropy and mutual information (Houlsby et al. 2011).

    Args:
        log_probs: ``n x batch x C`` class log-probabilities of n draws.
        log_weights: ``n``, of re-weighted draws; equal by default.
    """
    values = _draws(log_probs)
    log_weights = _inputs.normalized_weights(log_weights, values)
    mean = (values + log_weights).logsumexp(0)
    weights = log_weights.exp().squeeze(-1)
    # The mutual information as a mean Kullback-Leibler divergence: never negative, and exact where draws nearly agree.
    divergence = torch.where(values == -torch.inf, 0.0, values.exp() * (values - mean)).sum(-1)
    aleatoric, epistemic = (weights * _entropy(values)).sum(0), (weights * divergence).sum(0)
    return UncertaintySplit(total=aleatoric + epistemic, aleatoric=aleatoric, epistemic=epistemic)


def ood_auroc(scores_in: Tensor, scores_out: Tensor) -> float:
    """Probability that a row from elsewhere has a higher score than one from the data's distribution; ties count half.

    The area under the receiver operating characteristic, by scikit-learn: 0.5 is chance, 1 perfect.

    Args:
        scores_in: ``n`` scores (such as the epistemic uncertainty) of rows like the training data.
        scores_out: ``k`` scores of rows from elsewhere, which should be higher.
    """
    from sklearn.metrics import roc_auc_score

    inside = _inputs.finite("scores_in", scores_in).flatten()
    outside = _inputs.finite("scores_out", scores_out).flatten()
    truth = torch.cat([torch.zeros_like(inside), torch.ones_like(outside)])
    return float(roc_auc_score(truth.cpu().numpy(), torch.cat([inside, outside]).detach().cpu().numpy()))


def _check(probs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    checked = _inputs.probabilities("probs", probs)
    return checked, _inputs.labels("labels", labels, checked.shape[:-1], checked.shape[-1])


def _draws(log_probs: Tensor) -> Tensor:
    values = _inputs.log_probabilities("log_probs", log_probs)
    if values.dim() < 3:
        raise ShapeError(f"log_probs has shape {tuple(values.shape)}; it needs n x batch x C, the log-probabilities of n draws")
    return values


def _entropy(log_probs: Tensor) -> Tensor:
    return -torch.where(log_probs == -torch.inf, 0.0, log_probs.exp() * log_probs).sum(-1)
