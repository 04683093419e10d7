"""Boxes of designs, scaled to the unit cube differentiably."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from seqbdl.errors import InvalidSpaceError


@dataclass(frozen=True, eq=False)
class DesignBox:
    """The designs of an experiment: every entry between two numbers, on a linear or a logarithmic scale.

    Attributes:
        low: ``d``.
        high: ``d``.
        log: ``d`` booleans; ``low`` is positive there.
    """

    low: Tensor
    high: Tensor
    log: Tensor

    def __post_init__(self) -> None:
        ends = [torch.as_tensor(end, dtype=torch.float64) for end in (self.low, self.high)]
        log = torch.as_tensor(self.log, dtype=torch.bool)
        if ends[0].dim() != 1 or ends[0].shape != ends[1].shape or log.shape != ends[0].shape or not ends[0].numel():
            raise InvalidSpaceError("low, high and log of a box hold one entry for each entry of a design")
        if not bool((ends[0] < ends[1]).all()) or bool((log & (ends[0] <= 0)).any()):
            raise InvalidSpaceError("a box has low < high, and low > 0 on a logarithmic scale")
        for name, value in (("low", ends[0]), ("high", ends[1]), ("log", log)):
            object.__setattr__(self, name, value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, DesignBox):
            return NotImplemented
        return all(torch.equal(a, b) for a, b in zip(self.to_tree().values(), other.to_tree().values(), strict=True))

    __hash__ = None  # type: ignore[assignment]  # equal by value, and tensors have none

    @property
    def dim(self) -> int:
        """Entries of a design."""
        return self.low.shape[0]

    def from_unit(self, u: Tensor) -> Tensor:
        """Designs ``... x d`` of places in the unit cube."""
        low = torch.where(self.log, self.low, 1.0)  # the logarithm is never taken where it is not wanted
        ratio = torch.where(self.log, self.high / low, 1.0)
        return torch.where(self.log, low * ratio**u, self.low + (self.high - self.low) * u)

    def to_unit(self, designs: Tensor) -> Tensor:
        """The inverse, ``... x d``."""
        low = torch.where(self.log, self.low, 1.0)
        inside = torch.where(self.log, designs / low, 1.0)
        ratio = torch.where(self.log, self.high / low, torch.e)
        return torch.where(self.log, inside.log() / ratio.log(), (designs - self.low) / (self.high - self.low))

    def to_tree(self) -> dict[str, Any]:
        """Everything, for :func:`seqbdl.serialization.save_tree`."""
        return {"low": self.low, "high": self.high, "log": self.log}
