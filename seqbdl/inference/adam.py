"""Adam for stacked parameters, as a pure function: every member has its own loss, one step moves all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from seqbdl.inference.log_joint import minibatches


@dataclass(frozen=True)
class AdamSettings:
    """Attributes:
    steps: How many.
    learning_rate: Of the first step.
    batch_size: Rows per step; ``None``: all.
    decay: The learning rate falls to zero along a half cosine.
    betas: Of the two running means (Kingma and Ba 2015).
    epsilon: Added to the root of the second.
    max_norm: Gradients are shortened to this norm, member by member; ``None``: not.
    """

    steps: int = 1000
    learning_rate: float = 1e-2
    batch_size: int | None = None
    decay: bool = True
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    max_norm: float | None = None


Gradient = Callable[[Tensor, Tensor | None], Tensor]
"""``(parameters S x P, row indices or None) -> gradient of the loss, S x P``."""


def adam(
    gradient: Gradient,
    start: Tensor,
    num_rows: int,
    settings: AdamSettings,
    generator: torch.Generator,
    visit: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Descend.

    Args:
        gradient: Of every member's loss, to be minimized.
        start: ``S x P``.
        num_rows: Rows that mini-batches index.
        settings: Steps and rates.
        generator: Orders the rows.
        visit: Called after every step with the step's number, from 0, and the parameters.

    Returns:
        The last parameters, ``S x P``.
    """
    z = start
    first, second = torch.zeros_like(z), torch.zeros_like(z)
    b1, b2 = settings.betas
    for step, rows in enumerate(minibatches(num_rows, settings.batch_size, settings.steps, generator)):
        g = gradient(z, rows)
        if settings.max_norm is not None:
            norm = torch.linalg.vector_norm(g, dim=-1, keepdim=True)
            g = g * (settings.max_norm / norm.clamp_min(settings.max_norm))
        first, second = torch.lerp(first, g, 1 - b1), b2 * second + (1 - b2) * g * g
        rate = settings.learning_rate
        if settings.decay:
            rate *= 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * step / settings.steps))))
        scale = (second / (1 - b2 ** (step + 1))).sqrt_().add_(settings.epsilon)
        z = z - (rate / (1 - b1 ** (step + 1))) * first / scale
        if visit is not None:
            visit(step, z)
    return z


def gradient_of(loss: Callable[[Tensor, Tensor | None], Tensor]) -> Gradient:
    """The gradient of a differentiable loss ``(S x P, rows) -> S``."""

    def gradient(z: Tensor, rows: Tensor | None) -> Tensor:
        with torch.enable_grad():
            leaf = z.detach().requires_grad_(True)
            result: Tensor = torch.autograd.grad(loss(leaf, rows).sum(), leaf)[0]
        return result

    return gradient
