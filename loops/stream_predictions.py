"""Predictions averaged over hypotheses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from seqbdl.posteriors import Prediction

_BISECTIONS = 60


def mixture(predictions: Sequence[Prediction], log_weights: Sequence[float]) -> Prediction:
    """The mixture of predictive distributions: moments by the laws of total expectation and variance, quantiles by bisection of
    the distribution function of Gaussians with the parts' moments (a single one answers for itself).

    Args:
        predictions: For the same inputs.
        log_weights: Need not be normalized.
    """
    if len(predictions) == 1:
        return predictions[0]
    weights = torch.tensor(log_weights, dtype=torch.float64).softmax(0)
    means = torch.stack([p.mean.double() for p in predictions])
    w = weights.reshape(-1, *([1] * (means.dim() - 1)))
    mean = (w * means).sum(0)
    disagreement = (w * (means - mean).square()).sum(0)

    def averaged(values: Sequence[Tensor]) -> Tensor:
        return (w * torch.stack([value.double().square() for value in values])).sum(0)

    epistemic = averaged([p.epistemic_std for p in predictions]) + disagreement
    spreads = torch.stack([p.std.double() for p in predictions])
    like = predictions[0].mean

    def quantile(p: Tensor) -> Tensor:
        low, high = (means - 10 * spreads).amin(0), (means + 10 * spreads).amax(0)
        for _ in range(_BISECTIONS):
            middle = 0.5 * (low + high)
            below = (w * torch.special.ndtr((middle - means) / spreads)).sum(0) < p
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (0.5 * (low + high)).to(like)

    probs = None
    if predictions[0].probs is not None:
        parts = torch.stack([p.probs.double() for p in predictions if p.probs is not None])
        probs = (weights.reshape(-1, *([1] * (parts.dim() - 1))) * parts).sum(0).to(like)
    return Prediction(
        mean=mean.to(like),
        std=(averaged([p.std for p in predictions]) + disagreement).sqrt().to(like),
        epistemic_std=epistemic.sqrt().to(like),
        aleatoric_std=averaged([p.aleatoric_std for p in predictions]).sqrt().to(like),
        _quantile=quantile,
        probs=probs,
    )
