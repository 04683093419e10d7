"""Priors over whitened weights: the scales of layers live inside the network, the shape of the density lives here.

Networks of this library multiply a weight vector ``z`` by scales (a fan-in scaled Gaussian prior is ``z ~ N(0, I)``), so
a prior is the density of ``z``: independent entries of unit scale, Gaussian or with heavier tails, or the Gaussian that
an earlier posterior left behind.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from seqbdl.errors import InvalidOptionError, UnknownNameError


class Prior(ABC):
    """A density of weight vectors ``S x P``."""

    @abstractmethod
    def log_prob(self, z: Tensor) -> Tensor:
        """``log p(z)``, ``S``; differentiable."""

    @abstractmethod
    def score(self, z: Tensor) -> Tensor:
        """``d log p / d z``, ``S x P``."""

    @abstractmethod
    def sample(self, n: int, num_params: int, generator: torch.Generator, like: Tensor) -> Tensor:
        """``n x P`` draws on the device and in the type of ``like``."""


class FactorizedPrior(Prior):
    """Independent entries, all of one shape."""

    name: ClassVar[str] = ""

    @abstractmethod
    def entry_log_prob(self, z: Tensor) -> Tensor:
        """The log density of every entry, of the shape of ``z``."""

    def log_prob(self, z: Tensor) -> Tensor:
        return self.entry_log_prob(z).sum(-1)


class GaussianPrior(FactorizedPrior):
    """``N(0, 1)``: with fan-in scales in the network, the usual prior, whose wide limit is a Gaussian process."""

    name = "gaussian"

    def entry_log_prob(self, z: Tensor) -> Tensor:
        return -0.5 * (z.square() + math.log(2 * math.pi))

    def score(self, z: Tensor) -> Tensor:
        return -z

    def sample(self, n: int, num_params: int, generator: torch.Generator, like: Tensor) -> Tensor:
        return torch.randn(n, num_params, generator=generator, dtype=torch.float64).to(like)


class LaplacePrior(FactorizedPrior):
    """Double exponential of unit variance: ``p(z) = exp(-sqrt(2) |z|) / sqrt(2)``."""

    name = "laplace"

    def entry_log_prob(self, z: Tensor) -> Tensor:
        return -math.sqrt(2.0) * z.abs() - 0.5 * math.log(2.0)

    def score(self, z: Tensor) -> Tensor:
        return -math.sqrt(2.0) * z.sign()

    def sample(self, n: int, num_params: int, generator: torch.Generator, like: Tensor) -> Tensor:
        u = torch.rand(n, num_params, generator=generator, dtype=torch.float64) - 0.5
        return (-u.sign() * torch.log1p(-2 * u.abs()) / math.sqrt(2.0)).to(like)


class StudentTPrior(FactorizedPrior):
    """Student's t, unit scale.

    Args:
        degrees_of_freedom: ``nu``; the variance is ``nu / (nu - 2)``, finite above 2 (Fortuin et al. 2022 found weights
            of trained networks to have tails of about this weight).
    """

    name = "student-t"

    def __init__(self, degrees_of_freedom: float = 5.0) -> None:
        if not degrees_of_freedom > 0:
            raise InvalidOptionError(f"degrees_of_freedom={degrees_of_freedom} must be positive")
        self.nu = float(degrees_of_freedom)

    def entry_log_prob(self, z: Tensor) -> Tensor:
        nu = self.nu
        constant = math.lgamma(0.5 * (nu + 1)) - math.lgamma(0.5 * nu) - 0.5 * math.log(nu * math.pi)
        return constant - 0.5 * (nu + 1) * torch.log1p(z.square() / nu)

    def score(self, z: Tensor) -> Tensor:
        return -(self.nu + 1) * z / (self.nu + z.square())

    def sample(self, n: int, num_params: int, generator: torch.Generator, like: Tensor) -> Tensor:
        shape = torch.full((n, num_params), 0.5 * self.nu, dtype=torch.float64)
        chi = 2 * torch._standard_gamma(shape, generator=generator)
        white = torch.randn(n, num_params, generator=generator, dtype=torch.float64)
        return (white * (self.nu / chi).sqrt()).to(like)


class HorseshoePrior(FactorizedPrior):
    """``z ~ N(0, lambda^2)``, ``lambda`` half-Cauchy of scale 1 (Carvalho et al. 2010), ``lambda`` integrated out:
    ``p(z) = (2 pi^3)^(-1/2) exp(u) E_1(u)`` with ``u = z^2 / 2``.

    The density has a (logarithmic) pole at 0 and Cauchy tails.
    """

    name = "horseshoe"

    def entry_log_prob(self, z: Tensor) -> Tensor:
        u = (0.5 * z.square()).clamp_min(1e-30)  # the pole is integrable, its logarithm must stay finite
        log_scaled: Tensor = _LogScaledE1.apply(u)  # type: ignore[no-untyped-call]
        return log_scaled - 0.5 * math.log(2 * math.pi**3)

    def score(self, z: Tensor) -> Tensor:
        u = (0.5 * z.square()).clamp_min(1e-30)
        return z * (1.0 - 1.0 / (u * _scaled_e1(u)))

    def sample(self, n: int, num_params: int, generator: torch.Generator, like: Tensor) -> Tensor:
        white = torch.randn(2, n, num_params, generator=generator, dtype=torch.float64)
        scale = torch.tan(0.5 * math.pi * torch.rand(n, num_params, generator=generator, dtype=torch.float64))
        return (white[0] * scale).to(like)


class _LogScaledE1(torch.autograd.Function):
    """``log(exp(u) E_1(u))`` for ``u > 0``."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, u: Tensor) -> Tensor:
        value = _scaled_e1(u)
        ctx.save_for_backward(u, value)
        return value.log()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        u, value = ctx.saved_tensors  # type: ignore[attr-defined]
        return gradient * (1.0 - 1.0 / (u * value))


def _scaled_e1(u: Tensor) -> Tensor:
    """``exp(u) E_1(u)``, the exponential integral: its series below 1, Lentz's continued fraction above."""
    small = u.clamp_max(1.0)
    term, series = torch.ones_like(u), torch.zeros_like(u)
    for k in range(1, 26):
        term = term * (-small) / k
        series = series - term / k
    below = small.exp() * (series - small.log() - 0.5772156649015329)
    large = u.clamp_min(1.0)
    fraction = large + 121.0
    for k in range(60, 0, -1):  # E_1(u) = exp(-u) / (u + 1 - 1 / (u + 3 - 4 / (u + 5 - ...)))
        fraction = large + (2 * k - 1) - k * k / fraction
    return torch.where(u < 1.0, below, 1.0 / fraction)


_PRIORS: dict[str, type[FactorizedPrior]] = {
    kind.name: kind for kind in (GaussianPrior, LaplacePrior, StudentTPrior, HorseshoePrior)
}
PRIORS = tuple(_PRIORS)


def get_prior(prior: str | Prior) -> Prior:
    """A prior by its name, or the object itself.

    Raises:
        UnknownNameError: There is none of that name.
    """
    if isinstance(prior, Prior):
        return prior
    if prior not in _PRIORS:
        raise UnknownNameError("prior", prior, list(PRIORS))
    return _PRIORS[prior]()
