"""How much an outcome would tell: scores of real-valued predictions, from moments and from function draws.

``variance`` is that of the latent function (epistemic); ``noise`` is the variance of the observation around it, one number or
one for each point. Informations are in nats, the algebra is in float64, and what comes back has one number for each point.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from seqbdl.acquisition._pool_inputs import VALUES_AT_ONCE, check_matrix, check_variances, check_vector, check_weights
from seqbdl.errors import InvalidDataError, ShapeError

_NODES = 2000  # of an integral over a mixture, at least _NODES_EACH around every component
_NODES_EACH = 20
_REACH = 9.0  # standard deviations: the density there is 1e-18 of the largest


def predictive_variance(variance: Tensor, noise: float | Tensor) -> Tensor:
    """Variance of an outcome, ``N``: that of the function and the noise.

    Args:
        variance: ``N``.
        noise: One number or ``N``; may be zero.
    """
    latent = _variances(variance)
    return latent + check_variances("noise", noise, latent.shape[0], latent, allow_zero=True)


def gaussian_entropy(variance: Tensor, noise: float | Tensor = 0.0) -> Tensor:
    """Entropy of an outcome, ``N`` (may be negative): the predictive entropy of Gaussian predictions.

    Args:
        variance: ``N``.
        noise: One number or ``N``.
    """
    total = predictive_variance(variance, noise)
    if bool((total <= 0).any()):
        raise InvalidDataError(f"variance + noise is zero at point {int((total <= 0).nonzero()[0])}; its entropy has no value")
    return 0.5 * (2.0 * math.pi * math.e * total).log()


def gaussian_bald(variance: Tensor, noise: float | Tensor) -> Tensor:
    """Mutual information of an outcome and a Gaussian function, ``log(1 + variance / noise) / 2``, ``N``.

    MacKay, "Information-based objective functions for active data selection", 1992; Houlsby et al. 2011.

    Args:
        variance: ``N``.
        noise: One number or ``N``, positive.
    """
    latent = _variances(variance)
    return 0.5 * (latent / check_variances("noise", noise, latent.shape[0], latent)).log1p()


def heteroscedastic_bald(draws: Tensor, noise_draws: Tensor) -> Tensor:
    """An upper bound on the mutual information where noise varies between draws too, ``N``.

    The mixture over draws is replaced by the Gaussian with its variance, whose entropy is the largest with that variance:
    ``log(total variance) / 2 - mean_k log(noise_k) / 2``.

    Args:
        draws: ``n x N`` function values.
        noise_draws: ``n x N`` noise variances under the same draws, positive.
    """
    means, noise = _components(draws, noise_draws)
    total = means.var(0, correction=0) + noise.mean(0)
    return 0.5 * (total.log() - noise.log().mean(0))


def mixture_bald(draws: Tensor, noise_draws: Tensor) -> Tensor:
    """Mutual information of an outcome and WHICH of ``n`` draws is true, ``N``: 0 to ``log n``.

    The entropy of the mixture is integrated by the trapezoidal rule on nodes around all components, in units of their own
    widths, its density in log space. Errors are about 1e-4 nats; nothing is random.

    Args:
        draws: ``n x N`` function values.
        noise_draws: ``n x N`` noise variances, or what broadcasts to it; positive.
    """
    means, noise = _components(draws, noise_draws)
    n, N = means.shape
    each = max(_NODES_EACH, _NODES // n)
    grid = torch.linspace(-_REACH, _REACH, each, dtype=torch.float64, device=means.device)
    # Shifted a little for each component, so that nodes of similar components interleave.
    grid = grid + torch.arange(n, device=means.device).unsqueeze(-1) * (grid[1] - grid[0]) / n  # n x nodes
    size = max(1, VALUES_AT_ONCE // (n * n * each))
    scores = []
    for start in range(0, N, size):
        mu, var = means[:, start : start + size].T, noise[:, start : start + size].T  # rows x n
        y = (mu.unsqueeze(-1) + var.sqrt().unsqueeze(-1) * grid).flatten(1).sort(-1).values
        gap = (y.unsqueeze(-1) - mu.unsqueeze(1)).square() / var.unsqueeze(1)
        log_density = (-0.5 * (gap + (2.0 * math.pi * var).log().unsqueeze(1))).logsumexp(-1) - math.log(n)
        mixture = torch.trapezoid(-log_density.exp() * log_density, y)
        scores.append(mixture - 0.5 * (2.0 * math.pi * math.e * var).log().mean(-1))
    return torch.cat(scores)


def gaussian_epig(
    variance: Tensor,
    target_variance: Tensor,
    cross_covariance: Tensor,
    noise: float | Tensor,
    target_noise: float | Tensor,
    target_weights: Tensor | None = None,
) -> Tensor:
    """Mutual information of an outcome and that at a target, averaged over targets, in closed form, ``N``: 0 to BALD.

    ``-log(1 - rho^2) / 2`` with ``rho`` the correlation of the two outcomes (Bickford Smith et al. 2023).

    Args:
        variance: ``N`` of the function at the points.
        target_variance: ``M`` of the function at the targets.
        cross_covariance: ``N x M`` of the function between both.
        noise: Of the points, one number or ``N``; positive.
        target_noise: Of the targets, one number or ``M``; positive.
        target_weights: ``M`` non-negative weights; equal by default.

    Raises:
        InvalidDataError: The moments belong to no distribution: a correlation exceeds one.
    """
    latent, there = _variances(variance), _variances(target_variance, "target_variance")
    cross = check_matrix("cross_covariance", cross_covariance, latent.shape[0], there.shape[0])
    total = latent + check_variances("noise", noise, latent.shape[0], latent)
    target_total = there + check_variances("target_noise", target_noise, there.shape[0], there)
    squared = cross.square() / (total.unsqueeze(-1) * target_total)
    if bool((squared >= 1.0).any()):
        row, target = (int(i) for i in (squared >= 1.0).nonzero()[0])
        raise InvalidDataError(
            f"cross_covariance[{row}, {target}] exceeds the two standard deviations; take all moments from one joint posterior"
        )
    return -0.5 * torch.log1p(-squared) @ check_weights(target_weights, there.shape[0], there)


def draws_epig(
    draws: Tensor,
    target_draws: Tensor,
    noise: float | Tensor,
    target_noise: float | Tensor,
    target_weights: Tensor | None = None,
) -> Tensor:
    """:func:`gaussian_epig` with the moments of ``n`` function draws, ``N``.

    Estimated correlations are never quite zero: the expectation is too large by up to :func:`draws_epig_bias`. Take 200
    draws or more, or the moments themselves where the posterior has them.

    Args:
        draws: ``n x N`` function values.
        target_draws: ``n x M`` values of the same functions.
        noise: Of the points, one number or ``N``; positive.
        target_noise: Of the targets, one number or ``M``; positive.
        target_weights: ``M`` non-negative weights; equal by default.
    """
    here = centred_draws(draws)
    there = centred_draws(target_draws, "target_draws")
    if here.shape[1] != there.shape[1]:
        raise ShapeError(
            f"draws has {here.shape[1]} draws, target_draws has {there.shape[1]}; evaluate the same functions at both"
        )
    variance, target_variance = here.square().sum(-1), there.square().sum(-1)
    return gaussian_epig(variance, target_variance, here @ there.T, noise, target_noise, target_weights)


def draws_epig_bias(num_draws: int) -> float:
    """The most by which :func:`draws_epig` is too large in expectation, to leading order: ``1 / (2 (n - 1))`` nats."""
    return 1.0 / (2.0 * (num_draws - 1))


def integrated_variance_reduction(
    variance: Tensor, cross_covariance: Tensor, noise: float | Tensor, target_weights: Tensor | None = None
) -> Tensor:
    """By how much an outcome lowers the variance of the function at the targets, averaged over them, ``N``.

    Minimal integrated posterior variance (Cohn, Ghahramani and Jordan 1996; BoTorch's qNIPV) up to a constant.

    Args:
        variance: ``N`` of the function at the points.
        cross_covariance: ``N x M`` of the function between points and targets.
        noise: Of the points, one number or ``N``; positive.
        target_weights: ``M`` non-negative weights; equal by default.
    """
    latent = _variances(variance)
    cross = check_matrix("cross_covariance", cross_covariance, latent.shape[0])
    total = latent + check_variances("noise", noise, latent.shape[0], latent)
    return cross.square() @ check_weights(target_weights, cross.shape[1], cross) / total


def joint_gaussian_bald(covariance: Tensor, noise: float | Tensor) -> Tensor:
    """Mutual information of ``q`` outcomes and a Gaussian function, ``log det(I + K / noise) / 2``, one number.

    Args:
        covariance: ``q x q`` of the function, ``K``.
        noise: One number or ``q``, positive.
    """
    matrix = check_matrix("covariance", covariance)
    q = matrix.shape[0]
    root = check_variances("noise", noise, q, matrix).sqrt()
    scaled = check_matrix("covariance", covariance, q, q) / (root.unsqueeze(-1) * root)
    return 0.5 * torch.linalg.slogdet(scaled + torch.eye(q, dtype=torch.float64, device=matrix.device)).logabsdet


def centred_draws(draws: Tensor, name: str = "draws") -> Tensor:
    """Features whose inner products are the covariances of the draws: ``(f_k - mean) / sqrt(n)``, ``N x n``.

    Kirsch, "Black-box batch active learning for regression", TMLR 2023.

    Args:
        draws: ``n x N`` function values.
        name: For messages.
    """
    values = check_matrix(name, draws)
    if values.shape[0] < 2:
        raise ShapeError(f"{name} has {values.shape[0]} draw(s); a covariance needs two or more")
    return ((values - values.mean(0)) / math.sqrt(values.shape[0])).T


def _variances(value: Tensor, name: str = "variance") -> Tensor:
    vector = check_vector(name, value)
    if bool((vector < 0).any()):
        raise InvalidDataError(f"{name} is negative at point {int((vector < 0).nonzero()[0])}; it holds variances")
    return vector


def _components(draws: Tensor, noise_draws: Tensor) -> tuple[Tensor, Tensor]:
    means = check_matrix("draws", draws)
    noise = check_matrix("noise_draws", noise_draws)
    if torch.broadcast_shapes(noise.shape, means.shape) != means.shape:
        raise ShapeError(
            f"noise_draws has shape {tuple(noise.shape)}; it needs to broadcast to that of draws, {tuple(means.shape)}"
        )
    if bool((noise <= 0).any()):
        draw, row = (int(i) for i in (noise <= 0).nonzero()[0])
        raise InvalidDataError(f"noise_draws is zero or negative at point {row} of draw {draw}; it holds variances")
    return means, noise.expand(means.shape)
