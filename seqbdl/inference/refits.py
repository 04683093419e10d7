"""Controls: what continual learning is measured against. Learning on without a hold, and learning again from all rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from seqbdl.errors import InvalidOptionError
from seqbdl.inference.laplace import Rows
from seqbdl.inference.tasks import HeldRows, TaskMemory, TaskMethod, first_prior, joined, penalized_mode
from seqbdl.networks import Network


@dataclass(frozen=True)
class Control(TaskMethod):
    """A point, with no posterior to be carried."""

    def begin(self, network: Network, generator: torch.Generator, like: Tensor) -> TaskMemory:
        z = super().begin(network, generator, like).z
        return TaskMemory(z, None, first_prior(z))

    def tempered(self, memory: TaskMemory, temper: float, inflate: float = 0.0) -> TaskMemory:
        raise InvalidOptionError(f"temper={temper}, inflate={inflate}: {type(self).__name__} carries no posterior")


@dataclass(frozen=True)
class FineTune(Control):
    """The new rows alone, from where the last task ended: ``-sum_n log p(y_n | z) + 1/2 |z|^2``."""

    def learn(self, network: Network, rows: Rows, memory: TaskMemory, generator: torch.Generator) -> TaskMemory:
        z = penalized_mode(network, rows, memory.z, memory.prior, self.descent, generator)
        return TaskMemory(z, None, memory.prior)


@dataclass(frozen=True)
class Refit(Control):
    """All rows so far, which are kept, from ``shrink z + noise e`` with ``e ~ N(0, I)`` (Ash and Adams 2020). Shrink 0 and noise
    1 is a cold start, 1 and 0 a warm one; between them lies shrink and perturb.

    Attributes:
        shrink: Of the old weights, in [0, 1].
        noise: Added to them.
    """

    shrink: float = 0.0
    noise: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.shrink <= 1.0 or not self.noise >= 0.0:
            raise InvalidOptionError(f"shrink={self.shrink} must be in [0, 1], noise={self.noise} not negative")

    def learn(self, network: Network, rows: Rows, memory: TaskMemory, generator: torch.Generator) -> TaskMemory:
        white = torch.randn(network.num_params, generator=generator, dtype=torch.float64).to(memory.z)
        start = self.shrink * memory.z + self.noise * white if memory.held else memory.z
        held = (*memory.held, HeldRows(rows.X, rows.Y, rows.noise))
        z = penalized_mode(network, joined(rows.likelihood, held), start, memory.prior, self.descent, generator)
        return TaskMemory(z, None, memory.prior, held)
