"""Variational learning by the improved variational online Newton method (Shen et al. 2024), from its published equations.

The posterior is a mean-field Gaussian, ``N(m, 1 / (e (h + d)))``. A step draws weights, reads the gradient and, from the same
gradient, an estimate of the diagonal of the Hessian (by Gaussian integration by parts), and moves ``m`` by a Newton step and
``h`` by a step that keeps ``h + d`` positive. It solves the same problem as :mod:`seqbdl.inference.mfvi` at the cost of a
second-order optimizer; nothing is differentiated but the log-likelihood.

Scales. The method is written for the mean loss ``l = -1/N sum_n log p(y_n | z)``, an effective sample size ``e = N`` and a
weight decay ``d``. Sums over the data and a prior ``N(m_0, s_0^2)`` mean ``e d = 1 / s_0^2``: for whitened weights with a
standard normal prior ``d = 1 / N``; the quadratic penalty is centred on ``m_0``, so an earlier posterior serves as prior. A
temperature ``T`` multiplies the divergence: ``e = N / T``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from seqbdl.errors import InvalidOptionError
from seqbdl.inference.log_joint import LogJoint, minibatches
from seqbdl.inference.mfvi import gaussian_of
from seqbdl.posteriors.mean_field import MeanField, antithetic_normals


@dataclass(frozen=True)
class IVONSettings:
    """Attributes:
    steps: How many.
    learning_rate: The largest share of a Newton step; after a short linear warm-up (first gradients are noisy) it falls to
        zero along a half cosine. Shares near 1 diverge: the diagonal is no bound on the Hessian of weights that act together.
        (As published the step has a further factor ``h_0 + d``, a scalar there.)
    batch_size: Rows per step; ``None``: all.
    num_samples: Pairs of weight draws of opposite sign per step; estimates are averaged over all.
    beta1: Of the running mean of gradients.
    beta2: Of the running mean of Hessians; ``None``: it remembers the last tenth of the steps. (The published 0.99999 is for
        training runs of a million steps; on small data ``h`` would not leave its start.)
    clip: Bound on every entry of the preconditioned gradient; ``None``: none.
    temperature: ``T``.
    """

    steps: int = 300
    learning_rate: float = 0.1
    batch_size: int | None = None
    num_samples: int = 1
    beta1: float = 0.9
    beta2: float | None = None
    clip: float | None = None
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.num_samples < 1:
            raise InvalidOptionError(f"steps={self.steps} and num_samples={self.num_samples} must be at least 1")
        if not self.learning_rate > 0 or not self.temperature > 0:
            raise InvalidOptionError(f"learning_rate={self.learning_rate} and temperature={self.temperature} must be positive")
        if not 0 <= self.beta1 < 1 or not (self.beta2 is None or 0 < self.beta2 < 1):
            raise InvalidOptionError(f"beta1={self.beta1} and beta2={self.beta2} are shares of a running mean, below 1")


def ivon(joint: LogJoint, start: MeanField, generator: torch.Generator, settings: IVONSettings = IVONSettings()) -> MeanField:
    """Learn mean and precision of every component.

    Args:
        joint: Likelihood, data, and a Gaussian prior or an earlier :class:`MeanField` as prior.
        start: ``K`` components; no wider than their priors, or ``h`` would begin below zero.
        generator: Of the draws and of the order of rows.
        settings: Steps and rates.

    Raises:
        InvalidOptionError: The prior is not Gaussian.
    """
    prior = gaussian_of(joint.prior, start)
    if prior is None:
        raise InvalidOptionError("ivon needs a Gaussian prior: its update of the precision adds the prior's")
    N, K = joint.num_rows, start.num_components
    ess = N / settings.temperature
    decay = 1.0 / (ess * prior.sd.square())
    b1 = settings.beta1
    b2 = 1.0 - min(0.5, 10.0 / settings.steps) if settings.beta2 is None else settings.beta2
    m, h, g = start.mean, 1.0 / (ess * start.sd.square()) - decay, torch.zeros_like(start.mean)
    draws, warmup = 2 * settings.num_samples, max(1, settings.steps // 20)
    for step, rows in enumerate(minibatches(N, settings.batch_size, settings.steps, generator)):
        sd = (ess * (h + decay)).rsqrt()
        white = antithetic_normals(draws * K, K, m.shape[1], generator, m).unflatten(0, (draws, K))
        gradients = joint.likelihood_value_and_gradient((m + sd * white).flatten(0, 1), rows)[1]
        gradients = gradients.unflatten(0, (draws, K)) / -N
        # E[g e] = E[Hessian] sd (Stein): over a pair of opposite draws what is even in e cancels.
        curvature = (gradients * white).mean(0) / sd
        g = b1 * g + (1 - b1) * gradients.mean(0)
        correction = 0.5 * (1 - b2) ** 2 * (h - curvature).square() / (h + decay)  # keeps h + d positive
        h = b2 * h + (1 - b2) * curvature + correction
        direction = (g / (1 - b1 ** (step + 1)) + decay * (m - prior.mean)) / (h + decay)
        if settings.clip is not None:
            direction = direction.clamp(-settings.clip, settings.clip)
        rate = min(1.0, (step + 1) / warmup) * settings.learning_rate * 0.5 * (1 + math.cos(math.pi * step / settings.steps))
        m = m - rate * direction
    return MeanField(m, (ess * (h + decay)).rsqrt())
