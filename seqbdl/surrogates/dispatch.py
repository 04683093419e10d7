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
            x: ``batch x q x d``. As in BoTorch, paths are a batch of functions, of shape ``sample_shape x
                batch_shape``, and ``x m`` for several outputs: where ``batch`` broadcasts with it (aligned on the
                right), every function is evaluated at its own points; any other ``batch`` goes to all paths.

        Returns:
            ``broadcast(batch, functions) x q``; for other batches ``sample_shape x batch x q``, with ``m`` before ``q``
            for several outputs.
        """
        m = self.draws.num_outputs
        functions = self.sample_shape + self.batch_shape + torch.Size([m] if m > 1 else [])
        batch = _broadcast(x.shape[:-2], functions)
        if batch is None:
            values = self.draws(x)
            values = values.reshape(*self.sample_shape, *values.shape[1:])
            return values.squeeze(-1) if m == 1 else values.transpose(-1, -2)
        x = x.reshape(*([1] * (len(batch) + 2 - x.dim())), *x.shape)
        if m == 1:
            values = self._at_own_points(x).squeeze(-1)
        elif x.shape[-3] == 1:
            values = self._at_own_points(x.squeeze(-3)).transpose(-1, -2)
        else:  # every output at its own points
            each = [self._at_own_points(x[..., i, :, :])[..., i] for i in range(m)]
            values = torch.stack(each, dim=-2)
        return values.expand(*batch, x.shape[-2])

    def _at_own_points(self, x: Tensor) -> Tensor:
        """Values ``batch x q x m`` where ``batch`` ends in one dimension for every one of the paths and the
        surrogate."""
        last = x.dim() - 2 - len(self.batch_shape)
        first = last - len(self.sample_shape)
        n = self.sample_shape.numel()
        if x.shape[first:last].numel() == 1:  # the same points for all paths
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
