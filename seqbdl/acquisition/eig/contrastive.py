"""Nested Monte Carlo and contrastive estimation: one set of draws, a bound from either side."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from seqbdl.acquisition.eig.bounds import Bounds
from seqbdl.errors import InvalidDataError, InvalidOptionError, ShapeError


def contrastive_bounds(
    log_primary: Tensor,
    log_contrast: Tensor,
    primary_log_weights: Tensor | None = None,
    contrast_log_weights: Tensor | None = None,
    num_batches: int | None = None,
) -> Bounds:
    """Bounds of the information from likelihoods under the true parameter and under contrastive ones.

    With ``theta_0`` and ``y`` drawn together, and ``theta_1 ... theta_L`` drawn apart, the terms are
    ``log p(y|theta_0) - log mean_{l=0..L} p(y|theta_l)``, whose expectation is a lower bound of at most ``log(L + 1)`` (prior
    contrastive estimation, A. Foster et al., "A unified stochastic gradient approach to designing Bayesian-optimal experiments",
    AISTATS 2020), and the same without ``l = 0``, an upper bound (nested Monte Carlo, T. Rainforth et al., "On nesting Monte
    Carlo estimators", ICML 2018). With contrastive draws from a proposal ``q(theta|y)`` and log-weights ``log p(theta) - log
    q(theta|y)`` they are adaptive contrastive estimation and variational nested Monte Carlo (A. Foster et al., "Variational
    Bayesian optimal experimental design", NeurIPS 2019). Likelihoods of whole sequences make them sPCE and sNMC.

    Args:
        log_primary: ``... x N``, ``log p(y_n | theta_n0)``.
        log_contrast: ``... x N x L``, ``log p(y_n | theta_nl)``; ``-inf`` where impossible.
        primary_log_weights: ``... x N``, of ``theta_n0`` under the proposal; by default the prior is the proposal.
        contrast_log_weights: ``... x N x L``, of ``theta_nl``.
        num_batches: Where consecutive blocks of the ``N`` terms share their contrastive draws: how many blocks. The standard
            error is then that of the blocks' means, since terms of a block err together.

    Returns:
        Bounds of shape ``...``.

    Raises:
        ShapeError: Shapes that do not fit, or no draws.
        InvalidDataError: NaN, or an outcome that its own parameter cannot have.
        InvalidOptionError: ``N`` is no multiple of ``num_batches``, or there are fewer than 2.
    """
    _check(log_primary, log_contrast)
    own, other = log_primary.double(), log_contrast.double()
    weighted = own if primary_log_weights is None else own + primary_log_weights.double()
    if contrast_log_weights is not None:
        other = other + contrast_log_weights.double()
    count = other.shape[-1]
    rest = other.logsumexp(-1)
    low = own - torch.logaddexp(weighted, rest) + math.log(count + 1)
    high = own - rest + math.log(count)
    lower, upper = low.mean(-1), high.mean(-1)
    error = torch.maximum(standard_error(low, num_batches), standard_error(high, num_batches))
    return Bounds(lower, upper, error.detach(), lower.detach() > math.log(count + 1) - 1)


def standard_error(terms: Tensor, num_batches: int | None) -> Tensor:
    """Of the mean over the last dimension; from the means of consecutive batches where terms of a batch err together."""
    terms = terms.detach()
    n = terms.shape[-1]
    if num_batches is not None:
        if num_batches < 2 or n % num_batches:
            raise InvalidOptionError(f"num_batches={num_batches} for {n} terms; give a divisor of at least 2")
        terms = terms.unflatten(-1, (num_batches, -1)).mean(-1)
    if terms.shape[-1] < 2:
        return torch.full(terms.shape[:-1], math.inf, dtype=terms.dtype, device=terms.device)
    finite = terms.isfinite().all(-1)
    error = torch.where(finite.unsqueeze(-1), terms, torch.zeros_like(terms)).std(-1) / math.sqrt(terms.shape[-1])
    return torch.where(finite, error, torch.full_like(error, math.inf))


def _check(log_primary: Tensor, log_contrast: Tensor) -> None:
    if log_primary.dim() < 1 or log_contrast.shape[:-1] != log_primary.shape or 0 in log_contrast.shape:
        raise ShapeError(
            f"log_primary has shape {tuple(log_primary.shape)}, log_contrast {tuple(log_contrast.shape)}; they need (... x) N, "
            "(... x) N x L, and at least one draw of each"
        )
    for name, value in (("log_primary", log_primary), ("log_contrast", log_contrast)):
        if bool((value.isnan() | (value == math.inf)).any()):
            where = tuple(int(i) for i in (value.isnan() | (value == math.inf)).nonzero()[0])
            raise InvalidDataError(f"{name} is NaN or infinite at {where}; mend the model's log_prob")
    if bool((log_primary == -math.inf).any()):
        where = tuple(int(i) for i in (log_primary == -math.inf).nonzero()[0])
        raise InvalidDataError(f"log_primary is -inf at {where}: the outcome is impossible under the parameter that made it")
