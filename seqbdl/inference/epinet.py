"""Epinets: a small network of features and an index beside a base network (Osband et al. 2023).

``f(x, z) = mu(x) + sigma(phi(x), z) + p(x, z)``: the base network ``mu``, the epinet ``sigma`` on what the base's last hidden
layer makes of ``x`` (no gradient flows back through ``phi``), and prior functions ``p`` that are not trained (see
:mod:`seqbdl.inference.indexed`). The epinet is ``[MLP(z, x, phi(x))] z / sqrt(D)``, an MLP with one output per latent
function and index dimension; its last layer also sees the features themselves, ``phi(x)^T W_i z_i``. Without hidden layers
that skip connection is all of it, and the epinet is linear in ``z``: with Gaussian noise its best weights are one ridge
regression per index dimension.

Weights are whitened: standard normal under the prior, scales inside. The penalty is around the start, whose last layer is zero.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from seqbdl.inference.adam import AdamSettings, adam, gradient_of
from seqbdl.inference.hypermodel import mean_curvature
from seqbdl.inference.indexed import IndexedFunction, draw_indices, targets
from seqbdl.inference.lbfgs import DEFAULT, LBFGSSettings, lbfgs
from seqbdl.inference.observations import Observations
from seqbdl.likelihoods import Likelihood
from seqbdl.networks import LinearHead, Network
from seqbdl.networks.activations import activate, centred


@dataclass(frozen=True)
class Epinet:
    """The architecture; a function of its weights.

    Attributes:
        input_dim: ``d``.
        num_features: ``F``.
        num_latents: ``l``.
        index_dim: ``D``.
        hidden: Widths of the MLP; none: only the skip connection.
        skip: Whether the features reach the last layer directly.
        activation: Of the MLP.
    """

    input_dim: int
    num_features: int
    num_latents: int
    index_dim: int
    hidden: tuple[int, ...] = ()
    skip: bool = True
    activation: str = "erf"

    @property
    def num_skip(self) -> int:
        """Weights of the skip connection: a part that does not depend on the index (which only updates move), and one per
        index dimension."""
        return (1 + self.index_dim) * self.num_features * self.num_latents if self.skip else 0

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Of the MLP's layers: units and a bias to units; the first from index, inputs and features."""
        sizes = [self.index_dim + self.input_dim + self.num_features, *self.hidden, self.num_latents * self.index_dim]
        return [(a + 1, b) for a, b in itertools.pairwise(sizes)] if self.hidden else []

    @property
    def num_params(self) -> int:
        """``P``."""
        return self.num_skip + sum(a * b for a, b in self.shapes)

    def initial(self, generator: torch.Generator, like: Tensor) -> Tensor:
        """``P``: hidden layers drawn from the prior, the last layer and the skip connection zero."""
        white = torch.randn(self.num_params, generator=generator, dtype=torch.float64)
        last = math.prod(self.shapes[-1]) if self.shapes else 0
        white[: self.num_skip] = 0.0
        white[self.num_params - last :] = 0.0
        return white.to(like.device)

    def skip_weights(self, params: Tensor) -> Tensor:
        """``(1 + D) x (F l)``."""
        return params[: self.num_skip].unflatten(0, (-1, self.num_features * self.num_latents))

    def __call__(self, params: Tensor, inputs: Tensor, features: Tensor, indices: Tensor) -> Tensor:
        """``sigma``, ``S x N x l``.

        Args:
            params: ``P``.
            inputs: ``N x d`` in the unit cube.
            features: ``N x F``.
            indices: ``S x D``.
        """
        total = features.new_zeros(indices.shape[0], features.shape[0], self.num_latents)
        if self.skip:
            heads = self.skip_weights(params)
            mixed = heads[0] + indices @ heads[1:]  # S x (F l)
            total = features @ mixed.unflatten(-1, (self.num_features, self.num_latents))
        if self.hidden:
            total = total + self._mlp(params[self.num_skip :], inputs, features, indices)
        return total

    def _mlp(self, params: Tensor, inputs: Tensor, features: Tensor, indices: Tensor) -> Tensor:
        sizes = [a * b for a, b in self.shapes]
        layers = [w.reshape(s) for w, s in zip(params.split(sizes), self.shapes, strict=True)]
        D, d = self.index_dim, self.input_dim
        first = layers[0]
        # Three inputs of about unit size each: the index, the point, the features (whose scales are the base network's).
        by_index = indices @ first[:D] / D**0.5
        by_point = centred(inputs) @ first[D : D + d] / d**0.5 + features @ first[D + d : -1] + first[-1]
        h = activate(by_index.unsqueeze(1) + by_point, self.activation)  # S x N x H
        for w in layers[1:-1]:
            h = activate(h @ w[:-1] / (w.shape[0] - 1) ** 0.5 + w[-1], self.activation)
        w = layers[-1]
        out = h @ w[:-1] / (w.shape[0] - 1) ** 0.5 + w[-1]
        per_index = out.unflatten(-1, (self.num_latents, D))
        return (per_index * indices[:, None, None, :]).sum(-1) / D**0.5


