"""The arms of a bandit: which there are, which are on offer, and how a surrogate sees them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from seqbdl.errors import InvalidDataError, InvalidOptionError, ShapeError
from seqbdl.surrogates import Surrogate

HEADS = ("linear", "neural-linear")
ENCODINGS = ("onehot", "disjoint", "features", "separate")


class Arms:
    """Arms and their encoding.

    Args:
        context_dim: ``d``.
        num_arms: ``K``.
        encoding: ``"auto"`` or one of :data:`ENCODINGS`.
        features: ``K x p`` or ``None``.
        surrogate: Exact heads have their own encoding, the context alone.
    """

    def __init__(self, context_dim: int, num_arms: int, encoding: str, features: Any, surrogate: str | Surrogate) -> None:
        self.context_dim, self.num_arms = context_dim, num_arms
        self.features = None if features is None else _matrix("arm_features", features)
        if encoding not in ("auto", *ENCODINGS):
            raise InvalidOptionError(f"arms={encoding!r} is not one of 'auto', {', '.join(map(repr, ENCODINGS))}")
        if surrogate in HEADS:
            if encoding != "auto" or features is not None:
                raise InvalidOptionError(
                    f"arms and arm_features are not for {surrogate!r}, which has one head per arm; leave them out"
                )
            encoding = "heads"
        elif encoding == "auto":
            encoding = "onehot" if features is None else "features"
        if (encoding == "features") != (features is not None):
            raise InvalidOptionError(f"arms={encoding!r}: arm_features go with arms='features', and with nothing else")
        if self.features is not None and self.features.shape[0] != num_arms:
            raise ShapeError(f"arm_features has {self.features.shape[0]} rows; it needs one per arm, {num_arms}")
        self.encoding = encoding
        self.available = list(range(num_arms))
        self.pulls = [0] * num_arms

    @property
    def input_dim(self) -> int:
        """Columns of a row."""
        if self.encoding == "features" and self.features is not None:
            return self.context_dim + self.features.shape[1]
        if self.encoding == "onehot":
            return self.context_dim + self.num_arms
        return self.context_dim * self.num_arms if self.encoding == "disjoint" else self.context_dim

    def to_action(self, decision: Any) -> int:
        """What an environment is given."""
        return int(decision.arm)

    def rows(self, context: Tensor, offered: list[int], features: Tensor | None) -> Tensor:
        """``k x D``: the context ``d`` beside each arm on offer."""
        if self.encoding in ("heads", "separate"):
            return context.expand(len(offered), -1)
        if self.encoding == "features":
            seen = features if features is not None else self._kept()[offered]
            return torch.cat([context.expand(len(offered), -1), seen], -1)
        onehot = torch.eye(self.num_arms, dtype=torch.float64)[offered]
        if self.encoding == "onehot":
            return torch.cat([context.expand(len(offered), -1), onehot], -1)
        return (onehot.unsqueeze(-1) * context).flatten(1)

    def _kept(self) -> Tensor:
        assert self.features is not None
        return self.features

    def bounds(self, context_bounds: Tensor | None) -> Tensor | None:
        """``2 x D``, where contexts have bounds and arms are one-hot or not seen."""
        if context_bounds is None or self.encoding not in ("onehot", "separate"):
            return None
        unit = torch.tensor([[0.0], [1.0]], dtype=torch.float64).expand(2, self.input_dim - self.context_dim)
        return torch.cat([context_bounds, unit], 1)

    def known(self, arms: Sequence[int]) -> list[int]:
        """Indices that exist.

        Raises:
            InvalidDataError: One that does not.
        """
        chosen = []
        for place, arm in enumerate(arms):
            if isinstance(arm, bool) or not isinstance(arm, int | np.integer) or not 0 <= arm < self.num_arms:
                raise InvalidDataError(f"arms: entry {place} is {arm!r}; arms are integers from 0 to {self.num_arms - 1}")
            chosen.append(int(arm))
        return chosen

    def offered(self, arms: Sequence[int] | None) -> list[int]:
        """The arms of a decision."""
        if arms is None:
            if not self.available:
                raise InvalidDataError("no arm is left; add or restore one")
            return list(self.available)
        chosen = self.known(arms)
        gone = [arm for arm in chosen if arm not in self.available]
        if gone or not chosen or len(set(chosen)) != len(chosen):
            raise InvalidDataError(f"arms={list(arms)}: give at least one, each once, none that was removed ({gone})")
        return chosen

    def read_features(self, features: Any, k: int) -> Tensor | None:
        """``k x p`` features that come with a decision."""
        if features is None:
            return None
        if self.encoding != "features":
            raise InvalidOptionError("arm_features are for loops made with arms='features' and arm_features")
        values = _matrix("arm_features", features)
        if values.shape != (k, self._kept().shape[1]):
            raise ShapeError(
                f"arm_features has shape {tuple(values.shape)}; it needs {k} x {self._kept().shape[1]}, a row per arm"
            )
        return values

    def add(self, features: Any, check: bool = True) -> int:
        """One more arm."""
        if check and self.encoding not in ("heads", "separate", "features"):
            raise InvalidOptionError(
                f"arms={self.encoding!r} fixes the number of arms; use 'separate', 'features' or exact heads"
            )
        if check and (features is not None) != (self.encoding == "features"):
            raise InvalidOptionError("features of a new arm are given where arms are seen by features, and only there")
        if features is not None:
            row = _matrix("features", torch.as_tensor(features, dtype=torch.float64).reshape(1, -1))
            if row.shape[1] != self._kept().shape[1]:
                raise ShapeError(f"features has {row.shape[1]} numbers; the arms have {self._kept().shape[1]}")
            self.features = torch.cat([self._kept(), row])
        self.num_arms += 1
        self.available.append(self.num_arms - 1)
        self.pulls.append(0)
        return self.num_arms - 1

    def remove(self, arm: int) -> None:
        """Offer it no more."""
        if self.known([arm])[0] not in self.available:
            raise InvalidDataError(f"arm {arm} was removed before")
        self.available.remove(arm)

    def restore(self, arm: int) -> None:
        """Offer it again."""
        if self.known([arm])[0] in self.available:
            raise InvalidDataError(f"arm {arm} is on offer")
        self.available = sorted([*self.available, arm])

    def state_dict(self) -> dict[str, Any]:
        """As a tree."""
        return {
            "num_arms": self.num_arms,
            "features": self.features,
            "available": list(self.available),
            "pulls": list(self.pulls),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue."""
        self.num_arms, self.features = int(state["num_arms"]), state["features"]
        self.available, self.pulls = list(state["available"]), list(state["pulls"])


