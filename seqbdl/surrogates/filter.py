"""Surrogates that carry a Gaussian over weights from row to row: what the filters share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from seqbdl.errors import InvalidOptionError
from seqbdl.inference.gauss_newton import GaussNewtonSettings, minimize
from seqbdl.inference.observations import Labels
from seqbdl.inference.recursion import Belief, FilterSettings, Linearize, absorb, settle
from seqbdl.likelihoods import LIKELIHOODS
from seqbdl.networks import JacobianRows, Network, RelativeNetwork, TangentNetwork
from seqbdl.posteriors.joint_gaussian import JointGaussian
from seqbdl.surrogates.base import Evaluate
from seqbdl.surrogates.gaussian import GaussianSurrogate
from seqbdl.surrogates.network_prior import NetworkBuilder, NetworkPrior, NetworkSpec, ScaleSpec, standard_normal

_JACOBIAN_ENTRIES = 1 << 24  # of one block: 128 MB
_NOISE_FLOOR = 1e-6


class FilterSurrogate(GaussianSurrogate):
    """The network linearized at the mean of a Gaussian belief over its weights; ``update`` is the filter's recursion, one block
    of rows after the other, and never sees an old row again.

    The prior is ``N(a, variance I)`` over whitened weights around a random start ``a``, with the network read as ``f(x; z) -
    f(x; a)``; the scales inside the network, and the noise, come from the evidence of its infinitely wide tangent kernel.

    One pass of a filter from a random start learns little from few rows, because most of them are linearized far from
    where the weights end. ``fit`` therefore treats up to ``batch_rows`` rows as ONE block of the iterated filter, linearized
    again until it stays: that is Gauss-Newton's maximum a posteriori (Bell and Cathey 1993), with the curvature there. Rows
    beyond are absorbed by the recursion.

    Args:
        network: Hidden widths, a module, or a factory.
        num_branches: Networks of these widths side by side. A module has one.
        activation: Of the widths form.
        scales: Known variances of the network's layers; ``None``: by the evidence.
        linearize: Where: ``"mean"``, at the mean, anew with every block; or ``"start"``, at the random start, once and for all:
            under Gaussian noise the recursion is then exact (of ``lofi`` up to its rank), rows may come in any order, and one far
            outcome does not throw it off, but the network's features do not learn.
        initial_covariance: Prior variance of the whitened weights.
        forgetting: Before every block of an update, deviations from the prior mean shrink by this factor.
        process_noise: And so much variance is added to every weight; ``None``: ``(1 - forgetting^2) initial_covariance``, under
            which what was forgotten returns to the prior.
        inflation: And the covariance is multiplied by one plus this.
        iterations: Linearizations per block of an update.
        halvings: How often a step is halved when it would not decrease the block's loss; 0: the textbook filter.
        block_size: Rows of an update that are absorbed together.
        batch_rows: Rows of a fit that are one block (a random sample of them, if there are more); 0: ``fit`` is the recursion,
            too, in the order of the rows, aged between its blocks.
        running_noise: Estimate the noise variance as the running mean of squared prediction errors from the fit's estimate
            on, instead of keeping that.
        max_iterations: Gauss-Newton steps of a fit.
    """

    likelihoods: ClassVar[tuple[str, ...]] = LIKELIHOODS
    update_tolerance = 1.0

    def __init__(
        self,
        *args: Any,
        network: NetworkSpec = (32, 32),
        num_branches: int = 1,
        activation: str = "erf",
        scales: ScaleSpec | None = None,
        linearize: str = "mean",
        initial_covariance: float = 1.0,
        forgetting: float = 1.0,
        process_noise: float | None = None,
        inflation: float = 0.0,
        iterations: int = 2,
        halvings: int = 6,
        block_size: int = 1,
        batch_rows: int = 1024,
        running_noise: bool = False,
        max_iterations: int = 60,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if not initial_covariance > 0.0:
            raise InvalidOptionError(f"initial_covariance={initial_covariance} is a variance; it must be positive")
        if block_size < 1 or batch_rows < 0 or max_iterations < 1 or num_branches < 1:
            raise InvalidOptionError(
                f"block_size={block_size}, num_branches={num_branches} and max_iterations={max_iterations} must be at least 1, "
                f"batch_rows={batch_rows} at least 0"
            )
        if running_noise and self._lik.name != "gaussian":
            raise InvalidOptionError(f"running_noise is for the gaussian likelihood; {self._lik.name} has its own")
        if running_noise and self.fixed_noise is not None:
            raise InvalidOptionError(
                f"running_noise=True estimates the noise that noise={self.fixed_noise} fixes; give one of them"
            )
        if linearize not in ("mean", "start"):
            raise InvalidOptionError(f'linearize={linearize!r} is neither "mean" nor "start"')
        if linearize == "start" and self._lik.name == "gaussian":
            iterations, halvings = 1, 0  # the first step of linear least squares ends where it should
        self.num_branches, self.linearize = num_branches, linearize
        self.initial_covariance = initial_covariance
        added = (1.0 - forgetting**2) * initial_covariance if process_noise is None else process_noise
        self.filter_settings = FilterSettings(forgetting, added, inflation, iterations, halvings)
        self.block_size, self.batch_rows, self.running_noise = block_size, batch_rows, running_noise
        self.settings = GaussNewtonSettings(max_iterations=max_iterations)
        self._builder = NetworkBuilder(
            network, self.input_dim, self.output_dim, activation, num_latents=self.num_latents, scales=scales
        )
        self._prior = self._builder.initial()
        num_params = self._builder.build(self._prior, num_branches).num_params
        self._start = standard_normal(1, num_params, generator=self.generator, like=self._prior.noise)
        self._network = self._build()
        self._belief = self._prior_belief(self._start[0])
        self._count = 0
        self._noise_now = self._prior.noise
        self._evidence = self._prior.noise.new_zeros(())

    @abstractmethod
    def _prior_belief(self, mean: Tensor) -> Belief:
        """``N(mean, initial_covariance I)``."""

    @abstractmethod
    def _belief_tree(self) -> dict[str, Any]:
        """The belief as a tree."""

    @abstractmethod
    def _belief_of(self, tree: Mapping[str, Any]) -> Belief:
        """Restore :meth:`_belief_tree`."""

    def _build(self) -> Network:
        kind = RelativeNetwork if self.linearize == "mean" else TangentNetwork
        return kind(self._builder.build(self._prior, self.num_branches), self._start)

    def _linearize(self, X: Tensor) -> Linearize:
        def at(weights: Tensor) -> tuple[Tensor, JacobianRows]:
            tangents = self._network.tangents(weights.unsqueeze(0), X)
            return tangents.values[0], self._network.rows(tangents)

        return at

    # ------------------------------------------------------------------ learning

    def _fit(self, X: Tensor, Y: Tensor, noise: Tensor | None) -> None:
        warm = None if self._count == 0 else self._prior
        shared: dict[str, Any] = {"likelihood": self._lik, "seed": self.seed}
        self._prior = self._builder.learn(X, Y, noise, warm, tangent=True, **shared)
        self._noise_now, self._start = self._prior.noise, self._start.to(X.device)
        self._network = self._build()
        with torch.no_grad():
            self._belief = self._prior_belief(self._start[0])
            self._count, self._evidence = 0, X.new_zeros(())
            rest: Tensor | slice = slice(0, None)
            if self.batch_rows > 0:
                order = torch.arange(X.shape[0], device=X.device)
                if X.shape[0] > self.batch_rows:
                    order = torch.randperm(X.shape[0], generator=self.generator).to(X.device)
                rows, rest = order[: self.batch_rows], order[self.batch_rows :].sort().values
                self._fit_batch(X[rows], Y[rows], None if noise is None else noise.expand(X.shape[0], -1)[rows])
            known = None if noise is None else noise.expand(X.shape[0], -1)[rest]
            self._absorb(X[rest], Y[rest], known)

    def _fit_batch(self, X: Tensor, Y: Tensor, noise: Tensor | None) -> None:
        variance = self._variance(Y, noise)
        precision = 1.0 / self.initial_covariance
        seen = Labels(self._lik, Y, variance)
        mode = minimize(self._network, X, seen, self._start, self._start, self.settings, precision).z[0]
        self._evidence = -0.5 * precision * (mode - self._start[0]).square().sum()
        size = max(1, _JACOBIAN_ENTRIES // (self.num_latents * mode.shape[0]))
        for x, y, v in zip(X.split(size), Y.split(size), variance.split(size), strict=True):
            self._belief, log_density = settle(self._belief, self._linearize(x), self._lik, y, v, mode)
            self._evidence = self._evidence + log_density
        self._count = X.shape[0]

    def _update(self, X: Tensor, Y: Tensor, noise: Tensor | None) -> None:
        with torch.no_grad():
            self._absorb(X, Y, None if noise is None else noise.expand(X.shape[0], -1))

    def _absorb(self, X: Tensor, Y: Tensor, noise: Tensor | None) -> None:
        """The recursion: age, predict and score, update, block by block."""
        belief, centre, settings = self._belief, self._start[0], self.filter_settings
        for start in range(0, X.shape[0], self.block_size):
            rows = slice(start, start + self.block_size)
            x, y = X[rows], Y[rows]
            variance = self._variance(y, None if noise is None else noise[rows])
            if settings.ages and self._count > 0:
                belief = belief.aged(settings, centre)
            surprise = y - self._network.forward(belief.mean.unsqueeze(0), x)[0] if self.running_noise else None
            belief, log_density = absorb(
                belief,
                self._linearize(x),
                self._lik,
                y,
                variance,
                settings,
                lambda w, x=x: self._network.forward(w.unsqueeze(0), x)[0],  # type: ignore[misc]
            )
            self._evidence = self._evidence + log_density
            if surprise is not None and noise is None:
                total = self._count * self._noise_now + surprise.square().sum(0)
                self._noise_now = (total / (self._count + x.shape[0])).clamp_min(_NOISE_FLOOR)
            self._count += x.shape[0]
        self._belief = belief

    def _variance(self, Y: Tensor, noise: Tensor | None) -> Tensor:
        return (self._noise_now if noise is None else noise).expand(Y.shape[0], self.output_dim).clamp_min(1e-7)

    # ------------------------------------------------------------------ answering

    def _jacobian(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Values ``batch x q x l`` and Jacobian ``batch x (q l) x P`` at the mean."""
        tangents = self._network.tangents(self._belief.mean.unsqueeze(0), X)
        rows = self._network.jacobian(tangents)[0].flatten(0, 1)
        batch, q = X.shape[:-2], X.shape[-2]
        return tangents.values[0].reshape(*batch, q, -1), rows.reshape(*batch, q * self.num_latents, -1)

    def _joint(self, X: Tensor) -> JointGaussian:
        mean, J = self._jacobian(X)
        return JointGaussian(mean, self._belief.covariance_of(J).unsqueeze(-3))

    def _draw_base(self, n: int, generator: torch.Generator) -> Evaluate:
        network, belief = self._network, self._belief
        with torch.no_grad():
            offsets = belief.weights.sample(n, generator) - belief.mean

        def evaluate(X: Tensor) -> Tensor:
            here = network.tangents(belief.mean.unsqueeze(0), X)
            return (here.values + network.jvp(here, offsets)).unflatten(1, X.shape[:-1])

        return evaluate

    def features(self, X: Tensor) -> Tensor:
        """Rows of the Jacobian at the mean, the posterior's linear feature map: ``X: batch x q x d -> batch x (q l) x P``."""
        return self._jacobian(self._scaling.inputs(X))[1].to(X.dtype)

    def _noise(self) -> Tensor:
        return self._noise_now

    def _log_evidence(self) -> Tensor | None:
        return self._evidence

    # ------------------------------------------------------------------ state

    def _get_state(self) -> dict[str, Any]:
        return {
            "prior": self._prior.tree(),
            "start": self._start,
            "noise": self._noise_now,
            "count": self._count,
            "evidence": self._evidence,
            "belief": self._belief_tree(),
        }

    def _set_state(self, state: Mapping[str, Any]) -> None:
        self._prior = NetworkPrior.from_tree(state["prior"])
        self._start, self._noise_now = state["start"], state["noise"]
        self._count, self._evidence = int(state["count"]), state["evidence"]
        self._network = self._build()
        self._belief = self._belief_of(state["belief"])
