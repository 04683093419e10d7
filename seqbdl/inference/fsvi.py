"""Function-space variational inference: mean-field Gaussians on weights, held by a prior over FUNCTIONS.

``E_q[sum_n log p(y_n | f(x_n))] - T sum_outputs KL(q(f(C)) || p(f(C)))`` at context points ``C`` (Rudner et al. 2022), with
``q(f)`` the Gaussian of the network linearized at the means, ``N(f(.; m), J diag(s^2) J^T)``, and outputs taken one by one.
Where ``C`` holds all rows of the data this is a lower bound on the log evidence of the function prior, whatever other points
``C`` holds. Gaussians that live on curves of functions have no finite divergence (Burt et al. 2020), so both are seen
through a nugget, a share of the prior's mean variance, which is part of the latent function.

The objective needs no sampling, and is climbed by turns:

- The means move by Adam along ``E_q[score]`` and the prior's pull ``K^{-1} (f - g)``, the variances and the linearization
  being held.
- The variances have an ascent without rates: ``log det Q`` is convex in ``log s^2``, so its tangent bounds it from below, and
  the bound is maximal at ``s_i^2 <- s_i^2 (J^T Q^{-1} J)_ii / (J^T (R / T + K^{-1}) J)_ii``, with ``R`` the expected
  precision of the rows. Directions that no context point sees would grow without bound: no weight gets wider than 1, its
  prior.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from seqbdl.errors import InvalidOptionError
from seqbdl.inference.adam import AdamSettings, adam
from seqbdl.inference.expected_log_likelihood import expected, expected_log_prob
from seqbdl.inference.log_joint import LogJoint
from seqbdl.networks import Network
from seqbdl.posteriors.joint_gaussian import safe_cholesky
from seqbdl.posteriors.mean_field import MeanField

_ENTRIES = 4_000_000  # of a block of Jacobian rows: 32 MB
_SMALLEST = 1e-12  # variance of a weight


@dataclass(frozen=True)
class FSVISettings:
    """Attributes:
    rounds: Turns of means and variances.
    steps: Adam steps for the means per round.
    learning_rate: Of a round's first step; it falls to zero along a half cosine.
    batch_size: Rows per step; ``None``: all.
    variance_steps: For the variances per round.
    temperature: ``T``.
    """

    rounds: int = 2
    steps: int = 100
    learning_rate: float = 0.01
    batch_size: int | None = None
    variance_steps: int = 8
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if min(self.rounds, self.steps, self.variance_steps) < 1:
            raise InvalidOptionError(
                f"rounds={self.rounds}, steps={self.steps} and variance_steps={self.variance_steps} must be at least 1"
            )
        if not self.learning_rate > 0 or not self.temperature > 0:
            raise InvalidOptionError(f"learning_rate={self.learning_rate} and temperature={self.temperature} must be positive")


@dataclass(frozen=True)
class FunctionPrior:
    """Gaussian moments of functions at context points, for ``K`` components and ``l`` independent outputs.

    Attributes:
        points: ``C x d``.
        mean: ``K x C x l``.
        factor: ``(K or 1) x (l or 1) x C x C``, Cholesky factors of the covariances, nugget included.
        nugget: Scalar variance that posteriors are seen through, too.
    """

    points: Tensor
    mean: Tensor
    factor: Tensor
    nugget: Tensor

    @classmethod
    def of(cls, points: Tensor, mean: Tensor, covariance: Tensor, nugget: Tensor) -> FunctionPrior:
        """From covariances ``(K or 1) x (l or 1) x C x C`` without the nugget."""
        eye = torch.eye(points.shape[0]).to(covariance)
        return cls(points, mean, safe_cholesky(covariance + nugget * eye), nugget)

    def pull(self, values: Tensor) -> Tensor:
        """``K^{-1} (f - g)``, ``K x C x l``."""
        shift = (values - self.mean).transpose(-1, -2).unsqueeze(-1)  # K x l x C x 1
        factor = self.factor.expand(*shift.shape[:2], -1, -1)
        return torch.cholesky_solve(shift, factor).squeeze(-1).transpose(-1, -2)

    def kl(self, mean: Tensor, covariance: Tensor) -> Tensor:
        """``sum_outputs KL(N(mean, covariance + nugget) || prior)``, ``K``.

        Args:
            mean: ``K x C x l``.
            covariance: ``K x l x C x C``.
        """
        C = mean.shape[1]
        factor = safe_cholesky(covariance + self.nugget * torch.eye(C).to(covariance))
        mine = self.factor.expand_as(factor)
        shift = (mean - self.mean).transpose(-1, -2).unsqueeze(-1)
        spread = torch.linalg.solve_triangular(mine, factor, upper=False).square().sum((-1, -2))
        distance = torch.linalg.solve_triangular(mine, shift, upper=False).square().sum((-1, -2))
        log_ratio = (mine.diagonal(dim1=-2, dim2=-1).log() - factor.diagonal(dim1=-2, dim2=-1).log()).sum(-1)
        return (0.5 * (spread + distance - C) + log_ratio).sum(-1)


def function_moments(network: Network, q: MeanField, X: Tensor) -> tuple[Tensor, Tensor]:
    """Mean ``K x N x l`` and covariances between points, ``K x l x N x N``, of the network linearized at the means: those of
    ``f(x; m) + J(x) (z - m)``, ``z ~ q``."""
    tangents = network.tangents(q.mean, X)
    rows = network.jacobian(tangents).transpose(1, 2) * q.sd[:, None, None, :]  # K x l x N x P
    return tangents.values, rows @ rows.transpose(-1, -2)


def function_variances(network: Network, q: MeanField, X: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and marginal variances of :func:`function_moments`, ``K x N x l`` both, in blocks of rows."""
    means, variances = [], []
    for x in X.split(_block(network, q)):
        tangents = network.tangents(q.mean, x)
        means.append(tangents.values)
        variances.append((network.jacobian(tangents) * q.sd[:, None, None, :]).square().sum(-1))
    return torch.cat(means, 1), torch.cat(variances, 1)


