"""When a bandit's model is fitted anew, when it only absorbs, and which rows are kept for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from seqbdl.errors import InvalidOptionError, ShapeError
from seqbdl.loops.bandit_arms import HEADS, Arms
from seqbdl.loops.bandit_models import ArmModel, HeadsModel, SeparateModel, SharedModel
from seqbdl.surrogates import Surrogate, make_surrogate
from seqbdl.surrogates.arm_heads import ArmHeadsModel

Row = tuple[Tensor, int, float]


class Learner:
    """A model of the arms and the rows it was told.

    Args:
        model: What learns.
        name: Of the surrogate.
        refit_every: Rewards, a growth factor above 1, or ``None``.
        absorb_every: Rewards to wait for.
        memory: Rows per arm to keep for refits; ``None``: all.
        num_arms: ``K``.
    """

    def __init__(
        self, model: ArmModel, name: str, refit_every: int | float | None, absorb_every: int, memory: int | None, num_arms: int
    ) -> None:
        self.model, self.name = model, name
        self.refit_every, self.absorb_every, self.memory = refit_every, absorb_every, memory
        self._kept: list[list[Row]] = [[] for _ in range(num_arms)]
        self._fresh: list[Row] = []
        self._total = 0
        self._fitted_at = 0
        self._untouched = model.state_dict() if not isinstance(model, HeadsModel) else {}

    @property
    def _exact(self) -> bool:
        return isinstance(self.model, HeadsModel)

    def add(self, row: Tensor, arm: int, reward: float) -> None:
        """A row that the model will know when it is next needed."""
        self._fresh.append((row.clone(), arm, reward))

    def learn(self, now: bool = False) -> None:
        """Let the model know of all rows, or of none while fewer than ``absorb_every`` wait (``now``: whatever waits). Where it
        fails the rows still wait."""
        if not self._fresh or (not now and self._total > 0 and len(self._fresh) < self.absorb_every):
            return
        fresh, total = self._fresh, self._total + len(self._fresh)
        due = self._due(total)
        fit = (due or self._total == 0) and not self._exact
        if fit:
            kept = [list(rows) for rows in self._kept]
            self._keep(kept, fresh)
            self.model.learn(*_stack([row for rows in kept for row in rows] or fresh))
            self._kept = kept
        else:
            self.model.absorb(*_stack(fresh))
            self._keep(self._kept, fresh)
        self._fresh, self._total = [], total
        self._fitted_at = total if fit or due else self._fitted_at
        if due and self._exact:
            self.model.learn(*_stack(fresh))

    def _keep(self, kept: list[list[Row]], fresh: list[Row]) -> None:
        """Add rows to those kept of each arm, and let the oldest go; heads keep their own."""
        for row in fresh if self.memory != 0 and not self._exact else ():
            rows = kept[row[1]]
            rows.append(row)
            if self.memory is not None and len(rows) > self.memory:
                del rows[0]

    def _due(self, total: int) -> bool:
        if self.refit_every is None:
            return False
        if isinstance(self.refit_every, int):
            return total - self._fitted_at >= self.refit_every
        return total >= self.refit_every * max(self._fitted_at, 1)

    def add_arm(self) -> None:
        """One more arm."""
        self._kept.append([])
        if isinstance(self.model, HeadsModel | SeparateModel):
            self.model.add_arm()

    def reset(self, arms: list[int]) -> None:
        """Forget what rows of these arms said."""
        self._fresh = [row for row in self._fresh if row[1] not in arms]
        for arm in arms:
            self._kept[arm] = []
        if isinstance(self.model, HeadsModel):
            self.model.heads.reset(arms)
            return
        rest = [row for rows in self._kept for row in rows]
        if not rest and self.memory == 0 and len(arms) < len(self._kept):
            raise InvalidOptionError("memory=0 keeps no rows of the other arms; reset all arms, or give a memory")
        if isinstance(self.model, SeparateModel):
            self.model.clear(arms)
        elif rest:
            self.model.learn(*_stack(rest))
        else:
            self.model.load_state_dict(self._untouched)
        if not rest:
            self._total = self._fitted_at = 0

    def state_dict(self) -> dict[str, Any]:
        """As a tree."""
        return {
            "model": self.model.state_dict(),
            "kept": _tree([row for rows in self._kept for row in rows]),
            "fresh": _tree(self._fresh),
            "total": self._total,
            "fitted_at": self._fitted_at,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue."""
        self.model.load_state_dict(state["model"])
        self._kept = [[] for _ in self._kept]
        for row in _rows(state["kept"]):
            self._kept[row[1]].append(row)
        self._fresh = _rows(state["fresh"])
        self._total, self._fitted_at = int(state["total"]), int(state["fitted_at"])


