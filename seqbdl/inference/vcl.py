"""Variational continual learning: the mean-field posterior of earlier tasks is the prior of the next (Nguyen et al. 2018).

``max_q E_q[sum_n log p(y_n | z)] - b KL_c(q || q_{t-1})``, sums over rows and weights. ``b = c = 1`` is the bound of variational
inference. In the generalized form (Loo, Swaroop and Turner 2021) ``b`` cools the posterior, and in the term of the means ``KL_c``
has the precision ``1 + c (1 / s_{t-1}^2 - 1)``: what was learned beyond the first prior ``N(0, I)`` counts ``c`` times; small
``b`` with ``c`` in proportion to ``1 / b`` tends to a penalty on the means.

Coreset: some rows of each task are left out of its learning and kept. What answers is a copy that has learned the kept rows of
all tasks on top; the copy is not carried on, so that no row is counted twice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from seqbdl.errors import InvalidOptionError
from seqbdl.inference.coresets import check_coreset, choose_rows
from seqbdl.inference.laplace import Rows
from seqbdl.inference.log_joint import LogJoint
from seqbdl.inference.mfvi import MFVISettings, mfvi
from seqbdl.inference.tasks import HeldRows, TaskMemory, TaskMethod, in_single_precision, joined, penalized_mode
from seqbdl.networks import MLP, Network
from seqbdl.posteriors.gaussian_weights import GaussianWeights
from seqbdl.posteriors.mean_field import MeanField
from seqbdl.posteriors.operators import Diagonal

STARTS = ("likelihood", "random")


@dataclass(frozen=True)
class VCL(TaskMethod):
    """Adam's rate is in standard deviations of the prior of the task.

    Attributes:
        beta: ``b``.
        strength: ``c``.
        coreset: Rows that are kept per task.
        coreset_kind: How they are chosen (:data:`seqbdl.inference.coresets.CORESETS`).
        coreset_steps: Of the copy that answers.
        start: Of the means, ``"likelihood"``: where a descent without variances ends in the first task, and at the old posterior
            in later ones (Nguyen et al. 2018); ``"random"``: new random weights for every task (Swaroop et al. 2019). Heads that
            are new start at random either way.
        initial_sd: Of weights that start anew.
        num_samples: Noise draws per step.
    """

    beta: float = 1.0
    strength: float = 1.0
    coreset: int = 0
    coreset_kind: str = "random"
    coreset_steps: int = 200
    start: str = "likelihood"
    initial_sd: float = math.exp(-3.0)
    num_samples: int = 1

    rate: ClassVar[float] = 0.03

    def __post_init__(self) -> None:
        check_coreset(self.coreset_kind, self.coreset)
        if self.start not in STARTS:
            raise InvalidOptionError(f"start={self.start!r} must be one of {', '.join(STARTS)}")
        for name in ("beta", "strength", "initial_sd"):
            if not getattr(self, name) > 0:
                raise InvalidOptionError(f"{name}={getattr(self, name)} must be positive")
        if min(self.coreset_steps, self.num_samples) < 1:
            raise InvalidOptionError(f"coreset_steps={self.coreset_steps} and num_samples={self.num_samples} must be at least 1")

    def learn(self, network: Network, rows: Rows, memory: TaskMemory, generator: torch.Generator) -> TaskMemory:
        n, prior = rows.X.shape[0], mean_field(memory.prior)
        kept = choose_rows(self.coreset_kind, min(self.coreset, n // 2), network, memory.z, rows, generator)
        rest = torch.ones(n, dtype=torch.bool, device=rows.X.device)
        rest[kept] = False
        held = (*memory.held, HeldRows.of(rows, kept)) if kept.numel() else memory.held
        data = rows.pick(rest)
        q = self._fit(network, data, prior, self._start(network, data, prior, generator), generator)
        carried = gaussian(q)
        if not held:
            return TaskMemory(q.mean[0], carried.precision, carried)
        steps = replace(self, descent=replace(self.descent, steps=self.coreset_steps))
        copy = gaussian(steps._fit(network, joined(rows.likelihood, held), q, q, generator))
        return TaskMemory(copy.mean, copy.precision, carried, held)

    def _start(self, network: Network, rows: Rows, prior: MeanField, generator: torch.Generator) -> MeanField:
        active, unknown = network.active_weights(rows.X), untouched(prior)
        start = restarted(prior, active if self.start == "random" else active & unknown, self.initial_sd, generator)
        if self.start == "random" or not bool(unknown[active].all()):
            return start
        mode = penalized_mode(network, rows, start.mean[0], gaussian(prior), self.descent, generator)  # of the first task
        return MeanField(torch.where(active, mode, start.mean), start.sd)

    def _fit(self, network: Network, rows: Rows, prior: MeanField, start: MeanField, generator: torch.Generator) -> MeanField:
        data = in_single_precision(network, rows)
        joint = LogJoint(network, data.likelihood, prior.as_prior(), data.X, data.Y, data.noise)
        estimator = "local" if isinstance(network, MLP) else "weights"
        d = self.descent
        settings = MFVISettings(d.steps, d.learning_rate, d.batch_size, estimator, self.num_samples, self.beta)
        return mfvi(joint, start, generator, settings, lambda q: fortified_kl(q, prior, self.strength))


def fortified_kl(q: MeanField, prior: MeanField, strength: float) -> Tensor:
    """``KL(q || prior)`` with the precision ``1 + c max(1 / s0^2 - 1, 0)`` in the term of the means, ``K``.

    Args:
        q: ``K`` components.
        prior: As many.
        strength: ``c``; 1: the divergence itself, where the prior is no wider than the first one.
    """
    ratio = q.sd / prior.sd
    precision = prior.sd.pow(-2)
    held = precision if strength == 1.0 else 1.0 + strength * (precision - 1.0).clamp_min(0.0)
    return (0.5 * (ratio.square() + held * (q.mean - prior.mean).square() - 1) - ratio.log()).sum(-1)


def untouched(prior: MeanField) -> Tensor:
    """Weights of which nothing is known but the first prior, ``P`` booleans."""
    return (prior.sd[0] == 1.0) & (prior.mean[0] == 0.0)


def restarted(prior: MeanField, anew: Tensor, sd: float, generator: torch.Generator) -> MeanField:
    """The prior, with new random means and a small spread for some weights.

    Args:
        prior: One component.
        anew: ``P`` booleans.
        sd: Of those.
        generator: Of the means.
    """
    fresh = torch.randn(prior.num_params, generator=generator, dtype=torch.float64).to(prior.mean)
    return MeanField(torch.where(anew, fresh, prior.mean), torch.where(anew, torch.full_like(prior.sd, sd), prior.sd))


def mean_field(weights: GaussianWeights) -> MeanField:
    """A Gaussian with diagonal precision as one mean-field component."""
    return MeanField(weights.mean[None], weights.precision.diagonal.rsqrt()[None])


def gaussian(q: MeanField) -> GaussianWeights:
    """One mean-field component as a Gaussian with diagonal precision."""
    return GaussianWeights(q.mean[0], Diagonal(q.sd[0].pow(-2)))
