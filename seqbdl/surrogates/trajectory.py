"""What surrogates built on paths of gradient descent share: modes near random starts, and paths around them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from seqbdl.errors import InvalidOptionError
from seqbdl.inference.adam import AdamSettings, adam
from seqbdl.inference.gauss_newton import GaussNewtonSettings, minimize
from seqbdl.inference.log_joint import LogJoint
from seqbdl.inference.observations import Labels, Observations, Squares
from seqbdl.inference.swag import CentredPrior, SwagPosterior, SwagSettings, swag
from seqbdl.networks import RelativeNetwork
from seqbdl.surrogates.network_prior import standard_normal
from seqbdl.surrogates.particle import ParticleSurrogate

GAUSS_NEWTON_ROWS = 2000
"""Rows times latents up to which modes are found by Gauss-Newton; beyond, by Adam on mini-batches."""


class TrajectorySurrogate(ParticleSurrogate):
    """``M`` modes of networks read relative to their random starts, and the paths of SGD around them.

    The networks are ``f(x; z) - f(x; a)`` under the prior ``z ~ N(a, I)``, ``a`` a random initialization: the mode nearest
    ``a`` keeps all units alive however few the data, where the mode under ``N(0, I)`` lets most die, and the function prior
    has mean zero all the same. Scales and noise come from the evidence of the tangent kernel's infinite-width limit.

    Args:
        num_starts: ``M``.
        burn_in: Steps of SGD before the first iterate is collected.
        iterates: How many are collected.
        spacing: Steps from one iterate to the next.
        rank: Deviations of iterates that make the low-rank part.
        momentum: Of SGD.
        learning_rate: Of SGD, along the gradient of the sum over rows; ``None``: the rate at which iterates spread as the
            posterior does (see :mod:`seqbdl.inference.swag`).
        batch_size: Rows per step; ``None``: a fifth, at most 128.
        max_iterations: Gauss-Newton steps per search of a mode.
    """

    update_tolerance = 1.0

    def __init__(
        self,
        *args: Any,
        num_starts: int = 1,
        burn_in: int = 200,
        iterates: int = 40,
        spacing: int = 10,
        rank: int = 20,
        momentum: float = 0.9,
        learning_rate: float | None = None,
        batch_size: int | None = None,
        max_iterations: int = 40,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if num_starts < 1:
            raise InvalidOptionError(f"num_starts={num_starts} must be at least 1")
        if self.num_members % num_starts:
            raise InvalidOptionError(f"num_members={self.num_members} must be a multiple of num_starts={num_starts}")
        if max_iterations < 1:
            raise InvalidOptionError(f"max_iterations={max_iterations} must be at least 1")
        self.num_starts = num_starts
        self.path = SwagSettings(burn_in, iterates, spacing, rank, momentum, learning_rate, batch_size)
        self.settings = GaussNewtonSettings(max_iterations=max_iterations)
        like = self._prior.noise
        self._starts = standard_normal(num_starts, self._network.num_params, generator=self.generator, like=like)
        self._centres = self._starts  # modes, or means of paths: what `update` pulls on

    def _fit(self, X: Tensor, Y: Tensor, noise: Tensor | None) -> None:
        first = self._memory[0].shape[0] == 0
        before = None if first else self._prior
        self._prior = self._builder.learn(X, Y, noise, before, tangent=True, likelihood=self._lik, seed=self.seed)
        self._network = RelativeNetwork(self._builder.build(self._prior), self._starts.to(X.device))
        variance = (self._prior.noise if noise is None else noise).expand(Y.shape[0], self.output_dim).clamp_min(1e-7)
        self._memory = (X, Y, variance)
        with torch.no_grad():
            self._z, self._log_weights = self._infer(X, Y, variance, warm=not first)

    def _members(self, X: Tensor, picks: Tensor | None = None) -> Tensor:
        network = self._network
        if picks is None or not isinstance(network, RelativeNetwork):
            return super()._members(X, picks)
        offsets = network.network.forward(network.start.to(X), X)[picks % self.num_starts]
        return network.network.forward(self._z[picks].to(X), X) - offsets

    def _observe(self, Y: Tensor, variance: Tensor) -> Observations:
        if self._lik.name == "gaussian":
            return Squares(Y.unsqueeze(0), variance)
        return Labels(self._lik, Y, variance)

    def _log_joint(self, X: Tensor, Y: Tensor, variance: Tensor) -> LogJoint:
        """Of the networks under the prior around their starts; without noise, ``variance`` holds what rows weigh."""
        weights = None if self._lik.has_noise else variance[:, 0].reciprocal()
        return LogJoint(self._network, self._lik, CentredPrior(self._starts.to(X.device)), X, Y, variance, weights)

    def _modes(self, X: Tensor, Y: Tensor, variance: Tensor) -> Tensor:
        """``M x P``: the modes nearest the starts."""
        starts = self._starts.to(X.device)
        if Y.shape[0] * self.num_latents <= GAUSS_NEWTON_ROWS:
            return minimize(self._network, X, self._observe(Y, variance), starts, starts, self.settings).z
        joint = self._log_joint(X, Y, variance)

        def gradient(z: Tensor, rows: Tensor | None) -> Tensor:
            f, back = self._network.pullback(z, joint.X if rows is None else joint.X[rows])
            _, targets, noise, factor = joint.rows(rows)
            return -factor * back(self._lik.score(f, targets, noise)) - joint.prior.score(z)

        size = 256 if self.path.batch_size is None else self.path.batch_size
        return adam(gradient, starts, Y.shape[0], AdamSettings(steps=3000, batch_size=size), self.generator)

    def _walk(self, X: Tensor, Y: Tensor, variance: Tensor, modes: Tensor, **changes: Any) -> SwagPosterior:
        return swag(self._log_joint(X, Y, variance), modes, replace(self.path, **changes), self.generator)

    def _pull_centres(self, X: Tensor, Y: Tensor, variance: Tensor) -> Tensor:
        """The centres, moved to new rows and held by what the old data told them."""
        return self._pull(self._centres.to(X.device), X, self._observe(Y, variance), self.settings)

    def _all_rows(self, X: Tensor, Y: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Remembered rows and new ones."""
        old_X, old_Y, old_variance = self._memory
        return torch.cat([old_X, X]), torch.cat([old_Y, Y]), torch.cat([old_variance, variance])

    def _own_state(self) -> dict[str, Any]:
        return {"starts": self._starts, "centres": self._centres}

    def _set_own_state(self, state: Mapping[str, Any]) -> None:
        self._starts, self._centres = state["starts"], state["centres"]
        if self._memory[0].shape[0]:  # before any data the particles are draws of the prior, read as they are
            self._network = RelativeNetwork(self._network, self._starts)
