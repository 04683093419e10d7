"""Information about a part of the parameters, the others being averaged over."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from seqbdl.acquisition.eig.bounds import Bounds
from seqbdl.acquisition.eig.contrastive import standard_error
from seqbdl.errors import InvalidDataError, ShapeError


def nuisance_bounds(log_primary: Tensor, log_nuisance: Tensor, log_contrast: Tensor, num_batches: int | None = None) -> Bounds:
    """Bounds of the information of ``y`` about ``psi``, where ``theta = (psi, eta)`` and ``eta`` is of no interest.

    With ``eta_1 ... eta_M`` drawn given the true ``psi_0``, and ``theta_1 ... theta_L`` drawn from the prior, the lower side is
    ``E[log mean_{m=1..M} p(y|psi_0, eta_m) - log mean_{l=0..L} p(y|theta_l)]`` and the upper side
    ``E[log mean_{m=0..M} p(y|psi_0, eta_m) - log mean_{l=1..L} p(y|theta_l)]``: the logarithm of an average over draws that the
    outcome did not come of is too small by Jensen's inequality, one that holds the draw it came of is too large (R. Grosse,
    Z. Ghahramani and R. Adams, "Sandwiching the marginal likelihood using bidirectional Monte Carlo", 2015). Both gaps close as
    ``M`` and ``L`` grow.

    Args:
        log_primary: ``... x N``, ``log p(y_n | theta_n0)``.
        log_nuisance: ``... x N x M``, ``log p(y_n | psi_n0, eta_nm)``.
        log_contrast: ``... x N x L``, ``log p(y_n | theta_nl)``.
        num_batches: As for :func:`seqbdl.acquisition.eig.contrastive_bounds`.

    Returns:
        Bounds of shape ``...``.

    Raises:
        ShapeError: Shapes that do not fit.
        InvalidDataError: NaN, infinite values, or outcomes that their own parameters cannot have.
        InvalidOptionError: ``N`` is no multiple of ``num_batches``.
    """
    own, same, other = log_primary.double(), log_nuisance.double(), log_contrast.double()
    if same.shape[:-1] != own.shape or other.shape[:-1] != own.shape or 0 in same.shape or 0 in other.shape:
        raise ShapeError(
            f"log_primary has shape {tuple(own.shape)}, log_nuisance {tuple(same.shape)}, log_contrast {tuple(other.shape)}; "
            "they need (... x) N, N x M and N x L"
        )
    for name, value in (("log_primary", own), ("log_nuisance", same), ("log_contrast", other)):
        bad = value.isnan() | (value == math.inf)
        if bool(bad.any()):
            raise InvalidDataError(f"{name} is NaN or infinite at {tuple(int(i) for i in bad.nonzero()[0])}")
    if bool((own == -math.inf).any()):
        raise InvalidDataError("log_primary is -inf: an outcome is impossible under the parameter that made it")
    few, many = same.shape[-1], other.shape[-1]
    given, rest = same.logsumexp(-1), other.logsumexp(-1)
    low = given - math.log(few) - torch.logaddexp(own, rest) + math.log(many + 1)
    high = torch.logaddexp(own, given) - math.log(few + 1) - rest + math.log(many)
    lower, upper = low.mean(-1), high.mean(-1)
    error = torch.maximum(standard_error(low, num_batches), standard_error(high, num_batches))
    return Bounds(lower, upper, error, lower.detach() > math.log(many + 1) - 1)
