"""Features for many arms: a network with one linear output per arm, fitted to the rewards of the arms that were played."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import relu

Layers = list[tuple[Tensor, Tensor]]
"""Weights ``in x out`` and biases ``out``; the last layer is the linear one."""


@dataclass(frozen=True)
class FeatureSettings:
    """How features are fitted, as in the deep bandits showdown (Riquelme, Tucker and Snoek 2018), by Adam.

    Attributes:
        hidden: Widths of the ReLU layers; none: the inputs themselves are the features.
        steps: Minibatches per fit.
        batch_size: Rows of a minibatch, drawn with replacement.
        learning_rate: Of Adam.
        max_norm: Gradients are clipped to it.
    """

    hidden: tuple[int, ...] = (50,)
    steps: int = 100
    batch_size: int = 512
    learning_rate: float = 0.01
    max_norm: float = 5.0


def start_layers(input_dim: int, num_arms: int, settings: FeatureSettings, generator: torch.Generator) -> Layers:
    """Weights ``N(0, 2 / fan_in)``, biases uniform, so that kinks lie where inputs are."""
    sizes, layers = (input_dim, *settings.hidden, num_arms), []
    for fan_in, fan_out in itertools.pairwise(sizes):
        weights = torch.randn(fan_in, fan_out, generator=generator, dtype=torch.float64) * (2.0 / fan_in) ** 0.5
        layers.append((weights, torch.rand(fan_out, generator=generator, dtype=torch.float64) - 0.5))
    return layers


def arm_features(layers: Layers, X: Tensor) -> Tensor:
    """``n x d`` to the last hidden layer with a constant, ``n x (F + 1)``."""
    hidden = X
    for weights, biases in layers[:-1]:
        hidden = relu(hidden @ weights + biases)
    return torch.cat([hidden, torch.ones_like(hidden[..., :1])], -1)


def fit_features(
    layers: Layers, X: Tensor, arms: Tensor, rewards: Tensor, settings: FeatureSettings, generator: torch.Generator
) -> Layers:
    """Fit on from ``layers`` by squared errors of the arms that were played; rewards are standardized for it.

    Args:
        layers: Where to start; not changed.
        X: ``n x d``.
        arms: ``n`` indices.
        rewards: ``n``.
        settings: How.
        generator: Of minibatches.
    """
    if not settings.hidden:
        return layers
    spread = rewards.std(correction=0).clamp_min(1e-9)
    targets = (rewards - rewards.mean()) / spread
    leaves = [[t.clone().requires_grad_(True) for t in layer] for layer in layers]
    flat = [t for layer in leaves for t in layer]
    optimizer = torch.optim.Adam(flat, settings.learning_rate)
    with torch.enable_grad():
        for _ in range(settings.steps):
            rows = torch.randint(X.shape[0], (min(settings.batch_size, X.shape[0]),), generator=generator)
            hidden = X[rows]
            for weights, biases in leaves[:-1]:
                hidden = relu(hidden @ weights + biases)
            outputs = hidden @ leaves[-1][0] + leaves[-1][1]
            errors = outputs.gather(1, arms[rows].unsqueeze(-1)).squeeze(-1) - targets[rows]
            optimizer.zero_grad()
            errors.square().mean().backward()
            torch.nn.utils.clip_grad_norm_(flat, settings.max_norm)
            optimizer.step()
    return [(layer[0].detach(), layer[1].detach()) for layer in leaves]
