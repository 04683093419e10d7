"""``last-layer-laplace``: learned features, a Laplace posterior over the linear head, for every likelihood."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from seqbdl.errors import InvalidOptionError
from seqbdl.inference import laplace
from seqbdl.inference.gauss_newton import minimize
from seqbdl.inference.laplace import LaplaceFit, Rows, Tuning
from seqbdl.networks import LinearHead
from seqbdl.posteriors.mode import log_predictive
from seqbdl.surrogates.adaptation import SHARES, choose_share
from seqbdl.surrogates.linearized import LinearizedSurrogate
from seqbdl.surrogates.network_prior import ONE_MODE_ROWS, NetworkBuilder, NetworkPrior, NetworkSpec, ScaleSpec, standard_normal


class LastLayerLaplaceSurrogate(LinearizedSurrogate):
    """The Laplace posterior of a linear head on the last hidden layer of fitted networks (Kristiadi et al. 2020; Daxberger et
    al. 2021); under Gaussian noise it is Bayesian linear regression.

    The head is fitted anew on fixed features, so its mode is exact and ``update`` adds natural parameters: what comes in parts
    is what comes at once. Noise and the head's prior precision maximize the evidence.

    Features fitted to the data make a last layer overconfident: they have seen the targets. So the networks' weights go
    only a share of the way from their random start to the fit, and the share is what predicts held-out rows best (0: random
    features, 1: the fitted network).

    Args:
        network: Hidden widths; or a module or factory that ends before its linear head (any number of outputs is a
            feature map).
        activation: Of the widths form.
        scales: Known variances of the network's layers (see :class:`NetworkBuilder`); ``None``: by the evidence of the
            infinite-width limit.
        prior_precision: Of the head's whitened weights; ``None`` or ``"evidence"``: by the evidence.
        num_networks: Independent networks whose features are stacked; more give better-calibrated spread away from data.
        adaptation: The share of the way; ``None``: chosen by the log predictive density of held-out rows.
    """

    name = "last-layer-laplace"
    carries = "the natural parameters of the head, exactly, under fixed features"

    def __init__(
        self,
        *args: Any,
        network: NetworkSpec = (64, 64),
        activation: str = "erf",
        scales: ScaleSpec | None = None,
        prior_precision: float | str | None = None,
        num_networks: int = 4,
        adaptation: float | None = None,
        max_iterations: int = 20,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, max_iterations=max_iterations, **kwargs)
        if isinstance(prior_precision, str) and prior_precision != "evidence":
            raise InvalidOptionError(f'prior_precision={prior_precision!r}: give a positive number or "evidence"')
        if isinstance(prior_precision, float | int) and prior_precision <= 0:
            raise InvalidOptionError(f"prior_precision={prior_precision} must be positive")
        if num_networks < 1:
            raise InvalidOptionError(f"num_networks={num_networks} must be at least 1")
        if adaptation is not None and not 0.0 <= adaptation <= 1.0:
            raise InvalidOptionError(f"adaptation={adaptation} is a share, in [0, 1]")
        self.adaptation = adaptation
        self._builder = NetworkBuilder(
            network, self.input_dim, self.output_dim, activation, headed=True, num_latents=self.num_latents, scales=scales
        )
        self._prior = self._builder.initial()
        self._body = self._builder.build(self._prior)
        self._start = standard_normal(num_networks, self._body.num_params, generator=self.generator, like=self._prior.noise)
        self._z = self._start
        known = None if prior_precision is None or isinstance(prior_precision, str) else float(prior_precision)
        self._precision = known
        self._scale = 1.0 if known is None else known**-0.5  # prior standard deviation of the head's weights
        self._network = self._head(self._z)
        self._laplace = laplace.prior_laplace(self._network, self._prior.noise.new_zeros(1, self._network.num_params))

    def features(self, X: Tensor) -> Tensor:
        """The linear feature map, ``X: batch x q x d -> batch x q x F``."""
        return self._features(self._z, self._scaling.inputs(X)).to(X.dtype)

    def _features(self, z: Tensor, X: Tensor) -> Tensor:
        hidden = self._body.hidden(z.to(X.device), X)  # networks x batch x q x F
        return hidden.movedim(0, -2).flatten(-2) / z.shape[0] ** 0.5

    def _head(self, z: Tensor) -> LinearHead:
        probe = torch.zeros(1, self.input_dim, dtype=torch.float64, device=z.device)
        size = self._features(z, probe).shape[-1]
        return LinearHead(lambda X: self._features(z, X), self.input_dim, size, self.num_latents, self._scale)

    def _fit(self, X: Tensor, Y: Tensor, noise: Tensor | None) -> None:
        before = None if self._X is None else self._prior
        self._prior = self._builder.learn(X, Y, noise, before, likelihood=self._lik, seed=self.seed, max_rows=ONE_MODE_ROWS)
        self._body = self._builder.build(self._prior)
        self._scale = 1.0 if self._precision is None else self._precision**-0.5
        rows, tune_noise = self._rows(X, Y, noise), noise is None
        with torch.no_grad():
            start = self._start.to(X.device)
            share = self._choose_adaptation(rows, tune_noise) if self.adaptation is None else self.adaptation
            self._z = start + share * (self._fit_weights(rows) - start) if share > 0.0 else start
            fit = self._fit_head(self._z, rows, tune_noise)
            assert isinstance(fit.network, LinearHead)
            self._network, self._laplace, self._scale = fit.network, fit.posterior, fit.network.scale
            self._prior = replace(self._prior, noise=self._prior.noise * fit.noise_factor)

    def _fit_weights(self, rows: Rows) -> Tensor:
        start = self._start.to(rows.X.device)
        return minimize(self._body, rows.X, rows.observations, start, start, self.settings).z

    def _fit_head(self, z: Tensor, rows: Rows, tune_noise: bool, rounds: int = 4) -> LaplaceFit:
        head = self._head(z)
        zero = rows.X.new_zeros(1, head.num_params)
        tuning = Tuning("one" if self._precision is None else "none", tune_noise and self._lik.name == "gaussian", rounds)
        return laplace.fit_laplace(head, rows, zero, zero, self.structure, self.settings, tuning)

    def _choose_adaptation(self, rows: Rows, tune_noise: bool) -> float:
        """By the joint log predictive density of held-out rows."""
        start = self._start.to(rows.X.device)

        def scores(train: Tensor, test: Tensor) -> list[float]:
            seen, held_out = rows.pick(train), rows.pick(test)
            change = self._fit_weights(seen) - start
            densities = []
            for share in SHARES:
                fit = self._fit_head(start + share * change, seen, tune_noise, rounds=1)
                predicted = laplace.joint(fit.network, fit.posterior, held_out.X)
                noise = held_out.noise * fit.noise_factor
                densities.append(float(log_predictive(predicted, held_out.Y, self._lik, noise)))
            return densities

        return choose_share(rows.X.shape[0], self.seed, rows.X.device, scores)

    def _get_state(self) -> dict[str, Any]:
        return {
            "prior": self._prior.tree(),
            "start": self._start,
            "z": self._z,
            "scale": self._scale,
            "laplace": self._laplace.tree(),
        }

    def _set_state(self, state: Mapping[str, Any]) -> None:
        self._prior = NetworkPrior.from_tree(state["prior"])
        self._body = self._builder.build(self._prior)
        self._start, self._z, self._scale = state["start"], state["z"], state["scale"]
        self._network = self._head(self._z)
        self._load_posterior(state["laplace"])
