"""Noise and prior scales drawn by their exact conditionals between the moves of the weights (Gibbs).

Noise variances of the Gaussian family are multiples of a reference, per chain and output, with an inverse-gamma prior on
the multiple: ``InvGamma(a + N / 2, b + S / 2)`` given the residual sum ``S``. Priors on the noise precision whose rate is
not small put a ceiling on it: ``Gamma(6, 6)``, a usual choice, holds the precision of standardized outcomes below about
``(6 + N / 2) / 6``, N / 12, however small the residuals are. Priors here are therefore relative to a reference that the
evidence of the infinite-width limit has chosen.

Prior precisions of the layers' whitened weights, with a gamma prior: ``Gamma(a + n / 2, b + |z|^2 / 2)`` for a layer of
``n`` weights. A layer of many weights moves its precision by a share of ``sqrt(2 / n)`` per draw: slow for wide layers.

The horseshoe is a scale mixture, ``z ~ N(0, s^2)`` with half-Cauchy ``s``. Its density has a pole that no step size is short
enough for; given the scale of every weight it is Gaussian, and the scales have inverse-gamma conditionals with one auxiliary
variable each (Makalic and Schmidt 2016).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from seqbdl.inference.log_joint import LogJoint
from seqbdl.inference.metrics import DiagonalMetric, Metric
from seqbdl.priors import HorseshoePrior, Prior

_FIRST_SWEEPS = 10  # over scales and auxiliary variables of the horseshoe, before the weights move


@dataclass(frozen=True)
class Hyper:
    """Attributes:
    noise: ``S x m`` multiples of the joint's noise variances.
    precision: ``S x G`` precisions of the whitened weights of every layer.
    local: ``S x P`` precisions of the single weights of a horseshoe; ``None`` for other priors.
    """

    noise: Tensor
    precision: Tensor
    local: Tensor | None = None


@dataclass(frozen=True)
class LayerPrior(Prior):
    """``N(0, 1 / precision)``.

    Attributes:
        precision: ``S x P``.
    """

    precision: Tensor

    def log_prob(self, z: Tensor) -> Tensor:
        return -0.5 * (self.precision * z.square() - self.precision.log() + math.log(2 * math.pi)).sum(-1)

    def score(self, z: Tensor) -> Tensor:
        return -self.precision * z

    def sample(self, n: int, num_params: int, generator: torch.Generator, like: Tensor) -> Tensor:
        white = torch.randn(n, num_params, generator=generator, dtype=torch.float64).to(like)
        return white * self.precision.rsqrt()


@dataclass(frozen=True)
class Gibbs:
    """Which hyperparameters are sampled, under which priors.

    Attributes:
        joint: At the reference noise, of a Gaussian prior where precisions are sampled.
        noise: ``(shape, scale: m)`` of the inverse-gamma prior on the multiple of the noise; ``None``: known noise.
        precision: ``(shape, rate)`` of the gamma prior on the precision of every layer; ``None``: one.
    """

    joint: LogJoint
    noise: tuple[float, Tensor] | None = None
    precision: tuple[float, float] | None = None

    @property
    def local(self) -> bool:
        """Whether every weight has its own scale."""
        return isinstance(self.joint.prior, HorseshoePrior)

    @property
    def active(self) -> bool:
        return self.noise is not None or self.precision is not None or self.local

    def begin(self, z: Tensor, generator: torch.Generator) -> Hyper:
        """Multiples and precisions of one for ``z: S x P``; single weights' precisions by their conditional."""
        S = z.shape[0]
        local = None
        if self.local:
            local = torch.ones_like(z)
            for _ in range(_FIRST_SWEEPS):
                local = self._local(z, local, generator)
        return Hyper(z.new_ones(S, self.joint.noise.shape[-1]), z.new_ones(S, self.joint.network.num_groups), local)

    def _precision(self, hyper: Hyper) -> Tensor:
        """Prior precisions of the weights, ``S x P``."""
        if hyper.local is not None:
            return hyper.local
        return hyper.precision[:, self.joint.network.group_of_weights(hyper.precision)]

    def target(self, hyper: Hyper) -> LogJoint:
        """The joint density of weights and data given the hyperparameters."""
        joint = self.joint
        if self.noise is not None:
            joint = replace(joint, noise=joint.noise * hyper.noise.unsqueeze(-2).to(joint.noise))
        if self.precision is not None or self.local:
            joint = replace(joint, prior=LayerPrior(self._precision(hyper)))
        return joint

    def metric(self, base: Metric, hyper: Hyper) -> Metric:
        """The mass matrix with these prior precisions in place of one, where ``base`` is a sum with that."""
        if (self.precision is None and not self.local) or not (isinstance(base, DiagonalMetric) and base.additive):
            return base
        precision = self._precision(hyper)
        return DiagonalMetric(base.mass + (precision - 1.0), precision)

    def draw(self, z: Tensor, hyper: Hyper, generator: torch.Generator) -> Hyper:
        """Hyperparameters given weights ``z: S x P``."""
        noise, precision, local = hyper.noise, hyper.precision, hyper.local
        if self.noise is not None:
            shape, scale = self.noise
            squares, rows = self._squares(z)
            noise = (scale + 0.5 * squares) / _gamma(shape + 0.5 * rows.expand_as(squares), generator)
        if self.precision is not None:
            a, b = self.precision
            groups = self.joint.network.group_of_weights(z)
            ones = torch.zeros_like(precision[0]).index_add_(0, groups, torch.ones_like(z[0]))
            norms = torch.zeros_like(precision).index_add_(1, groups, z.square())
            precision = _gamma(a + 0.5 * ones.expand_as(norms), generator) / (b + 0.5 * norms)
        if local is not None:
            local = self._local(z, local, generator)
        return Hyper(noise, precision, local)

    def _local(self, z: Tensor, before: Tensor, generator: torch.Generator) -> Tensor:
        """``1 / s^2`` of every weight: ``1 / nu ~ Gamma(1) / (1 + 1 / s^2)``, then ``1 / s^2 ~ Gamma(1) / (1 / nu + z^2 /
        2)``."""
        auxiliary = _gamma(torch.ones_like(z), generator) / (1.0 + before)
        return _gamma(torch.ones_like(z), generator) / (auxiliary + 0.5 * z.square())

    def _squares(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Residual sums in units of the reference noise, ``S x m``, and the number of rows behind them."""
        joint = self.joint
        with torch.no_grad():
            f = joint.network.forward(z.to(joint.X.dtype), joint.X)
            mean, variance = joint.likelihood.mean_variance(f, joint.noise)
            squares = ((joint.Y - mean).square() / variance).to(z)
        weights = z.new_ones(joint.num_rows) if joint.row_weights is None else joint.row_weights.to(z)
        return (weights[:, None] * squares).sum(-2), weights.sum()


def _gamma(shape: Tensor, generator: torch.Generator) -> Tensor:
    """Gamma draws of unit rate."""
    return torch._standard_gamma(shape.double().cpu(), generator=generator).to(shape)