def fit_epinet(
    epinet: Epinet,
    X: Tensor,
    features: Tensor,
    observations: Observations,
    indices: Tensor,
    offset: Tensor,
    anchor: Tensor,
    start: Tensor,
    settings: LBFGSSettings = DEFAULT,
    move_mean: bool = False,
) -> Tensor:
    """The epinet's weights for a fixed set of indices, the base network given.

    Args:
        epinet: The architecture.
        X: ``n x d`` in the unit cube.
        features: ``n x F``.
        observations: Of the rows of ``X``, at the indices.
        indices: ``S x D``.
        offset: ``S x n x l``, what is added to the epinet: base network and prior functions.
        anchor: ``P``, where the penalty is zero.
        start: ``P``.
        settings: When to stop.
        move_mean: Also move the part of the skip connection that does not depend on the index: in updates, where the base
            network stays.

    Returns:
        ``P``.
    """
    S, k = indices.shape[0], epinet.num_skip
    free = torch.ones_like(start)
    if epinet.skip and not move_mean:
        free[: epinet.num_features * epinet.num_latents] = 0.0

    def misfit(params: Tensor) -> Tensor:
        return observations.misfit(epinet(params, X, features, indices) + offset).sum() / S

    def objective(params: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = params.detach().requires_grad_(True)
            loss = misfit(leaf) + 0.5 * (leaf - anchor).square().sum()
            (gradient,) = torch.autograd.grad(loss, leaf)
        return loss.detach(), free * gradient

    precondition = None
    if epinet.skip:
        head = LinearHead(lambda _: features, epinet.input_dim, epinet.num_features, epinet.num_latents)
        curvature = mean_curvature(head, X, observations, offset, epinet.skip_weights(start))

        def precondition(v: Tensor) -> Tensor:
            skip = curvature.inverse_times(epinet.skip_weights(v)).flatten()
            return free * torch.cat([skip, v[k:]])

    return lbfgs(objective, start, settings, precondition).x


def train_epinet(
    epinet: Epinet,
    network: Network,
    X: Tensor,
    Y: Tensor,
    variance: Tensor,
    likelihood: Likelihood,
    signals: Tensor | None,
    prior: IndexedFunction,
    base: Tensor,
    start: Tensor,
    num_indices: int,
    generator: torch.Generator,
    settings: AdamSettings,
) -> tuple[Tensor, Tensor]:
    """Base network and epinet together, by mini-batches of rows and fresh indices at every step.

    Args:
        epinet: The architecture.
        network: The base network, over whitened weights.
        X: ``n x d`` in the unit cube.
        Y: ``n x t``.
        variance: ``n x m`` noise variances.
        likelihood: Of an observation.
        signals: ``n x m x D``, or ``None``.
        prior: What is added.
        base: ``1 x P``, start of the base network's weights and centre of their penalty.
        start: ``P'``, of the epinet's.
        num_indices: Per step.
        generator: Of rows and indices.
        settings: Steps and rates.

    Returns:
        Weights of the base network, ``1 x P``, and of the epinet, ``P'``.
    """
    anchor = torch.cat([base[0], start])
    fixed = epinet.num_features * epinet.num_latents if epinet.skip else 0
    P = base.shape[1]

    def loss(params: Tensor, rows: Tensor | None) -> Tensor:
        some = slice(None) if rows is None else rows
        x, z = X[some], draw_indices(num_indices, epinet.index_dim, generator, X)
        with torch.no_grad():
            features, added = network.hidden(params[:, :P], x)[0], prior(x, z)
        f = network.forward(params[:, :P], x) + epinet(params[0, P:], x, features, z) + added
        seen = targets(likelihood, Y[some], variance[some], z, None if signals is None else signals[some])
        penalty = 0.5 * (params[0] - anchor).square().sum()
        return (X.shape[0] / (x.shape[0] * num_indices)) * seen.misfit(f).sum() + penalty.unsqueeze(0)

    descend = gradient_of(loss)

    def gradient(params: Tensor, rows: Tensor | None) -> Tensor:
        g = descend(params, rows)
        g[:, P : P + fixed] = 0.0  # the base network is the mean
        return g

    found = adam(gradient, anchor.unsqueeze(0), X.shape[0], settings, generator)
    return found[:, :P], found[0, P:]
