"""``hmc``: weights, noise and prior scales sampled by Hamiltonian Monte Carlo, many chains at once."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from seqbdl.errors import InvalidOptionError
from seqbdl.inference.chains import ChainResult
from seqbdl.inference.diagonal_hmc import DiagonalHMCSettings, diagonal_hmc
from seqbdl.inference.gibbs import Gibbs
from seqbdl.inference.hmc import HMCSettings, hmc
from seqbdl.inference.log_joint import LogJoint
from seqbdl.inference.metrics import diagonal_metric, gauss_newton_metric
from seqbdl.surrogates.sampler import SamplerSurrogate


class HMCSurrogate(SamplerSurrogate):
    """Samples of the posterior over all weights, with every step accepted or rejected exactly.

    With the Gauss-Newton matrix, trajectories are those of :mod:`seqbdl.inference.hmc`; without, leapfrog trajectories with
    an adapted diagonal mass matrix (:mod:`seqbdl.inference.diagonal_hmc`).

    Args:
        warmup: Trajectories thrown away; ``None``: 12 with the Gauss-Newton matrix, else 60.
        samples: Trajectories after warm-up.
    """

    name = "hmc"

    def __init__(self, *args: Any, warmup: int | None = None, samples: int = 8, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if (warmup is not None and warmup < 1) or samples < 1:
            raise InvalidOptionError(f"warmup={warmup} and samples={samples} must be at least 1")
        if self.num_chains * samples < self.num_members:
            raise InvalidOptionError(
                f"num_chains={self.num_chains} times samples={samples} is less than num_members={self.num_members}; raise samples"
            )
        self.warmup, self.samples = warmup, samples

    def _run(self, joint: LogJoint, gibbs: Gibbs | None, start: Tensor, dense: bool) -> ChainResult:
        if dense:
            metric = gauss_newton_metric(joint, start, self.generator)
            settings = HMCSettings(warmup=self.warmup or 12, samples=self.samples)
            return hmc(joint, start, metric, self.generator, settings, gibbs)
        diagonal = DiagonalHMCSettings(warmup=self.warmup or 60, samples=self.samples)
        first = diagonal_metric(joint, start, self.generator)
        return diagonal_hmc(joint, start, self.generator, diagonal, gibbs, first)
