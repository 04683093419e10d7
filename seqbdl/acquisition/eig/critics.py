"""Bounds of information from a critic, a trained function that tells pairs from strangers: no likelihood is needed."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from seqbdl.acquisition.eig.bounds import Bounds
from seqbdl.acquisition.eig.contrastive import standard_error
from seqbdl.acquisition.eig.perceptron import Perceptron
from seqbdl.errors import InvalidDataError, ShapeError


def infonce_bound(scores: Tensor) -> Bounds:
    """The lower bound ``E[T(y_i, theta_i) - log mean_j exp T(y_i, theta_j)]``, at most ``log n``.

    A. van den Oord, Y. Li and O. Vinyals, "Representation learning with contrastive predictive coding", 2018; B. Poole et al.,
    "On variational bounds of mutual information", ICML 2019, equation 10. It holds for every critic that did not see the pairs.

    Args:
        scores: ``... x B x n x n``: ``B`` independent sets of ``n`` pairs; entry ``i, j`` is ``T(y_i, theta_j)``.

    Returns:
        Bounds of shape ``...`` without an upper side.
    """
    _check(scores)
    values = scores.double()
    count = values.shape[-1]
    terms = values.diagonal(dim1=-2, dim2=-1) - values.logsumexp(-1) + math.log(count)
    lower = terms.mean((-2, -1))
    return Bounds(lower, None, standard_error(terms.mean(-1), None), lower.detach() > math.log(count) - 1)


def nwj_bound(scores: Tensor) -> Bounds:
    """The lower bound ``E[T(y_i, theta_i)] - E[exp(T(y_i, theta_j) - 1)]``; without a ceiling, and noisy above some five nats.

    X. Nguyen, M. Wainwright and M. Jordan, "Estimating divergence functionals and the likelihood ratio by convex risk
    minimization", IEEE Transactions on Information Theory 2010.

    Args:
        scores: As for :func:`infonce_bound`, ``n`` at least 2.
    """
    _check(scores)
    values = scores.double()
    n = values.shape[-1]
    if n < 2:
        raise ShapeError("scores holds one pair in each set; strangers are needed too")
    own = values.diagonal(dim1=-2, dim2=-1)
    strangers = ((values - 1).exp().sum((-2, -1)) - (own - 1).exp().sum(-1)) / (n * (n - 1))
    terms = own.mean(-1) - strangers
    lower = terms.mean(-1)
    return Bounds(lower, None, standard_error(terms, None), torch.zeros_like(lower, dtype=torch.bool))


def _check(scores: Tensor) -> None:
    if scores.dim() < 3 or scores.shape[-1] != scores.shape[-2] or 0 in scores.shape:
        raise ShapeError(f"scores has shape {tuple(scores.shape)}; it needs (... x) B x n x n, a square for each set of pairs")
    if not bool(scores.isfinite().all()):
        raise InvalidDataError(f"scores is NaN or infinite at {tuple(int(i) for i in (~scores.isfinite()).nonzero()[0])}")


BOUNDS = {"infonce": infonce_bound, "nwj": nwj_bound}
"""The objectives that train a critic, by name."""


class SeparableCritic(torch.nn.Module):
    """``T(y, theta) = 1 + a(y) . b(theta)`` with two networks: ``n^2`` pairs cost ``2 n`` evaluations.

    The one is the value of a critic that knows nothing under the bound of Nguyen, Wainwright and Jordan.

    Args:
        outcome_dim: Entries of what is observed.
        theta_dim: Entries of what is asked about.
        hidden: Width of the hidden layer of both.
        code: Entries of the codes whose inner product is taken.
        generator: Of the first weights.
        stack: Critics on a leading axis, see :class:`Perceptron`.
    """

    def __init__(
        self, outcome_dim: int, theta_dim: int, hidden: int, code: int, generator: torch.Generator, stack: int | None = None
    ) -> None:
        super().__init__()
        self.of_outcome = Perceptron((outcome_dim, hidden, hidden, code), generator, stack)
        self.of_theta = Perceptron((theta_dim, hidden, hidden, code), generator, stack)

    def forward(self, outcomes: Tensor, theta: Tensor) -> Tensor:
        """``... x n x n'`` for outcomes ``... x n x m`` and parameters ``... x n' x g``."""
        return 1 + self.of_outcome(outcomes) @ self.of_theta(theta).mT
