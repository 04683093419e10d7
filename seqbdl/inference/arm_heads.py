"""Bayesian linear regression of the rewards of many arms on shared features: exact, recursive, forgetful, transferable.

Arm ``k``: ``r = phi(x)^T w_k + e``, ``e ~ N(0, s2_k)``, ``w_k | s2_k ~ N(0, s2_k / alpha I)``, ``s2_k ~ InvGamma(a0, b0)``. All
arms stand on one leading axis. Rows ``phi: n x F`` enter by ``e = r - phi m``, ``A' = A + phi^T phi``, ``s = A'^{-1} phi^T e``:
``m += s``, ``a += n/2``, ``b += (|e - phi s|^2 + s^T A s) / 2`` (of one row ``e^2 / (2 q)``, ``q = 1 + phi A^{-1} phi^T``): sums
of squares, never a difference of large numbers. Rows of one arm may come in any order and any split.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from seqbdl.posteriors.joint_gaussian import safe_cholesky

_SAME_DIRECTION = 1e-9  # of singular values: rows this near to a combination of others inform nothing new


@dataclass(frozen=True)
class ArmPrior:
    """What is assumed of every arm.

    Attributes:
        precision: ``alpha`` of the weights, relative to the noise precision.
        a0: Shape of the noise's inverse-gamma prior.
        b0: Its scale.
    """

    precision: float
    a0: float
    b0: float


@dataclass(frozen=True)
class ArmHeads:
    """What is known of every arm.

    Attributes:
        mean: ``K x F`` weights.
        factor: ``K x F x F`` lower Cholesky factors of the unit-noise precisions ``A``.
        a: ``K`` shapes of the noise posteriors.
        b: ``K`` scales of the noise posteriors.
        log_evidence: ``K``, of the rows absorbed.
    """

    mean: Tensor
    factor: Tensor
    a: Tensor
    b: Tensor
    log_evidence: Tensor


def prior_heads(num_arms: int, num_features: int, prior: ArmPrior) -> ArmHeads:
    """No rows yet."""
    one = torch.ones(num_arms, dtype=torch.float64)
    factor = math.sqrt(prior.precision) * torch.eye(num_features, dtype=torch.float64).expand(num_arms, -1, -1).clone()
    return ArmHeads(torch.zeros(num_arms, num_features, dtype=torch.float64), factor, prior.a0 * one, prior.b0 * one, 0.0 * one)


def absorb_arm_rows(state: ArmHeads, features: Tensor, arms: Tensor, rewards: Tensor) -> ArmHeads:
    """Add rows, each to its arm: ``O(n F^2 + F^3)`` work, however many come at once.

    Args:
        state: What was known.
        features: ``n x F``.
        arms: ``n`` indices.
        rewards: ``n``.
    """
    mean, factor, a, b, evidence = (t.clone() for t in (state.mean, state.factor, state.a, state.b, state.log_evidence))
    for k in arms.unique().tolist():
        rows = arms == k
        phi, n = features[rows], int(rows.sum())
        old, gap = factor[k], rewards[rows] - phi @ mean[k]
        new = safe_cholesky(old @ old.T + phi.T @ phi)
        step = torch.cholesky_solve((phi.T @ gap).unsqueeze(-1), new).squeeze(-1)
        # gap^T Q^{-1} gap and log det Q of the rows' covariance Q = I + phi A^{-1} phi^T, without the n x n matrix
        surprise = (gap - phi @ step).square().sum() + (old.T @ step).square().sum()
        log_det = 2 * (new.diagonal().log() - old.diagonal().log()).sum()
        mean[k] += step
        a_new, b_new = a[k] + 0.5 * n, b[k] + 0.5 * surprise
        evidence[k] += torch.lgamma(a_new) - torch.lgamma(a[k]) + a[k] * b[k].log() - a_new * b_new.log()
        evidence[k] -= 0.5 * (log_det + n * math.log(2 * math.pi))
        factor[k], a[k], b[k] = new, a_new, b_new
    return ArmHeads(mean, factor, a, b, evidence)


def forget(state: ArmHeads, prior: ArmHeads, gamma: float) -> ArmHeads:
    """Stabilized exponential forgetting: natural parameters ``gamma eta + (1 - gamma) eta_0``, towards the prior.

    Precisions never fall below the prior's, however long no row comes (plain exponential forgetting winds up). ``b`` follows
    from its natural parameter ``b + m^T A m / 2`` as a sum of nonnegative terms.

    Args:
        state: What was known.
        prior: What it decays to.
        gamma: In ``(0, 1]``.
    """
    old, base = state.factor @ state.factor.mT, prior.factor @ prior.factor.mT
    factor = safe_cholesky(gamma * old + (1 - gamma) * base)
    gap = (state.mean - prior.mean).unsqueeze(-1)  # K x F x 1
    pulled = torch.cholesky_solve(gamma * (old @ gap), factor)
    between = ((1 - gamma) * (base @ gap) * pulled).sum((-2, -1))
    return ArmHeads(
        prior.mean + pulled.squeeze(-1),
        factor,
        gamma * state.a + (1 - gamma) * prior.a,
        gamma * state.b + (1 - gamma) * prior.b + 0.5 * between.clamp_min(0.0),
        state.log_evidence,
    )


def forget_exponentially(state: ArmHeads, gamma: float) -> ArmHeads:
    """Exponential forgetting: precisions, shapes and scales times ``gamma``, means stay; of the weights it is a Kalman filter
    with process noise ``(1 / gamma - 1) Sigma``. In directions that no row excites the precision dies out.

    Args:
        state: What was known.
        gamma: In ``(0, 1]``.
    """
    return ArmHeads(state.mean, gamma**0.5 * state.factor, gamma * state.a, gamma * state.b, state.log_evidence)


def forget_directions(state: ArmHeads, features: Tensor, arms: Tensor, gamma: float) -> ArmHeads:
    """Forgetting in the subspace that new rows ``X`` of an arm inform (Lai and Bernstein 2024): ``A - (1 - gamma) A X^T (X A
    X^T)^{-1} X A``. What no row speaks of is kept, however long; arms without rows forget nothing. Noise posteriors of the others
    are forgotten exponentially.

    Args:
        state: What was known.
        features: ``n x F``, of the rows about to be absorbed.
        arms: ``n``.
        gamma: In ``(0, 1]``.
    """
    factor, a, b = state.factor.clone(), state.a.clone(), state.b.clone()
    for k in arms.unique().tolist():
        # A = L L^T, so that what is taken away is L (1 - gamma) Q Q^T L^T, with Q spanning L^T X^T
        basis, sizes, _ = torch.linalg.svd(state.factor[k].T @ features[arms == k].T, full_matrices=False)
        informed = basis[:, sizes > _SAME_DIRECTION * sizes[0]]
        kept = torch.eye(basis.shape[0]).to(basis) - (1 - gamma) * informed @ informed.T
        factor[k] = safe_cholesky(state.factor[k] @ kept @ state.factor[k].T)
        a[k], b[k] = gamma * a[k], gamma * b[k]
    return ArmHeads(state.mean, factor, a, b, state.log_evidence)


def draw_weights(state: ArmHeads, n: int, generator: torch.Generator) -> Tensor:
    """``n x K x F`` weights, noise variances drawn first: arms are independent given the features."""
    K, F = state.mean.shape
    gamma = torch._standard_gamma(state.a.expand(n, K).contiguous(), generator=generator)
    white = torch.randn(n, K, F, 1, generator=generator, dtype=torch.float64)
    spread = torch.linalg.solve_triangular(state.factor.mT, white, upper=True).squeeze(-1)
    return state.mean + (state.b / gamma).sqrt().unsqueeze(-1) * spread


def log_density(state: ArmHeads, features: Tensor, arm: int, reward: float) -> float:
    """Log of the Student-t predictive density of one reward; ``features: F``."""
    spread = torch.linalg.solve_triangular(state.factor[arm], features.unsqueeze(-1), upper=False)
    scale = (state.b[arm] / state.a[arm] * (1 + spread.square().sum())).sqrt()
    law = torch.distributions.StudentT(2 * state.a[arm], features @ state.mean[arm], scale)
    return float(law.log_prob(features.new_tensor(reward)))


def match_heads(state: ArmHeads, old: Tensor, new: Tensor, arms: Tensor, prior: ArmHeads, steps: int = 100) -> ArmHeads:
    """Carry beliefs over to other features by likelihood matching (Nabati, Zahavy and Mannor 2021).

    Of every arm the covariance ``S`` under the new features gives remembered rows the variances that they had, ``min_S sum_j
    (phi_new_j^T S phi_new_j - phi_old_j^T A^{-1} phi_old_j)^2``, by projected gradients from the prior's; no direction becomes
    more certain than the most certain row says (the paper projects on ``S >= 0``, and then directions that rows hardly see
    become certain, and what is wrong about them is never learned again). Means are matched at the same rows by ridge
    regression. Noise posteriors stay. Arms without rows keep their prior.

    Args:
        state: Under the old features.
        old: ``n x F`` old features of the remembered rows.
        new: ``n x F'`` new ones.
        arms: ``n``.
        prior: Under the new features; where matching begins.
        steps: Projected gradient steps.
    """
    mean, factor = prior.mean.clone(), prior.factor.clone()
    for k in arms.unique().tolist():
        was, now = old[arms == k], new[arms == k]
        wanted = torch.linalg.solve_triangular(state.factor[k], was.T, upper=False).square().sum(0)
        floor = wanted.min() / now.square().sum(-1).max()
        rate = 1.0 / torch.linalg.eigvalsh((now @ now.T).square())[-1].clamp_min(1e-12)
        S = torch.cholesky_inverse(prior.factor[k])
        for _ in range(steps):
            gap = ((now @ S) * now).sum(-1) - wanted
            values, vectors = torch.linalg.eigh(S - rate * (now.T @ (gap.unsqueeze(-1) * now)))
            S = (vectors * values.clamp_min(floor)) @ vectors.T
        precision = torch.cholesky_inverse(safe_cholesky(S))
        factor[k] = safe_cholesky(0.5 * (precision + precision.T))
        gram = now.T @ now + 1e-3 * torch.eye(now.shape[1]).to(now)
        mean[k] = torch.cholesky_solve((now.T @ (was @ state.mean[k])).unsqueeze(-1), safe_cholesky(gram)).squeeze(-1)
    return ArmHeads(mean, factor, state.a, state.b, state.log_evidence)


def change_prior(state: ArmHeads, old: ArmPrior, new: ArmPrior) -> ArmHeads:
    """The posterior of the same rows under another prior, exactly, without the rows: ``A' = A + (alpha' - alpha) I``, ``A' m' = A
    m``, ``b' = b + b0' - b0 + (alpha' - alpha) m'^T m / 2``.

    Args:
        state: Under ``old``; nothing forgotten.
        old: The prior that it began with.
        new: Another.
    """
    gram, vectors, moment = _spectrum(state, old)
    values = gram + new.precision
    mean = (vectors @ (moment / values).unsqueeze(-1)).squeeze(-1)
    factor = safe_cholesky((vectors * values.unsqueeze(-2)) @ vectors.mT)
    b = state.b + new.b0 - old.b0 + 0.5 * (new.precision - old.precision) * (mean * state.mean).sum(-1)
    return ArmHeads(mean, factor, state.a + new.a0 - old.a0, b, _evidence(state, old, new, gram, moment))


def tune_prior(state: ArmHeads, old: ArmPrior, precision: bool = True, b0: bool = True) -> ArmPrior:
    """The prior, shared by all arms, that maximizes the evidence of the rows absorbed, on a grid around the old one (a factor of
    ``e^4`` either way; repeated calls go farther).

    Args:
        state: Under ``old``.
        old: The prior that it began with.
        precision: Whether ``alpha`` is tuned.
        b0: Whether ``b0`` is.
    """
    gram, _, moment = _spectrum(state, old)
    factors = torch.linspace(-4.0, 4.0, 33, dtype=torch.float64).exp().tolist()
    candidates = [
        ArmPrior(old.precision * (p if precision else 1.0), old.a0, old.b0 * (q if b0 else 1.0))
        for p in (factors if precision else [1.0])
        for q in (factors if b0 else [1.0])
    ]
    return max(candidates, key=lambda new: float(_evidence(state, old, new, gram, moment).sum()))


def _spectrum(state: ArmHeads, old: ArmPrior) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvalues ``K x F`` and vectors of ``sum phi phi^T``, and ``sum phi r`` in their basis, ``K x F``."""
    precision = state.factor @ state.factor.mT
    values, vectors = torch.linalg.eigh(precision)
    moment = (vectors.mT @ (precision @ state.mean.unsqueeze(-1))).squeeze(-1)
    return (values - old.precision).clamp_min(0.0), vectors, moment


def _evidence(state: ArmHeads, old: ArmPrior, new: ArmPrior, gram: Tensor, moment: Tensor) -> Tensor:
    """Log evidence of every arm under the new prior, ``K``."""
    gap = (moment.square() / ((gram + old.precision) * (gram + new.precision))).sum(-1)
    a, b = state.a + new.a0 - old.a0, state.b + new.b0 - old.b0 + 0.5 * (new.precision - old.precision) * gap
    log_det = (math.log(new.precision) - (gram + new.precision).log()).sum(-1)
    marginal = torch.lgamma(a) - math.lgamma(new.a0) + new.a0 * math.log(new.b0) - a * b.log()
    return marginal + 0.5 * log_det - (state.a - old.a0) * math.log(2 * math.pi)
