"""BatchBALD: the batch whose labels together tell the most about the function.

A. Kirsch, J. van Amersfoort and Y. Gal, "BatchBALD: efficient and diverse batch acquisition for deep Bayesian active
learning", NeurIPS 2019. The batch grows greedily. With ``B`` the points so far (those pending first), a candidate adds

    I(y_x; f | y_B) = E_{y_B} [ H[ sum_k w_k p_k(y_x) ] - sum_k w_k H[p_k(y_x)] ],    w_k = p(k | y_B),

which is BALD under draws that the labels ``y_B`` have re-weighted, averaged over what these labels may be. The average is
over all of them while they are few (exact; labels that no draw allows are dropped), and over samples beyond that, the same
number from every draw. The form has no difference of large entropies, is never negative, and never exceeds ``log n``.

Most candidates need not be evaluated to know that they are not the best; the choice is that of evaluating all of them in
double precision, because all three shortcuts are bounds:

- Increments shrink as the batch grows (submodularity): the last exact increment bounds all later ones (Minoux 1978).
- Merging label vectors into their mixture hides information about ``y_B``, which can only leave more to learn from ``y_x``
  (data processing): a few merged vectors bound the increment under all of them.
- Single precision comes with a bound on its rounding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from seqbdl.acquisition._pool_inputs import check_generator, check_log_probs, row_chunks
from seqbdl.acquisition.batches.batch import Batch, Indices, Picking, PoolRules, pool_rules
from seqbdl.acquisition.pool_scores import draw_entropies_and_information
from seqbdl.errors import InvalidOptionError

_NEAR_CEILING = 0.9
_PER_DRAW = 10  # label vectors per draw, at least
_FIRST = 16  # candidates evaluated at first; then twice as many, and so on
_TIE = 1e-12  # bounds this close to the best are evaluated: rounding must not decide
_ROWS = 256  # label vectors summed in single precision before the sum goes on in double
_COLUMNS = 1024  # labels of candidates at once: blocks stay in the cache
_MERGED = 3  # label vectors to one, where there are many
_MANY = 512
_ROUNDING = 2.0**-24


def batchbald(
    log_probs: Tensor,
    batch_size: int,
    generator: torch.Generator,
    *,
    num_configurations: int = 10_000,
    pending: Indices = None,
    exclude: Indices = None,
    cost: Tensor | None = None,
) -> Batch:
    """A batch by BatchBALD. Scores are joint informations of the picks in nats, given the labels of pending points.

    Args:
        log_probs: ``n x N x C`` of the same ``n >= 2`` functions at all points.
        batch_size: ``q``.
        generator: For label samples; untouched while the joint is exact.
        num_configurations: Labels of a batch up to this many are enumerated; beyond it, so many are sampled (a multiple of
            ``n``, so rounded down; 10 for each draw at least).
        pending: Indices whose labels are on their way.
        exclude: Indices never to choose, or a mask.
        cost: ``N`` positive costs; candidates are ranked by information for a unit of cost.

    Returns:
        The batch; its status says whether it is exact, the standard errors of sampled scores, and whether the information
        is above 0.9 of the most that ``n`` draws can show (``log n``, or the entropy of how often each DIFFERENT function
        was drawn), where picks carry little signal.

    Raises:
        InvalidDataError: Probabilities do not sum to one, or an index stands twice.
        InvalidOptionError: Too few configurations, or too few points to choose from.
    """
    log_probs = check_log_probs("log_probs", log_probs, min_draws=2)
    generator = check_generator(generator, "batchbald")
    n, size, _ = log_probs.shape
    if num_configurations < _PER_DRAW * n:
        raise InvalidOptionError(
            f"num_configurations={num_configurations} is less than {_PER_DRAW} for each of {n} draws; sampled informations would "
            f"be far off. Give {_PER_DRAW * n} or more"
        )
    rules = pool_rules(size, batch_size, pending, exclude, cost, log_probs.device)
    return _Search(log_probs, rules, generator, num_configurations).run()


@dataclass(frozen=True)
class _Joint:
    """What the labels of the points so far may be.

    Attributes:
        weights: ``M x n``: given each of ``M`` label vectors, the probabilities of the draws.
        mass: ``M`` probabilities of the label vectors.
        per_draw: Label vectors from each draw (in blocks); ``None``: all that are possible.
    """

    weights: Tensor
    mass: Tensor
    per_draw: int | None = None

    def extended(self, probs: Tensor) -> _Joint:
        """With one more point, exactly; ``probs``: ``n x C``."""
        joint = (self.mass.unsqueeze(-1) * self.weights).unsqueeze(1) * probs.T  # M x C x n
        joint = joint.flatten(0, 1)
        mass = joint.sum(-1)
        possible = mass > 0
        joint, mass = joint[possible], mass[possible]
        return _Joint(joint / mass.unsqueeze(-1), mass / mass.sum())

    def merged(self) -> _Joint:
        """A third as many label vectors, those merged that tell about the same (a step of k-means on square roots)."""
        number = self.mass.shape[0] // _MERGED
        places = (torch.arange(number, dtype=torch.float64, device=self.mass.device) + 0.5) / number
        centres = torch.searchsorted(self.mass.cumsum(0), places).clamp_max(self.mass.shape[0] - 1).unique()
        roots = self.weights.float().sqrt()
        joint = self.mass.unsqueeze(-1) * self.weights
        towards = roots[centres]
        for _ in range(2):
            nearest = (roots @ towards.T).argmax(-1)
            sums = torch.zeros(centres.shape[0], joint.shape[1], dtype=torch.float64, device=joint.device)
            sums.index_add_(0, nearest, joint)
            towards = torch.nn.functional.normalize(sums.sqrt(), dim=-1).float()
        mass = sums.sum(-1)
        sums, mass = sums[mass > 0], mass[mass > 0]
        return _Joint(sums / mass.unsqueeze(-1), mass, self.per_draw)

    def single(self) -> _Joint:
        """The same in single precision."""
        return replace(self, weights=self.weights.float(), mass=self.mass.float())


class _Search:
    def __init__(self, log_probs: Tensor, rules: PoolRules, generator: torch.Generator, num_configurations: int) -> None:
        self._log_probs, self._rules, self._generator = log_probs, rules, generator
        self._limit = num_configurations
        self._entropies, self._bounds = draw_entropies_and_information(log_probs)  # n x N, N
        n = log_probs.shape[0]
        start = torch.full((1, n), 1.0 / n, dtype=torch.float64, device=log_probs.device)
        self._joint = _Joint(start, start.new_ones(1))
        self._so_far: list[int] = []

    def run(self) -> Batch:
        total = 0.0
        ceiling = _NEAR_CEILING * _most_information(self._log_probs)
        for index in self._rules.pending.tolist():
            total += float(self._increments(torch.tensor([index], device=self._bounds.device), self._joint))
            self._absorb(index)
        picking = Picking(self._rules)
        errors: list[float] = []
        saturated_from: int | None = None
        while not picking.done:
            index, increment = self._best(picking)
            picking.take(index, increment)
            errors.append(self._standard_error(index))
            total += increment
            if saturated_from is None and total > ceiling:
                saturated_from = len(picking)
            if not picking.done:
                self._absorb(index)
        exact = self._joint.per_draw is None
        notes = [] if exact else [f"sampled with {self._joint.weights.shape[0]} label vectors in the last step"]
        if saturated_from is not None:
            notes.append(
                f"from pick {saturated_from} on, the information exceeds {_NEAR_CEILING:g} of the most that these "
                f"{self._log_probs.shape[0]} draws can show, {ceiling / _NEAR_CEILING:.3g} nats; use more draws"
            )
        batch = picking.batch(joint=True, exact=exact, notes=notes)
        standard_errors = None if exact else torch.tensor(errors, dtype=torch.float64).square().cumsum(0).sqrt().to(batch.scores)
        status = replace(batch.status, saturated=saturated_from is not None, standard_errors=standard_errors)
        return replace(batch, status=status)

    def _best(self, picking: Picking) -> tuple[int, float]:
        exact = self._joint.per_draw is None
        bounds = self._bounds if exact else self._bounds.clone()  # bounds on samples hold for these samples only
        rough_joint, slack, per_cost = self._joint.single(), self._slack(), self._rules.per_cost
        if self._joint.mass.shape[0] > _MANY:
            self._tighten(bounds, picking, rough_joint, slack)
        ranked_bounds = torch.where(picking.open, per_cost(bounds), -torch.inf)
        order = ranked_bounds.argsort(descending=True, stable=True)[: int(picking.open.sum())]
        best, best_ranked, best_increment = -1, -math.inf, 0.0
        start, count = 0, _FIRST
        while start < order.shape[0] and float(ranked_bounds[order[start]]) > best_ranked - _TIE:
            index = order[start : start + count]
            start, count = start + count, 2 * count
            index = index[ranked_bounds[index] > best_ranked - _TIE]
            rough = self._increments(index, rough_joint)
            bounds[index] = torch.minimum(bounds[index], rough + slack)
            at_least = max(float(per_cost(rough - slack, index).max()), best_ranked - _TIE)
            index = index[per_cost(rough + slack, index) >= at_least]
            if index.numel() == 0:
                continue
            increments = self._increments(index, self._joint)
            bounds[index] = increments
            ranked = per_cost(increments, index)
            top = int(ranked.argmax())
            if float(ranked[top]) > best_ranked:
                best, best_ranked, best_increment = int(index[top]), float(ranked[top]), float(increments[top])
        return best, best_increment

    def _tighten(self, bounds: Tensor, picking: Picking, rough_joint: _Joint, slack: float) -> None:
        """Bounds by merged label vectors, in place, of the candidates that a few promising ones do not rule out."""
        per_cost = self._rules.per_cost
        ranked = torch.where(picking.open, per_cost(bounds), -torch.inf)
        promising = ranked.topk(min(_FIRST, int(picking.open.sum()))).indices
        reached = per_cost(self._increments(promising, rough_joint) - slack, promising).max()
        index = (ranked >= reached).nonzero().squeeze(-1)
        if index.shape[0] > _MERGED * _FIRST:
            merged = self._increments(index, self._joint.merged().single()) + slack
            bounds[index] = torch.minimum(bounds[index], merged)

    def _slack(self) -> float:
        """A bound on the rounding of increments in single precision: of exponentials, sums over draws and over label vectors,
        and logarithms."""
        n, _, C = self._log_probs.shape
        return (n + _ROWS + C + 16) * _ROUNDING * (1.0 + math.log(C))

    def _increments(self, index: Tensor, joint: _Joint) -> Tensor:
        """What each of these points adds, ``k``, in float64; computed in the precision of the joint."""
        several = max(1, _COLUMNS // self._log_probs.shape[-1])
        expected = [self._expected_entropy(part, joint) for part in index.split(several)]
        draws = self._joint.mass @ self._joint.weights
        return torch.cat(expected) - draws @ self._entropies[:, index]

    def _expected_entropy(self, index: Tensor, joint: _Joint) -> Tensor:
        """Entropies of the labels of ``k`` points under re-weighted draws, averaged over label vectors, ``k``."""
        probs = self._log_probs[:, index].to(joint.weights).exp().flatten(1)  # n x (k C)
        total = torch.zeros(probs.shape[1], dtype=torch.float64, device=probs.device)
        smallest = torch.finfo(probs.dtype).tiny  # 0 log 0 = 0
        block = probs.new_empty(min(_ROWS, joint.mass.shape[0]), probs.shape[1])
        logs = torch.empty_like(block)
        for weights, mass in zip(joint.weights.split(_ROWS), joint.mass.split(_ROWS), strict=True):
            predicted, log_predicted = block[: mass.shape[0]], logs[: mass.shape[0]]
            torch.mm(weights, probs, out=predicted)
            torch.log(predicted.clamp_min_(smallest), out=log_predicted)
            total -= mass @ log_predicted.mul_(predicted)
        return total.reshape(-1, self._log_probs.shape[-1]).sum(-1)

    def _standard_error(self, index: int) -> float:
        if self._joint.per_draw is None:
            return 0.0
        predicted = self._joint.weights @ self._log_probs[:, index].double().exp()
        terms = torch.special.entr(predicted).sum(-1) - self._joint.weights @ self._entropies[:, index]
        strata = terms.reshape(-1, self._joint.per_draw)
        return float((strata.var(-1).sum() / self._joint.per_draw).sqrt() / strata.shape[0])

    def _absorb(self, index: int) -> None:
        self._so_far.append(index)
        if self._joint.per_draw is None:
            longer = self._joint.extended(self._log_probs[:, index].double().exp())
            if longer.mass.shape[0] <= self._limit:
                self._joint = longer
                return
        self._joint = self._sampled()

    def _sampled(self) -> _Joint:
        """Fresh label vectors of the points so far, equally many from every draw."""
        n, per_draw = self._log_probs.shape[0], self._limit // self._log_probs.shape[0]
        log_p = self._log_probs[:, self._so_far].double()  # n x B x C
        device = self._generator.device
        labels = torch.multinomial(log_p.exp().flatten(0, 1).to(device), per_draw, replacement=True, generator=self._generator)
        labels = labels.to(log_p.device).unflatten(0, (n, -1)).transpose(0, 1).flatten(1)  # B x (n S)
        joint = log_p.new_zeros(n * per_draw, n)
        for point, chosen in enumerate(labels):
            joint += log_p[:, point].T[chosen]
        return _Joint(joint.softmax(-1), joint.new_full((n * per_draw,), 1.0 / (n * per_draw)), per_draw)


def _most_information(log_probs: Tensor) -> float:
    """The entropy of which function was drawn: ``log n``, less where draws repeat one another (few particles)."""
    n, size, C = log_probs.shape
    direction = torch.rand(size * C, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(log_probs.device)
    marks = torch.zeros(n, dtype=torch.float64, device=log_probs.device)
    start = 0
    for _, part in row_chunks(log_probs):
        values = part.exp().flatten(1)
        marks += values @ direction[start : start + values.shape[1]]
        start += values.shape[1]
    ordered = marks.sort().values
    # Draws that are one function agree up to rounding of the sum, others differ by chance far more.
    steps = ordered.diff() > 1e-12 * ordered[-1].abs()
    group = torch.cat([steps.new_zeros(1), steps]).cumsum(0)
    shares = torch.bincount(group).double() / n
    return float(torch.special.entr(shares).sum())
