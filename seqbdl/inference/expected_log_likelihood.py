"""Expected log-likelihoods under Gaussian latent values, what variational methods over functions maximize.

``E[log p(y | f)]`` for independent ``f ~ N(mean, variance)``: in closed form for Gaussian noise (of varying size too) and
for counts, by Gauss-Hermite quadrature for two classes. For several classes it is the lower bound by Jensen's inequality,
``mean_y - logsumexp(mean + variance / 2)`` (Blei and Lafferty 2006; Harrison et al. 2024), so that what is maximized stays a
lower bound on the log evidence.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from seqbdl.errors import InvalidOptionError
from seqbdl.likelihoods import LOG_RATIO_SCALE, Likelihood

_LOG_2PI = math.log(2 * math.pi)
_NODES = 32


def expected_log_prob(likelihood: Likelihood, mean: Tensor, variance: Tensor, Y: Tensor, noise: Tensor) -> Tensor:
    """``E[log p(y | f)]`` (several classes: a lower bound), summed over the outputs of a row: ``... x n``, differentiable.

    Args:
        likelihood: Of an observation.
        mean: ``... x n x l``.
        variance: ``... x n x l``.
        Y: ``... x n x t``.
        noise: Broadcastable to ``... x n x m``.

    Raises:
        InvalidOptionError: The likelihood is none of the library's.
    """
    if likelihood.name not in _EXPECTATIONS:
        raise InvalidOptionError(f"likelihood={likelihood.name!r}: expectations are known for {', '.join(_EXPECTATIONS)}")
    return _EXPECTATIONS[likelihood.name](mean, variance, Y, noise)


@dataclass(frozen=True)
class Expected:
    """Attributes:
    value: ``... x n``, :func:`expected_log_prob`.
    gradient: ``... x n x l``, its derivative in the mean: the expected score.
    precision: ``... x n x l``, minus twice its derivative in the variance: what a row adds to the precision of a Gaussian
        posterior (Opper and Archambeau 2009). Never negative.
    """

    value: Tensor
    gradient: Tensor
    precision: Tensor


def expected(likelihood: Likelihood, mean: Tensor, variance: Tensor, Y: Tensor, noise: Tensor) -> Expected:
    """Value and derivatives; arguments as for :func:`expected_log_prob`."""
    with torch.enable_grad():
        m, v = mean.detach().requires_grad_(True), variance.detach().requires_grad_(True)
        value = expected_log_prob(likelihood, m, v, Y, noise)
        gradient, slope = torch.autograd.grad(value.sum(), (m, v))
    return Expected(value.detach(), gradient, (-2.0 * slope).clamp_min(0.0))


def _gaussian(mean: Tensor, variance: Tensor, Y: Tensor, noise: Tensor) -> Tensor:
    return -0.5 * (((Y - mean).square() + variance) / noise + noise.log() + _LOG_2PI).sum(-1)


def _heteroscedastic(mean: Tensor, variance: Tensor, Y: Tensor, noise: Tensor) -> Tensor:
    f, second = mean.chunk(2, -1)
    v, v_second = variance.chunk(2, -1)
    log_ratio = LOG_RATIO_SCALE * second
    precision = torch.exp(0.5 * LOG_RATIO_SCALE**2 * v_second - log_ratio) / noise  # E[exp(-log_ratio)] / noise
    return -0.5 * (((Y - f).square() + v) * precision + log_ratio + noise.log() + _LOG_2PI).sum(-1)


def _bernoulli(mean: Tensor, variance: Tensor, Y: Tensor, noise: Tensor) -> Tensor:
    nodes, weights = (torch.from_numpy(a).to(mean) for a in np.polynomial.hermite_e.hermegauss(_NODES))
    f = mean.unsqueeze(-1) + variance.clamp_min(1e-30).sqrt().unsqueeze(-1) * nodes
    softplus = (torch.nn.functional.softplus(f) * (weights / weights.sum())).sum(-1)
    return (Y * mean - softplus).sum(-1)


def _categorical(mean: Tensor, variance: Tensor, Y: Tensor, noise: Tensor) -> Tensor:
    chosen = (torch.arange(mean.shape[-1], device=mean.device) == Y).to(mean)
    return (chosen * mean).sum(-1) - torch.logsumexp(mean + 0.5 * variance, -1)


def _poisson(mean: Tensor, variance: Tensor, Y: Tensor, noise: Tensor) -> Tensor:
    return (Y * mean - torch.exp(mean + 0.5 * variance) - torch.lgamma(Y + 1)).sum(-1)


_EXPECTATIONS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "gaussian": _gaussian,
    "heteroscedastic": _heteroscedastic,
    "bernoulli": _bernoulli,
    "categorical": _categorical,
    "poisson": _poisson,
}
