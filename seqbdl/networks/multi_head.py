"""Multilayer perceptrons with one head per task on a shared body; the last input says which task a row belongs to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from seqbdl.errors import InvalidDataError, InvalidOptionError
from seqbdl.networks.activations import centred
from seqbdl.networks.mlp import MLP

_OFF_GRID = 1e-3


class MultiHeadMLP(MLP):
    """A perceptron whose last layer has ``T`` times ``m`` units, ``m`` of which are the outputs at a row: those of its task.

    The last column of the inputs is the task, ``t / (T - 1)`` in the unit cube; the body does not see it. Whatever learns the
    weights learns all heads as one network, and rows of one task leave the heads of others alone.

    Args:
        widths: As of :class:`MLP`.
        input_variances: ``d``, the last one (of the task) unused.
        weight_variances: As of :class:`MLP`.
        bias_variances: As of :class:`MLP`.
        num_outputs: ``m``, of a head.
        activation: As of :class:`MLP`.
        branches: As of :class:`MLP`.
        heads: ``T``, at least 2.
    """

    def __init__(
        self,
        widths: Sequence[int],
        input_variances: Tensor,
        weight_variances: Tensor,
        bias_variances: Tensor,
        num_outputs: int = 1,
        activation: str = "erf",
        branches: int = 1,
        heads: int = 2,
    ) -> None:
        if heads < 2:
            raise InvalidOptionError(f"heads={heads}: one head per task, for at least 2 tasks")
        if input_variances.shape[-1] < 2:
            raise InvalidOptionError("input_dim=1: the last input is the task, so that a network with heads needs 2 at least")
        units = num_outputs * heads
        super().__init__(widths, input_variances[..., :-1], weight_variances, bias_variances, units, activation, branches)
        self.heads, self.num_outputs, self.input_dim = heads, num_outputs, self.input_dim + 1

    def tasks(self, X: Tensor) -> Tensor:
        """The task of every row of ``X: batch x d``, ``N`` indices.

        Raises:
            InvalidDataError: The last input of a row is no task.
        """
        place = X.reshape(-1, self.input_dim)[:, -1].detach() * (self.heads - 1)
        task = place.round()
        bad = ((place - task).abs() > _OFF_GRID) | (task < 0) | (task >= self.heads)
        if bool(bad.any()):
            row = int(bad.nonzero()[0])
            raise InvalidDataError(
                f"row {row} of X belongs to no task: its last input is {float(place[row]):.4g} where heads 0 to {self.heads - 1} "
                f"are; hand in bounds= that map the tasks 0 to {self.heads - 1} to [0, 1]"
            )
        return task.long()

    def scaled_inputs(self, X: Tensor) -> Tensor:
        body = X.reshape(-1, self.input_dim)[:, :-1]
        return (centred(body) * self._input_scale.to(X))[None, None]

    def read_outputs(self, X: Tensor) -> Tensor:
        return self.tasks(X).unsqueeze(-1) * self.num_outputs + torch.arange(self.num_outputs, device=X.device)

    def hidden(self, z: Tensor, X: Tensor) -> Tensor:
        """Features in the place of their task among ``T`` places of zeros, so that a linear head on them is one per task,
        ``S x batch x q x (T F)``."""
        h = super().hidden(z, X)
        place = torch.nn.functional.one_hot(self.tasks(X), self.heads).to(h).reshape(*X.shape[:-1], self.heads, 1)
        return (place * h.unsqueeze(-2)).flatten(-2)

    def active_weights(self, X: Tensor) -> Tensor:
        units = torch.zeros(self.sizes[-1], dtype=torch.bool, device=X.device)
        units[self.read_outputs(X).unique()] = True
        shared = sum((a + 1) * b for a, b in zip(self.sizes[:-2], self.sizes[1:-1], strict=True))
        head = units.repeat(self.sizes[-2] + 1)
        return torch.cat([torch.ones(shared, dtype=torch.bool, device=X.device), head]).repeat(self.branches)
