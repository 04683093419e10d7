"""``hmc``: weights and noise sampled by Hamiltonian Monte Carlo, many chains at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from seqbdl.errors import InvalidOptionError
from seqbdl.inference.gauss_newton import GaussNewtonSettings, gauss_newton
from seqbdl.inference.hmc import HMCResult, HMCSettings, hmc
from seqbdl.surrogates.network_prior import standard_normal
from seqbdl.surrogates.particle import ParticleSurrogate, _systematic

_NOISE_SHAPE = 3.0  # inverse-gamma prior of the noise around its evidence estimate: relative sd 1


@dataclass(frozen=True)
class ChainReport:
    """How the last sampling went.

    Attributes:
        acceptance: ``chains`` mean acceptance probabilities.
        step_size: ``chains``.
        divergences: Over all chains.
        values: ``samples x chains x n x m`` function values at the data, for convergence diagnostics.
    """

    acceptance: Tensor
    step_size: Tensor
    divergences: int
    values: Tensor


class HMCSurrogate(ParticleSurrogate):
    """Samples of the posterior over all weights.

    Chains start from randomize-then-optimize samples, so that they are in the typical set from the first step and
    spread over modes, and move by Gauss-Newton-preconditioned trajectories (see :mod:`seqbdl.inference.hmc`). Chains
    do not cross between modes: compare :attr:`report`'s function values between chains before you claim convergence.

    Args:
        num_members: Particles kept, spread evenly over chains and over the trajectories after warm-up.
        num_chains: Chains, at most ``num_members``.
        warmup: Trajectories thrown away.
        samples: Trajectories after warm-up.
        sample_noise: Sample the noise variance too (ignored when the noise is known).
    """

    name = "hmc"
    carries = "the particles, and up to `memory` old rows for the moves after re-weighting"
    update_tolerance = 1.0

    def __init__(
        self,
        *args: Any,
        num_members: int = 64,
        num_chains: int = 16,
        warmup: int = 12,
        samples: int = 8,
        sample_noise: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, num_members=num_members, **kwargs)
        if not 2 <= num_chains <= num_members:
            raise InvalidOptionError(f"num_chains={num_chains} must be between 2 and num_members={num_members}")
        if warmup < 1 or samples < 1:
            raise InvalidOptionError(f"warmup={warmup} and samples={samples} must be at least 1")
        if num_chains * samples < num_members:
            raise InvalidOptionError(
                f"num_chains={num_chains} times samples={samples} is less than num_members={num_members}; raise samples"
            )
        self.num_chains = num_chains
        self.sample_noise = sample_noise
        self.settings = HMCSettings(warmup=warmup, samples=samples)
        self._descent = GaussNewtonSettings(max_iterations=20)
        self._member_noise = self._prior.noise.expand(num_members, -1)
        self.report: ChainReport | None = None

    def _infer(self, X: Tensor, Y: Tensor, variance: Tensor, warm: bool) -> tuple[Tensor, Tensor]:
        anchors = standard_normal(self.num_chains, self._z.shape[1], generator=self.generator, like=X)
        white = standard_normal(self.num_chains, *Y.shape, generator=self.generator, like=X)
        targets = Y + variance.sqrt() * white
        begin = anchors
        if warm:  # the nearest of what is known: chains start where the last posterior was
            begin = self._z[torch.linspace(0, self.num_members - 1, self.num_chains).long()].to(X.device)
        start = gauss_newton(self._network, X, targets, variance, anchors, begin, self._descent).z
        return self._sample(X, Y, variance, start)

    def _sample(self, X: Tensor, Y: Tensor, variance: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        known = self._yvar_known or not self.sample_noise
        prior = None if known else (_NOISE_SHAPE, X.new_full((self.output_dim,), _NOISE_SHAPE - 1.0))
        result = hmc(self._network, X, Y, variance, start, self.generator, self.settings, prior)
        picks = torch.linspace(0, self.settings.samples * self.num_chains - 1, self.num_members).round().long()
        self._member_noise = result.noise.flatten(0, 1)[picks]
        self.report = self._make_report(result, X)
        return result.z.flatten(0, 1)[picks], X.new_zeros(self.num_members)

    def _make_report(self, result: HMCResult, X: Tensor) -> ChainReport:
        values = self._network.forward(result.z.flatten(0, 1), X).unflatten(0, result.z.shape[:2])
        return ChainReport(result.acceptance, result.step_size, result.divergences, values)

    @property
    def _yvar_known(self) -> bool:
        return self._Yvar is not None or self.fixed_noise is not None

    def _absorb(self, X: Tensor, Y: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        values = self._network.forward(self._z, X)
        # A particle is weights and a noise: where the noise was sampled, each meets the rows with its own.
        multiple = 1.0 if self._yvar_known else (self._member_noise / self._prior.noise).unsqueeze(-2)  # S x 1 x m
        own = (variance * multiple).expand_as(values)
        log_weights = self._log_weights - 0.5 * ((Y - values).square() / own + own.log()).sum((-1, -2))
        ess = float(log_weights.softmax(0).square().sum().reciprocal())
        if ess >= 0.5 * self.num_members:
            return self._z, log_weights
        # Too few particles carry the weight: resample, pull each to the new rows along its own linearization, then
        # move by Hamiltonian trajectories on the likelihood of the remembered and the new rows.
        # Tempered picks keep the chains diverse: the pull below, not the resampling, brings them to the new rows.
        tempered = (log_weights * (self.num_chains / (2.0 * self.num_members))).softmax(0)
        picks = _systematic(tempered, self.num_chains, self.generator)
        z = self._z[picks]
        X_old, Y_old, variance_old = self._memory
        white = standard_normal(self.num_chains, *Y.shape, generator=self.generator, like=X)
        targets = torch.cat([self._network.forward(z, X_old), Y + variance.sqrt() * white], 1)
        rows, noise = torch.cat([X_old, X]), torch.cat([variance_old, variance])
        start = gauss_newton(self._network, rows, targets, noise, z, z, self._descent).z
        return self._sample(rows, torch.cat([Y_old, Y]), noise, start)

    def _noise(self) -> Tensor:
        weights = self._log_weights.softmax(0)
        return (weights[:, None] * self._member_noise).sum(0)

    def _own_state(self) -> dict[str, Any]:
        return {"member_noise": self._member_noise}

    def _set_own_state(self, state: Mapping[str, Any]) -> None:
        self._member_noise = state["member_noise"]
        self.report = None
