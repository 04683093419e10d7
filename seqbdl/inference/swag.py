"""SWAG: a Gaussian over weights from the path of stochastic gradient descent (Maddox et al. 2019).

From a mode, SGD with a constant rate and momentum walks around in the basin; the mean of its iterates, their variance weight by
weight, and the last ``K`` deviations from the running mean make the Gaussian ``N(mean, scale (diag + D D^T / (K - 1)))``.

The rate is not tuned. With gradient noise of covariance ``C`` and effective rate ``e = rate / (1 - momentum)`` the iterates of a
quadratic with Hessian ``H`` have a stationary covariance with ``H S + S H = e C``, hence ``tr(H S) = e tr(C) / 2`` (Mandt et al.
2017, whose optimal constant rate makes this the number of weights). Of the many weights of a network the data determine only
``g = tr(G (G + I)^{-1})``, ``G`` the Gauss-Newton matrix over whitened weights (MacKay's effective number of parameters), so
``e = 2 g / tr(C)``, at most a quarter of the rate at which momentum becomes unstable. Then the misfit of the iterates lies above
the mode's by what it does under the posterior.

Mini-batches alone do not move iterates where a network interpolates: there every row's gradient vanishes at the mode (Ma et al.
2018). So each visit of a row adds Gaussian noise of the Fisher covariance to its score (of Gaussian targets: fresh noise of the
assumed variance), which makes ``C`` at least ``N / B`` times ``G`` whatever the residuals. Batches are drawn independently:
within epochs without replacement their noise cancels, and iterates spread about half as far as the equation says.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from seqbdl.errors import InvalidOptionError
from seqbdl.inference.log_joint import LogJoint
from seqbdl.likelihoods import apply_root, whiten_both
from seqbdl.posteriors.gaussian_weights import GaussianWeights
from seqbdl.posteriors.operators import Inverse, LowRank
from seqbdl.priors import Prior

SCALE = 0.5
"""The paper's factor on the covariance: half from the diagonal, half from the deviations."""
_CURVATURE_ROWS = 400  # rows times latents that the rate looks at; an even sample beyond
_STABLE_SHARE = 0.25
_ATTEMPTS = 6
_DIVERGED = 5.0  # nats of misfit above the start per row and latent


@dataclass(frozen=True)
class SwagSettings:
    """Attributes:
    burn_in: Steps before the first iterate is collected.
    iterates: How many are collected.
    spacing: Steps from one to the next.
    rank: ``K``, deviations kept.
    momentum: Of the heavy ball.
    learning_rate: Of a step along the gradient of the sum over rows; ``None``: by the stationary covariance, see above.
    batch_size: Rows per step; ``None``: a fifth, at most 128.
    score_noise: Noise of the Fisher covariance on every row's score.
    """

    burn_in: int = 200
    iterates: int = 40
    spacing: int = 10
    rank: int = 20
    momentum: float = 0.9
    learning_rate: float | None = None
    batch_size: int | None = None
    score_noise: bool = True

    def __post_init__(self) -> None:
        if self.burn_in < 0 or self.spacing < 1:
            raise InvalidOptionError(f"burn_in={self.burn_in} must be at least 0 and spacing={self.spacing} at least 1")
        if self.iterates < 2 or self.rank < 2:
            raise InvalidOptionError(f"iterates={self.iterates} and rank={self.rank} must be at least 2")
        if not 0.0 <= self.momentum < 1.0:
            raise InvalidOptionError(f"momentum={self.momentum} must be in [0, 1)")
        if self.learning_rate is not None and not self.learning_rate > 0.0:
            raise InvalidOptionError(f"learning_rate={self.learning_rate} must be positive, or None for the stationary rate")
        if self.batch_size is not None and self.batch_size < 1:
            raise InvalidOptionError(f"batch_size={self.batch_size} must be at least 1 row, or None for a fifth of them")

    def rows_per_step(self, num_rows: int) -> int:
        """``B``."""
        return min(num_rows, min(math.ceil(num_rows / 5), 128) if self.batch_size is None else self.batch_size)


