"""The prior over functions at a few inputs, as interacting particles in function space need it: a score, and a precision."""

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


class FunctionPrior(Protocol):
    """A prior over functions with independent latent outputs, or one that is treated so."""

    def at(self, X: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
        """The score and the precision of values at some inputs.

        Args:
            X: ``B x d`` in the unit cube.
            f: ``S x l x B`` values.

        Returns:
            ``S x l x B`` and ``l x B x B`` (or ``1 x B x B``).
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

    def at(self, X: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
        precision = _inverse(kernel(self.scales, X, X, self.activation)[:1])
        return -(f @ precision), precision


@dataclass(frozen=True)
class SampledPrior:
    """Any network under any prior of its weights, from draws: the score by the spectral Stein gradient estimator (as in function
    space of D'Angelo and Fortuin 2021), the precision from the draws' second moments, each scaled to the typical size, as priors
    with heavy tails have none.

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

    def at(self, X: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
        values = self.network.forward(self.draws, X).movedim(-1, 1)  # M x l x B
        score = torch.stack([spectral_score(f[:, i], values[:, i]) for i in range(f.shape[1])], 1)
        sizes = values.square().mean(-1, keepdim=True)  # M x l x 1
        scaled = (values * (sizes.median(0).values / sizes.clamp_min(1e-30)).sqrt()).movedim(1, 0)  # l x M x B
        second = scaled.transpose(-1, -2) @ scaled / values.shape[0]
        return score, _inverse(second, 0.01)  # draws are fewer than inputs: the rest is filled up


def _inverse(covariance: Tensor, nugget: float = _NUGGET) -> Tensor:
    size = covariance.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    eye = torch.eye(covariance.shape[-1]).to(covariance)
    return torch.cholesky_inverse(safe_cholesky(covariance + nugget * size * eye))
