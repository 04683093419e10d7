"""What another policy would have earned, from logged decisions: importance weighting and the doubly robust estimate.

Logged are contexts, arms, the chances with which they were played (`propensity`) and rewards; the other policy is given by the
chances with which it would play each arm in each logged context.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from seqbdl.errors import InvalidDataError, InvalidOptionError, ShapeError

Array = NDArray[np.float64]
METHODS = ("ips", "snips", "dr")


@dataclass(frozen=True)
class OffPolicyEstimate:
    """Attributes:
    value: Estimated mean reward per decision of the other policy.
    std_error: Of it, by the central limit theorem (self-normalized: by the delta method).
    interval: Central interval at the level asked for.
    effective_size: ``(sum w)^2 / sum w^2`` of the importance weights: so many decisions is the log worth.
    method: ``"ips"``, ``"snips"`` or ``"dr"``.
    """

    value: float
    std_error: float
    interval: tuple[float, float]
    effective_size: float
    method: str


def off_policy_value(
    arms: Any,
    rewards: Any,
    propensities: Any,
    target: Any,
    method: str = "snips",
    predicted: Any = None,
    level: float = 0.95,
) -> OffPolicyEstimate:
    """The mean reward of a policy that did not take the logged decisions.

    Args:
        arms: ``n`` indices that were played.
        rewards: ``n``.
        propensities: ``n`` chances with which they were played.
        target: ``n x K`` chances with which the other policy plays every arm.
        method: ``"ips"``, inverse propensities (Horvitz and Thompson 1952): unbiased; ``"snips"``, self-normalized
            (Swaminathan and Joachims 2015): a little biased, far less noisy; ``"dr"``, doubly robust (Dudik et al. 2011):
            unbiased, and less noisy the better ``predicted`` is.
        predicted: ``n x K`` rewards by a model that did not learn from these rows; of ``"dr"`` only.
        level: Of the interval.

    Raises:
        ShapeError: Lengths do not fit.
        InvalidDataError: NaN, chances outside (0, 1], or rows of ``target`` that do not sum to 1.
        InvalidOptionError: No such method, or one without what it needs.
    """
    if method not in METHODS:
        raise InvalidOptionError(f"method={method!r} is not one of {', '.join(map(repr, METHODS))}")
    if (method == "dr") != (predicted is not None):
        raise InvalidOptionError("predicted rewards go with method='dr', and with nothing else")
    if not 0.0 < level < 1.0:
        raise InvalidOptionError(f"level={level} is a chance between 0 and 1")
    a = np.asarray(arms).reshape(-1)
    r, p = (np.asarray(v, dtype=np.float64).reshape(-1) for v in (rewards, propensities))
    pi = np.asarray(target, dtype=np.float64)
    n = len(r)
    if pi.ndim != 2 or not len(a) == len(p) == len(pi) == n or n < 2:
        raise ShapeError(
            f"{len(a)} arms, {n} rewards, {len(p)} propensities, target {pi.shape}: one of each per decision, 2 or more"
        )
    _refuse("rewards", ~np.isfinite(r), "leave out decisions whose reward never came")
    _refuse("propensities", ~((p > 0) & (p <= 1)), "log the chance of the arm that was played, in (0, 1]")
    _refuse("arms", ~np.isin(a, np.arange(pi.shape[1])), f"arms are integers below {pi.shape[1]}")
    _refuse("target", ~((pi >= 0).all(1) & (np.abs(pi.sum(1) - 1) < 1e-6)), "each row holds chances that sum to 1")
    rows, a = np.arange(n), a.astype(int)
    w = pi[rows, a] / p
    effective = float(w.sum() ** 2 / max(float((w**2).sum()), 1e-300))
    if method == "snips":
        if w.sum() == 0:
            raise InvalidDataError("target never plays an arm that was logged; there is nothing to learn of it from this log")
        value = float((w * r).sum() / w.sum())
        error = float(np.sqrt(((w * (r - value)) ** 2).sum()) / w.sum())
    else:
        terms = w * r
        if predicted is not None:
            q = np.asarray(predicted, dtype=np.float64)
            if q.shape != pi.shape:
                raise ShapeError(f"predicted has shape {q.shape}; it needs that of target, {pi.shape}")
            _refuse("predicted", ~np.isfinite(q).all(1), "predict every arm in every context")
            terms = (pi * q).sum(1) + w * (r - q[rows, a])
        value, error = float(terms.mean()), float(terms.std(ddof=1) / np.sqrt(n))
    half = float(norm.ppf(0.5 + 0.5 * level)) * error
    return OffPolicyEstimate(value, error, (value - half, value + half), effective, method)


def _refuse(name: str, wrong: Any, remedy: str) -> None:
    bad = np.asarray(wrong)
    if bad.any():
        raise InvalidDataError(f"{name}: row {int(np.flatnonzero(bad)[0])} cannot be used; {remedy}")
