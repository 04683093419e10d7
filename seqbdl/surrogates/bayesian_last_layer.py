"""``bayesian-last-layer``: learned features, an exact posterior over the linear head and the noise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from seqbdl.errors import InvalidOptionError
from seqbdl.inference import last_layer
from seqbdl.inference.gauss_newton import GaussNewtonSettings, gauss_newton
from seqbdl.inference.last_layer import LastLayer
from seqbdl.posteriors.joint_gaussian import JointGaussian
from seqbdl.surrogates.adaptation import SHARES, choose_share
from seqbdl.surrogates.base import Evaluate
from seqbdl.surrogates.gaussian import GaussianSurrogate
from seqbdl.surrogates.network_prior import ONE_MODE_ROWS, NetworkBuilder, NetworkPrior, NetworkSpec, standard_normal

_SHAPE = 2.0  # of the inverse-gamma prior of the noise: its mean exists, its variance does not
_KNOWN = 1e6  # shape when the noise is known


class BayesianLastLayerSurrogate(GaussianSurrogate):
    """Bayesian linear regression on the last hidden layer of a fitted network (Snoek et al. 2015), noise unknown.

    Head and noise have an exact normal-inverse-gamma posterior, updated recursively while the features stay; the
    head's prior precision is set by the evidence. The posterior that loops see is the Gaussian with the moments of the
    Student-t predictive; function draws come from the Student-t process itself.

    Features fitted to the data make a last layer overconfident: they have seen the targets. So the network's weights
    go only a share of the way from their random start to the Gauss-Newton fit, and the share is what predicts held-out
    rows best (0: random features,
    1: the fitted network).

    Args:
        network: Hidden widths; or a module or factory that ends before its linear head (any number of outputs is a
            feature map).
        activation: Of the widths form.
        prior_precision: Of the head's weights, relative to the noise precision; ``None``: by the evidence.
        num_networks: Independent networks whose features are stacked; more give better-calibrated spread away from
            data.
        adaptation: The share of the way; ``None``: chosen by the log predictive density of held-out rows.
        max_iterations: Gauss-Newton steps per fit.
    """

    name = "bayesian-last-layer"
    carries = "the exact posterior of head and noise, under fixed features"

    def __init__(
        self,
        *args: Any,
        network: NetworkSpec = (64, 64),
        activation: str = "erf",
        prior_precision: float | None = None,
        num_networks: int = 4,
        adaptation: float | None = None,
        max_iterations: int = 20,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if prior_precision is not None and prior_precision <= 0:
            raise InvalidOptionError(f"prior_precision={prior_precision} must be positive")
        if num_networks < 1 or max_iterations < 1:
            raise InvalidOptionError(f"num_networks={num_networks} and max_iterations={max_iterations} must be at least 1")
        if adaptation is not None and not 0.0 <= adaptation <= 1.0:
            raise InvalidOptionError(f"adaptation={adaptation} is a share, in [0, 1]")
        self.prior_precision = prior_precision
        self.adaptation = adaptation
        self.settings = GaussNewtonSettings(max_iterations=max_iterations)
        self._builder = NetworkBuilder(network, self.input_dim, self.output_dim, activation, headed=True)
        self._prior = self._builder.initial()
        self._network = self._builder.build(self._prior)
        shape = (num_networks, self._network.num_params)
        self._start = standard_normal(*shape, generator=self.generator, like=self._prior.noise)
        self._z = self._start
        self._reference = self._prior.noise.mean()  # what relative noise variances are relative to
        precision = prior_precision or float(self._reference)
        num_features = self._features(torch.zeros(1, self.input_dim, dtype=torch.float64)).shape[-1]
        self._prior_head = last_layer.prior_last_layer(num_features, precision, _SHAPE, self._prior.noise * (_SHAPE - 1))
        self._head = self._prior_head

    def features(self, X: Tensor) -> Tensor:
        """The linear feature map, ``X: batch x q x d -> batch x q x F``."""
        return self._features(self._scaling.inputs(X)).to(X.dtype)

    def _features(self, X: Tensor) -> Tensor:
        hidden = self._network.hidden(self._z, X)  # networks x batch x q x F
        merged = hidden.movedim(0, -2).flatten(-2)
        return merged / self._z.shape[0] ** 0.5

    def _fit(self, X: Tensor, Y: Tensor, noise: Tensor | None) -> None:
        before = None if self._X is None else self._prior
        self._prior = self._builder.learn(X, Y, noise, before, seed=self.seed, max_rows=ONE_MODE_ROWS)
        self._network = self._builder.build(self._prior)
        variance = (self._prior.noise if noise is None else noise).expand_as(Y).clamp_min(1e-7)
        with torch.no_grad():
            self._reference = variance.mean()
            relative, shape = self._relative(Y, noise), _SHAPE if noise is None else _KNOWN
            share = self._choose_adaptation(X, Y, variance, relative, shape) if self.adaptation is None else self.adaptation
            start = self._start.to(X.device)
            self._z = start + share * (self._fit_weights(X, Y, variance) - start) if share > 0.0 else start
            self._prior_head, self._head = self._fit_head(self._features(X), Y, relative, shape)

    def _fit_weights(self, X: Tensor, Y: Tensor, variance: Tensor) -> Tensor:
        start = self._start.to(X.device)
        return gauss_newton(self._network, X, Y.unsqueeze(0), variance, start, start, self.settings).z

    def _fit_head(self, features: Tensor, Y: Tensor, relative: Tensor, shape: float) -> tuple[LastLayer, LastLayer]:
        """The head's prior, tuned by the evidence, and its posterior."""
        b0 = (self._prior.noise * (shape - 1)).clamp_min(1e-9)
        precision = self.prior_precision or last_layer.tune_precision(features, Y, relative, shape, b0)
        prior = last_layer.prior_last_layer(features.shape[-1], precision, shape, b0)
        return prior, last_layer.absorb(prior, features, Y, relative)

    def _choose_adaptation(self, X: Tensor, Y: Tensor, variance: Tensor, relative: Tensor, shape: float) -> float:
        """By the joint log predictive density of held-out rows."""
        start = self._start.to(X.device)

        def scores(train: Tensor, test: Tensor) -> list[float]:
            change = self._fit_weights(X[train], Y[train], variance[train]) - start
            densities = []
            for share in SHARES:
                self._z = start + share * change
                features = self._features(X)
                _, head = self._fit_head(features[train], Y[train], relative[train], shape)
                both = last_layer.absorb(head, features[test], Y[test], relative[test])
                densities.append(float((both.log_evidence - head.log_evidence).sum()))
            return densities

        return choose_share(X.shape[0], self.seed, X.device, scores)

    def _relative(self, Y: Tensor, noise: Tensor | None) -> Tensor:
        """``n`` noise variances relative to the reference: rows share one precision matrix over all outputs."""
        if noise is None:
            return Y.new_ones(Y.shape[0])
        return noise.expand_as(Y).clamp_min(1e-7).mean(-1) / self._reference

    def _update(self, X: Tensor, Y: Tensor, noise: Tensor | None) -> None:
        with torch.no_grad():
            self._head = last_layer.absorb(self._head, self._features(X), Y, self._relative(Y, noise))

    def _joint(self, X: Tensor) -> JointGaussian:
        features = self._features(X)  # batch x q x F
        white = torch.linalg.solve_triangular(self._head.factor.T, features.flatten(0, -2), upper=True, left=False)
        white = white.reshape(features.shape)
        unit = (white @ white.transpose(-1, -2)).unsqueeze(-3)  # batch x 1 x q x q
        return JointGaussian(features @ self._head.mean, unit * self._head.noise[:, None, None])

    def _draw_base(self, n: int, generator: torch.Generator) -> Evaluate:
        head = self._head
        shape = head.a.cpu().expand(n, self.output_dim).contiguous()
        variance = head.b / torch._standard_gamma(shape, generator=generator).to(head.b)  # n x m
        white = standard_normal(n, *head.mean.shape, generator=generator, like=head.mean)  # n x F x m
        spread = torch.linalg.solve_triangular(head.factor.T, white, upper=True)
        weights = head.mean + variance.sqrt().unsqueeze(-2) * spread

        def evaluate(X: Tensor) -> Tensor:
            features = self._features(X)
            return torch.einsum("...f,nfm->n...m", features, weights)

        return evaluate

    def _draw_at(self, X: Tensor, n: int, generator: torch.Generator) -> Tensor:
        return self._draw(n, generator)(X)  # of the Student-t process, not of the Gaussian with its moments

    def _noise(self) -> Tensor:
        return self._head.noise

    def _log_evidence(self) -> Tensor | None:
        return self._head.log_evidence.sum()

    def _get_state(self) -> dict[str, Any]:
        return {
            "prior": self._prior.tree(),
            "start": self._start,
            "z": self._z,
            "reference": self._reference,
            "head": dict(self._head.__dict__),
            "prior_head": dict(self._prior_head.__dict__),
        }

    def _set_state(self, state: Mapping[str, Any]) -> None:
        self._prior = NetworkPrior.from_tree(state["prior"])
        self._network = self._builder.build(self._prior)
        self._start, self._z, self._reference = state["start"], state["z"], state["reference"]
        self._head, self._prior_head = LastLayer(**state["head"]), LastLayer(**state["prior_head"])
