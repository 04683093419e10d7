"""Observation models: how outcomes arise from the values of a latent function.

A likelihood is stateless. Latent values come as ``... x n x l``, targets as ``... x n x t``; everything broadcasts on the
left, so that members of an ensemble, chains and batches need no loop. ``noise`` holds noise variances of the Gaussian
family, broadcastable to ``... x n x m``; the discrete likelihoods ignore it.

What inference needs of the curvature is exact and positive semi-definite: the Fisher information ``L`` of every row in a
root form ``L = R R^T``, and the gradient in the same coordinates, ``d log p / d f = R u``. The generalized Gauss-Newton
matrix is then ``J^T R R^T J``, and a Gauss-Newton step solves a linear least-squares problem with rows ``R^T J`` and
residuals ``u``; nothing is divided by a curvature that may vanish (the softmax's always does, in one direction).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from seqbdl.errors import InvalidDataError, InvalidOptionError, UnknownNameError

_LOG_2PI = math.log(2 * math.pi)

LOG_RATIO_SCALE = 0.5
"""What the second latents of the heteroscedastic likelihood are multiplied with to be the log of the noise variance's ratio."""


class Likelihood(ABC):
    """How outcomes arise from latent values, row by row, independently given them."""

    name: ClassVar[str]
    has_noise: ClassVar[bool] = False
    """Whether a noise variance (learned, fixed or per row) is part of the model, and targets are standardized."""
    is_discrete: ClassVar[bool] = False
    """Whether outcomes are classes."""

    def num_latents(self, output_dim: int) -> int:
        """``l``, latent functions for ``output_dim`` outputs."""
        return output_dim

    def num_targets(self, output_dim: int) -> int:
        """``t``, columns of ``Y``."""
        return output_dim

    def check_targets(self, Y: Tensor, output_dim: int) -> None:  # noqa: B027 - any finite number is an outcome
        """Refuse targets out of range.

        Args:
            Y: ``n x t``.
            output_dim: Outputs of the surrogate.

        Raises:
            InvalidDataError: Names the first row that is out of range.
        """

    @abstractmethod
    def log_prob(self, f: Tensor, Y: Tensor, noise: Tensor) -> Tensor:
        """``log p(y | f)``, summed over the outputs of a row: ``... x n``.

        Args:
            f: ``... x n x l``.
            Y: ``... x n x t``.
            noise: Broadcastable to ``... x n x m``.
        """

    @abstractmethod
    def root(self, f: Tensor, noise: Tensor) -> Tensor:
        """``R`` with ``R R^T`` the Fisher information: the diagonal, ``... x n x l``, or full, ``... x n x l x l``."""

    @abstractmethod
    def whitened_score(self, f: Tensor, Y: Tensor, noise: Tensor) -> Tensor:
        """``u`` with ``d log p / d f = R u``, ``... x n x l``."""

    @abstractmethod
    def mean_variance(self, f: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of an observation given ``f``: ``... x n x m`` both (probabilities of classes: a 0-1
        indicator of each)."""

    @abstractmethod
    def sample(self, f: Tensor, noise: Tensor, generator: torch.Generator) -> Tensor:
        """One observation per row, ``... x n x t``, in the floating-point type of ``f``."""

    def score(self, f: Tensor, Y: Tensor, noise: Tensor) -> Tensor:
        """``d log p / d f``, ``... x n x l``."""
        return apply_root(self.root(f, noise), self.whitened_score(f, Y, noise))

    def stabilized(self, f: Tensor, noise: Tensor) -> Tensor:
        """``g(f)`` whose Jacobian is ``R^T``, ``... x n x l``: latent values in whose coordinates the Fisher information is
        one everywhere (the variance-stabilizing transform).

        Raises:
            InvalidOptionError: There is no such transform.
        """
        raise InvalidOptionError(f"the {self.name} likelihood has no variance-stabilizing transform")

    def class_log_probs(self, f: Tensor) -> Tensor:
        """Log-probabilities of classes, ``... x n x C`` (Bernoulli with several outputs: ``... x n x m x 2``).

        Raises:
            InvalidOptionError: Outcomes are not classes.
        """
        raise InvalidOptionError(f"the {self.name} likelihood has no classes; read predict(X) instead")


class Gaussian(Likelihood):
    """``y = f + e``, ``e ~ N(0, noise)``."""

    name = "gaussian"
    has_noise = True

    def log_prob(self, f: Tensor, Y: Tensor, noise: Tensor) -> Tensor:
        return -0.5 * ((Y - f).square() / noise + noise.log() + _LOG_2PI).sum(-1)

    def root(self, f: Tensor, noise: Tensor) -> Tensor:
        return noise.rsqrt().expand_as(f)

    def whitened_score(self, f: Tensor, Y: Tensor, noise: Tensor) -> Tensor:
        return (Y - f) * noise.rsqrt()

    def stabilized(self, f: Tensor, noise: Tensor) -> Tensor:
        return f * noise.rsqrt()

    def mean_variance(self, f: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        return f, noise.expand_as(f)

    def sample(self, f: Tensor, noise: Tensor, generator: torch.Generator) -> Tensor:
        return f + noise.sqrt() * _normal(f.shape, generator, f)


class HeteroscedasticGaussian(Likelihood):
    """``y = f_1 + e``, ``e ~ N(0, noise exp(f_2 / 2))``: the second half of the latents is twice the log of the noise variance's
    ratio to a reference, so that ``f_2 = 0``, the prior mean, is the homoscedastic model.

    All latents of a network have the prior scale that the mean needs, usually two or three on standardized targets. Taken as the
    log ratio itself that lets the noise vary by factors of hundreds, and forty rows do not tell a good fit from small noise;
    half of it (:data:`LOG_RATIO_SCALE`) costs nothing at two hundred rows. The Fisher information of ``(f_1, f_2)`` is
    ``diag(1 / s2, 1 / 8)``.
    """

    name = "heteroscedastic"
    has_noise = True

    def num_latents(self, output_dim: int) -> int:
        return 2 * output_dim

    def _split(self, f: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        mean, second = f.chunk(2, -1)
        return mean, noise * (LOG_RATIO_SCALE * second).exp()

    def log_prob(self, f: Tensor, Y: Tensor, noise: Tensor) -> Tensor:
        mean, variance = self._split(f, noise)
        return -0.5 * ((Y - mean).square() / variance + variance.log() + _LOG_2PI).sum(-1)

    def root(self, f: Tensor, noise: Tensor) -> Tensor:
        mean, variance = self._split(f, noise)
        return torch.cat([variance.rsqrt().expand_as(mean), torch.full_like(mean, LOG_RATIO_SCALE * math.sqrt(0.5))], -1)

    def whitened_score(self, f: Tensor, Y: Tensor, noise: Tensor) -> Tensor:
        mean, variance = self._split(f, noise)
        white = (Y - mean) * variance.rsqrt()
        return torch.cat([white, math.sqrt(0.5) * (white.square() - 1)], -1)

    def mean_variance(self, f: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        return self._split(f, noise)

    def sample(self, f: Tensor, noise: Tensor, generator: torch.Generator) -> Tensor:
        mean, variance = self._split(f, noise)
        return mean + variance.sqrt() * _normal(mean.shape, generator, mean)


class Bernoulli(Likelihood):
    """``P(y = 1) = sigmoid(f)``, ``y`` in {0, 1}; outputs are independent given ``f``."""

    name = "bernoulli"
    is_discrete = True

    def check_targets(self, Y: Tensor, output_dim: int) -> None:
        _refuse(Y, (Y != 0) & (Y != 1), "is neither 0 nor 1; the bernoulli likelihood takes labels 0 and 1")

    def log_prob(self, f: Tensor, Y: Tensor, noise: Tensor) -> Tensor:
        return (Y * f - torch.nn.functional.softplus(f)).sum(-1)

    def root(self, f: Tensor, noise: Tensor) -> Tensor:
        return torch.sigmoid(f).mul(torch.sigmoid(-f)).sqrt()

    def whitened_score(self, f: Tensor, Y: Tensor, noise: Tensor) -> Tensor:
        # (y - p) / sqrt(p (1 - p)) without a quotient of vanishing numbers: exp(-f/2) for y = 1, -exp(f/2) for y = 0.
        return Y * torch.exp(-0.5 * f) - (1 - Y) * torch.exp(0.5 * f)

    def score(self, f: Tensor, Y: Tensor, noise: Tensor) -> Tensor:
        return Y - torch.sigmoid(f)

    def stabilized(self, f: Tensor, noise: Tensor) -> Tensor:
        return 2 * torch.atan(torch.exp(0.5 * f))

    def mean_variance(self, f: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        p = torch.sigmoid(f)
        return p, p * torch.sigmoid(-f)

    def sample(self, f: Tensor, noise: Tensor, generator: torch.Generator) -> Tensor:
        return (_uniform(f.shape, generator, f) < torch.sigmoid(f)).to(f)

    def class_log_probs(self, f: Tensor) -> Tensor:
        both = torch.stack([torch.nn.functional.logsigmoid(-f), torch.nn.functional.logsigmoid(f)], -1)
        return both.squeeze(-2) if f.shape[-1] == 1 else both


class Categorical(Likelihood):
    """``P(y = c) = softmax(f)_c``; ``Y`` holds one column of class indices, ``output_dim`` is the number of classes."""

    name = "categorical"
    is_discrete = True

    def num_targets(self, output_dim: int) -> int:
        return 1

    def check_targets(self, Y: Tensor, output_dim: int) -> None:
        if output_dim < 2:
            raise InvalidOptionError(f"output_dim={output_dim} is the number of classes; the categorical likelihood needs 2")
        bad = (Y < 0) | (output_dim <= Y) | (Y.round() != Y)
        _refuse(Y, bad, f"is no class index; with output_dim={output_dim} classes are 0 to {output_dim - 1}")

    def _one_hot(self, f: Tensor, Y: Tensor) -> Tensor:
        classes = torch.arange(f.shape[-1], device=f.device, dtype=f.dtype)
        return (classes == Y).to(f)

    def log_prob(self, f: Tensor, Y: Tensor, noise: Tensor) -> Tensor:
        return (self._one_hot(f, Y) * f.log_softmax(-1)).sum(-1)

    def root(self, f: Tensor, noise: Tensor) -> Tensor:
        p = f.softmax(-1)
        root = p.sqrt()
        return torch.diag_embed(root) - p.unsqueeze(-1) * root.unsqueeze(-2)  # R R^T = diag(p) - p p^T

    def whitened_score(self, f: Tensor, Y: Tensor, noise: Tensor) -> Tensor:
        return self._one_hot(f, Y) * torch.exp(-0.5 * f.log_softmax(-1))  # R (e_y / sqrt(p_y)) = e_y - p

    def score(self, f: Tensor, Y: Tensor, noise: Tensor) -> Tensor:
        return self._one_hot(f, Y) - f.softmax(-1)

    def stabilized(self, f: Tensor, noise: Tensor) -> Tensor:
        return 2 * torch.exp(0.5 * f.log_softmax(-1))  # square roots of probabilities: points on a sphere

    def mean_variance(self, f: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        p = f.softmax(-1)
        return p, p * (1 - p)

    def sample(self, f: Tensor, noise: Tensor, generator: torch.Generator) -> Tensor:
        cumulated = f.softmax(-1).cumsum(-1)
        u = _uniform((*f.shape[:-1], 1), generator, f)
        return (u > cumulated[..., :-1]).sum(-1, keepdim=True).to(f)

    def class_log_probs(self, f: Tensor) -> Tensor:
        return f.log_softmax(-1)


class Poisson(Likelihood):
    """``y ~ Poisson(exp(f))``, ``y`` a count."""

    name = "poisson"

    def check_targets(self, Y: Tensor, output_dim: int) -> None:
        _refuse(Y, (Y < 0) | (Y.round() != Y), "is no count; the poisson likelihood takes whole numbers from 0 on")

    def log_prob(self, f: Tensor, Y: Tensor, noise: Tensor) -> Tensor:
        return (Y * f - f.exp() - torch.lgamma(Y + 1)).sum(-1)

    def root(self, f: Tensor, noise: Tensor) -> Tensor:
        return torch.exp(0.5 * f)

    def whitened_score(self, f: Tensor, Y: Tensor, noise: Tensor) -> Tensor:
        return Y * torch.exp(-0.5 * f) - torch.exp(0.5 * f)

    def score(self, f: Tensor, Y: Tensor, noise: Tensor) -> Tensor:
        return Y - f.exp()

    def stabilized(self, f: Tensor, noise: Tensor) -> Tensor:
        return 2 * torch.exp(0.5 * f)

    def mean_variance(self, f: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        rate = f.exp()
        return rate, rate

    def sample(self, f: Tensor, noise: Tensor, generator: torch.Generator) -> Tensor:
        return torch.poisson(f.exp().cpu(), generator=generator).to(f)


_LIKELIHOODS: dict[str, Likelihood] = {
    kind.name: kind for kind in (Gaussian(), HeteroscedasticGaussian(), Bernoulli(), Categorical(), Poisson())
}
LIKELIHOODS = tuple(_LIKELIHOODS)


def get_likelihood(name: str) -> Likelihood:
    """The likelihood of that name.

    Raises:
        UnknownNameError: There is none.
    """
    if name not in _LIKELIHOODS:
        raise UnknownNameError("likelihood", name, list(LIKELIHOODS))
    return _LIKELIHOODS[name]


def apply_root(root: Tensor, v: Tensor) -> Tensor:
    """``R v`` row by row; ``v: ... x n x l`` with as many leading dimensions as the latents that made ``R``."""
    return (root @ v.unsqueeze(-1)).squeeze(-1) if root.dim() > v.dim() else root * v


def apply_root_transposed(root: Tensor, v: Tensor) -> Tensor:
    """``R^T v`` row by row; ``v: ... x n x l``."""
    return (root.transpose(-1, -2) @ v.unsqueeze(-1)).squeeze(-1) if root.dim() > v.dim() else root * v


def whiten_rows(root: Tensor, matrix: Tensor, num_latents: int) -> Tensor:
    """``R^T A`` for ``A: ... x (n l) x k``, the row running slower than the latent.

    Args:
        root: ``... x n x l`` or ``... x n x l x l``.
        matrix: ``... x (n l) x k``.
        num_latents: ``l``.
    """
    blocks = matrix.unflatten(-2, (-1, num_latents))  # ... x n x l x k
    diagonal = root.dim() < blocks.dim()
    whitened = root.unsqueeze(-1) * blocks if diagonal else root.transpose(-1, -2) @ blocks
    return whitened.flatten(-3, -2)


def whiten_both(root: Tensor, kernel: Tensor, num_latents: int) -> Tensor:
    """``R^T K R`` for ``K: ... x (n l) x (n l)``, all rows against all rows."""
    half = whiten_rows(root, kernel, num_latents)
    return whiten_rows(root, half.transpose(-1, -2), num_latents).transpose(-1, -2)


def _refuse(Y: Tensor, bad: Tensor, why: str) -> None:
    if bool(bad.any()):
        row = int(bad.nonzero()[0, 0])
        raise InvalidDataError(f"Y in row {row} holds {Y[row].tolist()}, which {why}")


def _normal(shape: torch.Size, generator: torch.Generator, like: Tensor) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(like)


def _uniform(shape: torch.Size | tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    return torch.rand(shape, generator=generator, dtype=torch.float64).to(like)
