"""How much the label of a point would tell: scores of class probabilities under function draws.

Every function takes log-probabilities ``n x N x C``: ``n`` functions drawn once from the posterior, the SAME functions at
all ``N`` points and, for EPIG, at the targets. What comes back has one number for each point, in float64; entropies and
informations are in nats. The work is done in chunks of points: memory beyond the arguments does not grow with ``N``.

Plug-in estimates from ``n`` draws are too large, by ``(C - 1) / (2 n)`` at most in leading order: take 50 draws or more.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from seqbdl.acquisition._pool_inputs import VALUES_AT_ONCE, check_log_probs, check_weights, row_chunks
from seqbdl.errors import ShapeError


def predictive_entropy(log_probs: Tensor) -> Tensor:
    """Entropy of the mean prediction, ``N``: 0 to ``log C``; large for noisy labels and for unknown ones alike.

    Args:
        log_probs: ``n x N x C``.
    """
    return _by_rows(check_log_probs("log_probs", log_probs), lambda part: _entropy(_mean(part)))


def margin(log_probs: Tensor) -> Tensor:
    """Probability of the most probable class less that of the next, of the mean prediction, ``N``: SMALL is uncertain.

    Args:
        log_probs: ``n x N x C``.
    """

    def difference(part: Tensor) -> Tensor:
        top = _mean(part).exp().topk(2, dim=-1).values
        return top[..., 0] - top[..., 1]

    return _by_rows(check_log_probs("log_probs", log_probs), difference)


def variation_ratio(log_probs: Tensor) -> Tensor:
    """One less the largest probability of the mean prediction, ``N``: 0 to ``1 - 1/C``.

    The form that Gal, Islam and Ghahramani, "Deep Bayesian active learning with image data", ICML 2017, and the codes of
    BatchBALD and EPIG use; not that of the votes, :func:`vote_variation_ratio`.

    Args:
        log_probs: ``n x N x C``.
    """
    return _by_rows(check_log_probs("log_probs", log_probs), lambda part: 1.0 - _mean(part).amax(-1).exp())


def vote_variation_ratio(log_probs: Tensor) -> Tensor:
    """Share of draws that do not vote for the most voted class, ``N``: 0 to ``1 - 1/C``.

    Freeman, "Elementary applied statistics", 1965; Beluch et al., "The power of ensembles for active learning in image
    classification", CVPR 2018. A draw votes for its most probable class, the first of equal ones.

    Args:
        log_probs: ``n x N x C``, ``n >= 2``.
    """

    def ratio(part: Tensor) -> Tensor:
        votes = torch.nn.functional.one_hot(part.argmax(-1), part.shape[-1]).sum(0)  # N x C
        return 1.0 - votes.amax(-1).double() / part.shape[0]

    return _by_rows(check_log_probs("log_probs", log_probs, min_draws=2), ratio)


def mean_standard_deviation(log_probs: Tensor) -> Tensor:
    """Standard deviation of the probabilities over draws, averaged over classes, ``N``.

    Kampffmeyer, Salberg and Jenssen, CVPR workshops 2016; Kendall, Badrinarayanan and Cipolla, "Bayesian SegNet", BMVC 2017.

    Args:
        log_probs: ``n x N x C``, ``n >= 2``.
    """

    def deviation(part: Tensor) -> Tensor:
        return part.exp().var(0, correction=0).sqrt().mean(-1)

    return _by_rows(check_log_probs("log_probs", log_probs, min_draws=2), deviation)


def expected_entropy(log_probs: Tensor) -> Tensor:
    """Mean over draws of the entropy of their predictions, ``N``: the part of the entropy that no label removes.

    Args:
        log_probs: ``n x N x C``.
    """
    return _by_rows(check_log_probs("log_probs", log_probs), lambda part: _entropy(part).mean(0))


def bald(log_probs: Tensor) -> Tensor:
    """Mutual information of a label and the function, ``N``: 0 to ``min(log C, log n)``, up to rounding.

    ``H[mean_k p_k] - mean_k H[p_k]``: Houlsby, Huszár, Ghahramani and Lengyel, "Bayesian active learning for
    classification and preference learning", 2011.

    Args:
        log_probs: ``n x N x C``, ``n >= 2``.
    """
    return _by_rows(
        check_log_probs("log_probs", log_probs, min_draws=2), lambda part: _entropy(_mean(part)) - _entropy(part).mean(0)
    )


def epig(log_probs: Tensor, target_log_probs: Tensor, target_weights: Tensor | None = None) -> Tensor:
    """Mutual information of a point's label and that of a target point, averaged over targets, ``N``: 0 to BALD.

    Bickford Smith, Kirsch, Farquhar, Gal, Foster and Rainforth, "Prediction-oriented Bayesian active learning", AISTATS
    2023. Targets are inputs from where the model will be used, NOT the labelled ones.

    Args:
        log_probs: ``n x N x C``, ``n >= 2``.
        target_log_probs: ``n x M x C``, of the same ``n`` functions.
        target_weights: ``M`` non-negative weights of the targets, need not be normalized: density ratios where the targets
            come from another distribution than that of use. Equal by default.

    Raises:
        ShapeError: The two have different numbers of draws.
        InvalidDataError: Probabilities do not sum to one, or a weight is negative.
    """
    pool = check_log_probs("log_probs", log_probs, min_draws=2)
    targets = check_log_probs("target_log_probs", target_log_probs, min_draws=2)
    n, M, C = targets.shape
    if pool.shape[0] != n:
        raise ShapeError(f"log_probs has {pool.shape[0]} draws, target_log_probs has {n}; evaluate the same functions at both")
    weights = check_weights(target_weights, M, targets)
    per_pair = pool.shape[-1] * C
    several = max(1, min(M, VALUES_AT_ONCE // per_pair))  # targets at once
    marginal = _by_rows(targets, lambda part: _entropy(_mean(part))) @ weights
    scores = []
    for _, part in row_chunks(pool, held_per_row=max(per_pair * several, n * pool.shape[-1])):
        rows = part.shape[1]
        probs = part.exp().flatten(1).T / n  # (N C) x n
        joint = part.new_zeros(rows)
        for start in range(0, M, several):
            there = targets[:, start : start + several].double().exp().flatten(1)  # n x (M C)
            entropies = torch.special.entr(probs @ there).reshape(rows, pool.shape[-1], -1, C).sum((1, 3))  # N x M
            joint += entropies @ weights[start : start + several]
        scores.append(_entropy(_mean(part)) + marginal - joint)
    return torch.cat(scores)


def draw_entropies_and_information(log_probs: Tensor) -> tuple[Tensor, Tensor]:
    """Entropy of every draw's prediction, ``n x N``, and BALD, ``N``, of checked log-probabilities ``n x N x C``."""
    entropies, informations = [], []
    for _, part in row_chunks(log_probs):
        p = part.exp()
        entropies.append(torch.where(p > 0, p * part, 0.0).sum(-1).neg_())
        informations.append(torch.special.entr(p.mean(0)).sum(-1) - entropies[-1].mean(0))
    return torch.cat(entropies, dim=1), torch.cat(informations)


def _by_rows(log_probs: Tensor, score: Callable[[Tensor], Tensor]) -> Tensor:
    return torch.cat([score(part) for _, part in row_chunks(log_probs)])


def _mean(part: Tensor) -> Tensor:
    """Log of the mean probability over draws, ``N x C``."""
    return part.logsumexp(0) - math.log(part.shape[0])


def _entropy(log_p: Tensor) -> Tensor:
    """Entropy over the last dimension; a class that is ruled out adds nothing."""
    p = log_p.exp()
    return -torch.where(p > 0, p * log_p, 0.0).sum(-1)
