"""``hmc``: weights, noise and prior scales sampled by Hamiltonian Monte Carlo, many chains at once."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from seqbdl.inference.chains import ChainResult
from seqbdl.inference.diagonal_hmc import DiagonalHMCSettings, diagonal_hmc
from seqbdl.inference.gibbs import Gibbs
from seqbdl.inference.hmc import HMCSettings, hmc
from seqbdl.inference.log_joint import LogJoint
from seqbdl.inference.metrics import GaussNewtonMetric, Metric
from seqbdl.surrogates.sampler import SamplerSurrogate


class HMCSurrogate(SamplerSurrogate):
    """Samples of the posterior over all weights, every trajectory accepted or rejected exactly.

    Leapfrog trajectories in whitened weights, with the diagonal of the Gauss-Newton matrix as mass
    (:mod:`seqbdl.inference.diagonal_hmc`), or where the network is nearly linear those of :mod:`seqbdl.inference.hmc` with the
    whole of it. Small noise needs small steps: a quarter turn takes 50 to 500 of them, and `max_steps` may cut it short, which
    makes a random walk of the chain: on 200 rows with noise .01, 400 steps at most gave three times the effective samples per
    second of 100. Raise it before ``samples``.

    Args:
        warmup: Trajectories thrown away.
        samples: Trajectories after warm-up; ``None``: as many as ``num_members`` needs.
        max_steps: Steps (gradients) per trajectory at most; raise it together with ``samples`` for chains that forget their
            start, and check with :attr:`report`.
    """

    name = "hmc"

    def __init__(self, *args: Any, warmup: int = 4, samples: int | None = None, max_steps: int = 100, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.samples = self._states_per_chain(samples, warmup=warmup, max_steps=max_steps)
        self.warmup, self.max_steps = warmup, max_steps

    def _run(self, joint: LogJoint, gibbs: Gibbs | None, start: Tensor, metric: Metric) -> ChainResult:
        lengths = {"warmup": self.warmup, "samples": self.samples, "max_steps": self.max_steps}
        if isinstance(metric, GaussNewtonMetric):
            return hmc(joint, start, metric, self.generator, HMCSettings(**lengths), gibbs)
        return diagonal_hmc(joint, start, self.generator, DiagonalHMCSettings(**lengths, adapt_mass=False), gibbs, metric)
