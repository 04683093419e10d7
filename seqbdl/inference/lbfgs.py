"""L-BFGS with a preconditioner, as a pure function (Nocedal 1980; Nocedal and Wright 2006, section 7.2).

The preconditioner stands for the inverse Hessian before any pair of steps was seen. Where it is the inverse, as for linear
least squares with their Gauss-Newton matrix, the first step ends at the minimum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Objective = Callable[[Tensor], tuple[Tensor, Tensor]]
"""``x`` to the loss, scalar, and its gradient, of the shape of ``x``."""
_SUFFICIENT = 1e-4  # Armijo's share of the decrease that the slope promises
_SHORTER = 0.4
_SHORTEST = 1e-5


@dataclass(frozen=True)
class LBFGSSettings:
    """Attributes:
    max_iterations: Steps at most.
    tolerance: Stop when the loss falls by less than this share of ``1 + loss``.
    history: Pairs of steps and gradient changes that are remembered.
    """

    max_iterations: int = 60
    tolerance: float = 1e-3
    history: int = 10


DEFAULT = LBFGSSettings()


@dataclass(frozen=True)
class LBFGSResult:
    """Attributes:
    x: The last point.
    loss: Scalar.
    iterations: Steps taken.
    """

    x: Tensor
    loss: Tensor
    iterations: int


def lbfgs(
    objective: Objective,
    start: Tensor,
    settings: LBFGSSettings = DEFAULT,
    precondition: Callable[[Tensor], Tensor] | None = None,
) -> LBFGSResult:
    """Minimize.

    Args:
        objective: Loss and gradient.
        start: Of any shape.
        settings: When to stop.
        precondition: A symmetric positive-definite map, near the inverse Hessian; ``None``: the identity.
    """

    def inverse(v: Tensor) -> Tensor:
        return v if precondition is None else precondition(v)

    x = start
    loss, gradient = objective(x)
    pairs: list[tuple[Tensor, Tensor, Tensor]] = []  # step, gradient change, 1 / their product
    steps = 0
    while steps < settings.max_iterations:
        direction = -_inverse_times(gradient, pairs, inverse)
        slope = _dot(gradient, direction)
        if not bool(slope < 0):
            break
        fraction = 1.0
        new_loss, new_gradient = objective(x + direction)
        while not bool(new_loss <= loss + _SUFFICIENT * fraction * slope) and fraction > _SHORTEST:
            fraction *= _SHORTER
            new_loss, new_gradient = objective(x + fraction * direction)
        if not bool(new_loss < loss):
            if not pairs:
                break
            pairs = []  # what was remembered misleads: once more along the preconditioned gradient
            continue
        steps += 1
        step, change = fraction * direction, new_gradient - gradient
        product = _dot(step, change)
        if bool(product > 1e-12 * _dot(change, change).sqrt() * _dot(step, step).sqrt()):
            pairs = [*pairs, (step, change, 1 / product)][-settings.history :]
        decrease = loss - new_loss
        x, loss, gradient = x + step, new_loss, new_gradient
        if bool(decrease < settings.tolerance * (1 + loss.abs())):
            break
    return LBFGSResult(x, loss, steps)


def _inverse_times(gradient: Tensor, pairs: list[tuple[Tensor, Tensor, Tensor]], inverse: Callable[[Tensor], Tensor]) -> Tensor:
    """The two-loop recursion; the preconditioner is scaled to agree with the last pair."""
    q, shares = gradient, []
    for step, change, weight in reversed(pairs):
        share = weight * _dot(step, q)
        shares.append(share)
        q = q - share * change
    r = inverse(q)
    if pairs:
        step, change, weight = pairs[-1]
        r = r / (weight * _dot(change, inverse(change)))
    for (step, change, weight), share in zip(pairs, reversed(shares), strict=True):
        r = r + step * (share - weight * _dot(change, r))
    return r


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return torch.dot(a.reshape(-1), b.reshape(-1))
