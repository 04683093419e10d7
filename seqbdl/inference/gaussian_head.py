"""Gaussians on linear heads for any likelihood: the best one, given features, and how rows add to it.

``f_c(x) = w_c . phi(x)``, ``q(w_c) = N(m_c, S_c)`` with dense covariances. The bound ``sum_n E_q[log p(y_n | f)] - KL(q ||
prior)`` has its expectations in closed form (see :mod:`seqbdl.inference.expected_log_likelihood`): for Gaussian noise ``log
N(y_c; m_c . phi, s_c^2) - phi^T S_c phi / (2 s_c^2)``, SUMMED over outputs ``c``, each with its own noise.

The best head is found, not descended to. Each row acts on the head like a Gaussian observation, a site with natural parameters
``(g + c mu, c)``, ``g`` the expected score and ``c`` the expected precision (Opper and Archambeau 2009): natural-gradient
steps on the sites, halved where the bound would fall. Gaussian noise takes one step, and the maximum of the bound IS the log
evidence of the linear model. Each works by whichever is fewer, rows or features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from seqbdl.inference.expected_log_likelihood import expected, expected_log_prob
from seqbdl.likelihoods import Likelihood
from seqbdl.posteriors.joint_gaussian import safe_cholesky

_HALVINGS = 12


@dataclass(frozen=True)
class Head:
    """``q(w_c) = N(mean_c, (L_c L_c^T)^{-1})`` of every latent function.

    Attributes:
        mean: ``F x l``.
        factor: ``l x F x F``, lower Cholesky factors of the precisions.
    """

    mean: Tensor
    factor: Tensor

    @classmethod
    def of(cls, force: Tensor, precision: Tensor) -> Head:
        """From natural parameters: precisions ``l x F x F``, and precision times mean, ``F x l``."""
        factor = safe_cholesky(precision)
        return cls(torch.cholesky_solve(force.T.unsqueeze(-1), factor).squeeze(-1).T, factor)

    def moments(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Means and variances at ``n x F`` features, ``n x l`` both."""
        white = torch.linalg.solve_triangular(self.factor, features.T, upper=False)  # l x F x n
        return features @ self.mean, white.square().sum(-2).T

    def kl(self, prior: Head) -> Tensor:
        """``sum_c KL(q(w_c) || prior(w_c))``, scalar."""
        F = self.mean.shape[0]
        spread = torch.linalg.solve_triangular(self.factor, prior.factor, upper=False).square().sum()
        shift = prior.factor.transpose(-1, -2) @ (self.mean - prior.mean).T.unsqueeze(-1)
        log_ratio = self.factor.diagonal(dim1=-2, dim2=-1).log().sum() - prior.factor.diagonal(dim1=-2, dim2=-1).log().sum()
        return 0.5 * (spread + shift.square().sum() - F * self.mean.shape[1]) + log_ratio


def prior_head(num_features: int, num_latents: int, like: Tensor) -> Head:
    """``N(0, I)``."""
    eye = torch.eye(num_features).to(like)
    return Head(like.new_zeros(num_features, num_latents), eye.expand(num_latents, -1, -1).clone())


def head_bound(head: Head, prior: Head, features: Tensor, likelihood: Likelihood, Y: Tensor, noise: Tensor) -> Tensor:
    """The evidence lower bound of any Gaussian head, scalar; differentiable.

    Args:
        head: ``q``.
        prior: Of the head.
        features: ``n x F``.
        likelihood: Of an observation.
        Y: ``n x t``.
        noise: ``n x m``.
    """
    mean, variance = head.moments(features)
    return expected_log_prob(likelihood, mean, variance, Y, noise).sum() - head.kl(prior)


@dataclass(frozen=True)
class Sites:
    """What the rows say of the latent values there, as Gaussian observations in natural parameters.

    Attributes:
        force: ``n x l``, precision times value.
        precision: ``n x l``.
    """

    force: Tensor
    precision: Tensor


@dataclass(frozen=True)
class SiteFit:
    """The best sites, and the posterior under them.

    Attributes:
        sites: The sites.
        mean: ``n x l`` posterior means of the latent values.
        variance: ``n x l``.
        bound: Scalar.
    """

    sites: Sites
    mean: Tensor
    variance: Tensor
    bound: Tensor


class HeadSpace(Protocol):
    """A Gaussian prior on the head, seen from some rows."""

    def under(self, sites: Sites) -> tuple[Tensor, Tensor, Tensor]:
        """Posterior means and variances at the rows, ``n x l``, and the divergence from the prior."""


