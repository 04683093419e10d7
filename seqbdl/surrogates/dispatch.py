"""Surrogates in BoTorch's dispatchers: function draws serve wherever BoTorch asks for Matheron paths."""

from __future__ import annotations

from typing import Any

import torch
from botorch.sampling.pathwise.paths import SamplePath
from botorch.sampling.pathwise.posterior_samplers import DrawMatheronPaths
from torch import Tensor

from seqbdl.posteriors import FunctionDraws
from seqbdl.surrogates.base import Surrogate


class DrawPaths(SamplePath):
    """Function draws with the shapes of BoTorch's sample paths.

    Args:
        draws: ``n`` functions.
        sample_shape: A shape of ``n`` elements.
    """

    def __init__(self, draws: FunctionDraws, sample_shape: torch.Size) -> None:
        super().__init__()
        self.draws = draws
        self.sample_shape = sample_shape

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        """Evaluate the paths.

        Args:
            x: ``q x d``: every path at the same points; or ``sample_shape x batch x q x d``: every path at its own points.

        Returns:
            ``sample_shape x batch x q`` for one output, ``sample_shape x batch x m x q`` otherwise.
        """
        k = len(self.sample_shape)
        n = self.sample_shape.numel()
        own_points = k > 0 and x.dim() - 2 >= k and x.shape[:k] == self.sample_shape
        values = self.draws(x)  # n x (sample_shape x) batch x q x m
        if own_points:
            flat = values.reshape(n, n, *values.shape[1 + k :])
            values = flat.diagonal(dim1=0, dim2=1).movedim(-1, 0)
        values = values.reshape(*self.sample_shape, *values.shape[1:])
        return values.squeeze(-1) if values.shape[-1] == 1 else values.transpose(-1, -2)

    def set_ensemble_as_batch(self, ensemble_as_batch: bool) -> None:
        """Nothing to set: a draw is one function, whatever the posterior is made of."""


@DrawMatheronPaths.register(Surrogate)
def _draw_matheron_paths(model: Surrogate, *, sample_shape: torch.Size, **kwargs: Any) -> DrawPaths:
    n = max(1, torch.Size(sample_shape).numel())
    return DrawPaths(model.sample_functions(n), torch.Size(sample_shape))
