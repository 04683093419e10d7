"""``vbll``: a Gaussian on the last layer, and features learned through its bound on the evidence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from seqbdl.errors import InvalidOptionError
from seqbdl.inference.gaussian_head import Head, absorb, prior_head
from seqbdl.inference.vbll import VBLLSettings, learn_features, tune_noise
from seqbdl.likelihoods import LIKELIHOODS
from seqbdl.networks import Network
from seqbdl.posteriors.joint_gaussian import JointGaussian
from seqbdl.surrogates.base import Evaluate
from seqbdl.surrogates.gaussian import GaussianSurrogate
from seqbdl.surrogates.network_prior import NetworkBuilder, NetworkPrior, NetworkSpec, ScaleSpec, standard_normal

_EVIDENCE_ROWS = 512  # at most, a random sample, that set scales and noise
_ALL_ROWS = 1000  # that features are learned on at once; beyond, in batches
_BATCH = 256


class VBLLSurrogate(GaussianSurrogate):
    """Variational Bayesian last layers (Harrison, Willes and Snoek 2024).

    Features begin as random networks with the scales that the evidence of the infinite-width limit chose, so that the head
    alone is nearly that Gaussian process, and move along the bound's gradient, held by their prior around the start. Features
    learned without that hold have seen the targets, and make the head far too sure of itself; so do few features for many
    rows, hence several networks side by side. For the same reason the noise of every output maximizes the bound under the
    random features; what these cannot express then counts as noise.

    Args:
        network: Hidden widths; or a module or factory that ends before its linear head.
        activation: Of the widths form.
        num_networks: Networks whose last hidden layers are stacked.
        steps: Adam steps for the features; 0: random features.
        learning_rate: Of the first step.
        batch_size: Rows per step; ``None``: all up to 1,000, 256 beyond.
        noise_rows: Rows that the estimate of the noise by the infinite-width evidence counts for, when each output's is
            learned.
        scales: Known variances of the network's layers (see :class:`NetworkBuilder`).
        log_evidence: The bound of the head, given features and noise; under Gaussian noise it is their exact evidence, after
            updates too; under other likelihoods there is none after ``update``.
    """

    name = "vbll"
    carries = "the Gaussian of the head, whose natural parameters add, under fixed features"
    likelihoods = LIKELIHOODS

    def __init__(
        self,
        *args: Any,
        network: NetworkSpec = (64, 64),
        activation: str = "erf",
        num_networks: int = 16,
        steps: int = 30,
        learning_rate: float = 0.03,
        batch_size: int | None = None,
        noise_rows: float = 10.0,
        scales: ScaleSpec | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if num_networks < 1:
            raise InvalidOptionError(f"num_networks={num_networks} must be at least 1")
        if not noise_rows > 0:
            raise InvalidOptionError(f"noise_rows={noise_rows} must be positive")
        self.noise_rows = noise_rows
        self.descent = VBLLSettings(steps, learning_rate, batch_size)
        self._builder = NetworkBuilder(
            network, self.input_dim, self.output_dim, activation, headed=True, num_latents=self.num_latents, scales=scales
        )
        self._prior = self._builder.initial()
        self._network: Network = self._builder.build(self._prior)
        shape = (num_networks, self._network.num_params)
        self._start = standard_normal(*shape, generator=self.generator, like=self._prior.noise)
        self._z = self._start
        num_features = self._features(self._z, torch.zeros(1, self.input_dim, dtype=torch.float64)).shape[-1]
        self._head = prior_head(num_features, self.num_latents, self._prior.noise)
        self._learned_noise = self._prior.noise
        self._bound: Tensor | None = None

    def features(self, X: Tensor) -> Tensor:
        """The linear feature map, ``X: batch x q x d -> batch x q x F``."""
        return self._features(self._z, self._scaling.inputs(X)).to(X.dtype)

    def _features(self, z: Tensor, X: Tensor) -> Tensor:
        hidden = self._network.hidden(z, X)  # networks x batch x q x F
        return hidden.movedim(0, -2).flatten(-2) / z.shape[0] ** 0.5

    def _fit(self, X: Tensor, Y: Tensor, noise: Tensor | None) -> None:
        some = torch.randperm(X.shape[0], generator=self.generator)[:_EVIDENCE_ROWS].sort().values.to(X.device)
        known = noise if noise is None or noise.shape[0] == 1 else noise[some]
        self._prior = self._builder.learn(X[some], Y[some], known, self._prior, likelihood=self._lik)
        self._network = self._builder.build(self._prior)
        self._start = self._start.to(X.device)
        with torch.no_grad():
            self._learned_noise = self._prior.noise
            if noise is None and self._lik.name == "gaussian":
                random = self._features(self._start, X[some])
                self._learned_noise = tune_noise(random, Y[some], self._prior.noise, self.noise_rows)
            variance = self._variance(X, self._learned_noise if noise is None else noise)
            descent = self.descent
            if descent.batch_size is None and X.shape[0] > _ALL_ROWS:
                descent = replace(descent, batch_size=_BATCH)
            self._z = learn_features(self._features, self._start, X, self._lik, Y, variance, self.generator, descent)
            phi = self._features(self._z, X)
            prior = prior_head(phi.shape[1], self.num_latents, X)
            self._head, self._bound = absorb(prior, phi, self._lik, Y, variance)

    def _update(self, X: Tensor, Y: Tensor, noise: Tensor | None) -> None:
        with torch.no_grad():
            variance = self._variance(X, self._learned_noise if noise is None else noise)
            self._head, bound = absorb(self._head, self._features(self._z, X), self._lik, Y, variance)
        exact = self._lik.name == "gaussian" and self._bound is not None
        self._bound = self._bound + bound if exact and self._bound is not None else None

    def _variance(self, X: Tensor, noise: Tensor) -> Tensor:
        return noise.expand(X.shape[0], self.output_dim).clamp_min(1e-7)

    def _joint(self, X: Tensor) -> JointGaussian:
        phi = self._features(self._z.to(X), X)  # batch x q x F
        factor = self._head.factor.to(X)
        white = torch.linalg.solve_triangular(factor, phi.flatten(0, -2).T, upper=False)  # l x F x points
        white = white.transpose(-1, -2).unflatten(1, X.shape[:-1]).movedim(0, -3)  # batch x l x q x F
        return JointGaussian(phi @ self._head.mean.to(X), white @ white.transpose(-1, -2))

    def _draw_base(self, n: int, generator: torch.Generator) -> Evaluate:
        head = self._head
        white = standard_normal(n, self.num_latents, head.mean.shape[0], 1, generator=generator, like=head.mean)
        spread = torch.linalg.solve_triangular(head.factor.transpose(-1, -2), white, upper=True)
        weights = head.mean + spread.squeeze(-1).transpose(-1, -2)  # n x F x l

        def evaluate(X: Tensor) -> Tensor:
            return torch.einsum("...f,nfl->n...l", self._features(self._z.to(X), X), weights.to(X))

        return evaluate

    def _noise(self) -> Tensor:
        return self._learned_noise

    def _log_evidence(self) -> Tensor | None:
        return self._bound

    def _get_state(self) -> dict[str, Any]:
        return {
            "prior": self._prior.tree(),
            "start": self._start,
            "z": self._z,
            "head": dict(self._head.__dict__),
            "noise": self._learned_noise,
            "bound": self._bound,
        }

    def _set_state(self, state: Mapping[str, Any]) -> None:
        self._prior = NetworkPrior.from_tree(state["prior"])
        self._network = self._builder.build(self._prior)
        self._start, self._z = state["start"], state["z"]
        self._head = Head(**state["head"])
        self._learned_noise, self._bound = state["noise"], state["bound"]
