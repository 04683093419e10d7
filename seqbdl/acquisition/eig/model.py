"""What is asked of a model of experiments, and the checks of what it answers."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from seqbdl.errors import InvalidDataError, ShapeError


class ThetaSource(Protocol):
    """Draws parameters: a model (from its prior) or a posterior."""

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """``n x p`` draws."""


class DesignModel(ThetaSource, Protocol):
    """A model of an experiment with a likelihood; any object with these methods is one.

    Leading dimensions broadcast, as in ``torch.distributions``: parameters ``... x p``, designs ``... x d``, outcomes
    ``... x m``. Optional attributes:

    - ``log_prior(theta)``: ``...``, the prior density up to a constant; particles need it to be moved.
    - ``support``: ``K x m``, all possible outcomes; then information is enumerated.
    - ``reparametrized = True``: ``simulate`` is differentiable in the design, and draws the same noise from the same generator.
    - ``parameter_names``: one for each entry of theta.
    - ``goal(theta)``: ``... x g``, what the experiment is about, where that is a function of theta; the rest is a nuisance.
    - ``nuisances(theta, n, generator)``: ``n x ... x p``, draws of theta given the goal of each theta that is handed in.
    - ``moments(theta, design)``: mean and standard deviation ``...`` of an outcome that is a normal number.
    """

    def log_prob(self, y: Tensor, theta: Tensor, design: Tensor) -> Tensor:
        """``log p(y | theta, design)`` with the broadcast leading dimensions of all three."""

    def simulate(self, theta: Tensor, design: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Outcomes, with the broadcast leading dimensions of both, and ``m`` last."""


def log_likelihood(model: DesignModel, y: Tensor, theta: Tensor, design: Tensor) -> Tensor:
    """The model's ``log_prob`` in float64, with its shape and values checked.

    Raises:
        ShapeError: Another shape than the broadcast leading dimensions of the arguments.
        InvalidDataError: NaN or ``+inf``.
    """
    # NumPy's: PyTorch's function of that name takes a millisecond, and imports SymPy first.
    wanted = np.broadcast_shapes(y.shape[:-1], theta.shape[:-1], design.shape[:-1])
    value = model.log_prob(y, theta, design)
    if not isinstance(value, Tensor) or value.shape != wanted:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ShapeError(
            f"log_prob answered {got} for y {tuple(y.shape)}, theta {tuple(theta.shape)} and design {tuple(design.shape)}; "
            f"it needs {tuple(wanted)}: sum over the last dimension only, broadcast over the others"
        )
    bad = value.isnan() | (value == math.inf)
    if bool(bad.any()):
        where = tuple(int(i) for i in bad.nonzero()[0])
        raise InvalidDataError(f"log_prob is NaN or infinite at {where}; it is a finite number, or -inf for impossible outcomes")
    return value.double()


def simulate_outcomes(model: DesignModel, theta: Tensor, design: Tensor, generator: torch.Generator | None) -> Tensor:
    """The model's ``simulate``, with its shape and values checked.

    Raises:
        ShapeError: Another shape than the broadcast leading dimensions and one for the outcome.
        InvalidDataError: NaN.
    """
    wanted = np.broadcast_shapes(theta.shape[:-1], design.shape[:-1])
    y = model.simulate(theta, design, generator)
    if y.shape[:-1] != wanted or y.dim() != len(wanted) + 1:
        raise ShapeError(f"simulate answered {tuple(y.shape)}; it needs {(*wanted, 'm')}, with the outcome's dimension last")
    if bool(y.isnan().any()):
        raise InvalidDataError(f"simulate answered NaN at {tuple(int(i) for i in y.isnan().nonzero()[0])}; mend the model")
    return y


def outcomes_for(model: DesignModel, designs: Tensor, theta: Tensor, seed: int) -> Tensor:
    """Outcomes ``D x N x m`` of the parameters ``N x p`` at each of the designs ``D x d``.

    One design at a time from the same generator state: all designs meet the same noise, whatever the model.
    """
    return torch.stack([simulate_outcomes(model, theta, design, torch.Generator().manual_seed(seed)) for design in designs])


def outcomes_at(model: DesignModel, designs: Tensor, theta: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """:func:`outcomes_for`, and their log-likelihoods ``D x N``."""
    y = outcomes_for(model, designs, theta, seed)
    return y, log_likelihood(model, y, theta, designs.unsqueeze(1))


def goal_of(model: object, theta: Tensor) -> Tensor:
    """What the model's experiment is about, ``... x g``: its ``goal`` of the parameters, or all of them.

    Raises:
        ShapeError: A goal with other leading dimensions than ``theta``.
    """
    goal = getattr(model, "goal", None)
    if goal is None:
        return theta
    value = goal(theta)
    if not isinstance(value, Tensor) or value.dim() != theta.dim() or value.shape[:-1] != theta.shape[:-1]:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ShapeError(f"goal answered {got} for theta {tuple(theta.shape)}; it needs {(*theta.shape[:-1], 'g')}")
    return value


def check_support(model: DesignModel) -> Tensor | None:
    """All possible outcomes, ``K x m``, of a model that lists them in ``support``; ``None`` for others.

    Raises:
        ShapeError: Something else than ``K x m``.
    """
    support = getattr(model, "support", None)
    if support is None:
        return None
    values = torch.as_tensor(support, dtype=torch.float64)
    if values.dim() != 2 or values.shape[0] < 2:
        raise ShapeError(f"support has shape {tuple(values.shape)}; it needs K x m, one row for each possible outcome")
    return values
