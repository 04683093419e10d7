"""Batches by linear algebra in a feature space whose inner products are the posterior covariance: BAIT and Frank-Wolfe."""

from __future__ import annotations

import torch
from torch import Tensor

from seqbdl.acquisition._pool_inputs import check_generator, check_matrix, check_variances, check_weights
from seqbdl.acquisition.batches.batch import Batch, Indices, Picking, PoolRules, pool_rules

_NOTHING = 1e-12  # of the largest squared norm: what is below this is rounding


def bait(
    features: Tensor,
    batch_size: int,
    noise: float | Tensor,
    generator: torch.Generator,
    *,
    targets: Tensor | None = None,
    target_weights: Tensor | None = None,
    backward: bool = True,
    pending: Indices = None,
    exclude: Indices = None,
    cost: Tensor | None = None,
) -> Batch:
    """The batch that lowers the mean posterior variance at the targets most, with second thoughts.

    Ash, Goel, Krishnamurthy and Kakade, "Gone fishing: neural active learning with Fisher embeddings", NeurIPS 2021; of
    regression it is ``trace(A^{-1} F)`` with ``A`` the posterior precision of the weights and ``F`` the targets' second moment.
    Twice the batch is picked greedily, then the picks that cost least variance to lose are dropped again. Scores are the
    joint reduction.

    Args:
        features: ``N x D`` of the pool, with inner products the posterior covariance.
        batch_size: ``q``.
        noise: One variance or ``N``; positive.
        generator: For picks at random where nothing is left to reduce.
        targets: ``M x D`` features of where predictions matter; the pool by default.
        target_weights: ``M`` non-negative weights; equal by default.
        backward: Whether to pick twice as many and drop half.
        pending: Indices asked for; observed first.
        exclude: Indices never to choose, or a mask.
        cost: ``N`` positive costs; points are ranked by reduction for a unit of cost.
    """
    rows = check_matrix("features", features)
    noise = check_variances("noise", noise, rows.shape[0], rows)
    rules = pool_rules(rows.shape[0], batch_size, pending, exclude, cost, rows.device)
    there = rows if targets is None else check_matrix("targets", targets, columns=rows.shape[1])
    weights = check_weights(target_weights, there.shape[0], there)
    moment = there.T @ (weights.unsqueeze(-1) * there)
    picking = Picking(rules, check_generator(generator, "a choice between equal points"))
    wide = min(2 * batch_size, int(rules.allowed.sum())) if backward else batch_size
    forward = _forward(_Reductions(rows, noise, moment), rules, wide)
    chosen = forward[:batch_size]
    if len(forward) > batch_size:
        survivors = _backward(rows, noise, moment, rules, [index for index, _ in forward])
        kept = _gains(_Reductions(rows, noise, moment), rules, survivors)
        # Dropping is greedy too, and may end below where picking alone did.
        if _worth(kept, rules) > _worth(chosen, rules):
            chosen = kept
    for index, gain in chosen:
        picking.take(index, gain)
    while not picking.done:
        picking.take(picking.at_random(), 0.0)
    return picking.batch(joint=True)


class _Reductions:
    """By how much observing each point lowers ``trace(A^{-1} F)``, under rank-one changes of ``A``.

    With ``a = x' A^{-1} x`` and ``b = x' A^{-1} F A^{-1} x`` that is ``b / (noise + a)``; ``A`` is the identity at first.
    """

    def __init__(self, rows: Tensor, noise: Tensor, moment: Tensor) -> None:
        self._rows, self._noise, self._moment = rows, noise, moment
        self._inverse = torch.eye(rows.shape[1], dtype=torch.float64, device=rows.device)
        self._variance = rows.square().sum(-1)
        self._squared = ((rows @ moment) * rows).sum(-1)
        self._floor = _NOTHING * float(self._squared.max())

    def gains(self) -> Tensor:
        return self._squared.clamp_min(0.0) / (self._noise + self._variance.clamp_min(0.0))

    def nothing_left(self, points: Tensor) -> bool:
        return not bool((self._squared[points] > self._floor).any())

    def observe(self, index: int) -> None:
        scale = self._noise[index] + self._variance[index]
        v = self._inverse @ self._rows[index]
        through = self._moment @ v
        along, across = self._rows @ v, self._rows @ (self._inverse @ through)
        self._squared = self._squared - 2.0 * along * across / scale + along.square() * (v @ through) / scale.square()
        self._variance = self._variance - along.square() / scale
        self._inverse = self._inverse - v.unsqueeze(-1) * v / scale


def _forward(state: _Reductions, rules: PoolRules, count: int) -> list[tuple[int, float]]:
    """Up to ``count`` picks and what each brings; fewer where nothing is left to reduce."""
    picking = Picking(rules)
    for index in rules.pending.tolist():
        state.observe(index)
    taken: list[tuple[int, float]] = []
    while len(taken) < count and not state.nothing_left(picking.open):
        gains = state.gains()
        index = picking.best(gains)
        taken.append((index, float(gains[index])))
        picking.take(*taken[-1])
        state.observe(index)
    return taken