@dataclass(frozen=True)
class SwagPosterior:
    """One Gaussian per start.

    Attributes:
        mean: ``M x P``, of the iterates.
        variance: ``M x P``, of the iterates, unbiased.
        deviations: ``M x K x P``, the last iterates minus the running means that they entered.
        learning_rate: ``M``.
    """

    mean: Tensor
    variance: Tensor
    deviations: Tensor
    learning_rate: Tensor

    @property
    def num_starts(self) -> int:
        return self.mean.shape[0]

    def directions(self, n: int, generator: torch.Generator) -> Tensor:
        """``n x M x P`` deviations from the means at ``scale = 1``; one vector of ``K`` normals moves all weights of a
        draw. Draws come in pairs of opposite sign, so that averages over an even ``n`` have no error of first order."""
        M, K, P = self.deviations.shape
        own, shared = _pairs(n, M, P, generator, self.mean), _pairs(n, M, K, generator, self.mean)
        along = torch.einsum("nmk,mkp->nmp", shared, self.deviations) / math.sqrt(K - 1)
        return self.variance.sqrt() * own + along

    def sample(self, n: int, generator: torch.Generator, scale: float = SCALE) -> Tensor:
        """``(n M) x P`` weight vectors, ``n`` of every Gaussian, the start running faster."""
        return (self.mean + math.sqrt(scale) * self.directions(n, generator)).flatten(0, 1)

    def gaussian(self, start: int = 0, scale: float = SCALE) -> GaussianWeights:
        """The Gaussian of one start, with density, score and products: an earlier posterior for whoever wants one as
        prior.

        Raises:
            InvalidOptionError: Some weight never moved, so that there is no density.
        """
        entries = scale * self.variance[start]
        if not bool((entries > 0).all()):
            raise InvalidOptionError(
                f"{int((entries == 0).sum())} of {entries.shape[0]} weights never moved (units without gradient): "
                "their Gaussian has no density; remove the units, or sample instead"
            )
        K = self.deviations.shape[1]
        factor = math.sqrt(scale / (K - 1)) * self.deviations[start].T
        return GaussianWeights(self.mean[start], Inverse(LowRank(entries, factor)))


