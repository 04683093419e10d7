"""The prior over functions at a few inputs, as interacting particles in function space need it: a score and second moments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from seqbdl.inference.infinite_width import WidthScales, kernel
from seqbdl.inference.repulsion import spectral_score
from seqbdl.networks import Network
from seqbdl.posteriors.joint_gaussian import safe_cholesky
from seqbdl.priors import Prior

_NUGGET = 1e-6  # of the mean prior variance: below any noise that matters
_SAMPLED_NUGGET = 0.01  # draws are fewer than inputs: it fills up what they do not span


@dataclass(frozen=True)
class Moments:
    """Of function values at ``B`` inputs.

    Attributes:
        covariance: ``l x B x B``, or ``1 x B x B`` for all latent functions; may be singular.
        nugget: ``l`` or ``1``, what is added to its diagonal to invert it.
        precision: ``(covariance + nugget I)^{-1}``.
    """

    covariance: Tensor
    nugget: Tensor
    precision: Tensor

    @classmethod
    def of(cls, covariance: Tensor, nugget: float) -> Moments:
        """With a nugget relative to the mean variance."""
        level = nugget * covariance.diagonal(dim1=-2, dim2=-1).mean(-1)
        eye = torch.eye(covariance.shape[-1]).to(covariance)
        factor = safe_cholesky(covariance + level[:, None, None] * eye)
        return cls(covariance, level, torch.cholesky_inverse(factor))

    def posterior_dimension(self, information: Tensor) -> Tensor:
        """``tr(A C)``, the dimension in which posterior functions vary as the metric ``A`` sees it: smaller than their number of
        values where these are dependent, as of smooth functions at near inputs.

        With ``W`` the information, ``A = (K + nu I)^{-1} + W`` and ``C = (K^{-1} + W)^{-1}`` that is
        ``B - nu tr((K + nu I)^{-1} (I + W K)^{-1})``.

        Args:
            information: ``l x B``, ``W``.

        Returns:
            ``l``.
        """
        B = information.shape[-1]
        half = information.sqrt()
        inner = half.unsqueeze(-1) * self.covariance * half.unsqueeze(-2)
        inner.diagonal(dim1=-2, dim2=-1).add_(1.0)
        right = half.unsqueeze(-1) * (self.covariance @ self.precision)
        solved = torch.cholesky_solve(right, safe_cholesky(inner))
        trace = self.precision.diagonal(dim1=-2, dim2=-1).sum(-1) - (half * solved.diagonal(dim1=-2, dim2=-1)).sum(-1)
        return B - self.nugget * trace


class FunctionPrior(Protocol):
    """A prior over functions with independent latent outputs, or one that is treated so."""

    def at(self, X: Tensor, f: Tensor) -> tuple[Tensor, Moments]:
        """The score of values at some inputs, ``S x l x B``, and their prior's second moments.

        Args:
            X: ``B x d`` in the unit cube.
            f: ``S x l x B`` values.
        """


@dataclass(frozen=True)
class KernelPrior:
    """The Gaussian process of the infinitely wide network: what a wide network with Gaussian weights has as its function prior.

    Attributes:
        scales: Of one group.
        activation: Of the network.
    """

    scales: WidthScales
    activation: str

    def at(self, X: Tensor, f: Tensor) -> tuple[Tensor, Moments]:
        moments = Moments.of(kernel(self.scales, X, X, self.activation)[:1], _NUGGET)
        return -(f @ moments.precision), moments


@dataclass(frozen=True)
class SampledPrior:
    """Any network under a prior of its weights with finite variance, from draws: the score by the spectral Stein gradient
    estimator (as in function space of D'Angelo and Fortuin 2021), the metric from the draws' second moments.

    Attributes:
        network: Over whitened weights.
        draws: ``M x P`` draws from the prior.
    """

    network: Network
    draws: Tensor

    @classmethod
    def of(cls, network: Network, prior: Prior, num_draws: int, generator: torch.Generator, like: Tensor) -> SampledPrior:
        """From ``num_draws`` fresh draws."""
        return cls(network, prior.sample(num_draws, network.num_params, generator, like))

    def at(self, X: Tensor, f: Tensor) -> tuple[Tensor, Moments]:
        values = self.network.forward(self.draws, X).movedim(-1, 1)  # M x l x B
        score = torch.stack([spectral_score(f[:, i], values[:, i]) for i in range(f.shape[1])], 1)
        draws = values.movedim(1, 0)  # l x M x B
        second = draws.transpose(-1, -2) @ draws / draws.shape[1]
        return score, Moments.of(second, _SAMPLED_NUGGET)
