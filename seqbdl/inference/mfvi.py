"""Mean-field variational inference: independent Gaussians over the weights that maximize the evidence lower bound.

``ELBO = E_q[sum_n log p(y_n | f(x_n; z))] - T KL(q || prior)``, both terms SUMS: over the rows, over the weights. ``T = 1``
is Bayes' rule; below 1 posteriors are colder. The expected log-likelihood is estimated with noise per datum (Kingma et al.
2015; Wen et al. 2018) or with whole weight draws (Blundell et al. 2015), the divergence is in closed form for Gaussian
priors and estimated with weight draws for others. With the posterior of earlier data as prior this is variational
continual learning (Nguyen et al. 2018).

For a linear network with Gaussian noise the optimum is known: the exact posterior mean, and for every weight the inverse of
the exact posterior precision's diagonal entry as variance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from seqbdl.errors import InvalidOptionError
from seqbdl.inference.adam import AdamSettings, adam, gradient_of
from seqbdl.inference.log_joint import LogJoint
from seqbdl.networks import MLP
from seqbdl.networks.local_noise import flipout, local_reparameterization
from seqbdl.posteriors.mean_field import MeanField, MeanFieldPrior, antithetic_normals
from seqbdl.priors import GaussianPrior, Prior

ESTIMATORS = ("local", "flipout", "weights")
Divergence = Callable[[MeanField], Tensor]
"""Of ``K`` components from what holds them, ``K``."""


@dataclass(frozen=True)
class MFVISettings:
    """Attributes:
    steps: Adam steps.
    learning_rate: Of the first step, in standard deviations of a Gaussian prior; it falls to zero along a half cosine.
    batch_size: Rows per step; ``None``: all.
    estimator: ``"local"`` (reparameterization of every row's pre-activations) or ``"flipout"``, both for multilayer
        perceptrons; or ``"weights"``, draws of all weights in pairs of opposite sign, for any network.
    num_samples: Noise draws per step and component.
    temperature: ``T``.
    """

    steps: int = 200
    learning_rate: float = 0.08
    batch_size: int | None = None
    estimator: str = "local"
    num_samples: int = 1
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.num_samples < 1:
            raise InvalidOptionError(f"steps={self.steps} and num_samples={self.num_samples} must be at least 1")
        if not self.learning_rate > 0 or not self.temperature > 0:
            raise InvalidOptionError(f"learning_rate={self.learning_rate} and temperature={self.temperature} must be positive")
        if self.estimator not in ESTIMATORS:
            raise InvalidOptionError(f"estimator={self.estimator!r} must be one of {', '.join(ESTIMATORS)}")


def mfvi(
    joint: LogJoint,
    start: MeanField,
    generator: torch.Generator,
    settings: MFVISettings = MFVISettings(),
    divergence: Divergence | None = None,
) -> MeanField:
    """Maximize the bound of every component by Adam.

    Args:
        joint: Likelihood, data and prior. With a Gaussian prior, or an earlier :class:`MeanField` as prior, the divergence is
            in closed form.
        start: ``K`` components.
        generator: Of the noise and of the order of rows.
        settings: Steps, rates and the estimator.
        divergence: In place of that from the prior.

    Raises:
        InvalidOptionError: The estimator needs a multilayer perceptron.
    """
    if settings.estimator != "weights" and not isinstance(joint.network, MLP):
        raise InvalidOptionError(f'estimator={settings.estimator!r} is for multilayer perceptrons; take "weights"')
    prior = gaussian_of(joint.prior, start)
    frame = MeanField(torch.zeros_like(start.mean), torch.ones_like(start.sd)) if prior is None else prior

    def unpack(theta: Tensor) -> MeanField:
        shift, log_ratio = theta.chunk(2, -1)  # in units of the prior, so that one rate fits all weights
        return MeanField(frame.mean + frame.sd * shift, frame.sd * log_ratio.exp())

    def loss(theta: Tensor, rows: Tensor | None) -> Tensor:
        q = unpack(theta)
        fit = expected_log_likelihood(joint, q, rows, settings.estimator, settings.num_samples, generator)
        if divergence is not None:
            return settings.temperature * divergence(q) - fit
        return settings.temperature * _divergence(q, joint.prior, prior, settings.num_samples, generator) - fit

    theta = torch.cat([(start.mean - frame.mean) / frame.sd, (start.sd / frame.sd).log()], -1)
    descent = AdamSettings(settings.steps, settings.learning_rate, settings.batch_size)
    return unpack(adam(gradient_of(loss), theta, joint.num_rows, descent, generator))


def gaussian_of(prior: Prior, like: MeanField) -> MeanField | None:
    """A Gaussian prior as a mean field of as many components; ``None`` for priors of other shapes."""
    if isinstance(prior, GaussianPrior):
        return MeanField(torch.zeros_like(like.mean), torch.ones_like(like.sd))
    return prior.posterior if isinstance(prior, MeanFieldPrior) else None


def elbo(joint: LogJoint, q: MeanField, num_samples: int, generator: torch.Generator) -> Tensor:
    """The evidence lower bound at temperature 1 of every component, ``K``, its expectations estimated from ``num_samples``
    weight draws each.

    The uniform mixture of the components has a bound at least as large as their mean (its entropy is no less).
    """
    white = antithetic_normals(num_samples * q.num_components, q.num_components, q.num_params, generator, q.mean)
    with torch.no_grad():
        fit = joint.log_likelihood(q.draws(white)).unflatten(0, (num_samples, -1)).mean(0)
        return fit - _divergence(q, joint.prior, gaussian_of(joint.prior, q), num_samples, generator)


def expected_log_likelihood(
    joint: LogJoint, q: MeanField, rows: Tensor | None, estimator: str, count: int, generator: torch.Generator
) -> Tensor:
    """``E_q[sum_n log p(y_n | z)]``, ``K``, an unbiased estimate; differentiable.

    Args:
        joint: Likelihood and data.
        q: ``K`` components.
        rows: A mini-batch; ``None``: all.
        estimator: One of :data:`ESTIMATORS`.
        count: Noise draws per component.
        generator: Of the noise.
    """
    if estimator == "weights":
        white = antithetic_normals(2 * count * q.num_components, q.num_components, q.num_params, generator, q.mean)
        return joint.log_likelihood(q.draws(white), rows).unflatten(0, (2 * count, -1)).mean(0)
    assert isinstance(joint.network, MLP)
    X, Y, noise, factor = joint.rows(rows)
    propagate = local_reparameterization if estimator == "local" else flipout
    f = propagate(joint.network, q.mean.repeat(count, 1).to(X.dtype), q.sd.repeat(count, 1).to(X.dtype), X, generator)
    log_probs = joint.likelihood.log_prob(f, Y, noise).sum(-1)
    return factor * log_probs.unflatten(0, (count, -1)).mean(0)


def _divergence(q: MeanField, prior: Prior, gaussian: MeanField | None, num_samples: int, generator: torch.Generator) -> Tensor:
    """``KL(q || prior)``, ``K``: exact, or estimated with weight draws."""
    if gaussian is not None:
        return q.kl(gaussian)
    white = antithetic_normals(2 * num_samples * q.num_components, q.num_components, q.num_params, generator, q.mean)
    return -q.entropy - prior.log_prob(q.draws(white)).unflatten(0, (2 * num_samples, -1)).mean(0)
