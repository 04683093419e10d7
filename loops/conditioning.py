"""A surrogate that keeps up with a history: when it is fitted anew, and when it is only updated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, cast

import numpy as np
import torch
from botorch.utils.multi_objective.pareto import is_non_dominated
from numpy.typing import NDArray
from torch import Tensor

from seqbdl.errors import InvalidDataError
from seqbdl.loops.history import History, Record
from seqbdl.loops.outcomes import OutcomeSpec
from seqbdl.loops.space import Point
from seqbdl.loops.transfer import Trust, trust
from seqbdl.surrogates import Surrogate


def moments(surrogate: Surrogate, X: Tensor) -> tuple[Tensor, Tensor]:
    """Marginal posterior mean and variance at ``X: n x d``, both ``n x m``, without gradients."""
    with torch.no_grad():
        posterior = cast(Any, surrogate.posterior(X.unsqueeze(-2)))
        return posterior.mean.squeeze(-2), posterior.variance.squeeze(-2).clamp_min(0.0)


class Encodes(Protocol):
    """Turns points into the inputs of a surrogate: a space, or a pool."""

    def encode(self, points: Iterable[Point]) -> Tensor:
        """``k x d``."""


class Conditioning:
    """The surrogate of a loop and what it knows.

    The surrogate's outputs are outcomes, oriented to be maximized, then constraints.

    Args:
        surrogate: The surrogate.
        space: Encodes points.
        outcomes: The outcomes and constraints of a trial.
        refit: ``"every"`` change, every ``k`` trials, or ``"update"``: only the first time.
        prior: The surrogate of an earlier campaign: every model starts from its posterior, tempered as the trials say.
    """

    def __init__(
        self, surrogate: Surrogate, space: Encodes, outcomes: OutcomeSpec, refit: str | int, prior: Surrogate | None = None
    ) -> None:
        self.prior = prior
        self.trust: Trust | None = None
        self.surrogate = surrogate
        self.space = space
        self.outcomes = outcomes
        self.refit = refit
        self._absorbed: list[int] = []  # trials the surrogate knows, in its order
        self._since_fit = 0

    def fitted(self, history: History) -> Surrogate:
        """The surrogate, knowing every complete trial. Does nothing when it knows them already.

        Raises:
            InvalidDataError: No trial is complete.
        """
        complete = history.complete
        if not complete:
            raise InvalidDataError("no trial is complete yet; tell an outcome first")
        known = set(self._absorbed)
        fresh = [record for record in complete if record.step not in known]
        if not fresh:
            return self.surrogate
        due = not self._absorbed or self.refit == "every"
        if isinstance(self.refit, int):
            due = due or self._since_fit + len(fresh) >= self.refit
        if self.prior is not None:
            self.trust = trust(self.prior, *self.data(complete))
            dropped = self.trust.power == 0.0  # then its hyperparameters go too: a cold start
            self.surrogate = self.prior.clone().fit(*self.data(complete)) if dropped else self.trust.best
            self._absorbed = [record.step for record in complete]
        elif due:
            self.surrogate.fit(*self.data(complete))
            self._absorbed, self._since_fit = [record.step for record in complete], 0
        else:
            self.surrogate.update(*self.data(fresh))
            self._absorbed += [record.step for record in fresh]
            self._since_fit += len(fresh)
        return self.surrogate

    def data(self, records: Iterable[Record]) -> tuple[Tensor, Tensor, Tensor | None]:
        """``X: n x d``, ``Y: n x (m + k)`` oriented for the surrogate, and ``Yvar`` where it is known."""
        rows = list(records)
        X = self.space.encode(record.point for record in rows)
        values = [[*record.outcomes, *record.constraints] for record in rows]
        Y = torch.tensor(values, dtype=torch.double) * torch.tensor(self.outcomes.signs, dtype=torch.double)
        variances = [record.variances for record in rows if record.variances is not None]
        return X, Y.to(X.device), torch.tensor(variances, dtype=torch.double, device=X.device) if variances else None

    def predict(self, points: Sequence[Point]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Posterior mean and standard deviation of the outcomes, ``n x m`` each, in the user's units."""
        m = len(self.outcomes.names)
        mean, variance = moments(self.surrogate, self.space.encode(points))
        return mean[:, :m].numpy() * np.array(self.outcomes.signs[:m]), variance[:, :m].sqrt().numpy()

    def best(self, history: History, modelled: bool = True) -> list[Record]:
        """The complete trial with the best posterior mean, or the Pareto front of posterior means.

        Args:
            history: The trials.
            modelled: Go by posterior means; otherwise, or with a single trial, by what was observed.

        Returns:
            Records among those predicted feasible, where none is among those with the smallest violation. A single
            outcome: the best one only.

        Raises:
            InvalidDataError: No trial is complete.
        """
        complete = history.complete
        if modelled and len(complete) > 1:
            surrogate = self.fitted(history)
            values = moments(surrogate, self.space.encode(record.point for record in complete))[0]
        elif complete:
            values = self.data(complete)[1]
        else:
            raise InvalidDataError("no trial is complete yet; tell an outcome first")
        m = len(self.outcomes.names)
        violation = values[:, m:].clamp_min(0.0).sum(-1)
        allowed = violation == violation.min()
        values = values[:, :m].masked_fill(~allowed.unsqueeze(-1), -torch.inf)
        if m == 1:
            return [complete[int(values[:, 0].argmax())]]
        keep = is_non_dominated(values) & allowed
        return [record for record, kept in zip(complete, keep.tolist(), strict=True) if kept]

    def state_dict(self) -> dict[str, Any]:
        """The surrogate's state and what it knows, as a tree."""
        return {
            "surrogate": self.surrogate.save_state(),
            "absorbed": list(self._absorbed),
            "since_fit": self._since_fit,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        self.surrogate.load_state(state["surrogate"])
        self._absorbed = [int(step) for step in state["absorbed"]]
        self._since_fit = int(state["since_fit"])
