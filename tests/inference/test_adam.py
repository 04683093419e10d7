"""Stacked Adam equals PyTorch's, member by member."""

from __future__ import annotations

import torch
from torch import Tensor

from seqbdl.inference.adam import AdamSettings, adam, gradient_of


def test_it_is_pytorchs_adam_for_every_member() -> None:
    centres = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    start = torch.zeros(3, 5, dtype=torch.float64)

    def loss(z: Tensor, rows: Tensor | None) -> Tensor:
        return ((z - centres) ** 2 * torch.arange(1.0, 6.0, dtype=torch.float64)).sum(-1)

    seen: list[int] = []
    settings = AdamSettings(steps=50, learning_rate=0.05, decay=False)
    ours = adam(gradient_of(loss), start, 1, settings, torch.Generator(), lambda step, z: seen.append(step))
    assert seen == list(range(50))
    leaf = start.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([leaf], lr=0.05)
    for _ in range(50):
        optimizer.zero_grad()
        loss(leaf, None).sum().backward()
        optimizer.step()
    torch.testing.assert_close(ours, leaf.detach())
    assert bool((start == 0).all())


def test_long_gradients_are_shortened_and_rates_decay() -> None:
    steps: list[Tensor] = []
    settings = AdamSettings(steps=20, learning_rate=1.0, max_norm=1e-3)
    adam(
        lambda z, rows: torch.ones_like(z),
        torch.zeros(1, 2).double(),
        1,
        settings,
        torch.Generator(),
        lambda s, z: steps.append(z),
    )
    moves = torch.stack(steps).diff(dim=0).norm(dim=-1)
    assert bool((moves.diff(dim=0) < 0).all())
    far = torch.full((1, 2), 1e6, dtype=torch.float64)
    moved = adam(lambda z, rows: z, far, 1, AdamSettings(steps=1, learning_rate=0.1, max_norm=1.0), torch.Generator())
    torch.testing.assert_close(moved, far - 0.1, rtol=0, atol=1e-6)
