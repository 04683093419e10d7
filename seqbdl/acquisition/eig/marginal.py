"""Upper bounds from a fitted distribution of outcomes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from seqbdl.acquisition.eig.bounds import Bounds
from seqbdl.errors import InvalidDataError, ShapeError


def marginal_bound(log_primary: Tensor, outcomes: Tensor) -> Bounds:
    """``E[log p(y|theta) - log q(y)]`` with a normal ``q`` fitted to one half of the outcomes, evaluated on the other.

    An upper bound in expectation, off by how far ``q`` is from the outcomes' distribution; exact in the limit where outcomes are
    normal (the marginal estimator of A. Foster et al., "Variational Bayesian optimal experimental design", NeurIPS 2019).
    It needs no contrastive draws, so that it is never saturated.

    Args:
        log_primary: ``... x N``, ``log p(y_n | theta_n)`` for a continuous outcome.
        outcomes: ``... x N x m``, the ``y_n``; ``N`` at least ``2 (m + 2)``.

    Raises:
        ShapeError: Shapes that do not fit, or too few draws.
        InvalidDataError: Outcomes without spread, for which a density does not exist.
    """
    if outcomes.dim() < 2 or outcomes.shape[:-1] != log_primary.shape:
        raise ShapeError(
            f"outcomes has shape {tuple(outcomes.shape)}; log_primary {tuple(log_primary.shape)} needs (... x) N x m"
        )
    n, m = outcomes.shape[-2:]
    if n < 2 * (m + 2):
        raise ShapeError(f"{n} outcomes of {m} numbers; the fit needs at least {2 * (m + 2)}")
    half = n // 2
    fit, rest = outcomes[..., :half, :].double(), outcomes[..., half:, :].double()
    centred = fit - fit.mean(-2, keepdim=True)
    factor, info = torch.linalg.cholesky_ex(centred.mT @ centred / half)
    if bool((info > 0).any()):
        raise InvalidDataError("outcomes do not vary in every direction; a normal density cannot be fitted to them")
    z = torch.linalg.solve_triangular(factor, (rest - fit.mean(-2, keepdim=True)).mT, upper=False)
    log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1, keepdim=True)
    log_q = -0.5 * z.square().sum(-2) - log_det - 0.5 * m * math.log(2 * math.pi)
    terms = log_primary[..., half:].double() - log_q
    upper = terms.mean(-1)
    error = terms.std(-1) / math.sqrt(n - half)
    return Bounds(None, upper, error, torch.zeros_like(upper, dtype=torch.bool))
