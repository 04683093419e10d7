"""Mean-field Gaussians over weights, several side by side: what variational methods return, and their prior next time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from seqbdl.errors import ShapeError
from seqbdl.posteriors.gaussian_weights import GaussianWeights
from seqbdl.posteriors.operators import Diagonal
from seqbdl.priors import Prior


@dataclass(frozen=True)
class MeanField:
    """``K`` Gaussians with independent weights, ``N(mean_k, diag(sd_k^2))``.

    Attributes:
        mean: ``K x P``.
        sd: ``K x P`` standard deviations.

    Raises:
        ShapeError: The two differ in shape, or are no matrices.
    """

    mean: Tensor
    sd: Tensor

    def __post_init__(self) -> None:
        if self.mean.dim() != 2 or self.mean.shape != self.sd.shape:
            raise ShapeError(f"mean is {tuple(self.mean.shape)} and sd {tuple(self.sd.shape)}; both are K x P")

    @property
    def num_components(self) -> int:
        """``K``."""
        return self.mean.shape[0]

    @property
    def num_params(self) -> int:
        """``P``."""
        return self.mean.shape[1]

    def kl(self, prior: MeanField) -> Tensor:
        """``KL(q_k || prior_k)``, ``K``: the SUM over weights of ``1/2 [(s^2 + (m - m0)^2) / s0^2 - 1 - log(s^2 / s0^2)]``."""
        ratio, shift = self.sd / prior.sd, (self.mean - prior.mean) / prior.sd
        return (0.5 * (ratio.square() + shift.square() - 1) - ratio.log()).sum(-1)

    @property
    def entropy(self) -> Tensor:
        """``K``."""
        return (self.sd.log() + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)

    def offsets(self, white: Tensor) -> Tensor:
        """Standard normals ``S x P`` as deviations from the means: row ``s`` belongs to component ``s mod K``."""
        return self.sd[self.owners(white.shape[0])] * white

    def draws(self, white: Tensor) -> Tensor:
        """``S x P`` weight vectors from standard normals, ``S / K`` of each component (within one)."""
        return self.mean[self.owners(white.shape[0])] + self.offsets(white)

    def owners(self, n: int) -> Tensor:
        """The component of each of ``n`` draws, ``n``."""
        return torch.arange(n, device=self.mean.device) % self.num_components

    def as_prior(self) -> Prior:
        """The same densities as a prior: what was learned before new data."""
        return MeanFieldPrior(self)

    def component(self, k: int) -> GaussianWeights:
        """One component by itself."""
        return GaussianWeights(self.mean[k], Diagonal(self.sd[k].square().reciprocal()))

    def tree(self) -> dict[str, Tensor]:
        """Tensors, for saving."""
        return {"mean": self.mean, "sd": self.sd}

    @classmethod
    def from_tree(cls, tree: Mapping[str, Tensor]) -> MeanField:
        """Restore :meth:`tree`."""
        return cls(tree["mean"], tree["sd"])


class MeanFieldPrior(Prior):
    """Mean-field Gaussians as the priors of what comes next, every component its own.

    Args:
        posterior: ``K`` components; row ``s`` of weight vectors ``S x P`` is seen by component ``s mod K``.
    """

    name = "mean-field"

    def __init__(self, posterior: MeanField) -> None:
        self.posterior = posterior

    def _standardized(self, z: Tensor) -> tuple[Tensor, Tensor]:
        sd = self.posterior.sd[self.posterior.owners(z.shape[0])]
        return (z - self.posterior.mean[self.posterior.owners(z.shape[0])]) / sd, sd

    def log_prob(self, z: Tensor) -> Tensor:
        white, sd = self._standardized(z)
        return (-0.5 * (white.square() + math.log(2 * math.pi)) - sd.log()).sum(-1)

    def score(self, z: Tensor) -> Tensor:
        white, sd = self._standardized(z)
        return -white / sd

    def sample(self, n: int, num_params: int, generator: torch.Generator, like: Tensor) -> Tensor:
        if num_params != self.posterior.num_params:
            raise ShapeError(f"num_params={num_params}; this prior is a posterior over {self.posterior.num_params} weights")
        white = torch.randn(n, num_params, generator=generator, dtype=torch.float64)
        return self.posterior.draws(white.to(self.posterior.mean)).to(like)


def antithetic_normals(n: int, num_components: int, num_params: int, generator: torch.Generator, like: Tensor) -> Tensor:
    """``n x P`` standard normals in the order of :meth:`MeanField.draws`, in pairs of opposite sign within a component: the
    means over draws of functions that are linear in the weights are exact.

    Without a partner (an odd number of draws of a component) a draw stays alone.
    """
    rounds = -(-n // num_components)
    half = torch.randn(-(-rounds // 2), num_components, num_params, generator=generator, dtype=torch.float64)
    pairs = torch.stack([half, -half], 1).flatten(0, 2)  # rounds run slowest, components fastest
    return pairs[:n].to(like)
