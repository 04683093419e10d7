"""Surrogates made of particles: S weight vectors of one network, evaluated together."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from seqbdl.errors import InvalidOptionError
from seqbdl.inference.gauss_newton import GaussNewtonSettings, minimize
from seqbdl.inference.observations import Joined, Observations, Remembered
from seqbdl.likelihoods import LIKELIHOODS
from seqbdl.networks import Network
from seqbdl.posteriors import ParticlePosterior, ParticleUpdate, condition_particles, reweight_particles
from seqbdl.priors import Prior, get_prior
from seqbdl.surrogates.base import Evaluate, Surrogate
from seqbdl.surrogates.network_prior import NetworkBuilder, NetworkPrior, NetworkSpec, ScaleSpec, standard_normal


class ParticleSurrogate(Surrogate):
    """``S`` weighted networks; subclasses move them to data.

    Args:
        network: Hidden widths, a module, or a factory (see :class:`NetworkBuilder`).
        activation: Of the widths form.
        num_members: ``S``.
        memory: How many rows of old data ``update`` keeps beside the particles.
        min_ess: Floor on the effective sample size of conditioning by re-weighting, as a share of ``S``; below it the
            function values are moved instead (see :mod:`seqbdl.posteriors.particle_update`).
        prior: Of the whitened weights: one of :attr:`priors`, or a :class:`seqbdl.priors.Prior`.
        scales: Known variances of the network's layers (see :class:`NetworkBuilder`); ``None``: by the evidence of the
            infinite-width limit.
    """

    likelihoods: ClassVar[tuple[str, ...]] = LIKELIHOODS
    _draws_in_single_precision = True
    priors: ClassVar[tuple[str, ...]] = ("gaussian",)
    """Names of the priors that the method can treat."""
    _headed: ClassVar[bool] = False
    """Whether ``network=`` as a module is a feature extractor, and gets a linear head."""

    def __init__(
        self,
        *args: Any,
        network: NetworkSpec = (64, 64),
        activation: str = "erf",
        num_members: int = 10,
        memory: int = 512,
        min_ess: float = 0.5,
        prior: str | Prior = "gaussian",
        scales: ScaleSpec | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if num_members < 2:
            raise InvalidOptionError(f"num_members={num_members}; a posterior of particles needs at least 2")
        if memory < 1:
            raise InvalidOptionError(f"memory={memory} must be at least 1 row")
        if not 0.0 < min_ess <= 1.0:
            raise InvalidOptionError(f"min_ess={min_ess} is a share of the particles, in (0, 1]")
        self._weight_prior = get_prior(prior)
        kind = getattr(self._weight_prior, "name", "")
        if self.priors == ("gaussian",) and kind != "gaussian":
            raise InvalidOptionError(f"prior={prior!r}: {self.name!r} is exact for the gaussian prior only; use that")
        self.num_members = num_members
        self.memory = memory
        self.min_ess = min_ess
        self._builder = NetworkBuilder(
            network,
            self.input_dim,
            self.output_dim,
            activation,
            headed=self._headed,
            num_latents=self.num_latents,
            scales=scales,
        )
        self._prior = self._builder.initial()
        self._network = self._build_network()
        self._extra: tuple[ParticleUpdate, ...] = ()
        like = self._prior.noise
        self._z = standard_normal(num_members, self._network.num_params, generator=self.generator, like=like)
        self._log_weights = like.new_zeros(num_members)
        # Old data that ``update`` may look at: inputs, outcomes, noise variances, weight of each row.
        self._memory: tuple[Tensor, Tensor, Tensor] = (
            like.new_zeros(0, self.input_dim),
            like.new_zeros(0, self.num_targets),
            like.new_zeros(0, self.output_dim),
        )

    @property
    def has_fantasies(self) -> bool:
        return bool(self._extra)

    @property
    def batch_shape(self) -> torch.Size:
        return self._extra[-1].log_weights.shape[1:] if self._extra else torch.Size([])

    @property
    def effective_sample_size(self) -> Tensor:
        """Of the particles' weights, fantasies included; ``batch_shape``."""
        return self._weights_now().softmax(0).square().sum(0).reciprocal()

    def _weights_now(self) -> Tensor:
        """``S x batch_shape`` log-weights."""
        weights = self._log_weights
        for update in self._extra:
            missing = update.log_weights.dim() - weights.dim()
            weights = weights.reshape(weights.shape[0], *([1] * missing), *weights.shape[1:]) + update.log_weights
        return weights

    def _values(self, X: Tensor) -> Tensor:
        """Inner latent values ``S x batch x q x l``, moved by the fantasies."""
        values = self._members(X)
        for update in self._extra:
            values = update.move(values)
        return values

    def _members(self, X: Tensor, picks: Tensor | None = None) -> Tensor:
        """Latent values of the particles (or of those picked) without fantasies, ``S x batch x q x l``."""
        return self._network.forward((self._z if picks is None else self._z[picks]).to(X), X)

    def _posterior(self, X: Tensor, outputs: list[int] | None, noise: Tensor | None, varying: bool = False) -> ParticlePosterior:
        scaling = self._scaling
        latents = self._values(scaling.inputs(X))
        values = scaling.y_mean + scaling.y_std * latents[..., : self.output_dim]
        if varying:
            noise = self._lik.mean_variance(latents, self._noise())[1] * scaling.y_std.square()  # S x batch x q x m
        weights = self._weights_now()
        batch = torch.broadcast_shapes(values.shape[1:-2], weights.shape[1:])
        if batch != values.shape[1:-2]:
            padding = [1] * (len(batch) - (values.dim() - 3))
            values = values.reshape(values.shape[0], *padding, *values.shape[1:]).expand(-1, *batch, -1, -1)
        if outputs is not None:
            values = values[..., outputs]
            if noise is not None and noise.shape[-1] == self.output_dim and (varying or len(outputs) != self.output_dim):
                noise = noise[..., outputs]
        added = None if noise is None else noise.to(values).to(X.dtype)
        if varying and added is not None:
            added = added.reshape(added.shape[0], *([1] * (values.dim() - added.dim())), *added.shape[1:])
        return ParticlePosterior(values.to(X.dtype), weights.to(X.dtype), added)

    def _predictive_quantile(self, X: Tensor, p: Tensor) -> Tensor:
        with torch.no_grad():
            posterior = self.posterior(X, observation_noise=True)
            assert isinstance(posterior, ParticlePosterior)
            return posterior.quantile(p)

    def _latent_samples(self, X: Tensor) -> tuple[Tensor, Tensor]:
        values, weights = self._values(X), self._weights_now().softmax(0)
        batch = torch.broadcast_shapes(values.shape[1:-2], weights.shape[1:])
        padded = values.reshape(values.shape[0], *([1] * (len(batch) + 3 - values.dim())), *values.shape[1:])
        return padded.expand(-1, *batch, -1, -1), weights

    def _condition(self, X: Tensor, Y: Tensor, noise: Tensor | None) -> Self:
        values = self._values(X)
        twin = self._conditioned_copy()
        if noise is None:
            if not self._lik.has_noise:
                twin._extra = (*self._extra, reweight_particles(values, self._weights_now(), Y, self._lik))
                return twin
            noise = self._lik.mean_variance(values, self._noise())[1]  # S x b x n' x m
            noise = noise.reshape(noise.shape[0], *([1] * (Y.dim() + 1 - noise.dim())), *noise.shape[1:])
        values = values[..., : self.output_dim]
        generator = torch.Generator().manual_seed(self.seed + 1)  # fixed: equal fantasies, equal answers
        normals = standard_normal(self.num_members, X.shape[-2], self.output_dim, generator=generator, like=Y)
        normals = normals - normals.mean(0)
        update = condition_particles(values, self._weights_now(), Y, noise, max(1.0, self.min_ess * self.num_members), normals)
        twin._extra = (*self._extra, update)
        return twin

    def _draw(self, n: int, generator: torch.Generator) -> Evaluate:
        weights = self._weights_now().softmax(0).detach()
        if weights.dim() > 1:
            return self._draw_per_fantasy(weights, n, generator)
        picks = _systematic(weights, n, generator)
        if self._extra:
            return lambda X: self._values(X)[picks]
        return lambda X: self._members(X, picks)

    def _draw_per_fantasy(self, weights: Tensor, n: int, generator: torch.Generator) -> Evaluate:
        """``n`` functions of every fantasy; ``weights``: ``S x batch_shape``."""
        columns = weights.flatten(1).T
        picks = torch.stack([_systematic(column, n, generator) for column in columns], dim=-1)
        picks = picks.reshape(n, *weights.shape[1:])

        def evaluate(X: Tensor) -> Tensor:
            values = self._values(X)  # S x batch x q x m
            batch = torch.broadcast_shapes(values.shape[1:-2], picks.shape[1:])
            values = values.reshape(values.shape[0], *([1] * (len(batch) + 3 - values.dim())), *values.shape[1:])
            index = picks.reshape(n, *([1] * (len(batch) + 1 - picks.dim())), *picks.shape[1:], 1, 1)
            return values.expand(-1, *batch, -1, -1).gather(0, index.expand(n, *batch, *values.shape[-2:]))

        return evaluate

    def _noise(self) -> Tensor:
        return self._prior.noise

    def _build_network(self) -> Network:
        """The network whose weights the particles are, for the present prior."""
        return self._builder.build(self._prior)

    # ------------------------------------------------------------------ learning

    def _fit(self, X: Tensor, Y: Tensor, noise: Tensor | None) -> None:
        first = self._memory[0].shape[0] == 0
        before = None if first else self._prior
        self._prior = self._builder.learn(X, Y, noise, before, likelihood=self._lik, seed=self.seed)
        self._network = self._build_network()
        variance = (self._prior.noise if noise is None else noise).expand(Y.shape[0], self.output_dim).clamp_min(1e-7)
        self._memory = (X, Y, variance)
        with torch.no_grad():
            self._z, self._log_weights = self._infer(X, Y, variance, warm=not first)

    def _update(self, X: Tensor, Y: Tensor, noise: Tensor | None) -> None:
        variance = (self._prior.noise if noise is None else noise).expand(Y.shape[0], self.output_dim).clamp_min(1e-7)
        with torch.no_grad():
            self._z, self._log_weights = self._absorb(X, Y, variance)
        kept = tuple(torch.cat([old, new]) for old, new in zip(self._memory, (X, Y, variance), strict=True))
        self._memory = self._forget(*kept)

    def _forget(self, X: Tensor, Y: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """At most ``memory`` rows, an even sample of what was seen; rows that stay speak for those that go (or particles
        would follow every new row), so their variances shrink. Of likelihoods without noise the variance is just that."""
        if X.shape[0] <= self.memory:
            return X, Y, variance
        keep = torch.randperm(X.shape[0], generator=self.generator)[: self.memory].sort().values.to(X.device)
        return X[keep], Y[keep], variance[keep] * (self.memory / X.shape[0])

    def _remembered(self, z: Tensor) -> Remembered:
        """The old posterior of every particle: a quadratic around its values at the remembered rows, with the Gauss-Newton
        curvature that the data had there."""
        X_old, _, variance = self._memory
        values = self._network.forward(z, X_old)
        root = self._lik.root(values, variance)
        if not self._lik.has_noise:
            root = root * variance[:, :1].rsqrt().reshape(1, -1, *([1] * (root.dim() - 2)))
        return Remembered(values, root)

    def _pull(self, z: Tensor, X: Tensor, news: Observations, settings: GaussNewtonSettings) -> Tensor:
        """Posterior as prior for every particle by itself: to the new rows, held by :meth:`_remembered` and by the prior
        around its weights. Exact for linear networks and Gaussian noise."""
        X_old, held = self._remembered(z).distinct(self._memory[0])
        rows = torch.cat([X_old, X])
        return minimize(self._network, rows, Joined(held, news, X_old.shape[0]), z, z, settings).z

    @abstractmethod
    def _infer(self, X: Tensor, Y: Tensor, variance: Tensor, warm: bool) -> tuple[Tensor, Tensor]:
        """Particles ``S x P`` and log-weights ``S`` given all data; ``warm``: the present particles are a good
        start."""

    @abstractmethod
    def _absorb(self, X: Tensor, Y: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Particles and log-weights given new rows, the present particles and the memory."""

    # ------------------------------------------------------------------ state

    def _get_state(self) -> dict[str, Any]:
        return {
            "z": self._z,
            "log_weights": self._log_weights,
            "prior": self._prior.tree(),
            "memory": list(self._memory),
            "own": self._own_state(),
        }

    def _set_state(self, state: Mapping[str, Any]) -> None:
        self._z, self._log_weights = state["z"], state["log_weights"]
        self._prior = NetworkPrior.from_tree(state["prior"])
        self._network = self._build_network()
        X, Y, variance = state["memory"]
        self._memory = (X, Y, variance)
        self._set_own_state(state["own"])

    def _own_state(self) -> dict[str, Any]:
        return {}

    def _set_own_state(self, state: Mapping[str, Any]) -> None:
        """Nothing more to restore."""


def _systematic(weights: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """``n`` indices by systematic resampling, shuffled: with equal weights and ``n = S`` every particle once."""
    offset = torch.rand(1, generator=generator, dtype=torch.float64)
    positions = (torch.arange(n, dtype=torch.float64) + offset) / n
    picks = torch.searchsorted(weights.cpu().double().cumsum(0), positions).clamp_max(weights.shape[0] - 1)
    return picks[torch.randperm(n, generator=generator)].to(weights.device)
