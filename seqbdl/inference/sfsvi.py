"""Sequential function-space variational inference: functions, not weights, stay near the last posterior (Rudner et al. 2022).

``min_q -E_q[sum_n log p(y_n | z)] + c N sum_s mean_{x in C_s} sum_outputs KL(q(f(x)) || q_{t-1}(f(x)))`` for ``N`` rows and sets
``C_s`` of context points: the kept rows of every earlier task, and rows whose inputs are shuffled column by column for the
present one. Functions are compared point by point and output by output, through the network linearized at the mean, ``N(f(x;
m), J diag(s^2) J^T)``; of a new head, as of the first task, the prior is ``N(0, v)``. The linearization is not differentiated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from seqbdl.errors import InvalidOptionError
from seqbdl.inference.adam import adam, gradient_of
from seqbdl.inference.coresets import check_coreset, choose_rows
from seqbdl.inference.laplace import Rows
from seqbdl.inference.log_joint import LogJoint
from seqbdl.inference.mfvi import expected_log_likelihood
from seqbdl.inference.tasks import HeldRows, TaskMemory, TaskMethod, in_single_precision
from seqbdl.inference.vcl import gaussian, mean_field, restarted, untouched
from seqbdl.networks import MLP, Network
from seqbdl.posteriors.mean_field import MeanField

_JITTER = 1e-6  # of variances


@dataclass(frozen=True)
class SFSVI(TaskMethod):
    """Attributes:
    strength: ``c``.
    coreset: Rows that are kept per task, its context points in later ones.
    coreset_kind: How they are chosen (:data:`seqbdl.inference.coresets.CORESETS`).
    num_context: Points of every set that a step looks at.
    prior_variance: ``v``.
    initial_sd: Of weights that are new.
    num_samples: Noise draws per step.
    """

    strength: float = 1.0
    coreset: int = 40
    coreset_kind: str = "random"
    num_context: int = 40
    prior_variance: float = 1.0
    initial_sd: float = math.exp(-3.0)
    num_samples: int = 1

    rate: ClassVar[float] = 0.01

    linearized: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_coreset(self.coreset_kind, self.coreset)
        for name in ("strength", "prior_variance", "initial_sd"):
            if not getattr(self, name) > 0:
                raise InvalidOptionError(f"{name}={getattr(self, name)} must be positive")
        if min(self.num_context, self.num_samples) < 1:
            raise InvalidOptionError(f"num_context={self.num_context} and num_samples={self.num_samples} must be at least 1")

    def learn(self, network: Network, rows: Rows, memory: TaskMemory, generator: torch.Generator) -> TaskMemory:
        data, old = in_single_precision(network, rows), mean_field(memory.prior)
        joint = LogJoint(network, data.likelihood, old.as_prior(), data.X, data.Y, data.noise)
        estimator = "local" if isinstance(network, MLP) else "weights"
        new = network.active_weights(rows.X) & untouched(old)
        start = restarted(old, new, self.initial_sd, generator)
        earlier = [(X, *moments(network, old, X)) for X in (held.X.to(data.X.dtype) for held in memory.held)]

        def loss(theta: Tensor, index: Tensor | None) -> Tensor:
            mean, log_sd = theta.chunk(2, -1)
            q = MeanField(mean, log_sd.exp())
            sets = [_some(self.num_context, *known, generator) for known in earlier]
            here = shuffled(data.X, self.num_context, generator)
            said = moments(network, old, here)
            if bool(new.any()):
                said = torch.zeros_like(said[0]), torch.full_like(said[1], self.prior_variance)
            points, means, variances = zip(*sets, (here, *said), strict=True)
            divergences = function_kl(*moments(network, q, torch.cat(points)), torch.cat(means, 1), torch.cat(variances, 1))
            held = sum(part.mean(-1) for part in divergences.split([X.shape[0] for X in points], -1))
            fit = expected_log_likelihood(joint, q, index, estimator, self.num_samples, generator)
            return self.strength * rows.X.shape[0] * held - fit

        climb = gradient_of(loss)
        free = network.active_weights(torch.cat([rows.X, *(held.X for held in memory.held)])).repeat(2)
        theta = torch.cat([start.mean, start.sd.log()], -1)
        theta = adam(lambda t, i: climb(t, i) * free, theta, rows.X.shape[0], self.descent, generator)
        mean, log_sd = theta.chunk(2, -1)
        q = gaussian(MeanField(mean, log_sd.exp()))
        kept = choose_rows(self.coreset_kind, self.coreset, network, q.mean, rows, generator)
        held = (*memory.held, HeldRows.of(rows, kept)) if kept.numel() else memory.held
        return TaskMemory(q.mean, q.precision, q, held)


def _some(count: int, X: Tensor, mean: Tensor, variance: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """At most so many of a set's points, with what was said there."""
    index = torch.randperm(X.shape[0], generator=generator)[:count].to(X.device)
    return X[index], mean[:, index], variance[:, index]


def moments(network: Network, q: MeanField, X: Tensor) -> tuple[Tensor, Tensor]:
    """Means and variances of the network linearized at the means, ``K x N x l``; of the variances only ``q.sd`` is
    differentiated."""
    with torch.no_grad():
        here = network.tangents(q.mean.to(X), X)
    return network.forward(q.mean.to(X), X), network.linear_variance(here, q.sd.square().to(X)) + _JITTER


def function_kl(mean: Tensor, variance: Tensor, prior_mean: Tensor, prior_variance: Tensor) -> Tensor:
    """``sum_outputs KL(N(mean, variance) || N(prior_mean, prior_variance))`` at every point, ``K x N``."""
    ratio = variance / prior_variance
    return 0.5 * (ratio + (mean - prior_mean).square() / prior_variance - 1 - ratio.log()).sum(-1)


def shuffled(X: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """``count x d`` points, every column of them drawn from that column of ``X``."""
    index = torch.randint(X.shape[0], (count, X.shape[1]), generator=generator).to(X.device)
    return X.gather(0, index)