def fsvi(
    joint: LogJoint, prior: FunctionPrior, start: MeanField, generator: torch.Generator, settings: FSVISettings = FSVISettings()
) -> MeanField:
    """Maximize the bound of every component.

    Args:
        joint: Likelihood and data; its prior on weights is not looked at.
        prior: Over functions.
        start: ``K`` components.
        generator: Orders the rows.
        settings: Steps and rates.
    """
    q = MeanField(start.mean, start.sd.clamp(max=1.0))
    for _ in range(settings.rounds):
        q = MeanField(_climb_means(joint, prior, q, generator, settings), q.sd)
        q = MeanField(q.mean, _climb_variances(joint, prior, q, settings))
    return q


def fsvi_bound(joint: LogJoint, prior: FunctionPrior, q: MeanField) -> Tensor:
    """The objective at temperature 1, ``K``."""
    mean, variance = function_variances(joint.network, q, joint.X)
    fit = expected_log_prob(joint.likelihood, mean, variance + prior.nugget, joint.Y, joint.noise).sum(-1)
    return fit - prior.kl(*function_moments(joint.network, q, prior.points))


def _climb_means(
    joint: LogJoint, prior: FunctionPrior, q: MeanField, generator: torch.Generator, settings: FSVISettings
) -> Tensor:
    network, C = joint.network, prior.points.shape[0]
    variance = function_variances(network, q, joint.X)[1] + prior.nugget

    def gradient(z: Tensor, rows: Tensor | None) -> Tensor:
        X, Y, noise, factor = joint.rows(rows)
        values, back = network.pullback(z, torch.cat([prior.points, X]))
        v = variance if rows is None else variance[:, rows]
        score = expected(joint.likelihood, values[:, C:], v, Y, noise).gradient
        return back(torch.cat([settings.temperature * prior.pull(values[:, :C]), -factor * score], 1))

    descent = AdamSettings(settings.steps, settings.learning_rate, settings.batch_size)
    return adam(gradient, q.mean, joint.num_rows, descent, generator)


def _climb_variances(joint: LogJoint, prior: FunctionPrior, q: MeanField, settings: FSVISettings) -> Tensor:
    """Standard deviations, ``K x P``; every step raises the objective (at the present linearization)."""
    network = joint.network
    at_context = network.jacobian(network.tangents(q.mean, prior.points)).transpose(1, 2)  # K x l x C x P
    white = torch.linalg.solve_triangular(prior.factor.expand(*at_context.shape[:2], -1, -1), at_context, upper=False)
    demand = white.square().sum((1, 2)) + _row_precision(joint, q, prior.nugget) / settings.temperature
    eye = torch.eye(at_context.shape[-2]).to(at_context)
    variance = q.sd.square()
    for _ in range(settings.variance_steps):
        covariance = (at_context * variance[:, None, None, :]) @ at_context.transpose(-1, -2)
        factor = safe_cholesky(covariance + prior.nugget * eye)
        room = torch.linalg.solve_triangular(factor, at_context, upper=False).square().sum((1, 2))
        # A weight that no function depends on has neither room nor demand, and keeps its variance.
        ratio = torch.where(demand > 0, room / demand.clamp_min(torch.finfo(demand.dtype).tiny), torch.ones_like(room))
        variance = (variance * ratio).clamp(_SMALLEST, 1.0)
    return variance.sqrt()


def _row_precision(joint: LogJoint, q: MeanField, nugget: Tensor) -> Tensor:
    """The diagonals of ``J^T R J`` over the rows, ``K x P``."""
    network, total = joint.network, torch.zeros_like(q.mean)
    size = _block(network, q)
    for x, y, noise in zip(joint.X.split(size), joint.Y.split(size), joint.noise.split(size), strict=True):
        tangents = network.tangents(q.mean, x)
        rows = network.jacobian(tangents).square()  # K x n x l x P
        variance = (rows * q.sd.square()[:, None, None, :]).sum(-1) + nugget
        precision = expected(joint.likelihood, tangents.values, variance, y, noise).precision
        total = total + (precision.unsqueeze(-1) * rows).sum((1, 2))
    return total


def _block(network: Network, q: MeanField) -> int:
    """Rows whose Jacobians fit in memory at once."""
    return max(1, _ENTRIES // (q.mean.numel() * network.num_outputs))
