"""Functions with an index: ``f(x, z)`` with ``z ~ N(0, I)``, whose draws are indices (Osband et al. 2023).

Two things make the index speak of uncertainty. Prior functions, ``scale sum_i z_i p_i(x) / sqrt(D)`` with fixed random networks
``p_i``, are added and not trained: their covariance over ``z`` is that of ``D`` draws of the prior. And each outcome with
Gaussian noise has a fixed random unit vector ``c``: at the index ``z`` the target is ``y + sigma <c, z>``, whose variance over
``z`` is the noise. In a linear model the best ``f`` is linear in ``z``, and its covariance tends to that of Bayesian linear
regression as ``D`` grows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from seqbdl.inference.observations import Labels, Observations, Squares
from seqbdl.likelihoods import Likelihood
from seqbdl.networks import Network

IndexedFunction = Callable[[Tensor, Tensor], Tensor]
"""``X: batch x q x d`` and indices ``S x D`` to ``S x batch x q x l``."""


def draw_indices(n: int, dim: int, generator: torch.Generator, like: Tensor) -> Tensor:
    """``n x D`` standard normal indices; where they are more than ``D + 1``, moved and turned so that their mean is zero and
    their covariance the identity exactly: averages over them then have no sampling error in what is linear or quadratic."""
    z = torch.randn(n, dim, generator=generator, dtype=torch.float64)
    if n > dim + 1:
        z = z - z.mean(0)
        factor = torch.linalg.cholesky(z.T @ z / n)
        z = torch.linalg.solve_triangular(factor, z.T, upper=False).T.contiguous()
    return z.to(like.device)


def draw_signals(n: int, num_outputs: int, dim: int, generator: torch.Generator, like: Tensor) -> Tensor:
    """``n x m x D`` random unit vectors, one per outcome: outputs that shared them would seem to share their noise."""
    c = torch.randn(n, num_outputs, dim, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(c, dim=-1).to(like.device)


def targets(likelihood: Likelihood, Y: Tensor, variance: Tensor, indices: Tensor, signals: Tensor | None) -> Observations:
    """What rows say at each index.

    Args:
        likelihood: Of an observation.
        Y: ``n x t``.
        variance: ``n x m`` noise variances.
        indices: ``S x D``.
        signals: ``n x m x D`` unit vectors; ``None``, or a likelihood that is not Gaussian: the same targets at each index.
    """
    if likelihood.name != "gaussian":
        return Labels(likelihood, Y, variance)
    if signals is None:
        return Squares(Y.unsqueeze(0), variance)
    noise = torch.einsum("sd,nmd->snm", indices, signals)
    return Squares(Y + variance.sqrt() * noise, variance)


@dataclass(frozen=True)
class PriorFunctions:
    """``scale sum_i z_i p_i(x) / sqrt(D)``.

    Attributes:
        network: Of the ``p_i``.
        weights: ``D x P``, whitened.
        scale: Of their sum.
    """

    network: Network
    weights: Tensor
    scale: float

    def __call__(self, X: Tensor, indices: Tensor) -> Tensor:
        values = self.network.forward(self.weights.to(X), X)  # D x batch x q x l
        share = indices.to(X) * (self.scale / self.weights.shape[0] ** 0.5)
        return torch.tensordot(share, values, dims=([1], [0]))


@dataclass(frozen=True)
class PriorNetwork:
    """``scale p(x; B z)``: one network whose weights are linear in the index, each layer in its own slice of it, by rows of unit
    norm, so that every weight has its prior variance (Dwaracherla et al. 2020).

    Attributes:
        network: ``p``.
        mixing: ``P x D``, ``B``.
        scale: Of the function.
    """

    network: Network
    mixing: Tensor
    scale: float

    def __call__(self, X: Tensor, indices: Tensor) -> Tensor:
        return self.scale * self.network.forward((indices @ self.mixing.T).to(X), X)


def draw_mixing(network: Network, dim: int, generator: torch.Generator, like: Tensor) -> Tensor:
    """``B`` of a :class:`PriorNetwork`: the layer ``g`` of ``G`` reads the indices ``g D / G`` to ``(g + 1) D / G``, at least
    one."""
    rows = torch.randn(network.num_params, dim, generator=generator, dtype=torch.float64)
    group, count = network.group_of_weights(rows), network.num_groups
    place = torch.arange(dim)
    low = (group * dim).div(count, rounding_mode="floor").clamp_max(dim - 1)
    high = ((group + 1) * dim).div(count, rounding_mode="floor").maximum(low + 1)
    inside = (place >= low.unsqueeze(-1)) & (place < high.unsqueeze(-1))
    return torch.nn.functional.normalize(rows * inside, dim=-1).to(like.device)