def build_learner(
    surrogate: str | Surrogate,
    space: Arms,
    bounds: Tensor | None,
    likelihood: str,
    *,
    refit_every: int | float | None,
    absorb_every: int,
    memory: int | None,
    forgetting: float,
    seed: int,
    options: dict[str, Any],
) -> Learner:
    """The learner of a loop.

    Raises:
        InvalidOptionError: Settings that contradict each other.
    """
    if refit_every is not None and (refit_every < 1 if isinstance(refit_every, int) else not refit_every > 1.0):
        raise InvalidOptionError(f"refit_every={refit_every}; a number of rewards (an integer), a factor above 1.0, or None")
    if memory is not None and memory < 0:
        raise InvalidOptionError(f"memory={memory} is a number of rows per arm, at least 0, or None")
    model: ArmModel
    if isinstance(surrogate, str) and surrogate in HEADS:
        if likelihood != "gaussian":
            raise InvalidOptionError(
                f"{surrogate!r} treats continuous rewards; for others take a registered surrogate such as 'laplace'"
            )
        hidden = {} if surrogate == "neural-linear" else {"hidden": ()}
        settings = {"forgetting": forgetting, "memory": memory, "seed": seed, **hidden, **options}
        model = HeadsModel(ArmHeadsModel(space.context_dim, space.num_arms, **settings))
        return Learner(model, surrogate, refit_every, absorb_every, memory, space.num_arms)
    if forgetting != 1.0:
        raise InvalidOptionError(
            "forgetting is of 'linear' and 'neural-linear'; give memory= with refits (a window) to others, or the own option of "
            "'ekf' and 'lofi' in surrogate_options"
        )
    if memory == 0 and refit_every is not None:
        raise InvalidOptionError("memory=0 keeps nothing to refit on; set refit_every=None")
    if isinstance(surrogate, Surrogate):
        if options or space.encoding == "separate":
            raise InvalidOptionError("an instance takes no surrogate_options, and is shared by all arms; give a name instead")
        if surrogate.input_dim != space.input_dim or surrogate.output_dim != 1:
            raise ShapeError(
                f"the surrogate has {surrogate.input_dim} inputs; arms={space.encoding!r} makes {space.input_dim}, 1 output"
            )
        return Learner(SharedModel(surrogate), surrogate.name, refit_every, absorb_every, memory, space.num_arms)
    settings = {"bounds": space.bounds(bounds), "keep_data": False, **options}  # what refits need, the learner keeps

    def make(arm: int) -> Surrogate:
        return make_surrogate(surrogate, space.input_dim, 1, likelihood, seed=seed + arm, **settings)

    model = SeparateModel(make, space.num_arms) if space.encoding == "separate" else SharedModel(make(0))
    return Learner(model, surrogate, refit_every, absorb_every, memory, space.num_arms)


def _stack(rows: list[Row]) -> tuple[Tensor, Tensor, Tensor]:
    X, arms, rewards = zip(*rows, strict=True)
    return torch.stack(X), torch.tensor(arms), torch.tensor(rewards, dtype=torch.float64)


def _tree(rows: list[Row]) -> list[Tensor] | None:
    return list(_stack(rows)) if rows else None


def _rows(tree: Any) -> list[Row]:
    return [] if tree is None else list(zip(tree[0], tree[1].tolist(), tree[2].tolist(), strict=True))
