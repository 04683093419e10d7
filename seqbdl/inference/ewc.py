"""Elastic weight consolidation (Kirkpatrick et al. 2017; online: Schwarz et al. 2018): a point, and a quadratic penalty per task.

``z_T = argmin -sum_n log p(y_n | z) + 1/2 |z|^2 + c / 2 sum_{t < T} sum_i F_{t,i} (z_i - z_{t,i})^2`` with ``F`` the diagonal of
the Fisher information SUMMED over a task's rows, by one of the definitions of
:func:`seqbdl.inference.consolidation.fisher_diagonal`. Losses and ``F`` averaged over rows mean the same ``c`` where tasks have
equally many. The penalties of all tasks are one, ``1/2 sum_i F_i (z_i - a_i)^2`` up to a constant, with ``F`` their sum and
``a`` the mean of the anchors weighted by them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from seqbdl.errors import InvalidOptionError
from seqbdl.inference.consolidation import FISHERS, fisher_diagonal, held_by
from seqbdl.inference.laplace import Rows
from seqbdl.inference.tasks import TaskMemory, TaskMethod, penalized_mode
from seqbdl.networks import Network
from seqbdl.posteriors.gaussian_weights import GaussianWeights
from seqbdl.posteriors.operators import Diagonal


@dataclass(frozen=True)
class Penalized(TaskMethod):
    """A point, and importances of weights around an anchor.

    Attributes:
        strength: ``c``.
    """

    strength: float = 1.0

    def __post_init__(self) -> None:
        if not self.strength >= 0:
            raise InvalidOptionError(f"strength={self.strength} must not be negative")

    def begin(self, network: Network, generator: torch.Generator, like: Tensor) -> TaskMemory:
        z = super().begin(network, generator, like).z
        return TaskMemory(z, None, GaussianWeights(torch.zeros_like(z), Diagonal(torch.zeros_like(z))))

    def tempered(self, memory: TaskMemory, temper: float, inflate: float = 0.0) -> TaskMemory:
        importance = temper / (1.0 + inflate) * memory.prior.precision.diagonal
        prior = GaussianWeights(memory.prior.mean, Diagonal(importance))
        return replace(memory, prior=prior, z=held_by(prior, self.strength).mean)


@dataclass(frozen=True)
class EWC(Penalized):
    """Attributes:
    fisher: Its definition: ``"all"`` (the expectation over outcomes), ``"sample"``, ``"pred"`` or ``"true"``.
    decay: ``None``: every task keeps its anchor; a number in [0, 1]: one anchor, and old importances fade by it.
    """

    fisher: str = "all"
    decay: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fisher not in FISHERS:
            raise InvalidOptionError(f"fisher={self.fisher!r} must be one of {', '.join(FISHERS)}")
        if self.decay is not None and not 0.0 <= self.decay <= 1.0:
            raise InvalidOptionError(f"decay={self.decay} must be in [0, 1], or None for separate anchors")

    def learn(self, network: Network, rows: Rows, memory: TaskMemory, generator: torch.Generator) -> TaskMemory:
        z = penalized_mode(network, rows, memory.z, held_by(memory.prior, self.strength), self.descent, generator)
        at = z.unsqueeze(0)
        new = fisher_diagonal(network, rows.likelihood, at, rows.X, rows.noise, self.fisher, rows.Y, generator)
        old, anchor = memory.prior.precision.diagonal, memory.prior.mean
        if self.decay is not None:
            return TaskMemory(z, None, GaussianWeights(z, Diagonal(self.decay * old + new)))
        total = old + new
        mean = torch.where(total > 0, (old * anchor + new * z) / total.clamp_min(torch.finfo(total.dtype).tiny), z)
        return TaskMemory(z, None, GaussianWeights(mean, Diagonal(total)))
