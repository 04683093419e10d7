"""Inference in a subspace of weights spanned by the path of SGD (Izmailov et al. 2019).

``z = centre + V u`` with ``V`` the first ``r`` left singular directions of a path's deviations, orthonormal. The target is
``p(D | centre + V u)^(1 / T) N(u; V^T (a - centre) / T, s^2 I)``, ``a`` the centre of the prior over all weights, sampled by
elliptical slices or approximated by a Gaussian. At ``T = 1`` and ``s = 1`` that is the posterior restricted to the subspace; at
any ``T`` the mode of the posterior over all weights is a mode of the target.

``T`` is not 1 where a subspace of few directions has to show what all weights leave open: its likelihood, full strength, pins
these directions down as the whole posterior would, and the other directions have no spread at all (the paper tempers for the
same reason). ``T`` is chosen by the density of held-out rows, under the Gaussian ``N(0, (G / T + I / s^2)^{-1})`` with the
Gauss-Newton matrix ``G`` at the modes of the other folds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from seqbdl.errors import InvalidOptionError
from seqbdl.inference.adam import AdamSettings, adam
from seqbdl.inference.log_joint import LogJoint
from seqbdl.likelihoods import whiten_rows
from seqbdl.networks import AffineNetwork, Network
from seqbdl.posteriors.joint_gaussian import safe_cholesky

_CURVATURE_ROWS = 400  # rows times latents that the Gauss-Newton matrix looks at; an even sample beyond


def principal_directions(deviations: Tensor, rank: int) -> Tensor:
    """The ``rank`` directions along which the deviations vary most, ``P x rank``, orthonormal.

    Args:
        deviations: ``K x P``.
        rank: At most ``K`` and ``P``.

    Raises:
        InvalidOptionError: There are fewer deviations, or fewer weights.
    """
    if rank > min(deviations.shape):
        raise InvalidOptionError(
            f"rank={rank}: the path has {deviations.shape[0]} deviations of {deviations.shape[1]} weights; ask for no more"
        )
    directions: Tensor = torch.linalg.svd(deviations, full_matrices=False).Vh[:rank].T.contiguous()
    return directions


def subspace_network(network: Network, centre: Tensor, basis: Tensor) -> AffineNetwork:
    """The network as a function of ``u: r``, ``z = centre + V u``.

    Args:
        network: Over ``P`` weights.
        centre: ``1 x P``.
        basis: ``P x r``, ``V``.
    """
    return AffineNetwork(network, centre, lambda u: u @ basis.to(u).T, lambda v: v @ basis.to(v), basis.shape[1])


def curvature(log_joint: LogJoint) -> Tensor:
    """The Gauss-Newton matrix ``G`` at ``u = 0`` of a network over ``u``, ``r x r``."""
    N, network = log_joint.num_rows, log_joint.network
    count = min(N, max(1, _CURVATURE_ROWS // network.num_outputs))
    keep = torch.linspace(0, N - 1, count, device=log_joint.X.device).round().long()
    X, _, noise, _ = log_joint.rows(keep)
    tangents = network.tangents(X.new_zeros(1, network.num_params), X)
    rows = network.jacobian(tangents)[0].flatten(0, 1)  # (n l) x r
    white = whiten_rows(log_joint.likelihood.root(tangents.values, noise)[0], rows, network.num_outputs)
    weights = X.new_full((count,), N / count)
    if log_joint.row_weights is not None:
        weights = weights * log_joint.row_weights[keep]
    white = white * weights.repeat_interleave(network.num_outputs).sqrt().unsqueeze(-1)
    return white.T @ white


def laplace_root(G: Tensor, prior_root: Tensor, temperature: float) -> Tensor:
    """A square root of ``(G / T + (S S^T)^{-1})^{-1}``, ``r x r``.

    Args:
        G: ``r x r``.
        prior_root: ``r x r``, ``S``.
        temperature: ``T``.
    """
    eye = torch.eye(G.shape[0]).to(G)
    factor = safe_cholesky(eye + prior_root.T @ G @ prior_root / temperature)
    return prior_root @ torch.linalg.solve_triangular(factor, eye, upper=False).T


@dataclass(frozen=True)
class VariationalSettings:
    """Attributes:
    steps: Of Adam, on mean and root.
    learning_rate: In units of the starting Gaussian's standard deviations.
    """

    steps: int = 60
    learning_rate: float = 0.05


def gaussian_vi(
    log_joint: LogJoint,
    prior_mean: Tensor,
    prior_root: Tensor,
    temperature: float,
    start_root: Tensor,
    generator: torch.Generator,
    settings: VariationalSettings = VariationalSettings(),
) -> tuple[Tensor, Tensor]:
    """The Gaussian ``N(m, L L^T)`` that maximizes ``E log p(D | u) / T - KL(q || N(c, S S^T))``.

    Works in the coordinates ``u = A w`` of the starting Gaussian, in which steps of all directions are of one size, and on
    antithetic pairs of normals that stay the same, so that the bound is a deterministic function.

    Args:
        log_joint: Of a network over ``u``; its prior is not used.
        prior_mean: ``r``, ``c``.
        prior_root: ``r x r``, ``S``.
        temperature: ``T``.
        start_root: ``r x r``, ``A``, such as :func:`laplace_root`.
        generator: Of the normals.
        settings: Of the ascent.

    Returns:
        ``m``: ``r``, and ``L``: ``r x r``.
    """
    r = prior_root.shape[0]
    half = torch.randn(max(8, r), r, generator=generator, dtype=torch.float64).to(prior_root)
    half = _whitened(half)  # the bound of a quadratic is then exact
    normals = torch.cat([half, -half])
    lower = torch.tril_indices(r, r, device=prior_root.device)
    precision_root = torch.linalg.solve(prior_root, start_root)  # S^{-1} A
    pulled = precision_root.T @ precision_root
    towards = precision_root.T @ torch.linalg.solve(prior_root, prior_mean)

    def unpack(p: Tensor) -> tuple[Tensor, Tensor]:
        root = p.new_zeros(r, r).index_put((lower[0], lower[1]), p[0, r:])
        return p[0, :r], root

    def gradient(p: Tensor, rows: Tensor | None) -> Tensor:
        mean, root = unpack(p)
        w = mean + normals @ root.T
        _, ascent = log_joint.likelihood_value_and_gradient(w @ start_root.T, rows)
        ascent = ascent @ start_root / temperature
        d_mean = ascent.mean(0) - pulled @ mean + towards
        d_root = ascent.T @ normals / normals.shape[0] - pulled @ root + torch.diag_embed(root.diagonal().reciprocal())
        return -torch.cat([d_mean, d_root[lower[0], lower[1]]]).unsqueeze(0)

    first = torch.cat([prior_root.new_zeros(r), torch.eye(r).to(prior_root)[lower[0], lower[1]]]).unsqueeze(0)
    adam_settings = AdamSettings(steps=settings.steps, learning_rate=settings.learning_rate)
    mean, root = unpack(adam(gradient, first, log_joint.num_rows, adam_settings, generator))
    return start_root @ mean, start_root @ root


def _whitened(normals: Tensor) -> Tensor:
    """Linearly transformed so that their second moment is the identity; ``n x r``, ``n >= r``."""
    factor = torch.linalg.cholesky(normals.T @ normals / normals.shape[0])
    return torch.linalg.solve_triangular(factor, normals.T, upper=False).T
