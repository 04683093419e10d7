"""How arms are chosen from joint draws of their rewards: each policy turns ``S x K`` draws into ``K`` probabilities."""

from __future__ import annotations

import torch
from torch import Tensor

from seqbdl.errors import InvalidOptionError

POLICIES = ("thompson", "ucb", "ids", "epsilon-greedy", "greedy", "uniform")


def thompson_probs(draws: Tensor) -> Tensor:
    """How often each arm is the best of a draw, ties split evenly: the chances of Thompson sampling.

    Args:
        draws: ``S x K``; every row is one function, evaluated at all arms.

    Returns:
        ``K`` probabilities. A row picked at random and its best arm played is Thompson sampling with exactly these
        chances, given the draws.
    """
    return _best(draws).mean(0)


def greedy_probs(mean: Tensor) -> Tensor:
    """The arm with the best mean, ties split evenly; ``mean: K``."""
    return _best(mean.unsqueeze(0))[0]


def epsilon_greedy_probs(mean: Tensor, epsilon: float) -> Tensor:
    """Greedy, but any arm with probability ``epsilon``."""
    return (1.0 - epsilon) * greedy_probs(mean) + epsilon / mean.shape[0]


def ucb_probs(draws: Tensor, beta: float) -> Tensor:
    """The arm with the best mean plus ``beta`` standard deviations; ``draws: S x K``."""
    return greedy_probs(draws.mean(0) + beta * draws.std(0, correction=0))


def ids_probs(draws: Tensor) -> Tensor:
    """Variance-based information-directed sampling (Russo and Van Roy 2018, Proposition 6).

    Minimizes ``Delta(pi)^2 / v(pi)`` with ``Delta_a = E max - E theta_a`` and ``v_a = sum_b p(A* = b) (E[theta_a | A* = b] - E
    theta_a)^2``, whose optimum plays at most two arms: every pair is solved in closed form.

    Args:
        draws: ``S x K`` joint draws; independent draws per arm would carry no information of one arm about another.

    Returns:
        ``K`` probabilities, at most two of them positive, or those of the best mean where no arm informs.
    """
    best = _best(draws)  # S x K
    p = best.mean(0)
    sums = best.T @ draws / draws.shape[0]  # of b x a: p(b) E[theta_a | b]
    mean = sums.sum(0)
    # E max from the same sums: an arm that is always the best has regret exactly 0
    regret = (sums.diagonal().sum() - mean).clamp_min(0.0)
    conditional = sums / p.clamp_min(1e-300).unsqueeze(-1)
    gain = (p.unsqueeze(-1) * (conditional - mean).square()).sum(0)
    A, B = regret.unsqueeze(1) - regret, regret.unsqueeze(0).expand(len(p), -1)
    C, D = gain.unsqueeze(1) - gain, gain.unsqueeze(0).expand(len(p), -1)
    inner = (C * B - 2 * A * D) / torch.where(A * C == 0, torch.inf, A * C)
    shares = torch.stack([torch.zeros_like(A), torch.ones_like(A), inner.clamp(0.0, 1.0)])  # of the pair's first arm
    top, bottom = (A * shares + B).square(), C * shares + D
    ratio = torch.where(top <= 0, 0.0, torch.where(bottom <= 0, torch.inf, top / bottom.clamp_min(1e-300)))
    if not bool(torch.isfinite(ratio).any()):
        return greedy_probs(mean)
    which, a, b = (int(i) for i in torch.unravel_index(ratio.argmin(), ratio.shape))
    probs = torch.zeros_like(p)
    probs[a] += shares[which, a, b]
    probs[b] += 1.0 - shares[which, a, b]
    return probs


def _best(values: Tensor) -> Tensor:
    """``S x K``: 1 at the best of every row, split evenly among ties; rows with values that are not finite are left out."""
    fine = torch.isfinite(values).all(-1)
    if not bool(fine.all()):
        values = values[fine] if bool(fine.any()) else torch.zeros_like(values)
    ties = (values == values.amax(-1, keepdim=True)).to(values)
    return ties / ties.sum(-1, keepdim=True)


def check_policy(policy: str, epsilon: float, beta: float) -> None:
    """Refuse what is no policy."""
    if policy not in POLICIES:
        raise InvalidOptionError(f"policy={policy!r} is not one of {', '.join(map(repr, POLICIES))}")
    if not 0.0 <= epsilon <= 1.0:
        raise InvalidOptionError(f"epsilon={epsilon} is a probability")
    if not beta >= 0.0:
        raise InvalidOptionError(f"beta={beta} is a number of standard deviations, at least 0")
