"""Surrogates that are functions of an index: what ``epinet`` and ``hypermodel`` share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from seqbdl.errors import InvalidOptionError
from seqbdl.inference.adam import AdamSettings
from seqbdl.inference.gauss_newton import GaussNewtonSettings, minimize
from seqbdl.inference.indexed import IndexedFunction, PriorFunctions, draw_indices, draw_signals, targets
from seqbdl.inference.lbfgs import LBFGSSettings
from seqbdl.inference.observations import Joined, Labels, Observations, Remembered
from seqbdl.networks import Network, RelativeNetwork
from seqbdl.surrogates.network_prior import NetworkBuilder, NetworkPrior, NetworkSpec, standard_normal
from seqbdl.surrogates.particle import ParticleSurrogate

FITS = ("auto", "lbfgs", "adam")
_BLOCK = 512  # rows of an update that are absorbed at once, and values that hold the old function meanwhile


class IndexedSurrogate(ParticleSurrogate):
    """``f(x, z)``, trained over indices ``z ~ N(0, I)``; ``num_members`` indices are drawn once and kept: they are the particles.

    The network is read relative to its random start, ``f(x; w) - f(x; a)``, with a Gaussian prior around ``a``. Prior functions
    are ``index_dim`` fixed random networks, mixed by the index; their scales come from the evidence of the infinite-width
    limit, those of the trained network from that of its tangent kernel.

    Args:
        network: Hidden widths, a module, or a factory.
        num_members: Indices; with more than ``index_dim + 1`` their mean is exactly zero and their covariance the identity.
        index_dim: ``D``.
        num_branches: Networks of these widths side by side (not the prior functions). A module has one.
        prior_network: Of the prior functions; ``None``: as ``network``.
        prior_scale: Of their sum, in units of the prior that the evidence chose; 0: none.
        bootstrap: With Gaussian noise, the target of a row at an index is ``y + sigma <c, z>``, ``c`` a unit vector of the row's
            own, so that the spread over indices holds what the noise leaves open.
        fit: ``"lbfgs"``: all rows, at the kept indices; ``"adam"``: mini-batches, fresh indices at every step; ``"auto"``: L-BFGS
            up to 1,024 rows times latent functions.
        max_iterations: Of L-BFGS.
        steps: Of Adam.
        learning_rate: Of Adam's first step; it falls to zero along a half cosine.
        batch_size: Rows per step of Adam.
        index_samples: Indices per step of Adam.
    """

    update_tolerance = 1.0
    max_rows: ClassVar[int] = 1024

    _start: Tensor | None = None

    def __init__(
        self,
        *args: Any,
        network: NetworkSpec = (64, 64),
        activation: str = "erf",
        num_members: int = 64,
        index_dim: int = 16,
        num_branches: int = 1,
        prior_network: NetworkSpec | None = None,
        prior_scale: float = 1.0,
        bootstrap: bool = True,
        fit: str = "auto",
        max_iterations: int = 60,
        steps: int = 1000,
        learning_rate: float = 0.01,
        batch_size: int = 100,
        index_samples: int = 8,
        **kwargs: Any,
    ) -> None:
        if index_dim < 1 or num_branches < 1:
            raise InvalidOptionError(f"index_dim={index_dim} and num_branches={num_branches} must be at least 1")
        if not prior_scale >= 0.0:
            raise InvalidOptionError(f"prior_scale={prior_scale} must not be negative")
        if fit not in FITS:
            raise InvalidOptionError(f"fit={fit!r} must be one of {', '.join(FITS)}")
        if min(max_iterations, steps, batch_size, index_samples) < 1:
            raise InvalidOptionError(
                f"max_iterations={max_iterations}, steps={steps}, batch_size={batch_size} and index_samples={index_samples} must "
                "be at least 1"
            )
        if not learning_rate > 0.0:
            raise InvalidOptionError(f"learning_rate={learning_rate} must be positive")
        self.num_branches = num_branches
        super().__init__(*args, network=network, activation=activation, num_members=num_members, **kwargs)
        self.index_dim = index_dim
        self.prior_scale = prior_scale
        self.bootstrap = bootstrap
        self.fit_by = fit
        self.index_samples = index_samples
        self.settings = LBFGSSettings(max_iterations=max_iterations)
        self.adam_settings = AdamSettings(steps=steps, learning_rate=learning_rate, batch_size=batch_size)
        self._descent = GaussNewtonSettings(max_iterations=60)
        self._prior_builder = NetworkBuilder(
            network if prior_network is None else prior_network,
            self.input_dim,
            self.output_dim,
            activation,
            headed=self._headed,
            num_latents=self.num_latents,
            scales=kwargs.get("scales"),
        )
        self._function_prior = self._prior_builder.initial()
        like = self._prior.noise
        self._start = standard_normal(1, self._network.num_params, generator=self.generator, like=like)
        self._network = self._build_network()
        num_params = self._prior_builder.build(self._function_prior).num_params
        self._prior_weights = standard_normal(index_dim, num_params, generator=self.generator, like=like)
        self._z = draw_indices(num_members, index_dim, self.generator, like)

    def _build_network(self) -> Network:
        plain = self._builder.build(self._prior, self.num_branches)
        return plain if self._start is None else RelativeNetwork(plain, self._start)

    def _prior_function(self) -> IndexedFunction:
        network = self._prior_builder.build(self._function_prior)
        return PriorFunctions(network, self._prior_weights, self.prior_scale)

    # ------------------------------------------------------------------ learning

    def _fit(self, X: Tensor, Y: Tensor, noise: Tensor | None) -> None:
        warm = self._memory[0].shape[0] > 0
        shared: dict[str, Any] = {"likelihood": self._lik, "seed": self.seed}
        self._prior = self._builder.learn(X, Y, noise, self._prior if warm else None, tangent=True, **shared)
        if self._prior_builder.widths is not None and self.prior_scale > 0.0:
            before = self._function_prior if warm else None
            self._function_prior = self._prior_builder.learn(X, Y, noise, before, **shared)
        self._network = self._build_network()
        variance = (self._prior.noise if noise is None else noise).expand(Y.shape[0], self.output_dim).clamp_min(1e-7)
        self._memory = (X, Y, variance)
        with torch.no_grad():
            self._z, self._log_weights = self._infer(X, Y, variance, warm)

    def _infer(self, X: Tensor, Y: Tensor, variance: Tensor, warm: bool) -> tuple[Tensor, Tensor]:
        z = self._z.to(X.device)
        signals = self._signals(X.shape[0], X)
        if self.fit_by == "adam" or (self.fit_by == "auto" and X.shape[0] * self.num_latents > self.max_rows):
            self._train(X, Y, variance, signals)
        else:
            self._solve(X, targets(self._lik, Y, variance, z, signals), z, self._mode(X, Y, variance))
        return z, X.new_zeros(self.num_members)

    def _signals(self, n: int, like: Tensor) -> Tensor | None:
        return draw_signals(n, self.output_dim, self.index_dim, self.generator, like) if self.bootstrap else None

    def _mode(self, X: Tensor, Y: Tensor, variance: Tensor) -> Tensor:
        """The network's own maximum a posteriori, ``1 x P``."""
        assert self._start is not None
        start = self._start.to(X.device)
        return minimize(self._network, X, Labels(self._lik, Y, variance), start, start, self._descent).z

    def _absorb(self, X: Tensor, Y: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        z = self._z
        held_X, held = self._held()
        for rows in torch.arange(X.shape[0], device=X.device).split(_BLOCK):
            news = targets(self._lik, Y[rows], variance[rows], z, self._signals(len(rows), X))
            self._pull_parameters(torch.cat([held_X, X[rows]]), Joined(held, news, held_X.shape[0]), z)
        return z, self._log_weights

    def _held(self) -> tuple[Tensor, Remembered]:
        """Distinct rows (an even sample where they are many, each for several) and the values there that the old function keeps,
        as firmly as the data demanded them."""
        X, _, variance = self._memory
        values = self._members(X)
        root = self._lik.root(values, variance)
        if not self._lik.has_noise:  # the variance of a row that stands for several is below one
            root = root * variance[:, :1].rsqrt().reshape(1, -1, *([1] * (root.dim() - 2)))
        X, held = Remembered(values, root).distinct(X)
        return held.sample(X, max(1, _BLOCK // self.num_latents), self.generator)

    @abstractmethod
    def _solve(self, X: Tensor, observations: Observations, indices: Tensor, mode: Tensor) -> None:
        """Fit all parameters to rows at the kept indices, from the network's mode ``1 x P`` on."""

    @abstractmethod
    def _train(self, X: Tensor, Y: Tensor, variance: Tensor, signals: Tensor | None) -> None:
        """Fit all parameters by mini-batches."""

    @abstractmethod
    def _pull_parameters(self, X: Tensor, observations: Observations, indices: Tensor) -> None:
        """Posterior as prior: a quadratic around the present parameters, and what the rows say."""

    # ------------------------------------------------------------------ state

    def _own_state(self) -> dict[str, Any]:
        return {
            "start": self._start,
            "prior_weights": self._prior_weights,
            "function_prior": self._function_prior.tree(),
            "parameters": self._parameters_tree(),
        }

    def _set_own_state(self, state: Mapping[str, Any]) -> None:
        self._start, self._prior_weights = state["start"], state["prior_weights"]
        self._function_prior = NetworkPrior.from_tree(state["function_prior"])
        self._network = self._build_network()
        self._set_parameters(state["parameters"])

    @abstractmethod
    def _parameters_tree(self) -> dict[str, Tensor]:
        """What was trained."""

    @abstractmethod
    def _set_parameters(self, tree: Mapping[str, Tensor]) -> None:
        """Restore :meth:`_parameters_tree`."""
