"""The Laplace evidence as a function of prior precisions and noise, at a fixed mode, and its maximum.

``log Z = log p(D | z*) - 1/2 sum_g alpha_g |z*_g - c_g|^2 - 1/2 log det(I + Lambda_0^{-1} G)`` with one prior precision
``alpha_g`` per group of weights (MacKay 1992; Immer et al. 2021). One eigendecomposition serves every value of one
precision and of a factor on the noise; precisions per layer need the kernel of each layer, or of ``kron`` and ``diag`` the
eigenvalues by layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from seqbdl.inference.curvature import gauss_newton_diagonal, kronecker_sums, white_rows
from seqbdl.likelihoods import whiten_both
from seqbdl.networks import Network
from seqbdl.posteriors.joint_gaussian import safe_cholesky

LogDet = Callable[[Tensor, Tensor], Tensor]
_RANGE = 8.0  # of log precisions and of the log factor on the noise
_PRECISION_SD, _NOISE_SD, _NOISE_CENTRE = 3.0, 1.0, -4.0


@dataclass(frozen=True)
class NoiseTerms:
    """What the Gaussian likelihood says of a factor ``s`` on its noise variances, ``n`` observations with weighted squared
    errors that sum to ``misfit``, of mean log noise variance ``level``."""

    n: int
    misfit: Tensor
    level: Tensor


@dataclass(frozen=True)
class Evidence:
    """The evidence at a fixed mode, up to a constant.

    Attributes:
        sizes: ``G``, squared distances ``|z*_g - c_g|^2`` of the mode from the prior's centre.
        log_det: ``log det(I + Lambda_0^{-1} G / s)`` of ``log alpha: G`` and of ``log s``.
        squares: Of the Gaussian likelihood; ``None``: ``s`` is not part of the model.
        eigenvalues: Of ``G``, where one precision serves all weights.
    """

    sizes: Tensor
    log_det: LogDet
    squares: NoiseTerms | None
    eigenvalues: Tensor | None = None

    def __call__(self, log_alpha: Tensor, log_factor: Tensor) -> Tensor:
        """Of ``log alpha: G`` and a scalar, differentiable; a scalar."""
        value = -0.5 * (log_alpha.exp() * self.sizes).sum() - 0.5 * self.log_det(log_alpha, log_factor)
        if self.squares is not None:
            value = value - 0.5 * self.squares.misfit * (-log_factor).exp() - 0.5 * self.squares.n * log_factor
        return value


def evidence_at(
    network: Network,
    z: Tensor,
    centre: Tensor,
    X: Tensor,
    root: Tensor,
    structure: str,
    layerwise: bool,
    squares: NoiseTerms | None = None,
) -> Evidence:
    """The evidence around the mode ``z`` of a network under the prior ``N(centre, I)``, for other prior precisions ``alpha``.

    Args:
        network: Over whitened weights.
        z: ``1 x P``.
        centre: ``1 x P``.
        X: ``n x d``.
        root: ``n x l`` or ``n x l x l``, Fisher roots of the rows.
        structure: Of the curvature: ``"full"``, ``"kron"`` or ``"diag"``.
        layerwise: One precision per group of weights instead of one.
        squares: Of the Gaussian likelihood, if its noise is to be tuned.
    """
    change = (z - centre)[0].square()
    group = network.group_of_weights(z) if layerwise else torch.zeros_like(z[0], dtype=torch.long)
    G = network.num_groups if layerwise else 1
    sizes = torch.zeros(G).to(z).index_add(0, group, change)
    if structure == "full" and layerwise:
        return Evidence(sizes, _layered_log_det(network, z, X, root, group), squares)
    eigenvalues, owner = _eigenvalues(network, z, X, root, structure, group)

    def log_det(log_alpha: Tensor, log_factor: Tensor) -> Tensor:
        return torch.log1p(eigenvalues * (-log_alpha[owner] - log_factor).exp()).sum()

    return Evidence(sizes, log_det, squares, None if layerwise else eigenvalues)


def _eigenvalues(network: Network, z: Tensor, X: Tensor, root: Tensor, structure: str, group: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues of ``G`` (those that are not zero for certain), and the group that each belongs to."""
    if structure == "diag":
        return gauss_newton_diagonal(network, z, X, root), group
    if structure == "kron":
        values = []
        for A, B, c in kronecker_sums(network, z, X, root):
            left, right = torch.linalg.eigvalsh(A / c.clamp_min(torch.finfo(c.dtype).tiny)), torch.linalg.eigvalsh(B)
            values.append((left.clamp_min(0.0).unsqueeze(-1) * right.clamp_min(0.0)).flatten())
        return torch.cat(values), group
    if X.shape[0] * network.num_outputs < network.num_params:
        tangents = network.tangents(z, X)
        matrix = whiten_both(root, network.tangent_kernel(tangents, tangents)[0], network.num_outputs)
    else:
        matrix = _dense_gauss_newton(network, z, X, root)
    eigenvalues = torch.linalg.eigvalsh(matrix).clamp_min(0.0)
    return eigenvalues, torch.zeros_like(eigenvalues, dtype=torch.long)


