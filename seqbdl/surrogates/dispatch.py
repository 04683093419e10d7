"""Surrogates in BoTorch's dispatchers: function draws serve wherever BoTorch asks for Matheron paths."""

from __future__ import annotations

from typing import Any

import torch
from botorch.models.model import ModelList
from botorch.sampling.pathwise.paths import PathList, SamplePath
from botorch.sampling.pathwise.posterior_samplers import DrawMatheronPaths, draw_matheron_paths
from torch import Tensor

from seqbdl.posteriors import FunctionDraws
from seqbdl.surrogates.base import Surrogate


class DrawPaths(SamplePath):
    """Function draws with the shapes of BoTorch's sample paths.

    Args:
        draws: ``n`` functions, of batch shape ``batch_shape``.
        sample_shape: A shape of ``n`` elements.
        batch_shape: The surrogate's own: ``nf x b`` for fantasies, empty otherwise.
    """

    def __init__(self, draws: FunctionDraws, sample_shape: torch.Size, batch_shape: torch.Size) -> None:
        super().__init__()
        self.draws = draws
        self.sample_shape = sample_shape
        self.batch_shape = batch_shape

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        """Evaluate the paths.

        Args:
            x: ``batch x q x d``. As in BoTorch, paths are a batch of functions of shape ``sample_shape x batch_shape``:
                where ``batch`` broadcasts with it (aligned on the right), every path is evaluated at its own points;
                any other ``batch`` goes to all paths.

        Returns:
            ``broadcast(batch, sample_shape x batch_shape) x q`` (``sample_shape x batch x q`` for other batches) for
            one output; ``m`` stands before ``q`` for several.
        """
        own = self.sample_shape + self.batch_shape
        batch = _broadcast(x.shape[:-2], own)
        if batch is None:
            values = self.draws(x)
            values = values.reshape(*self.sample_shape, *values.shape[1:])
        else:
            values = self._at_own_points(x, len(batch) - len(own), len(batch) - len(self.batch_shape))
            values = values.expand(*batch, *values.shape[-2:])
        return values.squeeze(-1) if values.shape[-1] == 1 else values.transpose(-1, -2)

    def _at_own_points(self, x: Tensor, first: int, last: int) -> Tensor:
        """Values ``batch x q x m``, the paths lying along the axes ``first`` to ``last`` (excluded) of the batch."""
        n = self.sample_shape.numel()
        x = x.reshape(*([1] * (last + len(self.batch_shape) + 2 - x.dim())), *x.shape)
        along = x.shape[first:last]
        if along.numel() == 1:  # the same points for all paths
            values = self.draws(x.reshape(*x.shape[:first], *x.shape[last:])).movedim(0, first)
        else:
            x = x.expand(*x.shape[:first], *self.sample_shape, *x.shape[last:])
            values = self.draws(x.reshape(*x.shape[:first], n, *x.shape[last:]))  # every path at all points
            values = values.diagonal(dim1=0, dim2=first + 1).movedim(-1, first)
        return values.reshape(*values.shape[:first], *self.sample_shape, *values.shape[first + 1 :])

    def set_ensemble_as_batch(self, ensemble_as_batch: bool) -> None:
        """Nothing to set: a draw is one function, whatever the posterior is made of."""


def _broadcast(a: torch.Size, b: torch.Size) -> torch.Size | None:
    try:
        return torch.broadcast_shapes(a, b)
    except RuntimeError:
        return None


@DrawMatheronPaths.register(Surrogate)
def _draw_matheron_paths(model: Surrogate, *, sample_shape: torch.Size, **kwargs: Any) -> DrawPaths:
    n = max(1, torch.Size(sample_shape).numel())
    return DrawPaths(model.sample_functions(n), torch.Size(sample_shape), model.batch_shape)


@DrawMatheronPaths.register(ModelList)
def _draw_matheron_paths_of_list(model: ModelList, *, sample_shape: torch.Size, **kwargs: Any) -> PathList:
    return PathList([draw_matheron_paths(member, sample_shape=sample_shape) for member in model.models])
