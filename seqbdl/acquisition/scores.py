"""From outcomes to the one number that is maximized: objectives and outcome constraints, in BoTorch's conventions.

An objective is ``None`` (the only output), an index of the output, a BoTorch ``MCAcquisitionObjective`` or any callable
``(samples, X) -> values`` from ``... x q x m`` to ``... x q``. A constraint maps samples ``... x q x m`` to
``... x q``; negative or zero is feasible.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from botorch.acquisition.objective import GenericMCObjective, MCAcquisitionObjective
from torch import Tensor

from seqbdl.errors import InvalidOptionError

Objective = int | MCAcquisitionObjective | Callable[..., Tensor]
Constraint = Callable[[Tensor], Tensor]


def as_mc_objective(objective: Objective | None, num_outputs: int) -> MCAcquisitionObjective | None:
    """The objective as BoTorch's Monte Carlo objective; ``None`` for the only output of a single-output surrogate.

    Raises:
        InvalidOptionError: A surrogate of several outputs without an objective, or an index out of range.
    """
    if objective is None:
        if num_outputs > 1:
            raise InvalidOptionError(
                f"the surrogate has {num_outputs} outputs and objective is None; pass objective=<index of the output "
                "to maximize> or a callable from samples (... x q x m) to values (... x q)"
            )
        return None
    if isinstance(objective, MCAcquisitionObjective):
        return objective
    if isinstance(objective, int):
        index = check_output_index(objective, num_outputs)
        return _generic(lambda samples, X: samples[..., index])
    if callable(objective):
        function = with_optional_inputs(objective)
        return _generic(function)
    raise InvalidOptionError(f"objective is {objective!r}; pass an output's index or a callable on samples")


def _generic(function: Callable[[Tensor, Tensor | None], Tensor]) -> GenericMCObjective:
    def objective(samples: Tensor, X: Tensor | None = None) -> Tensor:
        return function(samples, X)

    return GenericMCObjective(objective)


def check_output_index(index: int, num_outputs: int) -> int:
    """The index itself when the surrogate has that output."""
    if not 0 <= index < num_outputs:
        raise InvalidOptionError(f"objective={index}, but the surrogate's outputs are 0 to {num_outputs - 1}")
    return index


def with_optional_inputs(function: Callable[..., Tensor]) -> Callable[[Tensor, Tensor | None], Tensor]:
    """A callable of samples alone, or of samples and inputs, as one of both."""
    try:
        names = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        names = []
    positional = [p for p in names if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    takes_inputs = len(positional) >= 2 or any(p.kind is p.VAR_POSITIONAL for p in names)
    if takes_inputs:
        return lambda samples, X: function(samples, X)
    return lambda samples, X: function(samples)


def violation(samples: Tensor, constraints: Sequence[Constraint] | None) -> Tensor | None:
    """How far each sample is from feasible, summed over constraints: ``... x q``; ``None`` without constraints."""
    if not constraints:
        return None
    return torch.stack([constraint(samples).clamp_min(0.0) for constraint in constraints]).sum(dim=0)


def feasible_first(values: Tensor, excess: Tensor | None) -> Tensor:
    """Values in which every infeasible entry ranks below every feasible one, the least infeasible first.

    Args:
        values: Any shape.
        excess: :func:`violation` of the same shape, or ``None``.
    """
    if excess is None:
        return values
    return torch.where(excess > 0, -1e10 * (1.0 + excess), values)


class Scorer:
    """Objective and constraints applied to function values ``... x q x m``."""

    def __init__(
        self, num_outputs: int, objective: Objective | None = None, constraints: Sequence[Constraint] | None = None
    ) -> None:
        self._objective = as_mc_objective(objective, num_outputs)
        self._constraints = list(constraints) if constraints else None
        self.constrained = self._constraints is not None

    def value(self, samples: Tensor, X: Tensor | None = None) -> Tensor:
        """The objective alone, ``... x q``."""
        if self._objective is None:
            return samples[..., 0]
        result: Any = self._objective(samples, X)
        return result

    def violation(self, samples: Tensor) -> Tensor | None:
        """How far from feasible, ``... x q``; ``None`` without constraints."""
        return violation(samples, self._constraints)

    def ranked(self, samples: Tensor, X: Tensor | None = None) -> Tensor:
        """The objective where feasible, below everything feasible elsewhere."""
        return feasible_first(self.value(samples, X), self.violation(samples))

    def penalized(self, samples: Tensor, X: Tensor | None, weight: Tensor | float) -> Tensor:
        """The objective less ``weight`` times the violation: continuous, for gradients."""
        excess = self.violation(samples)
        value = self.value(samples, X)
        return value if excess is None else value - weight * excess
