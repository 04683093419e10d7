"""What a selection returns, and what every selection respects: pending and excluded points, and costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from seqbdl.acquisition._pool_inputs import check_indices, check_vector
from seqbdl.errors import InvalidDataError, InvalidOptionError

Indices = Tensor | Sequence[int] | None


@dataclass(frozen=True, eq=False)
class BatchStatus:
    """How far the numbers of a batch can be trusted.

    Attributes:
        exact: No Monte Carlo estimate was needed for any pick.
        saturated: The joint information is near the most that so many draws can show; later picks carry little signal.
        random_picks: How many picks were drawn at random because no remaining point differed from those chosen.
        standard_errors: ``q``, of the scores, where they are Monte Carlo estimates.
        notes: Sentences for a person.
    """

    exact: bool = True
    saturated: bool = False
    random_picks: int = 0
    standard_errors: Tensor | None = None
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Neither saturated nor filled up at random."""
        return not self.saturated and self.random_picks == 0

    def __str__(self) -> str:
        return "; ".join(self.notes) or "ok"


@dataclass(frozen=True, eq=False)
class Batch:
    """Points of a pool to ask for, in pick order.

    Attributes:
        indices: ``q`` different indices into the pool.
        scores: ``q``. Of criteria that value a batch jointly: the value of the picks so far. Of all others: each pick's own.
        increments: ``q``: what each pick added, given those before it and those pending; before division by its cost.
        status: How far to trust them.
    """

    indices: Tensor
    scores: Tensor
    increments: Tensor
    status: BatchStatus = field(default_factory=BatchStatus)

    def __len__(self) -> int:
        return self.indices.shape[0]


@dataclass(frozen=True, eq=False)
class PoolRules:
    """What may be chosen from a pool of ``N`` points.

    Attributes:
        batch_size: How many to choose.
        allowed: ``N`` booleans: neither excluded nor pending.
        excluded: ``N`` booleans.
        pending: Indices asked for and not yet answered; they count as chosen already.
        cost: ``N`` positive costs, or ``None``.
    """

    batch_size: int
    allowed: Tensor
    excluded: Tensor
    pending: Tensor
    cost: Tensor | None = None

    @property
    def size(self) -> int:
        return self.allowed.shape[0]

    def per_cost(self, values: Tensor, index: Tensor | None = None) -> Tensor:
        """What a unit of cost buys, the values by which candidates are ranked. A negative value is the worse, the more it
        costs.

        Args:
            values: ``N``, or ``k`` of the points at ``index``.
            index: ``k``.
        """
        if self.cost is None:
            return values
        cost = self.cost if index is None else self.cost[index]
        return torch.where(values > 0, values / cost, values * cost)


def pool_rules(
    size: int,
    batch_size: int,
    pending: Indices = None,
    exclude: Indices = None,
    cost: Tensor | None = None,
    device: torch.device | None = None,
) -> PoolRules:
    """Checked rules of a selection.

    Args:
        size: ``N``, points in the pool.
        batch_size: How many to choose.
        pending: Indices asked for and not yet answered.
        exclude: Indices never to choose, such as those labelled already; or a mask of ``N`` booleans.
        cost: ``N`` positive costs; candidates are ranked by what they add for a unit of cost.
        device: Of the pool.

    Raises:
        InvalidDataError: An index is out of range, stands there twice or in both lists, or a cost is not positive.
        InvalidOptionError: Fewer points can be chosen than were asked for.
    """
    device = torch.device("cpu") if device is None else device
    waiting = check_indices("pending", pending, size, device)
    banned = check_indices("exclude", exclude, size, device)
    excluded = torch.zeros(size, dtype=torch.bool, device=device)
    excluded[banned] = True
    if bool(excluded[waiting].any()):
        both = int(waiting[excluded[waiting]][0])
        raise InvalidDataError(f"index {both} is in pending and in exclude; once a label has arrived, take it out of pending")
    allowed = ~excluded
    allowed[waiting] = False
    if batch_size < 1 or batch_size > int(allowed.sum()):
        raise InvalidOptionError(f"batch_size={batch_size}, but {int(allowed.sum())} of {size} points can be chosen")
    costs = None
    if cost is not None:
        costs = check_vector("cost", cost, size).to(device)
        if bool((costs <= 0).any()):
            raise InvalidDataError(f"cost is zero or negative at point {int((costs <= 0).nonzero()[0])}; costs are positive")
    return PoolRules(batch_size, allowed, excluded, waiting, costs)


class Picking:
    """The picks of one selection as they are made.

    Args:
        rules: What may be chosen.
        generator: For picks at random, where no point is better than another; may be ``None`` for methods that never do so.
    """

    def __init__(self, rules: PoolRules, generator: torch.Generator | None = None) -> None:
        self.rules = rules
        self.open = rules.allowed.clone()
        self.random_picks = 0
        self._generator = generator
        self._picks: list[int] = []
        self._increments: list[float] = []

    def __len__(self) -> int:
        return len(self._picks)

    @property
    def done(self) -> bool:
        return len(self._picks) == self.rules.batch_size

    def best(self, values: Tensor) -> int:
        """The open point with the largest value for its cost, the first of equal ones.

        Raises:
            InvalidDataError: A value is NaN.
        """
        bad = values.isnan() & self.open
        if bool(bad.any()):
            raise InvalidDataError(f"the score is NaN at point {int(bad.nonzero()[0])}; check the predictions there")
        return int(torch.where(self.open, self.rules.per_cost(values), -torch.inf).argmax())

    def take(self, index: int, increment: float) -> None:
        """Record a pick and close it."""
        self._picks.append(index)
        self._increments.append(increment)
        self.open[index] = False

    def at_random(self) -> int:
        """Any open point, counted as a random pick."""
        self.random_picks += 1
        choices = self.open.nonzero().squeeze(-1)
        return int(choices[int(torch.randint(choices.shape[0], (1,), generator=self._generator))])

    def batch(self, joint: bool, exact: bool = True, notes: Sequence[str] = ()) -> Batch:
        """The picks as a batch.

        Args:
            joint: Whether increments add up to a joint value.
            exact: See :class:`BatchStatus`.
            notes: Likewise; one about random picks is added.
        """
        device = self.open.device
        increments = torch.tensor(self._increments, dtype=torch.float64, device=device)
        said = list(notes)
        if self.random_picks:
            said.append(f"{self.random_picks} picks at random: no point that could be chosen differed from those chosen")
        status = BatchStatus(exact=exact, random_picks=self.random_picks, notes=tuple(said))
        scores = increments.cumsum(0) if joint else increments.clone()
        return Batch(torch.tensor(self._picks, dtype=torch.long, device=device), scores, increments, status)
