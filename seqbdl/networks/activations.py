"""Activations with their derivatives, and the input range that networks see."""

from __future__ import annotations

import math

import torch
from torch import Tensor

ACTIVATIONS = ("erf", "relu", "leaky_relu")
LEAK = 0.01


def activate(z: Tensor, activation: str) -> Tensor:
    """``erf(sqrt(pi)/2 z)`` (tanh to within 0.04, same slope at 0), ReLU, or leaky ReLU."""
    if activation == "erf":
        return torch.erf(0.5 * math.sqrt(math.pi) * z)
    if activation == "relu":
        return torch.relu(z)
    return torch.nn.functional.leaky_relu(z, LEAK)


def activation_slope(z: Tensor, activation: str) -> Tensor:
    """The derivative of :func:`activate`."""
    if activation == "erf":
        return torch.exp(-0.25 * math.pi * z.square())
    return torch.where(z > 0, torch.ones_like(z), torch.full_like(z, 0.0 if activation == "relu" else LEAK))


def centred(X: Tensor) -> Tensor:
    """Unit-cube inputs to [-1, 1]."""
    return 2.0 * X - 1.0