def _gains(state: _Reductions, rules: PoolRules, picks: list[int]) -> list[tuple[int, float]]:
    """What each of given picks brings, in their order."""
    taken = []
    for index in [*rules.pending.tolist(), *picks]:
        taken.append((index, float(state.gains()[index])))
        state.observe(index)
    return taken[rules.pending.shape[0] :]


def _backward(rows: Tensor, noise: Tensor, moment: Tensor, rules: PoolRules, picks: list[int]) -> list[int]:
    """Drop picks until the batch is left, each time the one whose loss costs least.

    With ``H = (K + noise)^{-1}`` among the observed points and ``Q`` their features' products through the targets' moment, the
    joint reduction is ``trace(H Q)``, and it falls by ``(H Q H)_ii / H_ii`` without point ``i``.
    """
    fixed = rules.pending.shape[0]
    observed = torch.cat([rules.pending, torch.tensor(picks, device=rows.device)])
    here = rows[observed]
    inverse = torch.linalg.inv(here @ here.T + torch.diag(noise[observed]))
    through = inverse @ (here @ moment @ here.T) @ inverse
    left = torch.arange(observed.shape[0], device=rows.device)
    while left.shape[0] > fixed + rules.batch_size:
        loss = rows.new_zeros(rules.size)
        loss[observed[left]] = through.diagonal()[left] / inverse.diagonal()[left]
        position = fixed + int(rules.per_cost(loss)[observed[left[fixed:]]].argmin())
        i = left[position]
        left = torch.cat([left[:position], left[position + 1 :]])
        h, u = inverse[:, i].clone(), through[:, i].clone()
        cross = u.unsqueeze(-1) * h / h[i]
        through = through - cross - cross.T + (u[i] / h[i].square()) * h.unsqueeze(-1) * h
        inverse = inverse - h.unsqueeze(-1) * h / h[i]
    kept = set(observed[left[fixed:]].tolist())
    return [index for index in picks if index in kept]


def _worth(taken: list[tuple[int, float]], rules: PoolRules) -> float:
    total = sum(gain for _, gain in taken)
    return total if rules.cost is None else total / float(rules.cost[[index for index, _ in taken]].sum())


def frank_wolfe(
    features: Tensor,
    batch_size: int,
    generator: torch.Generator,
    *,
    pending: Indices = None,
    exclude: Indices = None,
    cost: Tensor | None = None,
) -> Batch:
    """A few weighted points whose features add up to those of the whole pool (ACS-FW).

    Pinsler, Gordon, Nalisnick and Hernández-Lobato, "Bayesian batch active learning as sparse subset approximation", NeurIPS
    2019. Each step goes towards the point whose direction is most like what is still missing, as far as the squared error
    falls; no point is taken twice. Increments are by how much the squared error fell, relative to that of no points.

    Args:
        features: ``N x D`` of the pool, with inner products the posterior covariance.
        batch_size: ``q``.
        generator: For picks at random where nothing is missing any more.
        pending: Indices asked for; steps towards them come first.
        exclude: Indices never to choose, or a mask; they do not count for the sum either.
        cost: ``N`` positive costs; points are ranked by likeness for a unit of cost.
    """
    rows = check_matrix("features", features)
    rules = pool_rules(rows.shape[0], batch_size, pending, exclude, cost, rows.device)
    picking = Picking(rules, check_generator(generator, "a choice between equal points"))
    counted = ~rules.excluded
    norms = rows.norm(dim=-1)
    reach = float(norms[counted].sum())
    whole = rows[counted].sum(0)
    scale = float(whole.square().sum())
    unit = rows / norms.clamp_min(1e-300).unsqueeze(-1)
    so_far = torch.zeros_like(whole)

    def step(index: int) -> tuple[Tensor, float]:
        towards = reach * unit[index] - so_far
        length = towards.square().sum()
        missing = whole - so_far
        share = ((towards @ missing) / length).clamp(0.0, 1.0) if float(length) > 0 else length
        moved = so_far + share * towards
        fallen = float(missing.square().sum() - (whole - moved).square().sum())
        return moved, fallen / scale if scale > 0 else 0.0

    for index in rules.pending.tolist():
        so_far, _ = step(index)
    while not picking.done:
        missing = whole - so_far
        empty = not float(missing.square().sum()) > _NOTHING * scale or not bool((norms[picking.open] > 0).any())
        likeness = torch.where(norms > 0, unit @ missing, -torch.inf)
        index = picking.at_random() if empty else picking.best(likeness)
        so_far, fallen = step(index)
        picking.take(index, fallen)
    return picking.batch(joint=True)
