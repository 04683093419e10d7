"""Small networks that estimators and policies train themselves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor


class Perceptron(torch.nn.Module):
    """A fully connected network with SiLU units, or several of the same widths side by side, in float64.

    Args:
        sizes: Widths, of the input first and of the output last.
        generator: Of the first weights, uniform as PyTorch's.
        stack: How many networks stand on a leading axis; ``None``: one, without that axis.
        zero_output: Whether the last layer starts at zero.
    """

    def __init__(
        self, sizes: Sequence[int], generator: torch.Generator, stack: int | None = None, zero_output: bool = False
    ) -> None:
        super().__init__()
        lead = () if stack is None else (stack,)
        rows = () if stack is None else (1,)
        weights, biases = [], []
        for fan_in, fan_out in pairwise(sizes):
            bound = 1 / math.sqrt(fan_in)
            weights.append(bound * (2 * torch.rand(*lead, fan_in, fan_out, generator=generator, dtype=torch.float64) - 1))
            biases.append(bound * (2 * torch.rand(*lead, *rows, fan_out, generator=generator, dtype=torch.float64) - 1))
        if zero_output:
            weights[-1].zero_()
            biases[-1].zero_()
        self.weights = torch.nn.ParameterList(weights)
        self.biases = torch.nn.ParameterList(biases)

    def forward(self, x: Tensor) -> Tensor:
        """``... x in`` to ``... x out``; a stack of ``D``: ``D x N x in``, or ``N x in`` for all of them."""
        last = len(self.weights) - 1
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = x @ weight + bias
            if i < last:
                x = torch.nn.functional.silu(x)
        return x
