"""Scores of models that learn from a stream: what they keep of old tasks, and how well they predict before they look.

``R[t, i]`` is the score on task ``i`` after learning from tasks ``0 .. t``, larger being better (hand in the negative of a
loss). Libraries disagree on these names; every function here states its formula, with ``T`` tasks counted from 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from seqbdl._checks import check_inputs, check_tensor
from seqbdl.errors import InvalidDataError, InvalidOptionError, ShapeError
from seqbdl.posteriors import ParticlePosterior
from seqbdl.surrogates import Surrogate
from seqbdl.surrogates.particle import ParticleSurrogate

Array = NDArray[np.float64]
_DRAWS = 256  # functions behind scores of counts and of joint labels


def average_accuracy(R: ArrayLike) -> float:
    """``mean_i R[T - 1, i]``."""
    return float(_matrix(R)[-1].mean())


def backward_transfer(R: ArrayLike) -> float:
    """``mean_{i < T - 1} (R[T - 1, i] - R[i, i])`` (Lopez-Paz and Ranzato 2017); negative: forgotten."""
    scores = _matrix(R, 2)
    return float((scores[-1] - scores.diagonal())[:-1].mean())


def forward_transfer(R: ArrayLike, baseline: ArrayLike) -> float:
    """``mean_{i >= 1} (R[i - 1, i] - b[i])`` (Lopez-Paz and Ranzato 2017), ``b`` the scores before any data."""
    scores = _matrix(R, 2)
    start = np.asarray(baseline, dtype=np.float64)
    if start.shape != (len(scores),):
        raise ShapeError(f"baseline has shape {start.shape}; it needs one score for each of the {len(scores)} tasks")
    return float((scores.diagonal(1) - start[1:]).mean())


def forgetting(R: ArrayLike) -> float:
    """``mean_{i < T - 1} (max_{t < T - 1} R[t, i] - R[T - 1, i])`` (Chaudhry et al. 2018); best minus last, where some libraries
    take first minus last."""
    scores = _matrix(R, 2)
    return float((scores[:-1, :-1].max(0) - scores[-1, :-1]).mean())


def learning_accuracy(R: ArrayLike) -> float:
    """``mean_i R[i, i]``: how well tasks are learned when they come; what backward transfer is to be read with."""
    return float(_matrix(R).diagonal().mean())


def triangle_accuracy(R: ArrayLike) -> float:
    """The mean of ``R[t, i]`` over ``i <= t`` (Diaz-Rodriguez et al. 2018)."""
    scores = _matrix(R)
    return float(scores[np.tril_indices(len(scores))].mean())


def prequential(losses: ArrayLike) -> Array:
    """Cumulative means of losses that were taken before learning (Dawid 1984), ``n``. The last entry times ``n`` is, for exact
    Bayes and log losses, minus the log evidence."""
    values = _series(losses)
    return values.cumsum() / np.arange(1, len(values) + 1)


def windowed(losses: ArrayLike, window: int = 250) -> Array:
    """Means of the last ``window`` losses (of all, while they are fewer), ``n``."""
    if window < 1:
        raise InvalidOptionError(f"window={window} must be at least 1")
    total = np.concatenate([[0.0], _series(losses).cumsum()])
    last = np.arange(1, len(total))
    first = np.maximum(last - window, 0)
    return cast(Array, (total[last] - total[first]) / (last - first))


def faded(losses: ArrayLike, fading: float = 0.99) -> Array:
    """``L_t = a L_{t-1} + l_t`` over the sum of its weights (Gama et al. 2013), ``n``."""
    if not 0.0 < fading <= 1.0:
        raise InvalidOptionError(f"fading={fading} must be in (0, 1]")
    values, out, total, weight = _series(losses), [], 0.0, 0.0
    for value in values:
        total, weight = fading * total + value, fading * weight + 1.0
        out.append(total / weight)
    return np.array(out)


def loss_after_changes(losses: ArrayLike, changes: Sequence[int], first: int = 50) -> float:
    """The mean loss of the ``first`` steps from every change on.

    Args:
        losses: ``n``.
        changes: Steps at which the world is new.
        first: How many.
    """
    values = _series(losses)
    if not len(changes) or any(not 0 <= change < len(values) for change in changes):
        raise InvalidOptionError(f"changes={list(changes)}; give steps from 0 to {len(values) - 1}")
    return float(np.concatenate([values[change : change + first] for change in changes]).mean())


def recovery_time(losses: ArrayLike, change: int, window: int = 50, tolerance: float = 0.1) -> int | None:
    """Steps after a change until the mean of the last ``window`` losses (all of them after the change) is within ``tolerance``
    of the window before it, relative to that mean's size; ``None``: never."""
    values = _series(losses)
    if not window <= change < len(values):
        raise InvalidOptionError(f"change={change} needs a window of {window} steps before it and a step after")
    before = values[change - window : change].mean()
    for end in range(change + window, len(values) + 1):
        if values[end - window : end].mean() <= before + tolerance * abs(before):
            return end - change
    return None


