"""What a bandit knows of its arms: any surrogate, shared by all arms or one per arm, behind one small interface."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from seqbdl.loops.conditioning import moments
from seqbdl.surrogates import Surrogate
from seqbdl.surrogates.arm_heads import ArmHeadsModel


class ArmModel(Protocol):
    """Rows are encoded contexts, one per arm: ``k x D`` beside ``k`` arms."""

    def learn(self, X: Tensor, arms: Tensor, rewards: Tensor) -> None:
        """Start again from these rows."""

    def absorb(self, X: Tensor, arms: Tensor, rewards: Tensor) -> None:
        """Add rows."""

    def draws(self, X: Tensor, arms: list[int], n: int, generator: torch.Generator) -> Tensor:
        """``n x k``: each row one function draw, evaluated at all arms."""

    def mean(self, X: Tensor, arms: list[int]) -> Tensor:
        """``k`` posterior means of the latent function."""

    def state_dict(self) -> dict[str, Any]:
        """As a tree."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""


class SharedModel:
    """One surrogate for all arms; the row says which arm it is."""

    def __init__(self, surrogate: Surrogate) -> None:
        self.surrogate = surrogate

    def learn(self, X: Tensor, arms: Tensor, rewards: Tensor) -> None:
        """Fit."""
        self.surrogate.fit(X, rewards.unsqueeze(-1))

    def absorb(self, X: Tensor, arms: Tensor, rewards: Tensor) -> None:
        """The posterior becomes the prior."""
        self.surrogate.update(X, rewards.unsqueeze(-1))

    def draws(self, X: Tensor, arms: list[int], n: int, generator: torch.Generator) -> Tensor:
        """``n x k``."""
        return self.surrogate.sample_values(X, n, generator)[..., 0]

    def mean(self, X: Tensor, arms: list[int]) -> Tensor:
        """``k``."""
        return moments(self.surrogate, X)[0][:, 0]

    def state_dict(self) -> dict[str, Any]:
        """As a tree."""
        return {"surrogates": [self.surrogate.save_state()]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue."""
        self.surrogate.load_state(state["surrogates"][0])


class SeparateModel:
    """One surrogate per arm: arms are independent, and those without rewards answer from the prior."""

    def __init__(self, make: Callable[[int], Surrogate], num_arms: int) -> None:
        self._make = make
        self.surrogates = [make(arm) for arm in range(num_arms)]

    def learn(self, X: Tensor, arms: Tensor, rewards: Tensor) -> None:
        """Fit every arm that has rows."""
        fitted = [self._make(arm) for arm in range(len(self.surrogates))]
        for arm in arms.unique().tolist():
            fitted[arm].fit(X[arms == arm], rewards[arms == arm].unsqueeze(-1))
        self.surrogates = fitted

    def absorb(self, X: Tensor, arms: Tensor, rewards: Tensor) -> None:
        """Update every arm that has new rows."""
        told = arms.unique().tolist()
        # An update that fails changes nothing; of several, none may be left half done.
        updated = {arm: self.surrogates[arm] if len(told) == 1 else copy.deepcopy(self.surrogates[arm]) for arm in told}
        for arm, surrogate in updated.items():
            surrogate.update(X[arms == arm], rewards[arms == arm].unsqueeze(-1))
        for arm, surrogate in updated.items():
            self.surrogates[arm] = surrogate

    def draws(self, X: Tensor, arms: list[int], n: int, generator: torch.Generator) -> Tensor:
        """``n x k``: independent arms, so a joint draw is one draw of each."""
        columns = [
            self.surrogates[arm].sample_values(row.unsqueeze(0), n, generator)[:, 0, 0] for row, arm in zip(X, arms, strict=True)
        ]
        return torch.stack(columns, -1)

    def mean(self, X: Tensor, arms: list[int]) -> Tensor:
        """``k``."""
        return torch.cat([moments(self.surrogates[arm], row.unsqueeze(0))[0][:, 0] for row, arm in zip(X, arms, strict=True)])

    def clear(self, arms: list[int]) -> None:
        """Back to the prior."""
        for arm in arms:
            self.surrogates[arm] = self._make(arm)

    def add_arm(self) -> None:
        """One more, of which nothing is known."""
        self.surrogates.append(self._make(len(self.surrogates)))

    def state_dict(self) -> dict[str, Any]:
        """As a tree."""
        return {"surrogates": [surrogate.save_state() for surrogate in self.surrogates]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue."""
        self.surrogates = [self._make(arm).load_state(tree) for arm, tree in enumerate(state["surrogates"])]


class HeadsModel:
    """Exact heads on shared features; see :class:`seqbdl.surrogates.arm_heads.ArmHeadsModel`."""

    def __init__(self, heads: ArmHeadsModel) -> None:
        self.heads = heads

    def learn(self, X: Tensor, arms: Tensor, rewards: Tensor) -> None:
        """Rows beyond those absorbed are absorbed by the loop before; here the features are retrained."""
        self.heads.retrain()

    def absorb(self, X: Tensor, arms: Tensor, rewards: Tensor) -> None:
        """Exact."""
        self.heads.absorb(X, arms, rewards)

    def draws(self, X: Tensor, arms: list[int], n: int, generator: torch.Generator) -> Tensor:
        """``n x k``."""
        return self.heads.draws(X[0], arms, n, generator)

    def mean(self, X: Tensor, arms: list[int]) -> Tensor:
        """``k``."""
        return self.heads.mean(X[0], arms)

    def add_arm(self) -> None:
        """One more, of which only the prior is known."""
        self.heads.add_arm()

    def state_dict(self) -> dict[str, Any]:
        """As a tree."""
        return self.heads.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue."""
        self.heads.load_state_dict(state)
