"""The linearized Laplace posterior with the full generalized Gauss-Newton matrix, in function space.

At weights ``z*`` the linearized network is a Gaussian process with mean ``f(x; z*)`` and, for prior precision
``alpha`` on whitened weights, covariance ``(1/alpha) [J(x) J(x')^T - J(x) J^T (J J^T + alpha D)^{-1} J J(x')^T]``
with ``D`` the noise variances (MacKay 1992; Khan et al. 2019; Immer et al. 2021). The ``P x P`` curvature is never
formed: everything is ``N m x N m``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from seqbdl.inference.gauss_newton import GaussNewtonSettings, gauss_newton
from seqbdl.networks import Network, Tangents
from seqbdl.posteriors.joint_gaussian import JointGaussian, remaining, safe_cholesky


@dataclass(frozen=True)
class LaplacePosterior:
    """Attributes:
    z: ``1 x P`` whitened weights at the mode.
    centre: ``1 x P`` mean of the prior on them.
    precision: Scalar ``alpha``, precision of the prior on whitened weights.
    X: ``n x d`` rows that carry curvature.
    variance: ``n x m`` their noise variances.
    whitener: ``n m x n m``, the inverse Cholesky factor of ``J J^T + alpha D``.
    log_evidence: Scalar; after updates, the density of every batch of rows as it was predicted before.
    """

    z: Tensor
    centre: Tensor
    precision: Tensor
    X: Tensor
    variance: Tensor
    whitener: Tensor
    log_evidence: Tensor


def prior_laplace(network: Network, z: Tensor, centre: Tensor, precision: float) -> LaplacePosterior:
    """Before any data: the network linearized at ``z``."""
    return LaplacePosterior(
        z,
        centre,
        z.new_tensor(precision),
        z.new_zeros(0, network.input_dim),
        z.new_zeros(0, network.num_outputs),
        z.new_zeros(0, 0),
        z.new_zeros(()),
    )


def fit_laplace(
    network: Network,
    X: Tensor,
    targets: Tensor,
    variance: Tensor,
    centre: Tensor,
    start: Tensor,
    precision: float | None,
    settings: GaussNewtonSettings,
    rounds: int = 4,
) -> LaplacePosterior:
    """Find the mode and, unless it is given, the prior precision that maximizes the evidence.

    Args:
        network: Over whitened weights.
        X: ``n x d`` in the unit cube.
        targets: ``n x m``.
        variance: ``n x m`` noise variances.
        centre: ``1 x P`` prior mean of the weights.
        start: ``1 x P``.
        precision: ``alpha``; ``None``: tuned, alternating with the mode, under a log-normal hyper-prior around 1
            (log sd 3).
        settings: Of the search for the mode.
        rounds: Alternations at most.
    """
    alpha = 1.0 if precision is None else precision
    z = start
    for _ in range(rounds if precision is None else 1):
        z = gauss_newton(network, X, targets.unsqueeze(0), alpha * variance, centre, z, settings).z
        tuned = alpha if precision is not None else _tune_precision(network, X, variance, z, centre)
        settled = abs(math.log(tuned / alpha)) < 0.1
        alpha = tuned
        if settled:
            break
    return curvature(network, z, centre, alpha, X, targets, variance)


def curvature(
    network: Network, z: Tensor, centre: Tensor, alpha: float, X: Tensor, targets: Tensor, variance: Tensor
) -> LaplacePosterior:
    """The posterior at a mode: factor and evidence.

    ``log Z = log p(y | f(z*)) - alpha/2 |z* - centre|^2 - 1/2 log det(I + J J^T D^{-1} / alpha)``.
    """
    tangents = network.tangents(z, X)
    K = network.tangent_kernel(tangents, tangents)[0]
    rows = variance.flatten()
    factor = safe_cholesky(K + alpha * torch.diag(rows))
    whitener = torch.linalg.solve_triangular(factor, torch.eye(K.shape[0]).to(K), upper=False)
    misfit = ((targets - tangents.values[0]).square() / variance).sum()
    log_likelihood = -0.5 * misfit - 0.5 * (2 * math.pi * rows).log().sum()
    half_log_det = factor.diagonal().log().sum() - 0.5 * (alpha * rows).log().sum()
    log_evidence = log_likelihood - 0.5 * alpha * (z - centre).square().sum() - half_log_det
    return LaplacePosterior(z, centre, z.new_tensor(alpha), X, variance, whitener, log_evidence)


def _tune_precision(network: Network, X: Tensor, variance: Tensor, z: Tensor, centre: Tensor) -> float:
    """``argmax_alpha`` of the evidence at fixed ``z``, from one eigendecomposition."""
    tangents = network.tangents(z, X)
    root = variance.flatten().rsqrt()
    whitened = network.tangent_kernel(tangents, tangents)[0] * root * root[:, None]
    eigenvalues = torch.linalg.eigvalsh(whitened).clamp_min(0.0)
    size = (z - centre).square().sum()
    log_alpha = torch.linspace(-8.0, 8.0, 641).to(z)
    alpha = log_alpha.exp()
    evidence = -0.5 * alpha * size - 0.5 * torch.log1p(eigenvalues / alpha.unsqueeze(-1)).sum(-1)
    return float(alpha[(evidence - 0.5 * (log_alpha / 3.0).square()).argmax()])


def joint(network: Network, posterior: LaplacePosterior, at_rows: Tangents | None, X: Tensor) -> JointGaussian:
    """The linearized posterior at ``X: batch x q x d``, all points and outputs jointly."""
    batch, q = X.shape[:-2], X.shape[-2]
    here = network.tangents(posterior.z, X)
    mean = here.values[0].unflatten(0, X.shape[:-1])
    covariance = network.tangent_gram(here, batch, q)[0]
    if at_rows is not None:
        cross = network.tangent_kernel(here, at_rows)[0]
        projected = (cross @ posterior.whitener.T).reshape(*batch, q * network.num_outputs, -1)
        covariance = remaining(covariance, projected @ projected.transpose(-1, -2))
    return JointGaussian(mean, (covariance / posterior.precision).unsqueeze(-3))


def log_density(predicted: JointGaussian, targets: Tensor, variance: Tensor) -> Tensor:
    """Log density of noisy ``targets: n x m`` with noise ``variance: n x m`` under coupled predictions; scalar."""
    factor = safe_cholesky(predicted.covariance[0] + torch.diag(variance.flatten()))
    residual = (targets - predicted.mean).flatten().unsqueeze(-1)
    white = torch.linalg.solve_triangular(factor, residual, upper=False)
    return -0.5 * white.square().sum() - factor.diagonal().log().sum() - 0.5 * math.log(2 * math.pi) * residual.numel()


def weight_draws(network: Network, posterior: LaplacePosterior, at_rows: Tangents | None, prior: Tensor, noise: Tensor) -> Tensor:
    """Samples of ``z - z*`` without a ``P x P`` matrix: sample the prior and the noise, then condition (Matheron's
    rule).

    Args:
        network: The network.
        posterior: Its Laplace posterior.
        at_rows: Tangents at ``z*`` and the rows.
        prior: ``n x P`` standard normals.
        noise: ``n x rows x m`` standard normals.
    """
    delta = prior / posterior.precision.sqrt()
    if at_rows is None:
        return delta
    perturbed = network.jvp(at_rows, delta) + noise * posterior.variance.sqrt()
    solved = perturbed.flatten(1) @ posterior.whitener.T @ posterior.whitener
    return delta - network.vjp(at_rows, solved.reshape(perturbed.shape))
