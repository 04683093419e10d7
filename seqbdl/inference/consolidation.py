"""Quadratic penalties that hold weights where old tasks need them: elastic weight consolidation and synaptic intelligence.

Both add ``1/2 sum_i c_i (z_i - z*_i)^2`` to the sum over the data of minus the log likelihood. For EWC (Kirkpatrick et al. 2017)
``c = lambda F`` with ``F`` the diagonal of the Fisher information SUMMED over the old data (papers that average losses and ``F``
over rows mean the same lambda where tasks have equally many rows); ``lambda = 1`` is Bayes' rule under a diagonal
Laplace approximation. For SI (Zenke et al. 2017) ``c = 2 c' Omega`` with their ``c'``. As priors of the next fit they are
:func:`penalty_prior`.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import torch
from torch import Tensor

from seqbdl.errors import InvalidOptionError, ShapeError
from seqbdl.likelihoods import Likelihood
from seqbdl.networks import Network
from seqbdl.posteriors.mean_field import MeanField, MeanFieldPrior

FISHERS = ("all", "sample", "pred", "true")
_ENTRIES = 4_000_000  # of a linearized block of rows: 32 MB


def fisher_diagonal(
    network: Network,
    likelihood: Likelihood,
    z: Tensor,
    X: Tensor,
    noise: Tensor,
    kind: str = "all",
    Y: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Squared gradients of the log likelihood of every row by itself, summed over rows, ``P``.

    Args:
        network: Over whitened weights.
        likelihood: Of an observation.
        z: ``1 x P``, where.
        X: ``n x d``.
        noise: ``n x m`` noise variances.
        kind: Whose outcomes: ``"all"``: their expectation under the model, exactly; ``"sample"``: one draw from it per row;
            ``"pred"``: the most probable label; ``"true"``: those of the data (the "empirical Fisher").
        Y: ``n x t``, for ``"true"``.
        generator: For ``"sample"``.

    Raises:
        InvalidOptionError: There is no such kind, or what it needs is missing.
    """
    if kind not in FISHERS:
        raise InvalidOptionError(f"kind={kind!r} must be one of {', '.join(FISHERS)}")
    if kind == "true" and Y is None:
        raise InvalidOptionError('kind="true" needs the outcomes Y')
    if kind == "sample" and generator is None:
        raise InvalidOptionError('kind="sample" needs a generator')
    if kind == "pred" and likelihood.name != "categorical":
        raise InvalidOptionError(f'kind="pred" is for the categorical likelihood, not for {likelihood.name}')
    total = torch.zeros_like(z[0])
    size = max(1, _ENTRIES // network.tangent_size)
    for start in range(0, X.shape[0], size):
        rows = slice(start, start + size)
        here = network.tangents(z, X[rows])
        f = here.values[0]  # n x l
        if kind == "all":
            total = total + network.row_squares(here, likelihood.root(f, noise[rows]))
            continue
        if kind == "true":
            assert Y is not None
            outcomes = Y[rows]
        elif kind == "sample":
            assert generator is not None
            outcomes = likelihood.sample(f, noise[rows], generator)
        else:
            outcomes = f.argmax(-1, keepdim=True).to(f)
        score = likelihood.score(f, outcomes, noise[rows])
        total = total + network.row_squares(here, score.unsqueeze(-1))
    return total


def online_fisher(old: Tensor, new: Tensor, decay: float = 1.0) -> Tensor:
    """``gamma F_old + F_new``: one anchor for all tasks (Schwarz et al. 2018).

    Args:
        old: ``P``.
        new: ``P``.
        decay: ``gamma``, in [0, 1].
    """
    if not 0.0 <= decay <= 1.0:
        raise InvalidOptionError(f"decay={decay} must be in [0, 1]")
    return decay * old + new


def path_importance(path: Iterable[tuple[Tensor, Tensor]], xi: float = 0.1) -> Tensor:
    """Synaptic intelligence's ``Omega`` of one task: ``max(0, sum_t -g_t dz_t) / ((z_end - z_start)^2 + xi)``, ``P``.

    The sum is how much every weight lowered the loss on the way; with gradients of mini-batches, and with steps that are not
    small, approximately so.

    Args:
        path: The weights ``P`` and the gradient of the loss there, at every step, the end included.
        xi: Damping, positive.
    """
    if not xi > 0:
        raise InvalidOptionError(f"xi={xi} must be positive")
    points = list(path)
    if len(points) < 2:
        raise ShapeError(f"a path of {len(points)} points has no steps; give the start and the end at least")
    lowered = torch.zeros_like(points[0][0])
    for (here, gradient), (there, _) in pairwise(points):
        lowered = lowered - gradient * (there - here)
    return lowered.clamp_min(0.0) / ((points[-1][0] - points[0][0]).square() + xi)


def penalty_prior(anchor: Tensor, importance: Tensor, strength: float, precision: float = 1.0) -> MeanFieldPrior:
    """``1/2 sum_i (strength c_i + precision) (z_i - z*_i)^2`` as a prior, for :class:`seqbdl.inference.log_joint.LogJoint`.

    Args:
        anchor: ``P``, ``z*``.
        importance: ``P``, ``F``, or ``2 Omega``; not negative.
        strength: ``lambda``, or SI's ``c'``.
        precision: Of all weights beside it, positive: weights that no task needs are otherwise not held at all.
    """
    if anchor.shape != importance.shape or anchor.dim() != 1:
        raise ShapeError(f"anchor is {tuple(anchor.shape)} and importance {tuple(importance.shape)}; both are P numbers")
    if not strength >= 0 or not precision > 0 or bool((importance < 0).any()):
        raise InvalidOptionError(f"strength={strength}, precision={precision}: neither they nor importances may be negative")
    return MeanFieldPrior(MeanField(anchor.unsqueeze(0), (strength * importance + precision).rsqrt().unsqueeze(0)))
