"""A Gaussian over latent values meets observations of another likelihood: the mode, by damped Fisher scoring, and Laplace's
approximation of their probability."""

from __future__ import annotations

import torch
from torch import Tensor

from seqbdl.likelihoods import Likelihood, apply_root, apply_root_transposed, whiten_both
from seqbdl.posteriors.joint_gaussian import JointGaussian, safe_cholesky

_FRACTIONS = (1.0, 0.5, 0.25, 0.1, 0.03, 0.01)


def mode_given(
    joint: JointGaussian, Y: Tensor, likelihood: Likelihood, noise: Tensor, max_iterations: int = 30, tolerance: float = 1e-4
) -> Tensor:
    """``argmax_f log p(Y | f) + log N(f; mean, C)`` for every element of the batch.

    A step solves the problem with the Fisher information ``R R^T`` in place of the curvature, ``f' = mean + C R (R^T C R +
    I)^{-1} (u + R^T (f - mean))``, and goes the best of a few fractions of the way: where an observation surprises, a whole
    step overshoots (the noise that an outlier under a variable noise asks for, by orders of magnitude). The covariance is
    never inverted.

    Args:
        joint: Over ``l`` latent outputs at ``n`` points.
        Y: ``batch x n x t``, or a batch that broadcasts with that of ``joint``.
        likelihood: Of an observation.
        noise: Noise variances, broadcastable to ``batch x n x m``.
        max_iterations: Steps at most.
        tolerance: Stop when no objective rises by more than this.

    Returns:
        ``batch x n x l``, without gradients.
    """
    return _search(joint, Y, likelihood, noise, max_iterations, tolerance)[0]


def log_predictive(joint: JointGaussian, Y: Tensor, likelihood: Likelihood, noise: Tensor) -> Tensor:
    """``log E[p(Y | f)]`` of all points together by Laplace's approximation, ``log p(Y | f*) - 1/2 |f* - mean|^2_{C^{-1}} - 1/2
    log det(I + R^T C R)`` at the mode; exact for Gaussian observations. ``batch``, without gradients.

    Args:
        joint: Over ``l`` latent outputs at ``n`` points.
        Y: ``batch x n x t``.
        likelihood: Of an observation.
        noise: Noise variances, broadcastable to ``batch x n x m``.
    """
    f, value, C = _search(joint, Y, likelihood, noise, 100, 1e-6)
    B = whiten_both(likelihood.root(f, noise), C, f.shape[-1])
    factor = safe_cholesky(B + torch.eye(B.shape[-1]).to(B))
    return value - factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def _search(
    joint: JointGaussian, Y: Tensor, likelihood: Likelihood, noise: Tensor, max_iterations: int, tolerance: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The mode ``batch x n x l``, the objective there, ``batch``, and the covariance, ``batch x (n l) x (n l)``."""
    with torch.no_grad():
        C = joint.as_coupled().covariance.squeeze(-3)
        batch = torch.broadcast_shapes(joint.mean.shape[:-2], C.shape[:-2], Y.shape[:-2])
        mean, C = joint.mean.expand(*batch, -1, -1), C.expand(*batch, -1, -1)
        Y = Y.expand(*batch, -1, -1)
        fractions = C.new_tensor(_FRACTIONS).reshape(-1, *([1] * mean.dim()))

        def times_C(a: Tensor) -> Tensor:
            return (C @ a.flatten(-2).unsqueeze(-1)).squeeze(-1).reshape(a.shape)

        def objective(change: Tensor, a: Tensor) -> Tensor:  # change = C a
            return likelihood.log_prob(mean + change, Y, noise).sum(-1) - 0.5 * (change * a).sum((-1, -2))

        a = torch.zeros_like(mean)
        change = torch.zeros_like(mean)
        value = objective(change, a)
        for _ in range(max_iterations):
            f = mean + change
            root = likelihood.root(f, noise)
            B = whiten_both(root, C, f.shape[-1])
            B = B + torch.eye(B.shape[-1]).to(B)
            residual = likelihood.whitened_score(f, Y, noise) + apply_root_transposed(root, change)
            solved = torch.cholesky_solve(residual.flatten(-2).unsqueeze(-1), safe_cholesky(B)).reshape(residual.shape)
            target = apply_root(root, solved)
            candidates = a + fractions * (target - a)
            changes = change + fractions * (times_C(target) - change)
            values = objective(changes, candidates)
            best, pick = torch.where(values.isfinite(), values, -torch.inf).max(0)
            better = best > value
            index = pick[..., None, None].expand(a.shape).unsqueeze(0)
            a = torch.where(better[..., None, None], candidates.gather(0, index).squeeze(0), a)
            change = torch.where(better[..., None, None], changes.gather(0, index).squeeze(0), change)
            rise = torch.where(better, best - value, torch.zeros_like(value))
            value = torch.where(better, best, value)
            if not bool((rise > tolerance).any()):
                break
        return mean + change, value, C
