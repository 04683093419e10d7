"""Information of experiments with finitely many outcomes, by enumeration."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from seqbdl.acquisition.eig.bounds import Bounds
from seqbdl.errors import InvalidDataError, ShapeError

_TOLERANCE = 1e-6


def exact_information(log_probs: Tensor, weights: Tensor | None = None) -> Bounds:
    """``H[E p(y|theta)] - E H[p(y|theta)]``, the mutual information of theta and an outcome with ``K`` values.

    Exact for the distribution on the ``N`` parameters that is handed in. Where these are draws of another distribution, the
    value errs by the standard error, and is too small by ``O(1/N)``.

    Args:
        log_probs: ``... x N x K``; probabilities sum to one over ``K``.
        weights: ``N``, of a distribution on the parameters (a grid): then the standard error is 0. ``None``: equally
            weighted draws.

    Returns:
        Bounds of shape ``...`` with equal sides.

    Raises:
        ShapeError: Fewer than two dimensions, or weights of another length.
        InvalidDataError: Probabilities that do not sum to one, or weights that are no distribution.
    """
    if log_probs.dim() < 2 or 0 in log_probs.shape:
        raise ShapeError(f"log_probs has shape {tuple(log_probs.shape)}; it needs (... x) N x K, none of them empty")
    values = log_probs.double()
    off = (values.logsumexp(-1).abs() < _TOLERANCE).logical_not()
    if bool(off.any()):
        where = tuple(int(i) for i in off.nonzero()[0])
        raise InvalidDataError(
            f"the probabilities at {where} sum to {float(values[where].exp().sum()):.6g}; over all outcomes they sum to one"
        )
    n = values.shape[-2]
    if weights is None:
        log_weights = torch.full((n,), -math.log(n), dtype=torch.float64, device=values.device)
    else:
        log_weights = _log_weights(weights, n)
    log_mean = (values + log_weights.unsqueeze(-1)).logsumexp(-2, keepdim=True)
    # p log p is 0 where p is 0; without the replacement its gradient would be NaN there.
    possible = values > -math.inf
    ratio = torch.where(possible, values - torch.where(possible, log_mean, 0.0), 0.0)
    terms = (values.exp() * ratio).sum(-1)
    information = (terms * log_weights.exp()).sum(-1)
    if weights is not None:
        error = torch.zeros_like(information)
        saturated = torch.zeros_like(information, dtype=torch.bool)
    else:
        error = terms.std(-1) / math.sqrt(n) if n > 1 else torch.full_like(information, math.inf)
        saturated = information > math.log(n) - 1
    return Bounds(information, information, error.detach(), saturated)


def _log_weights(weights: Tensor, n: int) -> Tensor:
    if weights.shape != (n,):
        raise ShapeError(f"weights has shape {tuple(weights.shape)}; it needs one for each of the {n} parameters")
    total = float(weights.double().sum())
    if not bool((weights >= 0).all()) or not abs(total - 1) < _TOLERANCE:
        raise InvalidDataError(f"weights are negative or sum to {total:.6g}; they are a distribution")
    return weights.double().log()