def read_spaces(given: Any) -> tuple[int, int, Tensor | None]:
    """``d``, ``K`` and the bounds ``2 x d`` of contexts, where they are finite.

    Raises:
        InvalidOptionError: It is no bandit.
    """
    if isinstance(given, gymnasium.Env):
        given = (given.observation_space, given.action_space)
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise InvalidOptionError("env_or_spaces: give an environment, (context space, arm space) or (context_dim, num_arms)")
    contexts, arms = given
    if isinstance(arms, spaces.Discrete):
        if arms.start != 0:
            raise InvalidOptionError(f"env_or_spaces: arms start at {arms.start}; they are numbered from 0")
        arms = int(arms.n)
    bounds = None
    if isinstance(contexts, spaces.Box) and len(contexts.shape) == 1:
        low, high = torch.as_tensor(contexts.low, dtype=torch.float64), torch.as_tensor(contexts.high, dtype=torch.float64)
        if bool((torch.isfinite(low) & torch.isfinite(high) & (high > low)).all()):
            bounds = torch.stack([low, high])
        contexts = contexts.shape[0]
    if not isinstance(contexts, int) or not isinstance(arms, int) or contexts < 1 or arms < 1:
        raise InvalidOptionError(f"env_or_spaces: {given}; contexts are a vector (a 1-d Box), arms are counted (Discrete)")
    return contexts, arms, bounds


def read_context(context: Any, context_dim: int) -> Tensor:
    """``d`` or ``k x d`` finite numbers.

    Raises:
        ShapeError: Another shape.
        InvalidDataError: NaN or infinite.
    """
    try:
        values = torch.as_tensor(np.asarray(context, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise ShapeError(f"observation: {error}; give the context, {context_dim} numbers") from error
    if values.dim() not in (1, 2) or values.shape[-1] != context_dim or values.numel() == 0:
        raise ShapeError(
            f"observation has shape {tuple(values.shape)}; a context is {context_dim} numbers, several are k x {context_dim}"
        )
    if not bool(torch.isfinite(values).all()):
        bad = (~torch.isfinite(values.reshape(-1, context_dim))).nonzero()[0].tolist()
        raise InvalidDataError(f"observation: row {bad[0]}, entry {bad[1]} is not finite; fill it in, or do not ask")
    return values


def _matrix(name: str, values: Any) -> Tensor:
    matrix = torch.as_tensor(np.asarray(values, dtype=np.float64))
    if matrix.dim() != 2:
        raise ShapeError(f"{name} has shape {tuple(matrix.shape)}; give one row per arm")
    if not bool(torch.isfinite(matrix).all()):
        raise InvalidDataError(f"{name}: row {int((~torch.isfinite(matrix)).nonzero()[0, 0])} is not finite")
    return matrix
