"""Recursive Gaussian beliefs over weights: predict, score, update, one block of rows after the other.

What the extended Kalman filter and its low-rank relatives share. A belief is a mean and a covariance of some structure; rows
are seen through the network linearized at a point ``z``, ``f(z) + J (w - z)``, and through the root form of a likelihood
(``R R^T`` its Fisher information, ``R u`` its score). The update solves ``min 1/2 |R^T J (w - z) - u|^2 + 1/2 (w - m)^T
Sigma^{-1} (w - m)``::

    w = m + Sigma J^T R (I + R^T J Sigma J^T R)^{-1} (u + R^T J (z - m))

which for Gaussian noise is the Kalman gain, and for any exponential family the natural-gradient filter (Ollivier 2018). Around
the new point it may be repeated, with the belief from BEFORE the rows: the iterated filter, which is the Gauss-Newton method
for the maximum a posteriori (Bell and Cathey 1993). Old rows are never looked at again.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self, TypeVar

import torch
from torch import Tensor

from seqbdl.errors import InvalidOptionError
from seqbdl.likelihoods import Likelihood, apply_root, apply_root_transposed, whiten_both, whiten_rows
from seqbdl.networks import JacobianRows
from seqbdl.posteriors.gaussian_weights import GaussianWeights
from seqbdl.posteriors.joint_gaussian import safe_cholesky

Linearize = Callable[[Tensor], tuple[Tensor, JacobianRows]]
"""Weights ``P`` to values ``n x l`` and their Jacobian ``(n l) x P``, the row running slower, at the rows of a block."""
Values = Callable[[Tensor], Tensor]
"""Weights ``P`` to values ``n x l`` alone."""
Lift = Callable[[Tensor], Tensor]
"""``a: k`` to ``Sigma J^T a: P``."""

INFLATIONS = ("simple", "hybrid", "bayesian")


@dataclass(frozen=True)
class FilterSettings:
    """How a belief ages, and how rows are absorbed.

    Attributes:
        forgetting: ``gamma``; deviations of the mean from its centre shrink by it, the covariance by its square.
        process_noise: ``q``, added to the variances of all weights.
        inflation: ``alpha``; the aged covariance is multiplied by ``1 + alpha``.
        inflation_kind: One of :data:`INFLATIONS`. ``"simple"``: as said. Of LO-FI also ``"hybrid"``, the precision becomes
            ``(Sigma^{-1} + alpha I / v) / (1 + alpha)`` with the prior variance ``v``, so that what was never seen does not
            inflate; and ``"bayesian"``, where the mean, too, moves towards the prior's: the posterior to the power ``1 / (1 +
            alpha)`` times the prior to the rest.
        prior_variance: ``v``.
        iterations: Linearizations per block; 1 is the extended Kalman filter, more the iterated one.
        halvings: How often a step is halved while it does not decrease the block's loss; 0: steps are never judged, as in
            the textbook filter.

    Raises:
        InvalidOptionError: A value is out of its range.
    """

    forgetting: float = 1.0
    process_noise: float = 0.0
    inflation: float = 0.0
    iterations: int = 1
    halvings: int = 0
    inflation_kind: str = "simple"
    prior_variance: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 < self.forgetting <= 1.0:
            raise InvalidOptionError(f"forgetting={self.forgetting} must be in (0, 1]; 1 forgets nothing")
        if not self.process_noise >= 0.0 or not self.inflation >= 0.0:
            raise InvalidOptionError(f"process_noise={self.process_noise} and inflation={self.inflation} must not be negative")
        if self.inflation_kind not in INFLATIONS or not self.prior_variance > 0.0:
            raise InvalidOptionError(
                f"inflation_kind={self.inflation_kind!r} is one of {', '.join(INFLATIONS)}, prior_variance={self.prior_variance} "
                "must be positive"
            )
        if self.iterations < 1 or self.halvings < 0:
            raise InvalidOptionError(f"iterations={self.iterations} must be at least 1, halvings={self.halvings} at least 0")

    @property
    def ages(self) -> bool:
        """Whether :meth:`Belief.aged` changes anything."""
        return self.forgetting < 1.0 or self.process_noise > 0.0 or self.inflation > 0.0


class Belief(ABC):
    """``N(mean, Sigma)`` over ``P`` weights; immutable."""

    mean: Tensor
    """``P``."""

    @abstractmethod
    def seen(self, J: JacobianRows) -> tuple[Tensor, Lift]:
        """``J Sigma J^T``, ``k x k``, and the map ``a -> Sigma J^T a``, for ``J: k x P``."""

    @abstractmethod
    def learned(self, A: JacobianRows, mean: Tensor) -> Self:
        """With the curvature ``A^T A`` of whitened rows ``A: k x P`` added, and moved to ``mean: P``."""

    @abstractmethod
    def aged(self, settings: FilterSettings, centre: Tensor | None = None) -> Self:
        """One step of time: ``m = c + gamma (m - c)``, ``Sigma = (1 + alpha) (gamma^2 Sigma + q I)``; ``centre: P``, zero by
        default."""

    def covariance_of(self, J: Tensor) -> Tensor:
        """``J Sigma J^T`` of ``J: batch x k x P``, ``batch x k x k``."""
        return self.weights.covariance_of(J)

    @property
    @abstractmethod
    def weights(self) -> GaussianWeights:
        """The belief as a posterior over weights."""


AnyBelief = TypeVar("AnyBelief", bound=Belief)


def absorb(
    belief: AnyBelief,
    linearize: Linearize,
    likelihood: Likelihood,
    Y: Tensor,
    noise: Tensor,
    settings: FilterSettings = FilterSettings(),
    values_at: Values | None = None,
) -> tuple[AnyBelief, Tensor]:
    """Score a block of rows, then update on it.

    Args:
        belief: Before the rows, already aged.
        linearize: Of the network at the rows.
        likelihood: Of an observation.
        Y: ``n x t``.
        noise: ``n x m`` noise variances.
        settings: How often to linearize.
        values_at: The values of ``linearize``, cheaper, for judging steps.

    Returns:
        The new belief, and the log predictive density of the block under the old one (see :func:`log_predictive`).
    """
    mean = belief.mean
    z, force = mean, torch.zeros_like(mean)  # force = Sigma^{-1} (z - mean)
    values, rows = linearize(z)
    n, num_latents = values.shape
    covariance, lift = belief.seen(rows)
    log_density = log_predictive(values, covariance, likelihood, Y, noise)
    for i in range(settings.iterations):
        if i > 0:
            values, rows = linearize(z)
            covariance, lift = belief.seen(rows)
        root = likelihood.root(values, noise)
        residual = likelihood.whitened_score(values, Y, noise)
        if i > 0:
            residual = residual + apply_root_transposed(root, rows.times(z - mean).reshape(n, num_latents))
        factor = _plus_identity(whiten_both(root, covariance, num_latents))
        solved = torch.cholesky_solve(residual.reshape(-1, 1), factor).reshape(n, num_latents)
        pull = apply_root(root, solved).flatten()
        if settings.iterations == 1 and settings.halvings == 0:
            z = mean + lift(pull)
            break
        step, push = mean + lift(pull) - z, rows.pull(pull) - force
        fraction = 1.0
        if settings.halvings > 0:
            now = 0.5 * (z - mean) @ force - likelihood.log_prob(values, Y, noise).sum()
            for _ in range(settings.halvings):
                point = z + fraction * step
                there = linearize(point)[0] if values_at is None else values_at(point)
                loss = 0.5 * (point - mean) @ (force + fraction * push) - likelihood.log_prob(there, Y, noise).sum()
                if bool(loss.isfinite()) and loss <= now:
                    break
                fraction *= 0.5
            else:
                fraction = 0.0  # where no step helps the point stays; the curvature of the rows is still learned
        z, force = z + fraction * step, force + fraction * push
        if fraction == 0.0:
            break
    return belief.learned(_whitened(root, rows, num_latents), z), log_density


def settle(
    belief: AnyBelief, linearize: Linearize, likelihood: Likelihood, Y: Tensor, noise: Tensor, mode: Tensor
) -> tuple[AnyBelief, Tensor]:
    """Learn rows around a mode that is known: where the iterated filter of the whole block would end.

    Args:
        belief: Before the rows.
        linearize: Of the network at the rows.
        likelihood: Of an observation.
        Y: ``n x t``.
        noise: ``n x m`` noise variances.
        mode: ``P``.

    Returns:
        The new belief, centred on ``mode``, and ``log p(Y | mode) - 1/2 log det(I + A Sigma A^T)``: what Laplace's
        approximation of the evidence is made of, beside the prior's penalty on ``mode``. Blocks may follow one another.
    """
    values, rows = linearize(mode)
    num_latents = values.shape[1]
    root = likelihood.root(values, noise)
    factor = _plus_identity(whiten_both(root, belief.seen(rows)[0], num_latents))
    fit = likelihood.log_prob(values, Y, noise).sum() - factor.diagonal().log().sum()
    return belief.learned(_whitened(root, rows, num_latents), mode), fit


def log_predictive(
    values: Tensor, covariance: Tensor, likelihood: Likelihood, Y: Tensor, noise: Tensor, max_steps: int = 50
) -> Tensor:
    """``log p(Y)`` for latents ``N(values, covariance)``, scalar.

    By Laplace's approximation at the mode of the latents, which for Gaussian noise is exact, ``log N(Y; values, covariance +
    noise)``.

    Args:
        values: ``n x l``.
        covariance: ``(n l) x (n l)``, the row running slower.
        likelihood: Of an observation.
        Y: ``n x t``.
        noise: ``n x m`` noise variances.
        max_steps: Of Newton's method (Fisher scoring), each halved until it helps.
    """
    n, num_latents = values.shape
    if likelihood.name == "gaussian":
        root = likelihood.root(values, noise)
        factor = _plus_identity(whiten_both(root, covariance, num_latents))
        residual = likelihood.whitened_score(values, Y, noise).flatten().unsqueeze(-1)
        white = torch.linalg.solve_triangular(factor, residual, upper=False)
        log_det = factor.diagonal().log().sum() - root.log().sum()
        return -0.5 * white.square().sum() - log_det - 0.5 * residual.numel() * math.log(2 * math.pi)

    def loss(force: Tensor) -> tuple[Tensor, Tensor]:
        shift = (covariance @ force).reshape(n, num_latents)
        return 0.5 * force @ shift.flatten() - likelihood.log_prob(values + shift, Y, noise).sum(), values + shift

    force = values.new_zeros(n * num_latents)  # covariance^{-1} (f - values)
    current, f = loss(force)
    for _ in range(max_steps):
        root = likelihood.root(f, noise)
        residual = likelihood.whitened_score(f, Y, noise) + apply_root_transposed(root, f - values)
        factor = _plus_identity(whiten_both(root, covariance, num_latents))
        solved = torch.cholesky_solve(residual.flatten().unsqueeze(-1), factor).reshape(n, num_latents)
        step = apply_root(root, solved).flatten() - force
        fraction, improved = 1.0, False
        while fraction > 1e-4 and not improved:
            new, new_f = loss(force + fraction * step)
            improved = bool(new < current)
            fraction = fraction if improved else 0.5 * fraction
        if not improved:
            break
        decrease, current, f, force = current - new, new, new_f, force + fraction * step
        if decrease < 1e-10 * (1 + current.abs()):
            break
    factor = _plus_identity(whiten_both(likelihood.root(f, noise), covariance, num_latents))
    return -current - factor.diagonal().log().sum()


def _whitened(root: Tensor, rows: JacobianRows, num_latents: int) -> JacobianRows:
    return rows.mixed(lambda J: whiten_rows(root, J, num_latents))


def _plus_identity(kernel: Tensor) -> Tensor:
    """The Cholesky factor of ``I + K``."""
    return safe_cholesky(kernel + torch.eye(kernel.shape[-1]).to(kernel))
