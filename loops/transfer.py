"""How far a new campaign should trust an old one: the evidence on the new points decides.

The old posterior enters as a power prior (:func:`seqbdl.prior_from`) with the power ``b`` unknown, on a grid that holds 0, which
is no trust. The powers are weighted by ``p(b) p(new outcomes | b)``, so that the mixture loses at most ``-log p(b = 0)`` nats
against no trust at all, over however many points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from seqbdl.diagnostics import log_predictive
from seqbdl.errors import InvalidOptionError
from seqbdl.surrogates import Surrogate, prior_from

POWERS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Trust:
    """What the new points say about an old campaign.

    Attributes:
        powers: ``b``, from no trust to all.
        log_evidence: Of the new outcomes under every power.
        weights: Posterior probabilities of the powers, under a uniform prior.
        surrogates: Every power's posterior after the new points.
    """

    powers: tuple[float, ...]
    log_evidence: tuple[float, ...]
    weights: tuple[float, ...]
    surrogates: tuple[Surrogate, ...]

    @property
    def power(self) -> float:
        """The most probable power."""
        return self.powers[self._place]

    @property
    def best(self) -> Surrogate:
        """The posterior of the most probable power."""
        return self.surrogates[self._place]

    @property
    def _place(self) -> int:
        return max(range(len(self.powers)), key=lambda i: self.weights[i])

    @property
    def expected(self) -> float:
        """The posterior mean of the power."""
        return sum(w * b for w, b in zip(self.weights, self.powers, strict=True))


def trust(old: Surrogate, X: Tensor, Y: Tensor, Yvar: Tensor | None = None, powers: Sequence[float] = POWERS) -> Trust:
    """Weigh an old campaign's posterior on the points of a new one.

    Args:
        old: The surrogate at the end of the old campaign, with its rows where its class is tempered by them; it does not change.
        X: ``n x d`` new points.
        Y: ``n x t`` their outcomes, oriented as the old ones were.
        Yvar: ``n x m`` known noise variances, for learning (the evidence goes by the noise that the old campaign learned).
        powers: The grid.

    Raises:
        InvalidOptionError: The old surrogate has learned nothing, or the grid does not hold 0.
    """
    if old.train_inputs is None:
        raise InvalidOptionError("old has learned nothing; hand in the surrogate of a campaign that was run")
    if 0.0 not in powers:
        raise InvalidOptionError(f"powers={list(powers)} must hold 0: without it an unrelated campaign could not be dropped")
    priors = [prior_from(old, temper=power) for power in powers]
    evidence = [float(log_predictive(prior, X, Y)) for prior in priors]
    weights = torch.tensor(evidence, dtype=torch.float64).softmax(0).tolist()
    return Trust(tuple(powers), tuple(evidence), tuple(weights), tuple(prior.update(X, Y, Yvar) for prior in priors))
