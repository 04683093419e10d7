"""Variational Bayesian last layers: features that are learned through the bound of a Gaussian on their linear head.

Harrison, Willes and Snoek (2024) descend the bound of :mod:`seqbdl.inference.gaussian_head` in features and head at once. Here
the head is the best one for the present features at every step, and features move along the gradient of the bound's maximum,
in which the head counts as fixed. On mini-batches the head's natural parameters are running means instead (Hoffman et al.
2013).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from seqbdl.errors import InvalidOptionError
from seqbdl.inference.adam import AdamSettings, adam
from seqbdl.inference.expected_log_likelihood import expected
from seqbdl.inference.gaussian_head import Head, RowSpace, SiteFit, Sites, fit_sites
from seqbdl.likelihoods import Likelihood


def feature_gradient(
    features: Tensor,
    likelihood: Likelihood,
    Y: Tensor,
    noise: Tensor,
    start: Sites | None = None,
    max_iterations: int = 50,
) -> tuple[Tensor, SiteFit]:
    """The derivative in the features, ``n x F``, of the maximal bound under the prior ``N(0, I)``, and the maximum.

    Where the bound is maximal over heads its derivative is that with the head held: ``sum_c g_c w_c^T - c_c S_c phi``.

    Args:
        features: ``n x F``.
        likelihood: Of an observation.
        Y: ``n x t``.
        noise: ``n x m``.
        start: Sites to begin with.
        max_iterations: See :func:`fit_sites`.
    """
    nothing = features.new_zeros(features.shape[0], likelihood.num_latents(noise.shape[-1]))
    space = RowSpace(nothing, (features @ features.T).unsqueeze(0))
    fit = fit_sites(space, likelihood, Y, noise, start, max_iterations)
    now = expected(likelihood, fit.mean, fit.variance, Y, noise)
    a, half, factor = space.solve(fit.sites)
    weights = (features.T @ a).squeeze(-1)  # l x F
    root = fit.sites.precision.T.sqrt().unsqueeze(-1)
    spread = features - half.transpose(-1, -2) @ torch.cholesky_solve(root * features, factor)  # l x n x F, phi S
    return now.gradient @ weights - (now.precision.T.unsqueeze(-1) * spread).sum(0), fit


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
        slope, fit = feature_gradient(phi, self.likelihood, Y, noise, self.sites, max_iterations=3)
        self.sites = fit.sites
        return slope

    def some_rows(self, phi: Tensor, Y: Tensor, noise: Tensor, N: int) -> Tensor:
        """The same, estimated from a mini-batch."""
        factor_of_rows = N / phi.shape[0]
        l, F = self.likelihood.num_latents(noise.shape[-1]), phi.shape[1]  # noqa: E741
        eye = torch.eye(F).to(phi)
        if self.natural is None:
            self.natural = phi.new_zeros(F, l), eye.expand(l, -1, -1)
        force, precision = self.natural
        head = Head.of(force, precision)
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
