"""Conditioning particles on new observations without moving the networks: re-weight, and transport what is left over.

Re-weighting alone degenerates: 64 particles and ten informative rows leave about one effective particle. The
likelihood is therefore split, ``p(y|f) = p(y|f)^t p(y|f)^(1-t)``: the first factor re-weights, with the largest ``t``
in (0, 1] that keeps the effective sample size above a floor, the second then moves the function values by the ensemble
Kalman update (Evensen 1994) with the noise variance divided by ``1 - t``. Both are exact in the limit of many
particles when the function values are Gaussian, and ``t`` changes continuously with the inputs, so that acquisition
functions stay smooth.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from seqbdl.likelihoods import Likelihood
from seqbdl.posteriors.joint_gaussian import safe_cholesky


@dataclass(frozen=True)
class ParticleUpdate:
    """What one conditioning does to the particles.

    Attributes:
        log_weights: ``S x batch``, to be added to the log-weights before.
        mix: ``S x S x batch``: particle s moves by ``sum_t mix[s, t] (f_t - mean)``; ``None`` when re-weighting
            sufficed.
        weights: ``S x batch``, the weights that define the mean in ``mix``: those after re-weighting.
    """

    log_weights: Tensor
    mix: Tensor | None
    weights: Tensor

    def move(self, values: Tensor) -> Tensor:
        """Apply to function values ``S x batch' x q x m``; returns ``S x broadcast(batch', batch) x q x m``."""
        if self.mix is None:
            return values
        batch = torch.broadcast_shapes(values.shape[1:-2], self.mix.shape[2:])
        values = _lead(values, batch, 1, 2)
        mix = _lead(self.mix, batch, 2, 0)
        weights = _lead(self.weights, batch, 1, 0)[..., None, None]
        deviations = values - (weights * values).sum(0)
        return values + torch.einsum("st...,t...ij->s...ij", mix, deviations)


def _lead(tensor: Tensor, batch: torch.Size, leading: int, trailing: int) -> Tensor:
    """Broadcast the batch dimensions, which sit between ``leading`` and ``trailing`` dimensions, to ``batch``."""
    head = tensor.shape[:leading]
    end = tensor.dim() - trailing
    inner, tail = tensor.shape[leading:end], tensor.shape[end:]
    padded = tensor.reshape(*head, *([1] * (len(batch) - len(inner))), *inner, *tail)
    return padded.expand(*head, *batch, *tail)


def condition_particles(
    values: Tensor, log_weights: Tensor, Y: Tensor, noise: Tensor, min_ess: float, normals: Tensor
) -> ParticleUpdate:
    """Condition weighted function values on observations at the same points.

    Args:
        values: ``S x batch x n' x m`` function values at the new points.
        log_weights: ``S x batch'`` current log-weights (right-aligned with ``batch``).
        Y: ``batch'' x n' x m`` observations; ``batch`` must broadcast to it.
        noise: Noise variances, broadcastable to ``S x batch'' x n' x m``.
        min_ess: The floor on the effective sample size of the new weights, between 1 and S.
        normals: ``S x n' x m`` fixed standard normals, the perturbed observations of the ensemble Kalman update.

    Returns:
        The update, differentiable in ``values`` and ``Y``.
    """
    S = values.shape[0]
    batch = torch.broadcast_shapes(values.shape[1:-2], Y.shape[:-2], log_weights.shape[1:])
    values = _lead(values, batch, 1, 2)
    before = _lead(log_weights, batch, 1, 0).log_softmax(0)
    variance = noise.clamp_min(1e-12)
    if variance.dim() < values.dim():
        variance = variance.reshape(*([1] * (values.dim() - variance.dim())), *variance.shape)
    variance = variance.expand(values.shape)
    residual = Y - values  # S x batch x n' x m
    log_likelihood = -0.5 * (residual.square() / variance + variance.log()).sum((-1, -2))  # S x batch
    share = _tempering(before.detach(), log_likelihood.detach(), min_ess)  # batch
    mix, w = None, before.exp()
    if bool((share < 1.0).any()):
        # The tempered likelihood is in the weights already: their covariance is what the rest of it meets.
        w = (before + share * log_likelihood).softmax(0)  # S x batch
        deviations = (values - (w[..., None, None] * values).sum(0)).flatten(-2)  # S x batch x r
        cross = torch.einsum("s...,s...i,s...j->...ij", w, deviations, deviations)
        rest = (1.0 - share).clamp_min(1e-9)[..., None]
        noise_rows = (w[..., None] * variance.flatten(-2)).sum(0) / rest  # batch x r
        factor = safe_cholesky(cross + torch.diag_embed(noise_rows))
        perturbed = residual.flatten(-2) + noise_rows.sqrt() * _lead(normals.flatten(-2), batch, 1, 1)
        solved = torch.cholesky_solve(perturbed.movedim(0, -1), factor)  # batch x r x S
        mix = torch.einsum("t...,t...r,...rs->st...", w, deviations, solved)
        mix = torch.where(share < 1.0, mix, torch.zeros_like(mix))
    return ParticleUpdate(share * log_likelihood, mix, w.expand(S, *batch))


def reweight_particles(values: Tensor, log_weights: Tensor, Y: Tensor, likelihood: Likelihood) -> ParticleUpdate:
    """Re-weight by the likelihood of labels or counts, which say too little for weights to degenerate fast.

    Args:
        values: ``S x batch x n' x l`` latent values at the new points.
        log_weights: ``S x batch'`` current log-weights (right-aligned with ``batch``).
        Y: ``batch'' x n' x t`` labels; ``batch`` must broadcast to it.
        likelihood: Of an observation, without noise.
    """
    batch = torch.broadcast_shapes(values.shape[1:-2], Y.shape[:-2], log_weights.shape[1:])
    log_likelihood = likelihood.log_prob(_lead(values, batch, 1, 2), Y, values.new_ones(1)).sum(-1)  # S x batch
    weights = (_lead(log_weights, batch, 1, 0) + log_likelihood).softmax(0)
    return ParticleUpdate(log_likelihood, None, weights)


def _tempering(log_weights: Tensor, log_likelihood: Tensor, min_ess: float) -> Tensor:
    """Largest exponent in (0, 1] whose re-weighting keeps the effective sample size at or above the floor,
    ``batch``."""
    low = torch.zeros(log_weights.shape[1:], dtype=log_weights.dtype, device=log_weights.device)
    high = torch.ones_like(low)
    # A floor above what the weights have already would leave no room: accept at least 80 % of the present size.
    floor = torch.clamp_max(0.8 * _ess(log_weights), min_ess)
    full = _ess(log_weights + log_likelihood) >= floor
    for _ in range(30):
        middle = 0.5 * (low + high)
        enough = _ess(log_weights + middle * log_likelihood) >= floor
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
    return torch.where(full, torch.ones_like(low), low)


def _ess(log_weights: Tensor) -> Tensor:
    return log_weights.softmax(0).square().sum(0).reciprocal()
