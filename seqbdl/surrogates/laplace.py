"""``laplace``: a Bayesian network by the linearized Laplace approximation, Gauss-Newton curvature, evidence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from seqbdl.errors import InvalidOptionError
from seqbdl.inference import laplace
from seqbdl.inference.laplace import Tuning
from seqbdl.networks import Network, RelativeNetwork
from seqbdl.surrogates.linearized import LinearizedSurrogate
from seqbdl.surrogates.network_prior import ONE_MODE_ROWS, NetworkBuilder, NetworkPrior, NetworkSpec, ScaleSpec, standard_normal

CENTRES = ("start", "zero")
_BY_EVIDENCE = {"evidence": "one", "layerwise": "layers"}


class LaplaceSurrogate(LinearizedSurrogate):
    """The Gaussian posterior of the network linearized at its mode; joint over all rows and outputs.

    Scales of the prior, one per input dimension and layer, and the noise maximize the evidence of the linearized
    network's infinite-width limit, the Gaussian process with the tangent kernel.

    The posterior depends on the parametrization, as every Laplace approximation does (Kristiadi et al. 2023): weights here
    are whitened, each in units of its prior standard deviation.

    Args:
        network: Hidden widths, a module, or a factory.
        num_branches: Networks of these widths side by side, scaled and summed into one: the linearization then strays less
            from that of an infinitely wide network, for which it is exact. ``None``: 8 with full curvature, which takes
            their cost from the rows, else 1. A module has one.
        activation: Of the widths form.
        scales: Known variances of the network's layers (see :class:`NetworkBuilder`); ``None``: by the evidence of the
            infinite-width limit.
        prior_precision: Precision of the prior on whitened weights: a number; ``"evidence"``: it maximizes the Laplace
            evidence, alternating with the search for the mode; ``"layerwise"``: one per layer does. ``None``: 1 for widths,
            whose scales the evidence has set already; ``"evidence"`` for a module.
        tune: ``"evidence"``: the Laplace evidence sets the noise too, unless it is known, jointly with the prior precision
            (unless that is a number). ``None``: the noise is that of the infinite-width limit.
        centre: What the prior on the weights is centred on. ``"zero"``: the usual ``N(0, .)``. ``"start"``: a random
            initialization ``a``, with the network read as ``f(x; z) - f(x; a)``, whose function prior has mean zero
            too; its linearization keeps all directions alive however few the data, where the mode of the first lets
            unneeded units die.
        memory: Rows whose curvature ``update`` keeps exactly while it is held by rows (see
            :mod:`seqbdl.inference.curvature`); beyond, an even sample with enlarged weights.
    """

    name = "laplace"
    carries = "the weights and their Gauss-Newton curvature: exactly at up to `memory` rows, or as a matrix"
    update_tolerance = 1.0

    def __init__(
        self,
        *args: Any,
        network: NetworkSpec = (64, 64),
        num_branches: int | None = None,
        activation: str = "erf",
        scales: ScaleSpec | None = None,
        prior_precision: float | str | None = None,
        tune: str | None = None,
        centre: str = "start",
        memory: int = 512,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if centre not in CENTRES:
            raise InvalidOptionError(f"centre={centre!r} must be one of {', '.join(CENTRES)}")
        if isinstance(prior_precision, str):
            if prior_precision not in _BY_EVIDENCE:
                raise InvalidOptionError(
                    f'prior_precision={prior_precision!r}: give a positive number, "evidence" or "layerwise"'
                )
        elif prior_precision is not None and prior_precision <= 0:
            raise InvalidOptionError(f"prior_precision={prior_precision} must be positive")
        if tune not in (None, "evidence"):
            raise InvalidOptionError(f'tune={tune!r} must be "evidence" or None')
        if num_branches is not None and num_branches < 1:
            raise InvalidOptionError(f"num_branches={num_branches} must be at least 1")
        if memory < 1:
            raise InvalidOptionError(f"memory={memory} must be at least 1")
        self.memory = memory
        self.num_branches = num_branches or (8 if self.structure == "full" else 1)
        self.prior_precision = prior_precision
        self.tune = tune
        self.centre = centre
        self._builder = NetworkBuilder(
            network, self.input_dim, self.output_dim, activation, num_latents=self.num_latents, scales=scales
        )
        if prior_precision is None and (tune is not None or self._builder.widths is None):
            prior_precision = "evidence"
        self._tuning = Tuning(
            _BY_EVIDENCE[prior_precision] if isinstance(prior_precision, str) else "none",
            tune is not None and self.fixed_noise is None,
        )
        self._prior = self._builder.initial()
        plain = self._builder.build(self._prior, self.num_branches)
        self._start = standard_normal(1, plain.num_params, generator=self.generator, like=self._prior.noise)
        known = prior_precision if isinstance(prior_precision, float | int) else 1.0
        self._initial = torch.full((plain.num_groups,), float(known), dtype=torch.float64).log()
        self._log_precisions, self._fitted = self._initial, False
        self._network = self._build()
        self._laplace = laplace.prior_laplace(self._network, self._whitened_start())

    def _gains(self) -> Tensor:
        return (-0.5 * self._log_precisions).exp()

    def _whitened_start(self) -> Tensor:
        """``1 x P``: the start in units of the tuned prior."""
        start, gains = self._start.to(self._prior.noise), self._gains().to(self._prior.noise)
        plain = self._builder.build(self._prior, self.num_branches)
        return start / gains[plain.group_of_weights(start)]

    def _build(self) -> Network:
        """The network with all scales, read relative to its start where its prior mean would not be zero."""
        plain = self._builder.build(self._prior, self.num_branches).rescaled(self._gains().to(self._prior.noise))
        if self.centre == "zero" and self._fitted:
            return plain
        return RelativeNetwork(plain, self._whitened_start())

    def _fit(self, X: Tensor, Y: Tensor, noise: Tensor | None) -> None:
        known = self._prior if self._fitted else None
        shared: dict[str, Any] = {"likelihood": self._lik, "seed": self.seed, "max_rows": ONE_MODE_ROWS}
        self._prior = self._builder.learn(X, Y, noise, known, tangent=True, **shared)
        self._log_precisions, self._fitted = self._initial.to(X), True
        with torch.no_grad():
            network, start = self._build(), self._whitened_start()
            centre = start if self.centre == "start" else torch.zeros_like(start)
            tuning = replace(self._tuning, noise=self._tuning.noise and noise is None)
            rows = self._rows(X, Y, noise)
            fit = laplace.fit_laplace(network, rows, centre, start, self.structure, self.settings, tuning)
            self._log_precisions = self._initial.to(X) + fit.log_precisions
            self._prior = replace(self._prior, noise=self._prior.noise * fit.noise_factor)
            self._network, self._laplace = fit.network, fit.posterior

    def _get_state(self) -> dict[str, Any]:
        return {
            "prior": self._prior.tree(),
            "start": self._start,
            "log_precisions": self._log_precisions,
            "fitted": self._fitted,
            "laplace": self._laplace.tree(),
        }

    def _set_state(self, state: Mapping[str, Any]) -> None:
        self._prior = NetworkPrior.from_tree(state["prior"])
        self._start, self._log_precisions, self._fitted = state["start"], state["log_precisions"], state["fitted"]
        self._network = self._build()
        self._load_posterior(state["laplace"])
