"""Gauss-Newton in the dual: the fit of S networks by N x N algebra, and posterior samples by randomize-then-optimize.

Each member minimizes ``1/2 sum (y - f(z))^2 / noise + 1/2 |z - a|^2``, or the negative log-likelihood of any other
observation in place of the squares, over its whitened weights. Linearized at ``z``, the minimizer is ``a + J^T (J J^T +
D)^{-1} (y - f + J (z - a))``: one Cholesky factor of the tangent kernel and two products with the Jacobian. A short
line search, and a Levenberg-Marquardt damping where steps stay short, one per member, keep every step a descent.

With anchors ``a`` drawn from the prior and targets ``y + noise`` drawn around the data, the minimizers of a linear
network are exact posterior samples after one step (randomize-then-optimize, Bardsley et al. 2014; for networks: Pearce
et al. 2020).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from seqbdl.inference.observations import Observations, Squares
from seqbdl.likelihoods import apply_root, apply_root_transposed, whiten_both, whiten_rows
from seqbdl.networks import Network, Tangents
from seqbdl.posteriors.joint_gaussian import safe_cholesky

_FRACTIONS = (1.0, 0.5, 0.25, 0.12, 0.05)
_LONG = 0.2
"""Where the best fraction is smaller, the linearization reaches too far. A step that was cut so short is no sign of a minimum:
on a thousand rows of a rough function short steps stall at several times its loss."""
_WORTHWHILE = 0.1
"""Share of ``1 + loss`` that a cut step must take away, else the next one is damped. Far from the minimum cut steps do: damped
whenever they are cut, steps on a thousand rough rows shrank to nothing at twenty times the loss of the minimum."""


@dataclass(frozen=True)
class GaussNewtonSettings:
    """Attributes:
    max_iterations: Steps at most.
    tolerance: Stop when no member's loss falls by more than this share of ``1 + loss`` in a step.
    damping: Levenberg-Marquardt damping at the start, in units of the prior precision.
    """

    max_iterations: int = 30
    tolerance: float = 1e-3
    damping: float = 0.0


@dataclass(frozen=True)
class GaussNewtonResult:
    """Attributes:
    z: ``S x P`` minimizers.
    loss: ``S`` penalized losses.
    iterations: Steps taken.
    """

    z: Tensor
    loss: Tensor
    iterations: int


def gauss_newton(
    network: Network,
    X: Tensor,
    targets: Tensor,
    noise: Tensor,
    anchors: Tensor,
    start: Tensor,
    settings: GaussNewtonSettings = GaussNewtonSettings(),
) -> GaussNewtonResult:
    """Minimize every member's penalized squares.

    Args:
        network: Over whitened weights.
        X: ``n x d`` in the unit cube.
        targets: ``S x n x m`` (or ``1 x n x m``).
        noise: ``n x m`` noise variances.
        anchors: ``S x P`` centres of the quadratic penalty.
        start: ``S x P`` where to begin.
        settings: When to stop.
    """
    return minimize(network, X, Squares(targets, noise), anchors, start, settings)


def minimize(
    network: Network,
    X: Tensor,
    observations: Observations,
    anchors: Tensor,
    start: Tensor,
    settings: GaussNewtonSettings = GaussNewtonSettings(),
    precision: float = 1.0,
) -> GaussNewtonResult:
    """Minimize every member's ``misfit(f(z)) + precision / 2 |z - a|^2``, for any likelihood.

    With ``R`` and ``u`` of the observations at the present values, a step solves ``min 1/2 |R^T J (z' - z) - u|^2 +
    precision / 2 |z' - a|^2``: ``z' = a + J^T R (R^T K R + precision I)^{-1} (u + R^T J (z - a))``, ``K = J J^T``.

    Args:
        network: Over whitened weights.
        X: ``n x d`` in the unit cube.
        observations: Misfit and curvature at the rows of ``X``.
        anchors: ``S x P`` centres of the quadratic penalty.
        start: ``S x P`` where to begin.
        settings: When to stop.
        precision: Of the penalty.
    """
    z = start
    S = z.shape[0]
    damping = torch.full((S,), settings.damping, dtype=z.dtype, device=z.device)
    fractions = torch.tensor(_FRACTIONS, dtype=z.dtype, device=z.device)

    def loss_of(z: Tensor, misfit: Tensor) -> Tensor:
        return misfit + 0.5 * precision * (z - anchors).square().sum(-1)

    tangents = network.tangents(z, X)
    loss = loss_of(z, observations.misfit(tangents.values))
    steps = 0
    while steps < settings.max_iterations:
        steps += 1
        soft = (1.0 + damping)[:, None]
        root = observations.root(tangents.values)
        centre = (anchors + damping[:, None] * z) / soft
        offset = apply_root_transposed(root, network.jvp(tangents, z - centre))
        residual = observations.whitened_score(tangents.values) + offset
        target = centre + _linear_minimizer(network, tangents, root, residual, precision * soft)
        # Along the way to the minimizer of the linearized problem: the best of a few fractions, for forward passes only.
        candidates = z + fractions[:, None, None] * (target - z)  # fractions x S x P
        values = network.forward(candidates.flatten(0, 1), X).unflatten(0, (fractions.shape[0], S))
        losses = torch.stack([loss_of(c, observations.misfit(v)) for c, v in zip(candidates, values, strict=True)])
        losses = torch.where(losses.isfinite(), losses, torch.full_like(losses, torch.inf))
        new_loss, pick = losses.min(0)
        better = new_loss < loss
        decrease = torch.where(better, loss - new_loss, torch.zeros_like(loss))
        chosen = candidates[pick, torch.arange(S, device=z.device)]
        z = torch.where(better[:, None], chosen, z)
        tangents = network.tangents(z, X)
        cut = fractions[pick] < _LONG
        useless = ~better | (cut & (decrease < _WORTHWHILE * (1 + loss.abs())))
        damping = torch.where(useless, 4 * damping + 1.0, damping / 4)
        damping = torch.where(damping < 0.01, torch.zeros_like(damping), damping)
        small = decrease <= settings.tolerance * (1 + new_loss.abs())
        done = (better & small & ~cut & (damping <= 1.0)) | (damping > 1e6)  # a damped step is small in any case
        loss = torch.where(better, new_loss, loss)
        if bool(done.all()):
            break
    return GaussNewtonResult(z, loss, steps)


def _linear_minimizer(network: Network, tangents: Tangents, root: Tensor, residual: Tensor, ridge: Tensor) -> Tensor:
    """``argmin_v |R^T J v - r|^2 + ridge |v|^2``, ``S x P``: by rows, ``J^T R (R^T J J^T R + ridge)^{-1} r``, or by weights,
    ``(J^T R R^T J + ridge)^{-1} J^T R r``, whichever are fewer.

    Args:
        network: Over whitened weights.
        tangents: At ``S`` weight vectors and ``n`` rows.
        root: ``S x n x l`` or ``S x n x l x l``, ``R``.
        residual: ``S x n x l``, ``r``.
        ridge: ``S x 1``.
    """
    if residual[0].numel() <= network.num_params:
        B = _whitened(root, network.tangent_kernel(tangents, tangents), network.num_outputs)
        B.diagonal(dim1=-2, dim2=-1).add_(ridge)
        alpha = _solve(B, residual.flatten(1)).reshape(residual.shape)
        return network.vjp(tangents, apply_root(root, alpha))
    rows = whiten_rows(root, network.jacobian(tangents).flatten(1, 2), network.num_outputs)  # S x (n l) x P
    A = rows.transpose(-1, -2) @ rows
    A.diagonal(dim1=-2, dim2=-1).add_(ridge)
    return _solve(A, (rows.transpose(-1, -2) @ residual.flatten(1).unsqueeze(-1)).squeeze(-1))


def _whitened(root: Tensor, kernel: Tensor, num_latents: int) -> Tensor:
    """``R^T K R``, in the memory of ``K`` where ``R`` is diagonal."""
    if root.dim() > 3:
        return whiten_both(root, kernel, num_latents)
    scale = root.flatten(1)
    return kernel.mul_(scale.unsqueeze(-1)).mul_(scale.unsqueeze(-2))


def _solve(matrix: Tensor, right: Tensor) -> Tensor:
    """``matrix^{-1} right``, ``S x k``: in the type of the networks, where an inexact step is mended by the next, and in float64
    where that has no factor."""
    if matrix.dtype != torch.float64:
        factor, info = torch.linalg.cholesky_ex(matrix)
        if not bool(info.any()):
            return torch.cholesky_solve(right.unsqueeze(-1), factor).squeeze(-1)
    factor = safe_cholesky(matrix.double())
    return torch.cholesky_solve(right.double().unsqueeze(-1), factor).squeeze(-1).to(right)