def log_predictive(surrogate: Surrogate, X: Tensor, Y: Tensor) -> Tensor:
    """``log p(Y | X, what the surrogate knows)``: the JOINT log density (or probability) of all rows, a scalar, exact for
    mixtures of particles, and for Gaussian posteriors under Gaussian noise; of one label exact up to how the surrogate
    averages its probabilities; of several labels, and of counts, Gaussian posteriors are averaged over 256 function draws.

    Args:
        surrogate: Any.
        X: ``n x d``.
        Y: ``n x m``, ``n x 1`` class indices, or counts.
    """
    X, Y = check_inputs("X", X, surrogate.input_dim), check_tensor("Y", Y)
    with torch.no_grad():
        if not surrogate._lik.has_noise:
            return _log_prob_without_noise(surrogate, X, Y)
        posterior: Any = surrogate.posterior(X, observation_noise=True)
        if isinstance(posterior, ParticlePosterior):
            assert posterior.noise is not None
            density = torch.distributions.Normal(posterior.values.double(), posterior.noise.double().sqrt())
            return torch.logsumexp(density.log_prob(Y.double()).sum((-1, -2)) + posterior.weights.double().log(), 0)
        distribution = posterior.distribution
        target = Y if len(distribution.event_shape) > 1 else Y.squeeze(-1)
        return cast(Tensor, distribution.log_prob(target.to(distribution.mean)).double())


def _log_prob_without_noise(surrogate: Surrogate, X: Tensor, Y: Tensor) -> Tensor:
    """Of labels and counts."""
    if isinstance(surrogate, ParticleSurrogate):
        posterior: Any = surrogate.posterior(X)
        f, weights = posterior.values.double(), posterior.weights.double()
    elif surrogate._lik.is_discrete and X.shape[0] == 1 and Y.shape[-1] == 1:
        probs = surrogate.predict(X).probs
        assert probs is not None
        return probs.double()[0, Y.long().reshape(1)].squeeze(0).log()
    else:
        f = surrogate.sample_functions(_DRAWS, torch.Generator().manual_seed(surrogate.seed))(X).double()
        weights = f.new_full((_DRAWS,), 1.0 / _DRAWS)
    terms = surrogate._lik.log_prob(f, Y.double(), f.new_ones(surrogate.output_dim))
    return torch.logsumexp(terms.sum(-1) + weights.log(), 0)


def _matrix(R: ArrayLike, least: int = 1) -> Array:
    scores = np.asarray(R, dtype=np.float64)
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1] or scores.shape[0] < least:
        raise ShapeError(f"R has shape {scores.shape}; it needs T x T with T at least {least}, a row after every task")
    bad = ~np.isfinite(scores)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise InvalidDataError(f"R[{row}, {column}] is {scores[row, column]}; score every task after every task")
    return scores


def _series(losses: ArrayLike) -> Array:
    values = np.asarray(losses, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise ShapeError(f"losses have shape {values.shape}; they need one number for each of at least one step")
    if not np.isfinite(values).all():
        raise InvalidDataError(f"losses[{int(np.flatnonzero(~np.isfinite(values))[0])}] is not finite; leave failed steps out")
    return values
