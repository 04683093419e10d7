"""Entropy search from function draws alone, without a Gaussian anywhere.

``n`` functions are drawn and each is maximized. The draws are put into groups with similar maxima; the information that
an observation ``y`` at ``x`` gives about the group is ``H[y] - mean over groups H[y | group]``, both entropies being
those of mixtures of the draws' values plus noise, integrated on a grid. By the data-processing inequality the
information about the group never exceeds that about the maximum itself: more groups and draws tighten the bound.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from botorch.acquisition.acquisition import AcquisitionFunction
from botorch.models.model import Model
from torch import Tensor

from seqbdl.acquisition._models import t_batch_mode_transform
from seqbdl.acquisition.draws import Draws


class DrawEntropySearch(AcquisitionFunction):
    """Information about the maximum (its value or its place) from an observation at one point.

    Args:
        model: The surrogate, kept for reference only.
        draws: ``n`` functions with one output.
        key: What to learn about: ``n`` maxima, or ``n x d`` maximizers.
        noise: Variance of the observation noise, a 0-d tensor.
        num_groups: Groups of similar optima.
        grid: Points of the numerical integration.
        seed: Of the grouping of places.
    """

    def __init__(
        self,
        model: Model,
        draws: Draws,
        key: Tensor,
        noise: Tensor,
        num_groups: int = 8,
        grid: int = 96,
        seed: int = 0,
    ) -> None:
        super().__init__(model=model)
        self.draws = draws
        self._noise = noise
        self._grid = grid
        groups = _by_value(key, num_groups) if key.dim() == 1 else _by_place(key, num_groups, seed)
        self.register_buffer("membership", groups)  # groups x n, rows sum to one
        self.register_buffer("shares", (groups > 0).to(key).sum(dim=-1) / key.shape[0])

    @t_batch_mode_transform(expected_q=1)
    def forward(self, X: Tensor) -> Tensor:
        """Information in nats, ``b`` for ``X`` ``b x 1 x d``."""
        values = self.draws(X)[..., 0, 0]  # n x b
        membership, shares = cast(Tensor, self.membership), cast(Tensor, self.shares)
        n = values.shape[0]
        spread = values.detach().std(dim=0).clamp_min(1e-9)
        # Draws are a sample: the same kernel width for all mixtures keeps the two entropies comparable.
        width = (spread.square() * n ** (-0.4) + self._noise).sqrt()
        low = values.detach().amin(dim=0) - 5 * width
        high = values.detach().amax(dim=0) + 5 * width
        steps = torch.linspace(0, 1, self._grid, dtype=values.dtype, device=values.device)
        y = low + steps.unsqueeze(-1) * (high - low)  # grid x b
        kernel = torch.exp(-0.5 * ((y.unsqueeze(1) - values) / width).square()) / (width * math.sqrt(2 * math.pi))
        step = (high - low) / (self._grid - 1)
        overall = _entropy(kernel.mean(dim=1), step)
        grouped = _entropy(torch.einsum("kn,gnb->gkb", membership, kernel), step)  # groups x b
        return overall - (shares.unsqueeze(-1) * grouped).sum(dim=0)


def _entropy(density: Tensor, step: Tensor) -> Tensor:
    """Entropy of densities on a grid along dimension 0."""
    return -(density * density.clamp_min(1e-300 if density.dtype == torch.float64 else 1e-30).log()).sum(dim=0) * step


def _by_value(values: Tensor, count: int) -> Tensor:
    order = values.argsort()
    groups = values.new_zeros(min(count, values.shape[0]), values.shape[0])
    for i, members in enumerate(order.tensor_split(groups.shape[0])):
        groups[i, members] = 1.0 / members.shape[0]
    return groups


def _by_place(places: Tensor, count: int, seed: int) -> Tensor:
    """k-means of the maximizers, columns scaled to the same spread; empty groups are dropped."""
    scaled = (places - places.mean(dim=0)) / places.std(dim=0).clamp_min(1e-12)
    generator = torch.Generator().manual_seed(seed)
    start = torch.randperm(places.shape[0], generator=generator)[: min(count, places.shape[0])]
    centres = scaled[start.to(places.device)]
    owner = torch.zeros(places.shape[0], dtype=torch.long, device=places.device)
    for _ in range(25):
        owner = torch.cdist(scaled, centres).argmin(dim=-1)
        sums = torch.zeros_like(centres).index_add_(0, owner, scaled)
        sizes = torch.bincount(owner, minlength=centres.shape[0]).to(scaled).unsqueeze(-1)
        centres = torch.where(sizes > 0, sums / sizes.clamp_min(1), centres)
    groups = torch.nn.functional.one_hot(owner, centres.shape[0]).to(places).T
    groups = groups[groups.sum(dim=-1) > 0]
    return groups / groups.sum(dim=-1, keepdim=True)
