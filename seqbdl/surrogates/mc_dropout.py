"""``mc-dropout``: networks with units switched off at random, each a function of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from seqbdl.errors import InvalidOptionError
from seqbdl.inference.gauss_newton import GaussNewtonSettings, minimize
from seqbdl.inference.held_out import first_good, folds, mixture_log_density
from seqbdl.inference.log_joint import LogJoint
from seqbdl.inference.mc_dropout import DropoutSettings, draw_keep, mc_dropout
from seqbdl.inference.observations import Labels, Observations, Squares
from seqbdl.networks.dropout import weight_factors
from seqbdl.priors import get_prior
from seqbdl.surrogates.network_prior import standard_normal
from seqbdl.surrogates.particle import ParticleSurrogate

RATES = (0.001, 0.01, 0.1)
NOISES = tuple(2.0**k for k in range(9))
"""Factors on the noise variance of the evidence."""
_START_ROWS = 300  # rows times latents that the start of the descent is fitted to
_MASKS = 32  # functions that held-out rows are scored by


class MCDropoutSurrogate(ParticleSurrogate):
    """Functions ``f(x; z * m)`` with masks ``m`` drawn at ``fit`` and kept (Gal and Ghahramani 2016).

    The rate and the noise are those under which the mixture over masks predicts held-out rows best, as in the paper: what
    dropout cannot show as spread becomes noise, so that ``noise_variance`` is that of the evidence times a factor, while
    training keeps the former. Where the descent starts is chosen with them: at the mode without dropout, which leaves
    most units of a network idle when data are few, or at the mode nearest a random initialization, where all take part.

    Args:
        num_members: Masks.
        rate: Probability that a hidden unit is off; ``None``: by held-out density.
        input_rate: Probability that an input is off.
        steps: Of Adam.
        learning_rate: Of the first step.
        batch_size: Rows per step.
        max_iterations: Gauss-Newton steps at the start, and per ``update``.
    """

    name = "mc-dropout"
    carries = "the weights, with their curvature at up to `memory` old rows, and the masks"
    update_tolerance = 1.0

    def __init__(
        self,
        *args: Any,
        num_members: int = 64,
        rate: float | None = None,
        input_rate: float = 0.0,
        steps: int = 400,
        learning_rate: float = 1e-2,
        batch_size: int = 64,
        max_iterations: int = 20,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, num_members=num_members, **kwargs)
        if rate is not None and not 0.0 < rate < 1.0:
            raise InvalidOptionError(f"rate={rate} is a probability in (0, 1), or None to choose it on held-out rows")
        if max_iterations < 1:
            raise InvalidOptionError(f"max_iterations={max_iterations} must be at least 1")
        if self._network.num_units == 0:
            raise InvalidOptionError("network= has no hidden units that dropout could switch off")
        self.rate = rate
        self.training_settings = DropoutSettings(steps, learning_rate, batch_size, input_rate)
        self.settings = GaussNewtonSettings(max_iterations=max_iterations)
        like = self._prior.noise
        self._start = standard_normal(1, self._network.num_params, generator=self.generator, like=like)
        self._weights = self._start
        self._rate = RATES[0] if rate is None else rate
        self._noise_factor = 1.0
        self._from = 1
        self._keep = like.new_ones(num_members, self._network.num_units)
        self._keep_inputs = like.new_ones(num_members, self.input_dim)
        weight_factors(self._network, self._keep, self._keep_inputs if input_rate else None)  # refuses what it cannot mask

    @property
    def dropout_rate(self) -> float:
        """The rate that the last fit used."""
        return self._rate

    def _infer(self, X: Tensor, Y: Tensor, variance: Tensor, warm: bool) -> tuple[Tensor, Tensor]:
        known_noise = self._Yvar is not None or self.fixed_noise is not None or not self._lik.has_noise
        self._choose(X, Y, variance, known_noise)
        if bool((Y[:1] == Y).all()):  # at the mode of a constant all weights are zero, and masks would change nothing
            self._from = 1
        joint = LogJoint(self._network, self._lik, get_prior("gaussian"), X, Y, variance)
        start = self._modes(X, Y, variance)[self._from : self._from + 1]
        self._weights = mc_dropout(joint, start, X.new_full((1,), self._rate), self.training_settings, self.generator)
        self._keep, self._keep_inputs = self._draw_masks(self.num_members, self._rate, X)
        return self._masked(self._weights, self._keep, self._keep_inputs), X.new_zeros(self.num_members)

    def _modes(self, X: Tensor, Y: Tensor, variance: Tensor) -> Tensor:
        """Without dropout, of an even sample of the rows, ``2 x P``: under the prior, and nearest the initialization."""
        count = min(X.shape[0], max(1, _START_ROWS // self.num_latents))
        some = torch.linspace(0, X.shape[0] - 1, count, device=X.device).round().long()
        start = self._start.to(X.device)
        anchors = torch.cat([torch.zeros_like(start), start])
        seen = self._observe(Y[some], variance[some])
        return minimize(self._network, X[some], seen, anchors, start.expand(2, -1), self.settings).z

    def _draw_masks(self, n: int, rate: float, like: Tensor) -> tuple[Tensor, Tensor]:
        keep = draw_keep((n, self._network.num_units), like.new_full((1,), rate), self.generator)
        inputs = draw_keep((n, self.input_dim), like.new_full((1,), self.training_settings.input_rate), self.generator)
        return keep, inputs

    def _masked(self, weights: Tensor, keep: Tensor, inputs: Tensor) -> Tensor:
        return weights * weight_factors(self._network, keep, inputs if self.training_settings.input_rate else None)

    def _choose(self, X: Tensor, Y: Tensor, variance: Tensor, known_noise: bool) -> None:
        """Rate and noise: all rates on all folds are trained side by side."""
        pairs = folds(X.shape[0], self.generator, share=0.2, most=2)
        if not pairs:
            return
        rates = RATES if self.rate is None else (self.rate,)
        grid = [(start, rate) for start in range(2) for rate in rates]
        weights = X.new_ones(len(pairs), X.shape[0])
        for fold, (_, held) in enumerate(pairs):
            weights[fold, held] = 0.0
        modes = torch.cat([self._modes(X[train], Y[train], variance[train]) for train, _ in pairs])  # (folds 2) x P
        joint = LogJoint(self._network, self._lik, get_prior("gaussian"), X, Y, variance)
        z = mc_dropout(
            joint,
            modes.repeat_interleave(len(rates), 0),
            X.new_tensor([rate for _, rate in grid]).repeat(len(pairs)),
            self.training_settings,
            self.generator,
            weights.repeat_interleave(len(grid), 0),
        ).unflatten(0, (len(pairs), len(grid)))
        factors = (1.0,) if known_noise else NOISES
        best = -torch.inf
        for i, (start, rate) in enumerate(grid):
            keep, inputs = self._draw_masks(_MASKS, rate, X)
            densities = []
            for fold, (_, held) in enumerate(pairs):
                f = self._network.forward(self._masked(z[fold, i], keep, inputs), X[held])
                terms = [mixture_log_density(self._lik, f, Y[held], factor * variance[held]) for factor in factors]
                densities.append(torch.stack(terms))
            table = torch.cat(densities, -1)  # factors x rows
            pick = first_good(table)
            total = float(table[pick].sum())
            if total > best:
                best, self._from, self._rate, self._noise_factor = total, start, rate, factors[pick]

    def _observe(self, Y: Tensor, variance: Tensor) -> Observations:
        if self._lik.name == "gaussian":
            return Squares(Y.unsqueeze(0), variance)
        return Labels(self._lik, Y, variance)

    def _absorb(self, X: Tensor, Y: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        self._weights = self._pull(self._weights.to(X.device), X, self._observe(Y, variance), self.settings)
        return self._masked(self._weights, self._keep, self._keep_inputs), self._log_weights

    def _noise(self) -> Tensor:
        return self._noise_factor * self._prior.noise

    def _own_state(self) -> dict[str, Any]:
        return {
            "start": self._start,
            "weights": self._weights,
            "from": self._from,
            "rate": self._rate,
            "noise_factor": self._noise_factor,
            "keep": self._keep,
            "keep_inputs": self._keep_inputs,
        }

    def _set_own_state(self, state: Mapping[str, Any]) -> None:
        self._start, self._weights = state["start"], state["weights"]
        self._from, self._rate, self._noise_factor = state["from"], state["rate"], state["noise_factor"]
        self._keep, self._keep_inputs = state["keep"], state["keep_inputs"]