def _pairs(n: int, M: int, size: int, generator: torch.Generator, like: Tensor) -> Tensor:
    """Antithetic standard normals, ``n x M x size``."""
    half = torch.randn((n + 1) // 2, M, size, generator=generator, dtype=torch.float64).to(like)
    return torch.stack([half, -half], 1).flatten(0, 1)[:n]


class CentredPrior(Prior):
    """``N(a_s, I)`` for the whitened weights of every member ``s`` of a stack.

    Args:
        centres: ``S x P``.
    """

    name = "centred"

    def __init__(self, centres: Tensor) -> None:
        self.centres = centres

    def log_prob(self, z: Tensor) -> Tensor:
        return -0.5 * ((z - self.centres).square() + math.log(2 * math.pi)).sum(-1)

    def score(self, z: Tensor) -> Tensor:
        return self.centres - z

    def sample(self, n: int, num_params: int, generator: torch.Generator, like: Tensor) -> Tensor:
        """One draw around every centre, in rounds."""
        centres = self.centres.repeat(math.ceil(n / self.centres.shape[0]), 1)[:n].to(like)
        return centres + torch.randn(n, num_params, generator=generator, dtype=torch.float64).to(like)


Visit = Callable[[int, Tensor], None]


def swag(
    log_joint: LogJoint, start: Tensor, settings: SwagSettings, generator: torch.Generator, visit: Visit | None = None
) -> SwagPosterior:
    """Walk from every start and collect.

    Args:
        log_joint: Of weights and data; its prior may differ from member to member (:class:`CentredPrior`).
        start: ``M x P``, modes.
        settings: Lengths and rate.
        generator: Orders the rows and draws the score noise.
        visit: Called with the number of a collected iterate, from 0, and the iterate ``M x P`` (again from 0 where
            a diverged walk is repeated with a smaller rate).

    Raises:
        InvalidOptionError: The learning rate that was handed in makes the walk diverge, or nothing moves it.
    """
    if settings.learning_rate is not None:
        rate = torch.full((start.shape[0],), settings.learning_rate, dtype=torch.float64).to(start)
    else:
        rate = stationary_rate(log_joint, start, settings)
    limit = _misfit(log_joint, start) + _DIVERGED * log_joint.num_rows * log_joint.network.num_outputs
    for _ in range(_ATTEMPTS):
        found, misfit = _walk(log_joint, start, rate, settings, generator, visit)
        diverged = ~(misfit <= limit)  # NaN too
        if not bool(diverged.any()):
            return found
        if settings.learning_rate is not None:
            break
        rate = torch.where(diverged, rate / 4, rate)  # the quadratic picture was too optimistic
    tried = settings.learning_rate if settings.learning_rate is not None else float(rate.max())
    raise InvalidOptionError(f"learning_rate={tried}: the walk diverged; give a smaller one, or a larger batch_size")


def stationary_rate(log_joint: LogJoint, start: Tensor, settings: SwagSettings) -> Tensor:
    """The step ``M`` at which iterates spread as the posterior does, see the head of this file.

    Raises:
        InvalidOptionError: Full batches without score noise: nothing moves the iterates.
    """
    N, network, likelihood = log_joint.num_rows, log_joint.network, log_joint.likelihood
    B = settings.rows_per_step(N)
    l = network.num_outputs  # noqa: E741 - latents, as everywhere
    count = min(N, max(1, _CURVATURE_ROWS // l))
    keep = torch.linspace(0, N - 1, count, device=start.device).round().long()
    X, Y, noise, _ = log_joint.rows(keep)
    tangents = network.tangents(start, X)
    root, u = likelihood.root(tangents.values, noise), likelihood.whitened_score(tangents.values, Y, noise)
    weights = start.new_full((count,), N / count)
    if log_joint.row_weights is not None:
        weights = weights * log_joint.row_weights[keep]
    root = root * weights.sqrt().reshape(1, -1, *[1] * (root.dim() - 2))
    gram = whiten_both(root, network.tangent_kernel(tangents, tangents), l)  # J J^T in the coordinates of R
    values = torch.linalg.eigvalsh(gram).clamp_min(0.0)  # a Gram matrix: below zero is rounding
    blocks = gram.unflatten(-1, (count, l)).unflatten(-3, (count, l)).diagonal(dim1=-4, dim2=-2)  # M x l x l x count
    u = u * weights.sqrt().unsqueeze(-1)
    squares = torch.einsum("mna,mabn,mnb->m", u, blocks, u) * (count / N)  # sum over rows of |gradient|^2
    trace = (N / B) * ((1 - B / N) * squares + (values.sum(-1) if settings.score_noise else 0.0))
    if not bool((trace > 0).all()):
        raise InvalidOptionError(
            f"batch_size={B} of {N} rows without score_noise: gradients are exact and nothing moves the iterates"
        )
    effective = 2 * (values / (1 + values)).sum(-1) / trace
    momentum = settings.momentum
    stable = 2 * (1 + momentum) / (1 - momentum) / (1 + values[..., -1])
    return (1 - momentum) * torch.minimum(effective, _STABLE_SHARE * stable)


def _misfit(log_joint: LogJoint, z: Tensor) -> Tensor:
    """``-log p(D | z)``, ``M``, all members at once."""
    each = log_joint.likelihood.log_prob(log_joint.network.forward(z, log_joint.X), log_joint.Y, log_joint.noise)
    return -(each if log_joint.row_weights is None else each * log_joint.row_weights).sum(-1)


def _walk(
    log_joint: LogJoint,
    start: Tensor,
    rate: Tensor,
    settings: SwagSettings,
    generator: torch.Generator,
    visit: Visit | None,
) -> tuple[SwagPosterior, Tensor]:
    """The posterior, and the misfit ``M`` of the last iterate (NaN where it is not finite)."""
    z, velocity = start, torch.zeros_like(start)
    mean, squares = torch.zeros_like(start), torch.zeros_like(start)
    deviations: list[Tensor] = []
    count = 0
    steps = settings.burn_in + settings.iterates * settings.spacing
    size = settings.rows_per_step(log_joint.num_rows)
    N = log_joint.num_rows
    for step in range(steps):
        rows = torch.randperm(N, generator=generator)[:size].to(z.device) if size < N else None
        velocity = settings.momentum * velocity + _gradient(log_joint, z, rows, settings.score_noise, generator)
        z = z - rate.unsqueeze(-1) * velocity
        if step >= settings.burn_in and (step - settings.burn_in + 1) % settings.spacing == 0:
            if visit is not None:
                visit(count, z)
            count += 1
            change = z - mean
            mean = mean + change / count
            squares = squares + change * (z - mean)  # Welford: two factors of one sign, never negative
            deviations = [*deviations[1 - settings.rank :], z - mean] if count > 1 else [z - mean]
    variance = squares / (count - 1)
    return SwagPosterior(mean, variance, torch.stack(deviations, 1), rate), _misfit(log_joint, z)


def _gradient(log_joint: LogJoint, z: Tensor, rows: Tensor | None, score_noise: bool, generator: torch.Generator) -> Tensor:
    """Of ``-log p(z, D)``, estimated on the rows, ``M x P``."""
    X, Y, noise, factor = log_joint.rows(rows)
    f, back = log_joint.network.pullback(z, X)
    u = log_joint.likelihood.whitened_score(f, Y, noise)
    weights = log_joint.row_weights
    if weights is not None:
        weights = (weights if rows is None else weights[rows]).unsqueeze(-1)
        u = u * weights
    if score_noise:
        white = torch.randn(u.shape, generator=generator, dtype=torch.float64).to(u)
        u = u + (white if weights is None else white * weights.sqrt())
    cotangent = apply_root(log_joint.likelihood.root(f, noise), u)
    return -factor * back(cotangent) - log_joint.prior.score(z)
