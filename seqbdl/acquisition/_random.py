"""Randomness that leaves the process's own generators alone.

BoTorch draws seeds and base samples from torch's global generator. Everything here runs such code on a private copy, so
that the same ``torch.Generator`` gives the same answers whatever else the process does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

# SobolEngine has direction numbers for this many dimensions.
_MAX_SOBOL_DIM = 21201


@contextmanager
def isolated_rng(seed: int) -> Iterator[None]:
    """Run the body on a global generator seeded with ``seed``, then put the old state back, also after errors."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.random.manual_seed(seed)
        yield


def draw_seed(generator: torch.Generator | None) -> int:
    """A seed drawn from the generator (which moves on); 0 without one."""
    if generator is None:
        return 0
    return int(torch.randint(2**31 - 1, (1,), generator=generator, device=generator.device))


def sobol_points(bounds: Tensor, n: int, seed: int, q: int = 1) -> Tensor:
    """Scrambled Sobol points in a box, ``n x q x d``.

    Args:
        bounds: ``2 x d``.
        n: Number of q-batches.
        seed: Of the scrambling.
        q: Points per batch; the sequence runs in ``q * d`` dimensions so that the points of a batch spread out too.
    """
    d = bounds.shape[-1]
    if q * d <= _MAX_SOBOL_DIM:
        unit = SobolEngine(q * d, scramble=True, seed=seed).draw(n, dtype=bounds.dtype)
    else:
        unit = torch.rand(n, q * d, generator=torch.Generator().manual_seed(seed), dtype=bounds.dtype)
    unit = unit.to(bounds.device).reshape(n, q, d)
    return bounds[0] + (bounds[1] - bounds[0]) * unit


def multinomial(weights: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
    """``n`` distinct indices drawn with the given weights (``N``), on the weights' device.

    Where fewer than ``n`` weights are positive, the heaviest are taken first.
    """
    if int((weights > 0).sum()) <= n:
        return weights.topk(min(n, weights.shape[0])).indices
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    drawn = torch.multinomial(weights.to(generator.device, torch.float64), n, replacement=False, generator=generator)
    return drawn.to(weights.device)
