"""Variational Bayesian last layers: features that are learned through the bound of a Gaussian on their linear head.

``f_c(x) = w_c . phi(x)``, ``q(w_c) = N(m_c, S_c)`` with dense covariances, prior ``N(0, I)`` (fan-in scales live in the
features). The bound ``sum_n E_q[log p(y_n | f)] - KL(q || prior)`` has its expectations in closed form (Harrison, Willes and
Snoek 2024): for Gaussian noise ``log N(y_c; m_c . phi, s_c^2) - phi^T S_c phi / (2 s_c^2)``, SUMMED over outputs ``c``, each
with its own noise; for classes Jensen's bound; see :mod:`seqbdl.inference.expected_log_likelihood` for others.

For fixed features the best head is found, not descended to. Each row acts on the head like a Gaussian observation, a site
with natural parameters ``(g + c mu, c)``, ``g`` the expected score and ``c`` the expected precision (Opper and Archambeau
2009): natural-gradient steps on the sites, halved where the bound would fall. Gaussian noise takes one step, and the maximum
of the bound IS the log evidence of the linear model. Features move along the gradient of this maximum, in which the head
counts as fixed. Each works by whichever is fewer, rows or features; on mini-batches the head's natural parameters are
running means (Hoffman et al. 2013).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from seqbdl.errors import InvalidOptionError
from seqbdl.inference.adam import AdamSettings, adam
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


# ---------------------------------------------------------------------------- the head, given features


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
        factor = safe_cholesky(old + self.features.T @ weighted)
        natural = old @ self.prior.mean.T.unsqueeze(-1) + (self.features.T @ sites.force).T.unsqueeze(-1)
        return Head(torch.cholesky_solve(natural, factor).squeeze(-1).T, factor)

    def under(self, sites: Sites) -> tuple[Tensor, Tensor, Tensor]:
        head = self.head(sites)
        return *head.moments(self.features), head.kl(self.prior)


def fit_sites(
    space: HeadSpace,
    likelihood: Likelihood,
    Y: Tensor,
    noise: Tensor,
    start: Sites | None = None,
    max_iterations: int = 50,
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


def tune_noise(features: Tensor, Y: Tensor, first: Tensor, rows: float) -> Tensor:
    """The noise variance of every output, ``m``, that maximizes the evidence of a Gaussian head, on a grid.

    To be found under features that have not seen the targets: under fitted ones it is the noise that the fit left over.

    Args:
        features: ``n x F``.
        Y: ``n x m``.
        first: ``m``, a first estimate.
        rows: How many rows that estimate counts for.
    """
    eigenvalues, vectors = torch.linalg.eigh(features @ features.T)
    power = (vectors.T @ Y).square()  # n x m
    ratio = torch.linspace(-6.0, 6.0, 241).to(Y).exp()
    noise = ratio[:, None] * first  # grid x m
    total = eigenvalues.clamp_min(0.0)[:, None] + noise.unsqueeze(1)  # grid x n x m
    evidence = -0.5 * (power / total + total.log()).sum(1)
    estimate = -0.5 * rows * (ratio.log() + 1.0 / ratio)
    best = (evidence + estimate.unsqueeze(-1)).argmax(0)
    return ratio[best] * first


# ---------------------------------------------------------------------------- the features


@dataclass(frozen=True)
class VBLLSettings:
    """Attributes:
    steps: Adam steps for the features; 0 leaves them as they are.
    learning_rate: Of the first step; it falls to zero along a half cosine.
    batch_size: Rows per step; ``None``: all.
    """

    steps: int = 30
    learning_rate: float = 0.03
    batch_size: int | None = None

    def __post_init__(self) -> None:
        if self.steps < 0 or not self.learning_rate > 0:
            raise InvalidOptionError(f"steps={self.steps} must not be negative, learning_rate={self.learning_rate} positive")


Features = Callable[[Tensor, Tensor], Tensor]
"""``(weights S x P, X: n x d) -> n x F``, differentiable in the weights."""


def learn_features(
    features: Features,
    start: Tensor,
    X: Tensor,
    likelihood: Likelihood,
    Y: Tensor,
    noise: Tensor,
    generator: torch.Generator,
    settings: VBLLSettings = VBLLSettings(),
) -> Tensor:
    """Climb the bound over the weights of the features, which a standard normal penalty holds around their start.

    Args:
        features: The feature map.
        start: ``S x P``, random weights.
        X: ``n x d``.
        likelihood: Of an observation.
        Y: ``n x t``.
        noise: ``n x m`` noise variances.
        generator: Orders the rows.
        settings: Steps and rates.

    Returns:
        ``S x P`` weights.
    """
    N, state = X.shape[0], _HeadState(likelihood)

    def gradient(z: Tensor, rows: Tensor | None) -> Tensor:
        some = slice(None) if rows is None else rows
        with torch.enable_grad():
            leaf = z.detach().requires_grad_(True)
            phi = features(leaf, X[some])
        slope = state.all_rows if rows is None else state.some_rows
        (pull,) = torch.autograd.grad(phi, leaf, slope(phi.detach(), Y[some], noise[some], N))
        return (z - start) - pull

    if settings.steps == 0:
        return start
    descent = AdamSettings(settings.steps, settings.learning_rate, settings.batch_size)
    return adam(gradient, start, N, descent, generator)


@dataclass
class _HeadState:
    """The head while features move: its sites, or running means of its natural parameters."""

    likelihood: Likelihood
    sites: Sites | None = None
    natural: tuple[Tensor, Tensor] | None = None  # F x l, l x F x F
    count: int = 0

    def all_rows(self, phi: Tensor, Y: Tensor, noise: Tensor, N: int) -> Tensor:
        """The derivative of the bound in the features, ``n x F``."""
        l = self.likelihood.num_latents(noise.shape[-1])  # noqa: E741 - the library's letter
        space = RowSpace(phi.new_zeros(phi.shape[0], l), (phi @ phi.T).unsqueeze(0))
        fit = fit_sites(space, self.likelihood, Y, noise, self.sites, max_iterations=3)
        self.sites = fit.sites
        now = expected(self.likelihood, fit.mean, fit.variance, Y, noise)
        a, half, factor = space.solve(fit.sites)
        weights = (phi.T @ a).squeeze(-1)  # l x F
        root = fit.sites.precision.T.sqrt().unsqueeze(-1)
        spread = phi - half.transpose(-1, -2) @ torch.cholesky_solve(root * phi, factor)  # l x n x F, phi S
        return now.gradient @ weights - (now.precision.T.unsqueeze(-1) * spread).sum(0)

    def some_rows(self, phi: Tensor, Y: Tensor, noise: Tensor, N: int) -> Tensor:
        """The same, estimated from a mini-batch."""
        factor_of_rows = N / phi.shape[0]
        l, F = self.likelihood.num_latents(noise.shape[-1]), phi.shape[1]  # noqa: E741
        eye = torch.eye(F).to(phi)
        if self.natural is None:
            self.natural = phi.new_zeros(F, l), eye.expand(l, -1, -1)
        force, precision = self.natural
        head = _head_of(force, precision)
        mean, variance = head.moments(phi)
        now = expected(self.likelihood, mean, variance, Y, noise)
        weighted = phi * now.precision.T.unsqueeze(-1)  # l x n x F
        new_force = factor_of_rows * phi.T @ (now.gradient + now.precision * mean)
        new_precision = eye + factor_of_rows * phi.T @ weighted
        self.count += 1
        rate = max(0.1, 1.0 / self.count)
        self.natural = torch.lerp(force, new_force, rate), torch.lerp(precision, new_precision, rate)
        spread = torch.cholesky_solve(phi.T.expand(l, -1, -1), head.factor).transpose(-1, -2)  # l x n x F
        return factor_of_rows * (now.gradient @ head.mean.T - (now.precision.T.unsqueeze(-1) * spread).sum(0))


def _head_of(force: Tensor, precision: Tensor) -> Head:
    factor = safe_cholesky(precision)
    mean = torch.cholesky_solve(force.T.unsqueeze(-1), factor).squeeze(-1).T
    return Head(mean, factor)
