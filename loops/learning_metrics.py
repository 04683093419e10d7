"""How good a surrogate is on a test set, for learning curves."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from seqbdl.diagnostics import accuracy, coverage_interval, expected_calibration_error, log_loss, nlpd, rmse
from seqbdl.surrogates import Surrogate

Metrics = Callable[[Surrogate, Tensor, Tensor], dict[str, float]]
_ROWS = 1024


def class_probs(surrogate: Surrogate, X: Tensor) -> Tensor:
    """Predicted probabilities, ``k x C``, a chunk at a time."""
    parts = []
    for part in X.split(_ROWS):
        probs = surrogate.predict(part).probs
        assert probs is not None
        parts.append(probs.double())
    return torch.cat(parts)


def class_metrics(surrogate: Surrogate, X: Tensor, y: Tensor) -> dict[str, float]:
    """Accuracy, negative log-likelihood (nats a row) and expected calibration error (15 bins) on labels ``k``."""
    probs = class_probs(surrogate, X)
    return {
        "accuracy": accuracy(probs, y),
        "nll": log_loss(probs.log(), y),
        "ece": expected_calibration_error(probs, y),
    }


def value_metrics(surrogate: Surrogate, X: Tensor, y: Tensor) -> dict[str, float]:
    """Root mean squared error, negative log density and coverage of central 95 % intervals on values ``k``.

    The density is that of the Gaussian with the predicted mean and standard deviation, the same for every surrogate.
    """
    parts = []
    for part in X.split(_ROWS):
        prediction = surrogate.predict(part)
        lower, upper = prediction.interval(0.95)
        parts.append(torch.cat([prediction.mean, prediction.std, lower, upper], dim=-1).double())
    mean, std, lower, upper = torch.cat(parts).unbind(-1)
    return {"rmse": rmse(y, mean), "nll": nlpd(y, mean, std), "coverage": coverage_interval(y, lower, upper)}


def kappa(first: Tensor, second: Tensor, num_classes: int) -> float:
    """Cohen's kappa of two lists of classes, ``k`` each: agreement beyond chance, 1 when all are equal."""
    agree = float((first == second).double().mean())
    shares = [torch.bincount(labels, minlength=num_classes).double() / labels.numel() for labels in (first, second)]
    chance = float((shares[0] * shares[1]).sum())
    return 1.0 if agree == 1.0 else (agree - chance) / (1.0 - chance)
