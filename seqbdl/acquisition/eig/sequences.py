"""Information of sequences of experiments: on average over parameters that are known, and of one history where they are not."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from seqbdl.acquisition.eig.bounds import Bounds
from seqbdl.acquisition.eig.contrastive import standard_error
from seqbdl.acquisition.eig.model import DesignModel, ThetaSource, log_likelihood
from seqbdl.errors import InvalidOptionError, ShapeError

_CHUNK = 2_000_000


def history_log_likelihood(model: DesignModel, designs: Tensor, outcomes: Tensor, theta: Tensor) -> Tensor:
    """``log p(y_1 ... y_T | theta, designs)``, summed over the steps one at a time.

    Args:
        model: See :class:`seqbdl.acquisition.eig.DesignModel`.
        designs: ``... x T x d``; ``T`` may be 0.
        outcomes: ``... x T x m``.
        theta: ``... x p``, its leading dimensions broadcast with those before ``T``.

    Returns:
        The broadcast leading dimensions.
    """
    if designs.dim() < 2 or outcomes.dim() < 2 or designs.shape[-2] != outcomes.shape[-2]:
        raise ShapeError(
            f"designs has shape {tuple(designs.shape)}, outcomes {tuple(outcomes.shape)}; they need (... x) T x d and "
            "(... x) T x m"
        )
    shape = np.broadcast_shapes(designs.shape[:-2], outcomes.shape[:-2], theta.shape[:-1])
    total = torch.zeros(shape, dtype=torch.float64, device=theta.device)
    for t in range(designs.shape[-2]):
        total = total + log_likelihood(model, outcomes[..., t, :], theta, designs[..., t, :])
    return total


def sequence_bounds(
    model: DesignModel,
    designs: Tensor,
    outcomes: Tensor,
    theta: Tensor,
    num_contrastive: int,
    generator: torch.Generator | None = None,
) -> Bounds:
    """sPCE and sNMC: what a way of choosing designs teaches in ``T`` steps, from runs whose true parameters are known.

    A. Foster et al., "Deep adaptive design", ICML 2021, equations 10 and 12. Every run has contrastive draws of its own, at its
    own designs, so that the standard error is that of independent runs.

    Args:
        model: See :class:`seqbdl.acquisition.eig.DesignModel`.
        designs: ``R x T x d``, of ``R`` runs.
        outcomes: ``R x T x m``.
        theta: ``R x p``, the parameters that made the outcomes.
        num_contrastive: ``L``; the lower bound cannot exceed ``log(L + 1)``.
        generator: Of the contrastive draws; independent of whatever chose the designs.

    Returns:
        Scalar bounds.
    """
    if num_contrastive < 1:
        raise InvalidOptionError(f"num_contrastive={num_contrastive}; at least one draw")
    if designs.dim() != 3 or theta.dim() != 2 or theta.shape[0] != designs.shape[0]:
        raise ShapeError(
            f"designs has shape {tuple(designs.shape)}, theta {tuple(theta.shape)}; they need R x T x d and R x p, a row for "
            "each run"
        )
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    own = history_log_likelihood(model, designs, outcomes, theta)
    rests = []
    for run in range(theta.shape[0]):
        parts, left = [], num_contrastive
        while left:
            n = min(left, _CHUNK)
            parts.append(history_log_likelihood(model, designs[run], outcomes[run], model.sample(n, generator)).logsumexp(-1))
            left -= n
        rests.append(torch.stack(parts).logsumexp(-1))
    return _from_sums(own, torch.stack(rests), num_contrastive)


def _from_sums(own: Tensor, rest: Tensor, count: int, num_batches: int | None = None) -> Bounds:
    """Bounds from ``R`` log-likelihoods and the logs of the summed likelihoods of their ``count`` contrastive draws."""
    low = own - torch.logaddexp(own, rest) + math.log(count + 1)
    high = own - rest + math.log(count)
    lower = low.mean()
    error = torch.maximum(standard_error(low, num_batches), standard_error(high, num_batches))
    return Bounds(lower, high.mean(), error, lower > math.log(count + 1) - 1)


def information_of_history(
    model: DesignModel,
    designs: Tensor,
    outcomes: Tensor,
    posterior: ThetaSource,
    num_posterior: int = 256,
    num_contrastive: int = 10_000,
    num_batches: int = 8,
    generator: torch.Generator | None = None,
) -> Bounds:
    """What one history taught: bounds of ``KL(posterior || prior)`` where nobody knows the true parameters.

    For draws ``theta_0`` of the posterior the contrastive terms bound the divergence of this very history, from both sides:
    ``KL - E[lower]`` is itself a divergence (between a mixture over which draw is the posterior's, and prior draws), and the
    upper side is Jensen's inequality. They hold as far as the posterior that is handed in is the true one.

    Args:
        model: See :class:`seqbdl.acquisition.eig.DesignModel`.
        designs: ``T x d``.
        outcomes: ``T x m``.
        posterior: Of this history.
        num_posterior: Draws of the posterior; a multiple of ``num_batches`` is used.
        num_contrastive: Prior draws ``L`` in each batch.
        num_batches: Independent sets of contrastive draws.
        generator: Of all draws.

    Returns:
        Scalar bounds.
    """
    if num_batches < 2 or num_posterior < num_batches or num_contrastive < 1:
        raise InvalidOptionError(
            f"num_posterior={num_posterior}, num_contrastive={num_contrastive}, num_batches={num_batches}; there are at least "
            "two batches of one draw, and one contrastive draw"
        )
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    n = num_posterior - num_posterior % num_batches
    own = history_log_likelihood(model, designs, outcomes, posterior.sample(n, generator))
    rests = [
        history_log_likelihood(model, designs, outcomes, model.sample(num_contrastive, generator)).logsumexp(-1)
        for _ in range(num_batches)
    ]
    return _from_sums(own, torch.stack(rests).repeat_interleave(n // num_batches), num_contrastive, num_batches)
