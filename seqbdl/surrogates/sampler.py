"""Surrogates whose particles are states of Markov chains: what ``hmc``, ``sgld``, ``sghmc`` and ``csghmc`` share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from seqbdl.errors import InvalidOptionError
from seqbdl.inference.adam import AdamSettings, adam
from seqbdl.inference.chains import ChainResult, largest_curvature
from seqbdl.inference.gauss_newton import GaussNewtonSettings, minimize
from seqbdl.inference.gibbs import Gibbs
from seqbdl.inference.log_joint import LogJoint
from seqbdl.inference.metrics import Metric, diagonal_metric, gauss_newton_metric
from seqbdl.inference.observations import Joined, Labels, Observations, Remembered, Squares
from seqbdl.networks import MLP
from seqbdl.priors import PRIORS, HorseshoePrior
from seqbdl.surrogates.network_prior import standard_normal
from seqbdl.surrogates.particle import ParticleSurrogate, _systematic

_NOISE_SHAPE = 3.0  # inverse-gamma prior of the noise around its evidence estimate: relative sd 1
_SCALE_PRIOR = (2.0, 2.0)  # gamma prior of a layer's precision: mean 1, relative sd 0.7
_FURTHEST = 6.0  # how far from 0 entries of heavy-tailed priors may be where chains start

PRECISIONS = ("auto", "float32", "float64")
MAX_DENSE_ROWS = 1500
"""Rows times latents up to which N x N algebra starts and preconditions the chains of an MLP by default."""
MAX_JACOBIAN = 50_000_000
"""The same for other networks: entries of the Jacobians of all chains."""
_NEARLY_LINEAR = 2.0
"""Largest curvature in units of the Gauss-Newton matrix up to which a network passes for linear. At 100, a usual value where
the noise is small, the Jacobian changes along the way, and steps are as short as with a diagonal at twice the cost."""
_BATCHES = AdamSettings(steps=1000, learning_rate=1e-2, batch_size=256)
_REPORTED_ROWS, _REPORTED_WEIGHTS = 512, 100


@dataclass(frozen=True)
class ChainReport:
    """How the last sampling went; for :mod:`seqbdl.diagnostics`.

    ``convergence_report(report.values, report.weights)`` has R-hat and effective sample sizes. Instantaneous temperatures
    are averages over all coordinates already: ``kinetic_temperature(report.kinetic.sqrt().unsqueeze(-1))``.

    Attributes:
        acceptance: ``chains`` mean acceptance probabilities; ``None`` where nothing is rejected.
        step_size: ``chains``.
        divergences: Over all chains, after warm-up.
        values: ``samples x chains x n x l`` latent values at the data (at 512 rows of it, if there are more).
        weights: ``samples x chains x k`` whitened weights, the same 100 for every sample, picked under the surrogate's seed.
        kinetic: ``samples x chains`` instantaneous kinetic temperatures; ``None`` without momenta.
        configurational: ``samples x chains`` instantaneous configurational temperatures.
        noise: ``samples x chains x m`` inner noise variances where they were sampled.
        precision: ``samples x chains x G`` prior precisions of the layers where they were sampled.
    """

    acceptance: Tensor | None
    step_size: Tensor
    divergences: int
    values: Tensor
    weights: Tensor
    kinetic: Tensor | None
    configurational: Tensor
    noise: Tensor | None
    precision: Tensor | None


class SamplerSurrogate(ParticleSurrogate):
    """States of Markov chains, spread evenly over chains and over time after warm-up.

    Chains start from randomize-then-optimize samples, so that they are near the typical set from the first step and spread
    over modes. How far they move from there is a matter of time: compare :attr:`report`'s function values between chains
    before you claim convergence. ``update`` re-weights the particles by the new likelihood; where fewer than half of them
    would carry the weight, chains move on under the likelihood of the remembered and the new rows.

    Args:
        num_members: Particles kept.
        num_chains: Chains, at most ``num_members``; ``None``: :attr:`usual_chains`, or ``num_members`` if that is less.
        sample_noise: Sample the noise variance too (ignored when the noise is known).
        sample_scales: Sample one precision per layer of whitened weights too, under a gamma prior of mean 1; the prior must
            be ``"gaussian"``. Wide layers move slowly, see :mod:`seqbdl.inference.gibbs`.
        preconditioner: One of :attr:`preconditioners`: the mass matrix. ``"auto"``: the Gauss-Newton matrix of where the
            chains start if the network is nearly linear there and N x N algebra affordable (at most 1500 rows times latents; for
            a module, Jacobians of all chains of at most 50 million entries), else its diagonal.
        precision: In which networks are evaluated for gradients: ``"float32"``, about twice as fast, or ``"float64"``; weights,
            sums over rows, energies and small matrices are float64 always. ``"auto"``: float32 for widths, float64 for a module.
    """

    priors: ClassVar[tuple[str, ...]] = PRIORS
    carries = "the particles, and up to `memory` old rows for the moves after re-weighting"
    update_tolerance = 1.0
    usual_chains: ClassVar[int] = 16
    preconditioners: ClassVar[tuple[str, ...]] = ("auto", "gauss-newton", "diagonal")

    def __init__(
        self,
        *args: Any,
        num_members: int = 64,
        num_chains: int | None = None,
        sample_noise: bool = True,
        sample_scales: bool = False,
        preconditioner: str = "auto",
        precision: str = "auto",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, num_members=num_members, **kwargs)
        num_chains = min(self.usual_chains, num_members) if num_chains is None else num_chains
        if not 2 <= num_chains <= num_members:
            raise InvalidOptionError(f"num_chains={num_chains} must be between 2 and num_members={num_members}")
        if preconditioner not in self.preconditioners:
            raise InvalidOptionError(f"preconditioner={preconditioner!r}: {self.name!r} has {', '.join(self.preconditioners)}")
        if precision not in PRECISIONS:
            raise InvalidOptionError(f"precision={precision!r} must be one of {', '.join(PRECISIONS)}")
        self._is_gaussian = getattr(self._weight_prior, "name", "") == "gaussian"
        if preconditioner == "gauss-newton" and isinstance(self._weight_prior, HorseshoePrior):
            raise InvalidOptionError(
                'preconditioner="gauss-newton": the horseshoe gives every weight its own mass; use "diagonal"'
            )
        if sample_scales and not self._is_gaussian:
            raise InvalidOptionError("sample_scales=True: the precisions are conjugate to prior='gaussian' only; use that")
        self.num_chains = num_chains
        self.sample_noise, self.sample_scales = sample_noise, sample_scales
        self.preconditioner = preconditioner
        self.precision = precision
        self._descent = GaussNewtonSettings(max_iterations=20)
        if not self._is_gaussian:
            self._z = self._weight_prior.sample(num_members, self._network.num_params, self.generator, self._z)
        self._member_noise = self._prior.noise.repeat(num_members, 1)
        self._row_weights = self._prior.noise.new_zeros(0)  # of the memory: how many rows each row there speaks for
        self.report: ChainReport | None = None

    def _states_per_chain(self, samples: int | None, parts: int = 1, **counts: int) -> int:
        """``samples``, or for ``None`` as many as ``num_members`` needs of every chain and part of it.

        Raises:
            InvalidOptionError: A count is not positive, or chains keep too few states.
        """
        if samples is None:
            samples = -(-self.num_members // (self.num_chains * parts))
        for name, value in {"samples": samples, **counts}.items():
            if value < 1:
                raise InvalidOptionError(f"{name}={value} must be at least 1")
        if self.num_chains * parts * samples < self.num_members:
            raise InvalidOptionError(
                f"num_chains={self.num_chains} chains keep {parts * samples} states each, fewer than "
                f"num_members={self.num_members}; raise samples"
            )
        return samples

    # ------------------------------------------------------------------ learning

    def _infer(self, X: Tensor, Y: Tensor, variance: Tensor, warm: bool) -> tuple[Tensor, Tensor]:
        self._row_weights = X.new_ones(X.shape[0])
        anchors = self._weight_prior.sample(self.num_chains, self._z.shape[1], self.generator, X)
        anchors = anchors.clamp(-_FURTHEST, _FURTHEST) if not self._is_gaussian else anchors
        begin = anchors
        if warm:  # the nearest of what is known: chains start where the last posterior was
            begin = self._z[torch.linspace(0, self.num_members - 1, self.num_chains).long()].to(X.device)
        if self._is_dense(X.shape[0]):
            start = minimize(self._network, X, self._observe(Y, variance), anchors, begin, self._descent).z
        else:
            start = self._descend_by_batches(X, Y, variance, anchors, begin)
        return self._sample(X, Y, variance, start)

    def _absorb(self, X: Tensor, Y: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        values = self._network.forward(self._z, X)
        # A particle is weights and a noise: where the noise was sampled, each meets the rows with its own.
        multiple = 1.0 if self._noise_is_known else (self._member_noise / self._prior.noise).unsqueeze(-2)  # S x 1 x m
        log_weights = self._log_weights + self._lik.log_prob(values, Y, variance * multiple).sum(-1)
        ess = float(log_weights.softmax(0).square().sum().reciprocal())
        if ess >= 0.5 * self.num_members:
            return self._z, log_weights
        # Too few particles carry the weight: resample, pull each to the new rows along its own linearization, then let the
        # chains move under the likelihood of the remembered and the new rows.
        # Tempered picks keep the chains diverse: the pull below, not the resampling, brings them to the new rows.
        tempered = (log_weights * (self.num_chains / (2.0 * self.num_members))).softmax(0)
        z = self._z[_systematic(tempered, self.num_chains, self.generator)]
        X_old, Y_old, variance_old = self._memory
        both = Joined(self._remembered(z), self._observe(Y, variance), X_old.shape[0])
        rows = torch.cat([X_old, X])
        start = z
        if self._is_dense(rows.shape[0]):
            start = minimize(self._network, rows, both, z, z, self._descent).z
        self._row_weights = torch.cat([self._row_weights, X.new_ones(X.shape[0])])
        return self._sample(rows, torch.cat([Y_old, Y]), torch.cat([variance_old, variance]), start)

    def _observe(self, Y: Tensor, variance: Tensor) -> Observations:
        """What pulls the starts of the chains."""
        if self._lik.name != "gaussian":
            return Labels(self._lik, Y, variance)
        return Squares(self._randomized(Y, variance), variance)

    def _randomized(self, Y: Tensor, variance: Tensor) -> Tensor:
        """Gaussian targets with noise of their own for every chain, ``S x n x m``; labels as they are."""
        if self._lik.name != "gaussian":
            return Y
        white = standard_normal(self.num_chains, *Y.shape, generator=self.generator, like=Y)
        return Y + variance.sqrt() * white

    def _descend_by_batches(self, X: Tensor, Y: Tensor, variance: Tensor, anchors: Tensor, begin: Tensor) -> Tensor:
        """What :meth:`_infer` does by Gauss-Newton, by Adam."""
        targets = self._randomized(Y, variance)
        joint = self._evaluated(LogJoint(self._network, self._lik, self._weight_prior, X, targets, variance))

        def gradient(z: Tensor, rows: Tensor | None) -> Tensor:
            return (z - anchors) - joint.likelihood_value_and_gradient(z, rows)[1]

        return adam(gradient, begin, X.shape[0], _BATCHES, self.generator)

    def _evaluated(self, joint: LogJoint) -> LogJoint:
        """In the precision that was asked for."""
        single = self.precision == "float32" or (self.precision == "auto" and isinstance(self._network, MLP))
        return joint.to(torch.float32) if single else joint

    def _is_dense(self, rows: int) -> bool:
        """Whether N x N algebra is affordable."""
        if isinstance(self._network, MLP):
            return rows * self.num_latents <= MAX_DENSE_ROWS
        return self.num_chains * rows * self.num_latents * self._network.num_params <= MAX_JACOBIAN

    def _sample(self, X: Tensor, Y: Tensor, variance: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        joint = LogJoint(self._network, self._lik, self._weight_prior, X, Y, variance, self._row_weights)
        joint = self._evaluated(joint)
        noise = None if self._noise_is_known else (_NOISE_SHAPE, X.new_full((self.output_dim,), _NOISE_SHAPE - 1.0))
        gibbs = Gibbs(joint, noise, _SCALE_PRIOR if self.sample_scales else None)
        metric = self._metric(joint, start, self._is_dense(X.shape[0]))
        result = self._run(joint, gibbs if gibbs.active else None, start, metric)
        flat = result.z.flatten(0, 1)
        picks = torch.linspace(0, flat.shape[0] - 1, self.num_members).round().long()
        reference = variance.mean(0)
        self._member_noise = reference.repeat(self.num_members, 1)
        if result.noise is not None:
            self._member_noise = result.noise.flatten(0, 1)[picks] * reference
        self.report = self._make_report(result, X, reference)
        return flat[picks], X.new_zeros(self.num_members)

    @abstractmethod
    def _run(self, joint: LogJoint, gibbs: Gibbs | None, start: Tensor, metric: Metric) -> ChainResult:
        """Sample from ``start: chains x P``."""

    def _metric(self, joint: LogJoint, start: Tensor, dense: bool) -> Metric:
        """The mass matrix of the option ``preconditioner``."""
        if self.preconditioner == "gauss-newton":
            return gauss_newton_metric(joint, start, self.generator)
        if self.preconditioner == "auto" and dense and not isinstance(self._weight_prior, HorseshoePrior):
            metric = gauss_newton_metric(joint, start, self.generator)
            if largest_curvature(joint, start, metric, self.generator, iterations=4).median() < _NEARLY_LINEAR:
                return metric
        return diagonal_metric(joint, start, self.generator)

    def _make_report(self, result: ChainResult, X: Tensor, reference: Tensor) -> ChainReport:
        seeded = torch.Generator().manual_seed(self.seed)
        rows = torch.randperm(X.shape[0], generator=seeded)[:_REPORTED_ROWS].sort().values.to(X.device)
        weights = torch.randperm(result.z.shape[-1], generator=seeded)[:_REPORTED_WEIGHTS].sort().values.to(X.device)
        values = self._network.forward(result.z.flatten(0, 1), X[rows]).unflatten(0, result.z.shape[:2])
        return ChainReport(
            acceptance=result.acceptance,
            step_size=result.step_size,
            divergences=result.divergences,
            values=values,
            weights=result.z[..., weights],
            kinetic=result.kinetic,
            configurational=result.configurational,
            noise=None if result.noise is None else result.noise * reference,
            precision=result.precision,
        )

    @property
    def _noise_is_known(self) -> bool:
        return not (self._lik.has_noise and self.sample_noise) or self._Yvar is not None or self.fixed_noise is not None

    # ------------------------------------------------------------------ memory

    def _forget(self, X: Tensor, Y: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """At most ``memory`` rows, an even sample of what was seen; rows that stay speak for those that go.

        Systematic sampling with probabilities proportional to the weights makes all new weights the same.
        """
        weights = torch.cat([self._row_weights, X.new_ones(X.shape[0] - self._row_weights.shape[0])])
        if X.shape[0] > self.memory:
            order = torch.randperm(X.shape[0], generator=self.generator).to(X.device)
            share = weights.sum() / self.memory
            offset = torch.rand(1, generator=self.generator, dtype=torch.float64).to(X)
            positions = share * (torch.arange(self.memory).to(X) + offset)
            picked = torch.searchsorted(weights[order].cumsum(0), positions).clamp_max(X.shape[0] - 1)
            keep = order[picked].sort().values
            X, Y, variance, weights = X[keep], Y[keep], variance[keep], share.expand(self.memory).clone()
        self._row_weights = weights
        return X, Y, variance

    def _remembered(self, z: Tensor) -> Remembered:
        X_old, _, variance = self._memory
        values = self._network.forward(z, X_old)
        root = self._lik.root(values, variance)
        return Remembered(values, root * self._row_weights.sqrt().reshape(1, -1, *([1] * (root.dim() - 2))))

    # ------------------------------------------------------------------ state

    def _noise(self) -> Tensor:
        weights = self._log_weights.softmax(0)
        return (weights[:, None] * self._member_noise).sum(0)

    def _own_state(self) -> dict[str, Any]:
        return {"member_noise": self._member_noise, "row_weights": self._row_weights}

    def _set_own_state(self, state: Mapping[str, Any]) -> None:
        self._member_noise, self._row_weights = state["member_noise"], state["row_weights"]

    def load_state(self, state: Mapping[str, Any]) -> Self:
        self.report = None  # of other chains
        return super().load_state(state)
