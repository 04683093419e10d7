"""``subspace``: the posterior within a few directions of weight space that the path of SGD spans."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from seqbdl.errors import InvalidOptionError
from seqbdl.inference.elliptical_slice import SliceSettings, elliptical_slice
from seqbdl.inference.held_out import first_good, folds, mixture_log_density
from seqbdl.inference.log_joint import LogJoint
from seqbdl.inference.subspace import curvature, gaussian_vi, laplace_root, principal_directions, subspace_network
from seqbdl.networks import AffineNetwork
from seqbdl.posteriors.joint_gaussian import safe_cholesky
from seqbdl.priors import get_prior
from seqbdl.surrogates.network_prior import standard_normal
from seqbdl.surrogates.trajectory import TrajectorySurrogate

SAMPLERS = ("slice", "vi")
TEMPERATURES = tuple(10.0 ** (k / 2) for k in range(9))
_DRAWS = 32  # functions per temperature that held-out rows are scored by


@dataclass(frozen=True)
class SubspaceReport:
    """How the last sampling went.

    Attributes:
        draws: ``samples x chains x r`` coordinates, in the layout of :mod:`seqbdl.diagnostics.convergence`.
        values: ``samples x chains x n x l`` latent values at the data, for the same.
        log_likelihood: ``samples x chains``, not tempered.
        temperature: ``T``.
        evaluations: Networks evaluated on all rows.
    """

    draws: Tensor
    values: Tensor
    log_likelihood: Tensor
    temperature: float
    evaluations: int


class SubspaceSurrogate(TrajectorySurrogate):
    """Weights ``centre + V u``: the mean of SGD's iterates, and the directions in which they vary (Izmailov et al. 2019).

    Args:
        num_members: Draws kept; with slices, spread evenly over the chains.
        rank: Directions.
        prior_scale: Standard deviation of the coordinates under the prior; of whitened weights it is 1.
        temperature: The likelihood enters to the power of one over it; ``None``: by held-out density (see
            :mod:`seqbdl.inference.subspace` for why it is not simply 1).
        sampler: ``"slice"``: elliptical slice sampling. ``"vi"``: a Gaussian.
        num_chains: Of the slice sampler, a divisor of ``num_members``.
        warmup: Transitions thrown away.
        thin: Transitions per draw kept.
    """

    name = "subspace"
    carries = (
        "the mean and covariance of the coordinates, the directions, and the centre with its curvature at up to `memory` rows"
    )

    def __init__(
        self,
        *args: Any,
        num_members: int = 64,
        rank: int = 20,
        iterates: int = 40,
        prior_scale: float = 1.0,
        temperature: float | None = None,
        sampler: str = "slice",
        num_chains: int = 8,
        warmup: int = 20,
        thin: int = 3,
        **kwargs: Any,
    ) -> None:
        if rank < 2 or rank > iterates:
            raise InvalidOptionError(f"rank={rank} must be at least 2 and at most iterates={iterates}")
        super().__init__(*args, num_members=num_members, rank=iterates, iterates=iterates, num_starts=1, **kwargs)
        if not prior_scale > 0.0:
            raise InvalidOptionError(f"prior_scale={prior_scale} must be positive")
        if temperature is not None and not 0.0 < temperature < float("inf"):
            raise InvalidOptionError(f"temperature={temperature} must be positive, or None to choose it on held-out rows")
        if sampler not in SAMPLERS:
            raise InvalidOptionError(f"sampler={sampler!r} must be one of {', '.join(SAMPLERS)}")
        if num_chains < 1 or num_members % num_chains:
            raise InvalidOptionError(f"num_chains={num_chains} must divide num_members={num_members}")
        self.rank = min(rank, self._network.num_params)
        self.prior_scale = prior_scale
        self.temperature = temperature
        self.sampler = sampler
        self.num_chains = num_chains
        self.slices = SliceSettings(warmup, num_members // num_chains, thin)
        self.report: SubspaceReport | None = None
        like = self._prior.noise
        self._temperature = 1.0 if temperature is None else temperature
        self._basis = like.new_zeros(self._network.num_params, self.rank)
        self._root = prior_scale * torch.eye(self.rank).to(like)  # of the covariance of the coordinates, around the centre

    def _infer(self, X: Tensor, Y: Tensor, variance: Tensor, warm: bool) -> tuple[Tensor, Tensor]:
        path = self._walk(X, Y, variance, self._modes(X, Y, variance))
        self._basis = principal_directions(path.deviations[0], self.rank)
        self._root = self.prior_scale * torch.eye(self.rank).to(X)
        if self.temperature is None:
            self._temperature = self._choose_temperature(X, Y, variance)
        return self._sample(X, Y, variance, path.mean, self._starts.to(X.device))

    def _within(self, centre: Tensor, X: Tensor, Y: Tensor, variance: Tensor) -> LogJoint:
        """As a function of the coordinates; the prior is the sampler's business."""
        weights = None if self._lik.has_noise else variance[:, 0].reciprocal()
        network = subspace_network(self._network, centre, self._basis)
        return LogJoint(network, self._lik, get_prior("gaussian"), X, Y, variance, weights)

    def _choose_temperature(self, X: Tensor, Y: Tensor, variance: Tensor) -> float:
        white = standard_normal(_DRAWS, self.rank, generator=self.generator, like=X)
        densities = []
        for train, held in folds(X.shape[0], self.generator):
            seen = X[train], Y[train], variance[train]
            joint = self._within(self._modes(*seen), *seen)
            G = curvature(joint)
            roots = [laplace_root(G, self._root, temperature) for temperature in TEMPERATURES]
            functions = [joint.network.forward(white @ root.T, X[held]) for root in roots]
            densities.append(mixture_log_density(self._lik, torch.stack(functions), Y[held], variance[held]))
        return TEMPERATURES[first_good(torch.cat(densities, -1))] if densities else 1.0

    def _sample(self, X: Tensor, Y: Tensor, variance: Tensor, centre: Tensor, prior_centre: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates around ``centre: 1 x P`` given these rows, under the Gaussian around ``prior_centre: 1 x P`` with the
        covariance that :attr:`_root` holds."""
        joint = self._within(centre, X, Y, variance)
        assert isinstance(joint.network, AffineNetwork)
        guess = laplace_root(curvature(joint), self._root, self._temperature)
        prior_mean = (prior_centre - centre)[0] @ self._basis / self._temperature
        if self.sampler == "vi":
            mean, root = gaussian_vi(joint, prior_mean, self._root, self._temperature, guess, self.generator)
            white = standard_normal(self.num_members, self.rank, generator=self.generator, like=X)
            u, self._root, self.report = mean + white @ root.T, root.contiguous(), None
        else:
            start = standard_normal(self.num_chains, self.rank, generator=self.generator, like=X) @ guess.T

            def log_likelihood(u: Tensor, chains: Tensor) -> Tensor:
                return joint.log_likelihood(u) / self._temperature

            found = elliptical_slice(log_likelihood, start, prior_mean, self._root, self.generator, self.slices)
            u = found.draws.flatten(0, 1)
            self.report = SubspaceReport(
                found.draws,
                joint.network.forward(u, X).unflatten(0, found.draws.shape[:2]),
                self._temperature * found.log_likelihood,
                self._temperature,
                found.evaluations,
            )
            mean, self._root = u.mean(0), self._spread(u, guess).contiguous()
        z = joint.network.weights(u)
        self._centres = joint.network.weights(mean.unsqueeze(0))
        return z, X.new_zeros(self.num_members)

    def _spread(self, u: Tensor, guess: Tensor) -> Tensor:
        """A root of the draws' covariance, with that of the Laplace approximation as ``r + 2`` more of them (the posterior
        mean under an inverse-Wishart prior): few draws in many directions have a singular covariance."""
        n, r = u.shape
        extra = r + 2
        deviations = u - u.mean(0)
        return safe_cholesky((deviations.T @ deviations + extra * guess @ guess.T) / (n + extra))

    def _absorb(self, X: Tensor, Y: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        return self._sample(X, Y, variance, self._pull_centres(X, Y, variance), self._centres.to(X.device))

    def _own_state(self) -> dict[str, Any]:
        return {**super()._own_state(), "temperature": self._temperature, "basis": self._basis, "root": self._root}

    def _set_own_state(self, state: Mapping[str, Any]) -> None:
        super()._set_own_state(state)
        self._temperature, self._basis, self._root = state["temperature"], state["basis"], state["root"]
        self.report = None
