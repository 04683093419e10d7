"""Synaptic intelligence (Zenke, Poole and Ganguli 2017): a point, and importances from how much each weight lowered the loss.

``z_T = argmin -sum_n log p(y_n | z) + 1/2 |z|^2 + c sum_i Omega_i (z_i - z_{T-1,i})^2`` with the path integrals ``Omega`` of all
tasks added up (:class:`seqbdl.inference.consolidation.PathIntegral`), of the loss of the task's data alone, SUMMED over its rows.
With losses averaged over rows ``c`` means the same where tasks have equally many. Adam's steps make the integral approximate.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from seqbdl.errors import InvalidOptionError
from seqbdl.inference.adam import adam
from seqbdl.inference.consolidation import PathIntegral, held_by
from seqbdl.inference.ewc import Penalized
from seqbdl.inference.laplace import Rows
from seqbdl.inference.tasks import TaskMemory, likelihood_gradient, off_zero
from seqbdl.networks import Network
from seqbdl.posteriors.gaussian_weights import GaussianWeights
from seqbdl.posteriors.operators import Diagonal


@dataclass(frozen=True)
class SynapticIntelligence(Penalized):
    """Attributes:
    xi: Damping of the importances.
    """

    xi: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.xi > 0:
            raise InvalidOptionError(f"xi={self.xi} must be positive")

    def learn(self, network: Network, rows: Rows, memory: TaskMemory, generator: torch.Generator) -> TaskMemory:
        held, active = held_by(memory.prior, 2.0 * self.strength), network.active_weights(rows.X)
        start = off_zero(memory.z, generator)
        slope, path = likelihood_gradient(network, rows), PathIntegral(start)

        def gradient(z: Tensor, index: Tensor | None) -> Tensor:
            of_data = slope(z, index)
            path.at(z[0], of_data[0])
            return (of_data + held.precision.matmul(z - held.mean)) * active

        z = adam(gradient, start.unsqueeze(0), rows.X.shape[0], self.descent, generator)[0]
        path.at(z, torch.zeros_like(z))
        total = memory.prior.precision.diagonal + path.importance(self.xi)
        return replace(memory, z=z, prior=GaussianWeights(z, Diagonal(total)))
