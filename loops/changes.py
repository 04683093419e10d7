"""What a stream's learner does about change: several hypotheses of when the world became new, each with its own posterior.

Order of a step: what may have changed happens BEFORE the outcomes of that step. Every hypothesis branches (it went on; the
world is new), every branch is scored on the outcomes with the posterior from before them, the scores become weights, and then
every branch that is kept learns from the outcomes, the new ones too. Outcomes are counted once.

Of a surrogate nothing is needed but to score, to update and :func:`seqbdl.prior_from`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from seqbdl.diagnostics import log_predictive
from seqbdl.errors import InvalidDataError, InvalidOptionError
from seqbdl.surrogates import Surrogate, prior_from

NEG_INF = -math.inf


@dataclass(frozen=True)
class Hypothesis:
    """One account of the stream so far.

    Attributes:
        surrogate: The posterior under it.
        log_weight: Its log probability.
        run: Steps learned from since the last change.
        decay: Of :class:`AdaptiveForgetting`, learned so far.
    """

    surrogate: Surrogate
    log_weight: float
    run: int
    decay: float = 0.0


class ChangeRule(ABC):
    """How hypotheses branch, and which branches are kept; stateless."""

    @abstractmethod
    def branches(self, hypotheses: list[Hypothesis], prior: Surrogate) -> list[Hypothesis]:
        """What may be true at the next step, before its outcomes; probabilities sum to one.

        Args:
            hypotheses: After the last step.
            prior: The posterior of a world that is new: the first prior, with hyperparameters learned since.
        """

    def keep(self, scored: list[Hypothesis]) -> list[Hypothesis]:
        """Which branches learn from the outcomes; their probabilities are those after the outcomes and need not sum to one."""
        return scored


@dataclass(frozen=True)
class Forgetting(ChangeRule):
    """One hypothesis, whose posterior is tempered towards the first prior before every step: ``q^b p0^(1 - b)``.

    Attributes:
        temper: ``b``, in (0, 1]; 1 forgets nothing.
    """

    temper: float = 0.99

    def __post_init__(self) -> None:
        if not 0.0 < self.temper <= 1.0:
            raise InvalidOptionError(f"temper={self.temper} must be in (0, 1]; 1 forgets nothing")

    def branches(self, hypotheses: list[Hypothesis], prior: Surrogate) -> list[Hypothesis]:
        return [replace(h, surrogate=prior_from(h.surrogate, temper=self.temper)) for h in hypotheses]


_DECAY_STEP = 0.01  # between the two decays whose scores are compared


@dataclass(frozen=True)
class AdaptiveForgetting(ChangeRule):
    """One hypothesis, tempered towards the first prior by ``exp(-decay)`` before every step, whose decay follows the gradient of
    the log score: it rises where the outcomes would have been less of a surprise had more been forgotten, and falls to 0 where
    the world stands still (Titsias et al. 2023; Duran-Martin et al. 2025, with the power prior in place of their shrunk
    moments).

    Every step is predicted, and learned, with the decay that earlier outcomes chose, ``decay <- max(0, decay + rate (log p(y |
    decay + h) - log p(y | decay)) / h)``; predictions mix the two decays.

    Attributes:
        rate: Of the gradient step; scores of a chunk are sums over its rows.
        largest: Of the decay: what one surprise can make of it. 3 leaves 5 % of the posterior.
    """

    rate: float = 0.01
    largest: float = 3.0

    def __post_init__(self) -> None:
        if not self.rate > 0.0 or not self.largest > 0.0:
            raise InvalidOptionError(f"rate={self.rate} and largest={self.largest} must be positive")

    def branches(self, hypotheses: list[Hypothesis], prior: Surrogate) -> list[Hypothesis]:
        (only,) = hypotheses
        half = math.log(0.5)
        return [
            replace(only, surrogate=prior_from(only.surrogate, temper=math.exp(-decay)), log_weight=half)
            for decay in (only.decay, only.decay + _DECAY_STEP)
        ]

    def keep(self, scored: list[Hypothesis]) -> list[Hypothesis]:
        present, more = scored
        decay = present.decay + self.rate * (more.log_weight - present.log_weight) / _DECAY_STEP
        return [replace(present, log_weight=0.0, decay=min(max(decay, 0.0), self.largest))]


@dataclass(frozen=True)
class BOCD(ChangeRule):
    """Bayesian online changepoint detection (Adams and MacKay 2007): the length of the present run is unknown, and the world
    becomes new with a constant probability before every step.

    Attributes:
        hazard: That probability, in (0, 1).
        max_hypotheses: Run lengths that are kept, the most probable ones; ``None``: all.
    """

    hazard: float = 0.01
    max_hypotheses: int | None = 10

    def __post_init__(self) -> None:
        _check_share("hazard", self.hazard)
        _check_count("max_hypotheses", self.max_hypotheses)

    def branches(self, hypotheses: list[Hypothesis], prior: Surrogate) -> list[Hypothesis]:
        stay, leave = math.log1p(-self.hazard), math.log(self.hazard)
        return [*(Hypothesis(h.surrogate, h.log_weight + stay, h.run) for h in hypotheses), Hypothesis(prior, leave, 0)]

    def keep(self, scored: list[Hypothesis]) -> list[Hypothesis]:
        return _most_probable(scored, self.max_hypotheses)


@dataclass(frozen=True)
class TemperedBeam(ChangeRule):
    """Before every step each hypothesis may have its posterior tempered, a soft reset (Li et al. 2021); a beam of the most
    probable histories is kept (by probability alone, where the paper also keeps parents distinct).

    Attributes:
        probability: Of a change before a step, in (0, 1).
        temper: What is left of the posterior after a change; 0 is a hard reset.
        beam: How many are kept.
    """

    probability: float = 0.05
    temper: float = 0.5
    beam: int = 4

    def __post_init__(self) -> None:
        _check_share("probability", self.probability)
        _check_count("beam", self.beam)
        if not 0.0 <= self.temper < 1.0:
            raise InvalidOptionError(f"temper={self.temper} must be in [0, 1)")

    def branches(self, hypotheses: list[Hypothesis], prior: Surrogate) -> list[Hypothesis]:
        stay, leave = math.log1p(-self.probability), math.log(self.probability)
        went_on = [Hypothesis(h.surrogate, h.log_weight + stay, h.run) for h in hypotheses]
        new = [
            Hypothesis(prior if self.temper == 0.0 else prior_from(h.surrogate, temper=self.temper), h.log_weight + leave, 0)
            for h in hypotheses
        ]
        return [*went_on, *new]

    def keep(self, scored: list[Hypothesis]) -> list[Hypothesis]:
        return _most_probable(scored, self.beam)


@dataclass(frozen=True)
class SoftReset(ChangeRule):
    """One hypothesis: its posterior is trusted as far as it explains the new outcomes better than the prior does (the idea of the
    greedy run length of Duran-Martin et al. 2025, with the power prior in place of their shrunk moments).

    With ``v`` the probability that nothing changed, given the outcomes, the posterior to the power ``v`` learns from them
    where ``v`` exceeds the threshold, and the prior does where it does not.

    Attributes:
        probability: Of a change before a step, in (0, 1).
        threshold: In (0, 1).
    """

    probability: float = 0.01
    threshold: float = 0.5

    def __post_init__(self) -> None:
        _check_share("probability", self.probability)
        _check_share("threshold", self.threshold)

    def branches(self, hypotheses: list[Hypothesis], prior: Surrogate) -> list[Hypothesis]:
        (only,) = hypotheses
        stay, leave = math.log1p(-self.probability), math.log(self.probability)
        return [Hypothesis(only.surrogate, stay, only.run), Hypothesis(prior, leave, 0)]

    def keep(self, scored: list[Hypothesis]) -> list[Hypothesis]:
        old, new = scored
        trust = math.exp(old.log_weight - log_sum([old.log_weight, new.log_weight]))
        if trust <= self.threshold:
            return [Hypothesis(new.surrogate, 0.0, 0)]
        return [Hypothesis(prior_from(old.surrogate, temper=trust), 0.0, old.run)]


def advance(
    rule: ChangeRule | None, hypotheses: list[Hypothesis], prior: Surrogate | None, X: Tensor, Y: Tensor
) -> tuple[list[Hypothesis], float]:
    """Score a chunk of outcomes, then learn from it.

    Args:
        rule: ``None``: no change is expected.
        hypotheses: Before the outcomes; they do not change.
        prior: Of a world that is new; not needed without a rule.
        X: ``n x d``.
        Y: ``n x t``.

    Returns:
        The new hypotheses, their probabilities summing to one, and ``log p(Y)`` under all of them.

    Raises:
        InvalidDataError: A score or a new posterior is not finite. Nothing has changed then.
    """
    options = expected(rule, hypotheses, prior)
    scores = [float(log_predictive(h.surrogate, X, Y)) for h in options]
    scored = [replace(h, log_weight=h.log_weight + s) for h, s in zip(options, scores, strict=True)]
    log_score = log_sum([h.log_weight for h in scored])
    if not math.isfinite(log_score):
        raise InvalidDataError(f"the log score of the outcomes is {log_score}; the posterior was left as it was")
    kept = scored if rule is None else rule.keep(scored)
    total = log_sum([h.log_weight for h in kept])
    return [
        replace(h, surrogate=learned(h.surrogate, X, Y), log_weight=h.log_weight - total, run=h.run + 1) for h in kept
    ], log_score


def expected(rule: ChangeRule | None, hypotheses: list[Hypothesis], prior: Surrogate | None) -> list[Hypothesis]:
    """What may be true at the next step, before its outcomes."""
    if rule is None:
        return hypotheses
    assert prior is not None
    return rule.branches(hypotheses, prior)


def learned(surrogate: Surrogate, X: Tensor, Y: Tensor) -> Surrogate:
    """A new surrogate that also knows the chunk, and holds no older rows than its method does; the old one does not change.

    Raises:
        InvalidDataError: Its predictions are not finite.
    """
    twin = prior_from(surrogate).update(X, Y)
    prediction = twin.predict(X)
    if not bool(prediction.mean.isfinite().all() and prediction.std.isfinite().all()):
        raise InvalidDataError("the updated posterior predicts values that are not finite; the posterior was left as it was")
    return twin


def log_sum(values: list[float]) -> float:
    """``log sum exp``."""
    return float(torch.tensor(values, dtype=torch.float64).logsumexp(0))


def _most_probable(scored: list[Hypothesis], count: int | None) -> list[Hypothesis]:
    if count is None or len(scored) <= count:
        return scored
    chosen = sorted(range(len(scored)), key=lambda i: -scored[i].log_weight)[:count]
    return [scored[i] for i in sorted(chosen)]


def _check_share(name: str, value: float) -> None:
    if not 0.0 < value < 1.0:
        raise InvalidOptionError(f"{name}={value} must lie strictly between 0 and 1")


def _check_count(name: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise InvalidOptionError(f"{name}={value} must be at least 1")
