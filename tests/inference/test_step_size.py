"""Adaptation: step sizes reach the acceptance asked for, variances are those of the chains, windows are Stan's."""

from __future__ import annotations

import math

import torch

from seqbdl.inference.step_size import DualAveraging, Moments, window_ends


def test_dual_averaging_finds_the_step_of_every_chain() -> None:
    """Acceptance falls with the step as it does for leapfrog in high dimensions, ``erfc`` of the square, noisily."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([0.01, 0.1, 1.0], dtype=torch.float64)

    def acceptance(step: torch.Tensor) -> torch.Tensor:
        return torch.erfc((step / scale).square())

    steps = DualAveraging.begin(torch.full((3,), 0.1, dtype=torch.float64))
    for _ in range(1000):
        noise = 0.1 * torch.randn(3, generator=generator, dtype=torch.float64)
        steps = steps.update((acceptance(steps.log_step.exp()) + noise).clamp(0, 1), 0.8)
    torch.testing.assert_close(acceptance(steps.smooth.exp()), torch.full((3,), 0.8).double(), atol=0.03, rtol=0)


def test_first_update_is_hoffman_and_gelmans() -> None:
    steps = DualAveraging.begin(torch.tensor([0.5], dtype=torch.float64)).update(torch.tensor([0.3]).double(), 0.8)
    expected = math.log(5.0) - 1 / 0.05 * (1 / 11) * 0.5  # mu - sqrt(t) / gamma * H, t = 1, t0 = 10
    torch.testing.assert_close(steps.log_step, torch.tensor([expected]).double())
    torch.testing.assert_close(steps.smooth, steps.log_step)
    limited = steps.update(torch.ones(1).double(), 0.8, limit=0.01)
    torch.testing.assert_close(limited.log_step.exp(), torch.tensor([0.01]).double())


def test_variances_are_pooled_about_the_means_of_the_chains() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(50, 4, 3, generator=generator, dtype=torch.float64) + 100.0 * torch.arange(4.0)[:, None]  # far modes
    moments = Moments.begin(draws[0])
    for z in draws:
        moments = moments.update(z)
    raw = draws.var(0).mean(0)
    n = 4 * 49
    torch.testing.assert_close(moments.variance(), raw * n / (n + 5) + 1e-3 * 5 / (n + 5))


def test_windows() -> None:
    assert window_ends(1000) == [75, 100, 150, 250, 450, 950]
    assert window_ends(150) == [75, 100]
    assert window_ends(100) == [15, 90]
    assert window_ends(19) == []
