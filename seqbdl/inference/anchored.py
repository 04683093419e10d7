"""Anchored ensembles: randomize-then-optimize for networks, of any likelihood.

Member ``s`` minimizes ``-log p(y | f(z)) + 1/2 |z - a_s|^2``, with the anchor ``a_s`` drawn from the prior and noise on its
targets (Pearce et al. 2018, 2020, with the targets' noise of Bardsley et al. 2014; see :mod:`seqbdl.inference.randomize`). The
members of a linear network with Gaussian noise are exact, independent posterior samples.

Posterior as prior: the member's old posterior is a quadratic around its old weights, with the curvature that the old data gave
it; new targets come with noise of their own. Exact in distribution for the same networks.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from seqbdl.inference.members import DEFAULT_FIT, FitSettings, Held, fit_members
from seqbdl.inference.observations import Randomized
from seqbdl.inference.randomize import centred_normals
from seqbdl.likelihoods import LOG_RATIO_SCALE, Gaussian, Likelihood
from seqbdl.networks import Network

_ROUNDS = 6  # of Fisher scoring for the log noise
_STEP = 1.5  # that the log noise moves in a round, at most


def anchored_ensemble(
    network: Network,
    X: Tensor,
    Y: Tensor,
    noise: Tensor,
    likelihood: Likelihood,
    anchors: Tensor,
    start: Tensor,
    generator: torch.Generator,
    settings: FitSettings = DEFAULT_FIT,
    randomize: bool = True,
    precision: float = 1.0,
    weights: Tensor | None = None,
    held: Held | None = None,
) -> Tensor:
    """Members given their anchors, ``S x P``.

    Args:
        network: Over whitened weights, whose prior is standard normal.
        X: ``n x d`` in the unit cube.
        Y: ``n x t`` targets.
        noise: ``n x m`` noise variances.
        likelihood: Of an observation.
        anchors: ``S x P``: prior draws; with ``held``, the members' old weights.
        start: ``S x P`` where to begin.
        generator: Of the targets' noise and of mini-batches.
        settings: How to optimize.
        randomize: Whether targets are noisy. Without it the spread is too small where data are.
        precision: Of the prior, in units of the whitened weights'.
        weights: ``S x n`` weights of rows (see :func:`seqbdl.inference.randomize.bootstrap_weights`).
        held: What the members keep of older data (posterior as prior).
    """
    problem = _Problem(network, X, anchors, generator, precision, held)
    if not randomize:
        return problem.solve(Randomized(likelihood, Y, noise, None, weights), start, settings)
    S, n = start.shape[0], X.shape[0]
    white = centred_normals(S, (n, network.num_outputs), generator, X)
    if likelihood.name != "heteroscedastic":
        return problem.solve(Randomized(likelihood, Y, noise, white, weights), start, settings)
    return _with_varying_noise(problem, Y, noise, white, weights, start, settings)


class _Problem:
    """What stays the same from one fit of the members to the next."""

    def __init__(
        self, network: Network, X: Tensor, anchors: Tensor, generator: torch.Generator, precision: float, held: Held | None
    ) -> None:
        self.network, self.X, self._anchors, self._generator = network, X, anchors, generator
        self._precision, self._held = precision, held

    def solve(self, seen: Randomized, start: Tensor, settings: FitSettings) -> Tensor:
        return fit_members(
            self.network, self.X, seen, self._anchors, start, self._generator, settings, self._precision, self._held
        )


def _with_varying_noise(
    problem: _Problem, Y: Tensor, noise: Tensor, white: Tensor, weights: Tensor | None, start: Tensor, settings: FitSettings
) -> Tensor:
    """Means and log noise by randomize-then-optimize on iteratively reweighted squares.

    The heteroscedastic likelihood has no variance-stabilizing transform, and a push of fixed size no minimizer: a member could
    follow it and call the misfit noise. Fisher scoring has: around the members' mean log noise ``g``, a row is worth the
    observation ``y`` of the mean, of variance ``noise exp(g)``, and ``g + r^2 - 1`` of the log noise, of variance 2 (Smyth 1989),
    with ``r^2`` its squared residual in units of the noise; both here in units of the latent, which is a multiple. The residual
    is averaged over the members, which are spread like the posterior, so that members which are close to the data don't make
    the noise small.
    """
    m = Y.shape[-1]
    descent = replace(settings.gauss_newton, max_iterations=max(1, settings.gauss_newton.max_iterations // 3))
    adam = replace(settings.adam, steps=max(1, settings.adam.steps // _ROUNDS))
    inner = replace(settings, gauss_newton=descent, adam=adam)
    z, log_noise, excess = start, torch.zeros_like(Y), torch.zeros_like(Y)
    for step in range(_ROUNDS):
        if step > 0:
            f = problem.network.forward(z, problem.X)
            log_noise = LOG_RATIO_SCALE * f[..., m:].mean(0)
            excess = (Y - f[..., :m]).square().mean(0) / (noise * log_noise.exp()) - 1
        targets = torch.cat([Y, (log_noise + excess.clamp(-_STEP, _STEP)) / LOG_RATIO_SCALE], -1)
        variance = torch.cat([noise * log_noise.exp(), torch.full_like(Y, 2.0 / LOG_RATIO_SCALE**2)], -1)
        z = problem.solve(Randomized(Gaussian(), targets, variance, white, weights), z, inner)
    return z
