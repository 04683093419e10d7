"""``laplace``: a Bayesian network by the linearized Laplace approximation, full Gauss-Newton curvature, evidence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from seqbdl.errors import InvalidOptionError
from seqbdl.inference import laplace
from seqbdl.inference.gauss_newton import GaussNewtonSettings, gauss_newton
from seqbdl.networks import Tangents
from seqbdl.posteriors.joint_gaussian import JointGaussian
from seqbdl.surrogates.base import Evaluate
from seqbdl.surrogates.gaussian import GaussianSurrogate
from seqbdl.surrogates.network_prior import NetworkBuilder, NetworkPrior, NetworkSpec, standard_normal

CENTRES = ("start", "zero")


class LaplaceSurrogate(GaussianSurrogate):
    """The Gaussian posterior of the network linearized at its mode; joint over all rows and outputs.

    Scales of the prior, one per input dimension and layer, and the noise maximize the evidence of the linearized
    network's infinite-width limit, the Gaussian process with the tangent kernel.

    Args:
        network: Hidden widths, a module, or a factory.
        num_branches: Networks of these widths side by side, scaled and summed into one: the linearization then strays less
            from that of an infinitely wide network, for which it is exact. A module has one.
        activation: Of the widths form.
        prior_precision: Precision of the prior on whitened weights. ``"evidence"``: maximizes the Laplace evidence,
            alternating with the search for the mode. ``None``: 1 for widths, whose scales the evidence has set
            already; ``"evidence"`` for a module.
        centre: What the prior on the weights is centred on. ``"zero"``: the usual ``N(0, .)``. ``"start"``: a random
            initialization ``a``, with the network read as ``f(x; z) - f(x; a)``, whose function prior has mean zero
            too; its linearization keeps all directions alive however few the data, where the mode of the first lets
            unneeded units die.
        memory: Rows whose curvature ``update`` keeps exactly; beyond, an even sample with enlarged weights.
        max_iterations: Gauss-Newton steps per search.
    """

    name = "laplace"
    carries = "the weights and their Gauss-Newton curvature at up to `memory` rows"
    update_tolerance = 1.0

    def __init__(
        self,
        *args: Any,
        network: NetworkSpec = (64, 64),
        num_branches: int = 8,
        activation: str = "erf",
        prior_precision: float | str | None = None,
        centre: str = "start",
        memory: int = 512,
        max_iterations: int = 60,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if centre not in CENTRES:
            raise InvalidOptionError(f"centre={centre!r} must be one of {', '.join(CENTRES)}")
        if isinstance(prior_precision, str):
            if prior_precision != "evidence":
                raise InvalidOptionError(f'prior_precision={prior_precision!r}: give a positive number or "evidence"')
        elif prior_precision is not None and prior_precision <= 0:
            raise InvalidOptionError(f"prior_precision={prior_precision} must be positive")
        if memory < 1 or max_iterations < 1:
            raise InvalidOptionError(f"memory={memory} and max_iterations={max_iterations} must be at least 1")
        if num_branches < 1:
            raise InvalidOptionError(f"num_branches={num_branches} must be at least 1")
        self.num_branches = num_branches
        self.prior_precision = prior_precision
        self.centre = centre
        self.memory = memory
        self.settings = GaussNewtonSettings(max_iterations=max_iterations)
        self._builder = NetworkBuilder(network, self.input_dim, self.output_dim, activation)
        if prior_precision is None:
            prior_precision = "evidence" if self._builder.widths is None else 1.0
        self._precision = None if isinstance(prior_precision, str) else prior_precision
        self._prior = self._builder.initial()
        self._network = self._builder.build(self._prior, self.num_branches)
        shape = (1, self._network.num_params)
        self._start = standard_normal(*shape, generator=self.generator, like=self._prior.noise)
        centre_z = self._start if centre == "start" else torch.zeros_like(self._start)
        self._laplace = laplace.prior_laplace(self._network, self._start, centre_z, self._precision or 1.0)
        self._at_rows: Tangents | None = None

    def _offset(self, X: Tensor) -> Tensor:
        """What is subtracted from the network, ``batch x q x m``."""
        if self.centre == "start":
            return self._network.forward(self._start.to(X.device), X)[0]
        if self._laplace.X.shape[0] == 0:  # the prior has mean zero, wherever it is linearized
            return self._network.forward(self._laplace.z, X)[0]
        return X.new_zeros(self.output_dim)

    def _fit(self, X: Tensor, Y: Tensor, noise: Tensor | None) -> None:
        first = self._laplace.X.shape[0] == 0
        self._prior = self._builder.learn(X, Y, noise, None if first else self._prior, tangent=True)
        self._network = self._builder.build(self._prior, self.num_branches)
        variance = self._variance(Y, noise)
        centre = self._laplace.centre.to(X.device)
        with torch.no_grad():
            shift = self._network.forward(self._start.to(X.device), X)[0] if self.centre == "start" else 0.0
            self._laplace = laplace.fit_laplace(
                self._network, X, Y + shift, variance, centre, self._start.to(X.device), self._precision, self.settings
            )
        self._linearize()

    def _update(self, X: Tensor, Y: Tensor, noise: Tensor | None) -> None:
        # Quadratic around the old weights with the old curvature: the old rows enter with the values the old mode
        # had there.
        old = self._laplace
        alpha = float(old.precision)
        with torch.no_grad():
            predicted = laplace.joint(self._network, old, self._at_rows, X)
            new_targets, new_variance = Y + self._offset(X), self._variance(Y, noise)
            log_evidence = old.log_evidence + laplace.log_density(predicted, new_targets, new_variance)
            targets = torch.cat([self._network.forward(old.z, old.X)[0], new_targets])
            rows, variance = torch.cat([old.X, X]), torch.cat([old.variance, new_variance])
            result = gauss_newton(self._network, rows, targets.unsqueeze(0), alpha * variance, old.z, old.z, self.settings)
            if rows.shape[0] > self.memory:
                keep = torch.randperm(rows.shape[0], generator=self.generator)[: self.memory].sort().values.to(X.device)
                variance = variance[keep] * (self.memory / rows.shape[0])
                rows, targets = rows[keep], targets[keep]
            # The old rows' targets are the old mode's values: the evidence is the chain of predictions, not theirs.
            found = laplace.curvature(self._network, result.z, old.centre, alpha, rows, targets, variance)
            self._laplace = replace(found, log_evidence=log_evidence)
        self._linearize()

    def _variance(self, Y: Tensor, noise: Tensor | None) -> Tensor:
        return (self._prior.noise if noise is None else noise).expand_as(Y).clamp_min(1e-7)

    def _linearize(self) -> None:
        rows = self._laplace.X
        with torch.no_grad():
            self._at_rows = self._network.tangents(self._laplace.z, rows) if rows.shape[0] else None

    def _joint(self, X: Tensor) -> JointGaussian:
        joint = laplace.joint(self._network, self._laplace, self._at_rows, X)
        return JointGaussian(joint.mean - self._offset(X), joint.covariance)

    def _draw_base(self, n: int, generator: torch.Generator) -> Evaluate:
        network, posterior, at_rows = self._network, self._laplace, self._at_rows
        prior = standard_normal(n, network.num_params, generator=generator, like=posterior.z)
        noise = standard_normal(n, *posterior.variance.shape, generator=generator, like=posterior.z)
        with torch.no_grad():
            delta = laplace.weight_draws(network, posterior, at_rows, prior, noise)

        def evaluate(X: Tensor) -> Tensor:
            here = network.tangents(posterior.z, X)
            values = here.values + network.jvp(here, delta)
            return values.unflatten(1, X.shape[:-1]) - self._offset(X)

        return evaluate

    def features(self, X: Tensor) -> Tensor:
        """Rows of the Jacobian at the mode, the posterior's linear feature map: ``X: batch x q x d -> batch x (q m) x
        P``."""
        inner = self._scaling.inputs(X)
        here = self._network.tangents(self._laplace.z, inner)
        N, m = here.values.shape[1], self.output_dim
        eye = torch.eye(N * m).to(here.values).reshape(N * m, N, m)
        rows = torch.cat([self._network.vjp(here, e.unsqueeze(0)) for e in eye])
        return rows.reshape(*X.shape[:-2], X.shape[-2] * m, -1).to(X.dtype)

    def _noise(self) -> Tensor:
        return self._prior.noise

    def _log_evidence(self) -> Tensor | None:
        return self._laplace.log_evidence

    def _get_state(self) -> dict[str, Any]:
        return {"prior": self._prior.tree(), "start": self._start, "laplace": dict(self._laplace.__dict__)}

    def _set_state(self, state: Mapping[str, Any]) -> None:
        self._prior = NetworkPrior.from_tree(state["prior"])
        self._network = self._builder.build(self._prior, self.num_branches)
        self._start = state["start"]
        self._laplace = laplace.LaplacePosterior(**state["laplace"])
        self._linearize()
