"""Online Laplace: the quadratic around the last mode holds the next task's weights (Ritter, Botev and Barber 2018).

``z_t = argmin -sum_n log p(y_n | z) + 1/2 (z - z_{t-1})^T (I + c (P_{t-1} - I)) (z - z_{t-1})`` and ``P_t = P_{t-1} + G_t(z_t)``
with ``z_0 = 0``, ``P_0 = I`` and ``G`` the generalized Gauss-Newton matrix SUMMED over rows. ``c = 1`` is Bayes' rule (exact for
linear networks, Gaussian noise and the full structure); larger ones make up for curvature that vanishes where a classifier is
sure, and for what a structure leaves out. Sums of Kronecker factors are approximate
(:func:`seqbdl.inference.curvature.add_curvature`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from seqbdl.errors import InvalidOptionError
from seqbdl.inference.curvature import STRUCTURES, WeightSpace, add_curvature
from seqbdl.inference.laplace import Rows
from seqbdl.inference.tasks import TaskMemory, TaskMethod, fortified, penalized_mode
from seqbdl.networks import Network
from seqbdl.posteriors.gaussian_weights import GaussianWeights


@dataclass(frozen=True)
class OnlineLaplace(TaskMethod):
    """Attributes:
    structure: ``"full"``, ``"kron"`` or ``"diag"``.
    strength: ``c``.
    """

    structure: str = "diag"
    strength: float = 1.0

    linearized: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.structure not in STRUCTURES:
            raise InvalidOptionError(f"structure={self.structure!r} must be one of {', '.join(STRUCTURES)}")
        if not self.strength > 0:
            raise InvalidOptionError(f"strength={self.strength} must be positive")

    def learn(self, network: Network, rows: Rows, memory: TaskMemory, generator: torch.Generator) -> TaskMemory:
        held_by = GaussianWeights(memory.prior.mean, fortified(memory.prior.precision, self.strength))
        z = penalized_mode(network, rows, memory.z, held_by, self.descent, generator)
        counts = z.new_zeros(0) if memory.counts is None else memory.counts
        old, at = WeightSpace(memory.prior.precision, counts), z.unsqueeze(0)
        new = add_curvature(network, old, at, rows.X, rows.root(network.forward(at, rows.X)[0]), self.structure)
        centre = z.where(network.active_weights(rows.X), memory.prior.mean)  # heads that are still to come keep the first prior
        return TaskMemory(z, new.precision, GaussianWeights(centre, new.precision), counts=new.counts)
