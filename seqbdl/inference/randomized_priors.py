"""Ensembles with randomized prior functions: every member is a trained network plus its own frozen random one.

``f_s = g(.; u_s) + s p(.; v_s)`` with ``v_s`` drawn once from the prior and never trained; ``u_s`` minimizes the misfit plus a
decay (Osband et al. 2018, algorithm 1). Where there are no data the frozen functions alone speak, with all of the prior's spread.
With noise on the targets and ``decay = 1 / s^2`` the members of a linear network are exact posterior samples.

The decay is towards ``u = 0``, as in the paper, or towards the start ``u_0``, with the trained part read as ``g(.; u) - g(.;
u_0)``: a function that is zero at the start as well, but whose units are alive there (a network that decays to zero learns few
features, and on few rows wrong ones).
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqbdl.inference.anchored import anchored_ensemble
from seqbdl.inference.members import DEFAULT_FIT, FitSettings, Held
from seqbdl.likelihoods import Likelihood
from seqbdl.networks import FrozenSum, Network

_DRAWS = 256  # prior functions that a standard deviation is measured on
_ROWS = 256  # inputs


def measured_deviation(network: Network, X: Tensor, generator: torch.Generator) -> float:
    """The standard deviation of a network's prior functions at the inputs, over functions, inputs and outputs.

    Args:
        network: Over whitened weights, whose prior is standard normal.
        X: ``n x d`` in the unit cube; the first 256 rows are looked at.
        generator: Draws the functions.
    """
    z = torch.randn(_DRAWS, network.num_params, generator=generator, dtype=torch.float64).to(X)
    return float(network.forward(z, X[:_ROWS]).square().mean().sqrt())


CENTRES = ("start", "zero")


def with_prior_functions(network: Network, scale: float, centre: str) -> FrozenSum:
    """The network that members are, over weights ``(u, v)``, or ``(u, v, u_0)`` where the decay is towards the start.

    Args:
        network: Trained and frozen part, each with weights of its own.
        scale: ``s``.
        centre: One of :data:`CENTRES`.
    """
    if centre == "zero":
        return FrozenSum(network, [network], [scale])
    return FrozenSum(network, [network, network], [scale, -1.0])


def starts(network: FrozenSum, centre: str, num_members: int, generator: torch.Generator, like: Tensor) -> tuple[Tensor, Tensor]:
    """Where members begin and where the decay pulls them, ``S x P`` both; the latter are the members before any data.

    Args:
        network: Of :func:`with_prior_functions`.
        centre: As there.
        num_members: ``S``.
        generator: Draws all weights from the prior.
        like: Sets type and device.
    """
    z = torch.randn(num_members, network.num_params, generator=generator, dtype=torch.float64).to(like)
    if centre == "zero":
        return z, network.with_trained(torch.zeros_like(z), z)
    start = network.with_trained(z[:, -network.trained.num_params :], z)
    return start, start


def ensemble_plus(
    network: FrozenSum,
    X: Tensor,
    Y: Tensor,
    noise: Tensor,
    likelihood: Likelihood,
    anchors: Tensor,
    start: Tensor,
    generator: torch.Generator,
    settings: FitSettings = DEFAULT_FIT,
    randomize: bool = True,
    decay: float = 1.0,
    weights: Tensor | None = None,
    held: Held | None = None,
) -> Tensor:
    """Members, ``S x P``: trained weights, followed by the frozen ones, which are those of ``anchors`` and ``start``.

    Args:
        network: Of :func:`with_prior_functions`.
        X: ``n x d`` in the unit cube.
        Y: ``n x t`` targets.
        noise: ``n x m`` noise variances.
        likelihood: Of an observation.
        anchors: ``S x P``, what the decay pulls to; with ``held``, the old members.
        start: ``S x P`` where to begin.
        generator: Of the targets' noise and of mini-batches.
        settings: How to optimize.
        randomize: Whether targets are noisy.
        decay: Of the trained weights, in units of the prior's precision.
        weights: ``S x n`` weights of rows.
        held: What the members keep of older data (posterior as prior).
    """
    z = anchored_ensemble(network, X, Y, noise, likelihood, anchors, start, generator, settings, randomize, decay, weights, held)
    return network.with_trained(z, anchors)