def _layered_log_det(network: Network, z: Tensor, X: Tensor, root: Tensor, group: Tensor) -> LogDet:
    if X.shape[0] * network.num_outputs < network.num_params:
        kernels = network.group_kernels(network.tangents(z, X))
        white = torch.stack([whiten_both(root, kernel, network.num_outputs) for kernel in kernels])  # G x (n l) x (n l)
        eye = torch.eye(white.shape[-1]).to(white)

        def by_rows(log_alpha: Tensor, log_factor: Tensor) -> Tensor:
            total = eye + torch.einsum("g,gij->ij", (-log_alpha - log_factor).exp(), white)
            return 2 * safe_cholesky(total).diagonal().log().sum()

        return by_rows
    matrix = _dense_gauss_newton(network, z, X, root)

    def by_weights(log_alpha: Tensor, log_factor: Tensor) -> Tensor:
        shrink = (-0.5 * (log_alpha[group] + log_factor)).exp()
        total = shrink.unsqueeze(-1) * matrix * shrink + torch.eye(matrix.shape[0]).to(matrix)
        return 2 * safe_cholesky(total).diagonal().log().sum()

    return by_weights


def _dense_gauss_newton(network: Network, z: Tensor, X: Tensor, root: Tensor) -> Tensor:
    total = z.new_zeros(network.num_params, network.num_params)
    for rows in white_rows(network, z, X, root):
        total = total + rows.T @ rows
    return total


def maximize(evidence: Evidence, start: Tensor, tune_precision: bool = True) -> tuple[Tensor, Tensor]:
    """Precisions and the factor on the noise that maximize the evidence.

    Log-normal hyper-priors decide where the data do not: precisions around 1 (log sd 3), noise around ``e^-4`` (log sd 1), as
    :mod:`seqbdl.inference.infinite_width` has them.

    Args:
        evidence: At the mode under unit precisions.
        start: ``G``, log precisions that the unit precisions stand for: where the hyper-prior is seen from.
        tune_precision: Otherwise only the noise.

    Returns:
        Changes of the log precisions, ``G``, and of the log noise, a scalar.
    """
    tune_noise = evidence.squares is not None
    if evidence.eigenvalues is not None and tune_precision and not tune_noise:
        return _on_a_grid(evidence, start)
    G = start.shape[0]

    def objective(theta: Tensor) -> Tensor:
        log_alpha = theta[:G] if tune_precision else torch.zeros_like(start)
        log_factor = theta[G] if tune_noise else theta.new_zeros(())
        value = evidence(log_alpha, log_factor) - 0.5 * ((log_alpha + start) / _PRECISION_SD).square().sum()
        if evidence.squares is not None:
            value = value - 0.5 * ((log_factor + evidence.squares.level - _NOISE_CENTRE) / _NOISE_SD).square()
        return value

    def value_and_gradient(x: np.ndarray) -> tuple[float, np.ndarray]:
        with torch.enable_grad():
            theta = torch.from_numpy(x).to(start).requires_grad_(True)
            value = objective(theta)
            (gradient,) = torch.autograd.grad(value, theta)
        return -float(value.detach()), -gradient.cpu().numpy().astype(np.float64)

    bounds = [(-_RANGE, _RANGE) if tune_precision else (0.0, 0.0)] * G + [(-_RANGE, _RANGE) if tune_noise else (0.0, 0.0)]
    result = minimize(value_and_gradient, np.zeros(G + 1), jac=True, method="L-BFGS-B", bounds=bounds)
    theta = torch.from_numpy(result.x).to(start)
    return theta[:G], theta[G]


def _on_a_grid(evidence: Evidence, start: Tensor) -> tuple[Tensor, Tensor]:
    """One precision and no noise: a grid sees all maxima."""
    assert evidence.eigenvalues is not None
    log_alpha = torch.linspace(-_RANGE, _RANGE, 641).to(start)  # of the precision itself, as the hyper-prior sees it
    alpha = (log_alpha - start).exp()
    value = -0.5 * alpha * evidence.sizes - 0.5 * torch.log1p(evidence.eigenvalues / alpha.unsqueeze(-1)).sum(-1)
    best = (value - 0.5 * (log_alpha / _PRECISION_SD).square()).argmax()
    return log_alpha[best : best + 1] - start, start.new_zeros(())