@dataclass(frozen=True)
class RowSpace:
    """By rows: good for few.

    Attributes:
        mean: ``n x l`` prior means of the latent values.
        kernel: ``(l or 1) x n x n`` prior covariances.
    """

    mean: Tensor
    kernel: Tensor

    def solve(self, sites: Sites) -> tuple[Tensor, Tensor, Tensor]:
        """``a``, ``l x n x 1``, with posterior means ``mean + K a``; ``C^{1/2} K``, ``l x n x n``; and the Cholesky factor of
        ``I + C^{1/2} K C^{1/2}``. Nothing is divided by a precision, which may vanish."""
        root = sites.precision.T.sqrt().unsqueeze(-1)  # l x n x 1
        half = root * self.kernel
        eye = torch.eye(self.kernel.shape[-1]).to(self.kernel)
        factor = safe_cholesky(eye + half * root.transpose(-1, -2))
        force = (sites.force - sites.precision * self.mean).T.unsqueeze(-1)
        a = force - root * torch.cholesky_solve(half @ force, factor)
        return a, half, factor

    def under(self, sites: Sites) -> tuple[Tensor, Tensor, Tensor]:
        a, half, factor = self.solve(sites)
        moved = self.kernel @ a  # l x n x 1
        explained = torch.linalg.solve_triangular(factor, half, upper=False).square().sum(-2)
        variance = (self.kernel.diagonal(dim1=-2, dim2=-1) - explained).clamp_min(0.0)
        n, eye = a.shape[-2], torch.eye(a.shape[-2]).to(a)
        trace = torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=False).square().sum((-1, -2))
        log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        kl = 0.5 * (log_det - n + trace + (a * moved).sum((-1, -2))).sum()
        return self.mean + moved.squeeze(-1).T, variance.T, kl


@dataclass(frozen=True)
class FeatureSpace:
    """By features: good for many rows.

    Attributes:
        prior: On the head.
        features: ``n x F``.
    """

    prior: Head
    features: Tensor

    def head(self, sites: Sites) -> Head:
        """Natural parameters add."""
        weighted = self.features.unsqueeze(0) * sites.precision.T.unsqueeze(-1)  # l x n x F
        old = self.prior.factor @ self.prior.factor.transpose(-1, -2)
        force = (old @ self.prior.mean.T.unsqueeze(-1)).squeeze(-1).T + self.features.T @ sites.force
        return Head.of(force, old + self.features.T @ weighted)

    def under(self, sites: Sites) -> tuple[Tensor, Tensor, Tensor]:
        head = self.head(sites)
        return *head.moments(self.features), head.kl(self.prior)


def fit_sites(
    space: HeadSpace,
    likelihood: Likelihood,
    Y: Tensor,
    noise: Tensor,
    start: Sites | None = None,
    max_iterations: int = 200,
    tolerance: float = 1e-9,
) -> SiteFit:
    """Maximize the bound over all Gaussian heads.

    Args:
        space: Prior and rows.
        likelihood: Of an observation.
        Y: ``n x t``.
        noise: ``n x m``.
        start: Where to begin; ``None``: with rows that say nothing.
        max_iterations: Natural-gradient steps at most.
        tolerance: Stop when the bound rises by less than this share of ``1 + |bound|``.
    """

    def evaluate(sites: Sites) -> SiteFit:
        mean, variance, kl = space.under(sites)
        return SiteFit(sites, mean, variance, expected_log_prob(likelihood, mean, variance, Y, noise).sum() - kl)

    if start is None:
        nothing = Y.new_zeros(Y.shape[0], likelihood.num_latents(noise.shape[-1]))
        start = Sites(nothing, nothing)
    fit = evaluate(start)
    for _ in range(max_iterations):
        now = expected(likelihood, fit.mean, fit.variance, Y, noise)
        target, old, share = Sites(now.gradient + now.precision * fit.mean, now.precision), fit.sites, 1.0
        for _ in range(_HALVINGS):
            step = Sites(torch.lerp(old.force, target.force, share), torch.lerp(old.precision, target.precision, share))
            new = evaluate(step)
            if bool(new.bound >= fit.bound):
                break
            share *= 0.5
        else:
            return fit
        rise, fit = new.bound - fit.bound, new
        if bool(rise < tolerance * (1 + fit.bound.abs())):
            break
    return fit


def absorb(prior: Head, features: Tensor, likelihood: Likelihood, Y: Tensor, noise: Tensor) -> tuple[Head, Tensor]:
    """The best head for new rows under an earlier head as prior, and the bound. Under Gaussian noise exact, however rows are
    split into calls.

    Args:
        prior: What was known.
        features: ``n x F``.
        likelihood: Of an observation.
        Y: ``n x t``.
        noise: ``n x m``.
    """
    weights = FeatureSpace(prior, features)
    if features.shape[0] > features.shape[1]:
        fit = fit_sites(weights, likelihood, Y, noise)
        return weights.head(fit.sites), fit.bound
    white = torch.linalg.solve_triangular(prior.factor, features.T, upper=False)  # l x F x n
    rows = RowSpace(features @ prior.mean, white.transpose(-1, -2) @ white)
    fit = fit_sites(rows, likelihood, Y, noise)
    return weights.head(fit.sites), fit.bound
