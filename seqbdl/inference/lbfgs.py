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
        precondition: A linear map, symmetric and positive definite, near the inverse Hessian; ``None``: the identity.
    """

    def inverse(v: Tensor) -> Tensor:
        return v if precondition is None else precondition(v)

    x = start
    loss, gradient = objective(x)
    scaled = inverse(gradient)
    pairs: list[_Pair] = []
    steps = 0
    while steps < settings.max_iterations:
        direction = -_inverse_times(gradient, scaled, pairs)
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
        new_scaled = inverse(new_gradient)
        step, change = fraction * direction, new_gradient - gradient
        product = _dot(step, change)
        if bool(product > 1e-12 * _dot(change, change).sqrt() * _dot(step, step).sqrt()):
            pairs = [*pairs, _Pair(step, change, new_scaled - scaled, 1 / product)][-settings.history :]
        decrease = loss - new_loss
        x, loss, gradient, scaled = x + step, new_loss, new_gradient, new_scaled
        if bool(decrease < settings.tolerance * (1 + loss.abs())):
            break
    return LBFGSResult(x, loss, steps)


@dataclass(frozen=True)
class _Pair:
    """Attributes:
    step: ``s``.
    change: ``y``, of the gradient.
    scaled: The preconditioner times ``y``.
    weight: ``1 / <s, y>``.
    """

    step: Tensor
    change: Tensor
    scaled: Tensor
    weight: Tensor


def _inverse_times(gradient: Tensor, scaled: Tensor, pairs: list[_Pair]) -> Tensor:
    """The two-loop recursion; the preconditioner is multiplied by what agrees with the last pair.

    The preconditioner is linear, so that its products with ``gradient`` (``scaled``) and with the remembered changes make all
    others: it is applied once per step.
    """
    shares = []
    for pair in reversed(pairs):
        share = pair.weight * _dot(pair.step, gradient)
        shares.append(share)
        gradient, scaled = gradient - share * pair.change, scaled - share * pair.scaled
    r = scaled
    if pairs:
        last = pairs[-1]
        r = r / (last.weight * _dot(last.change, last.scaled))
    for pair, share in zip(pairs, reversed(shares), strict=True):
        r = r + pair.step * (share - pair.weight * _dot(pair.change, r))
    return r


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return torch.dot(a.reshape(-1), b.reshape(-1))
