"""Search spaces of Gymnasium environments: actions in, points out, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from seqbdl.errors import InvalidSpaceError
from seqbdl.loops.choices import Categorical
from seqbdl.loops.parameters import Integer, Parameter, Real, Value
from seqbdl.loops.space import Space


class GymSpace(Space):
    """A space whose points can be handed to an environment as actions.

    Args:
        parameters: The parameters, in the order of the action's entries.
        action_space: The environment's action space: a ``Box``, a ``Dict`` of scalars, or a ``Discrete``.
    """

    def __init__(self, parameters: Sequence[Parameter], action_space: gymnasium.Space[Any]) -> None:
        super().__init__(parameters)
        self.action_space = action_space

    def to_action(self, point: Mapping[str, Value]) -> Any:
        """The environment's action for a point."""
        if isinstance(self.action_space, spaces.Dict):
            return {
                parameter.name: _scalar(self.action_space[parameter.name], parameter, point[parameter.name])
                for parameter in self.parameters
            }
        if isinstance(self.action_space, spaces.Discrete):
            return _scalar(self.action_space, self.parameters[0], point[self.parameters[0].name])
        assert isinstance(self.action_space, spaces.Box)
        values = np.array([point[name] for name in self.names], dtype=self.action_space.dtype)
        return values.reshape(self.action_space.shape)


def space_from_gymnasium(action_space: gymnasium.Space[Any], env: gymnasium.Env[Any, Any] | None = None) -> Space:
    """The search space of an environment's actions.

    Args:
        action_space: ``Box`` (finite bounds), ``Dict`` of scalar ``Box`` and ``Discrete``, or ``Discrete``.
        env: The environment, for what an action space cannot say: ``parameter_names``, ``log_scale``, ``categories``
            (the names of a ``Discrete``'s options; without them it is an integer) and ``candidates`` (the features of
            a pool: then the space is the list of candidates).

    Raises:
        InvalidSpaceError: Another kind of action space, or bounds that are not finite.
    """
    source = env.unwrapped if env is not None else None
    candidates = getattr(source, "candidates", None)
    names = getattr(source, "parameter_names", None)
    if isinstance(action_space, spaces.Discrete):
        if candidates is not None:
            if len(candidates) != action_space.n:
                raise InvalidSpaceError(f"the pool has {len(candidates)} candidates, the action space {action_space.n} actions")
            return Space.from_candidates(candidates, names=names)
        name = names[0] if names else "action"
        return GymSpace([_parameter(name, action_space, False, _options(source, name))], action_space)
    if isinstance(action_space, spaces.Dict):
        logs = _log_flags(source, list(action_space), names)
        entries = [_parameter(str(k), sub, logs[k], _options(source, str(k))) for k, sub in action_space.items()]
        return GymSpace(entries, action_space)
    if isinstance(action_space, spaces.Box):
        size = int(np.prod(action_space.shape))
        labels = [str(name) for name in names] if names else [f"x{i}" for i in range(size)]
        if len(labels) != size:
            raise InvalidSpaceError(f"parameter_names has {len(labels)} entries, the action space {size}")
        logs = _log_flags(source, labels, labels)
        low, high = action_space.low.reshape(-1), action_space.high.reshape(-1)
        if np.issubdtype(action_space.dtype, np.integer):
            return GymSpace(
                [Integer(n, int(lo), int(hi), logs[n]) for n, lo, hi in zip(labels, low, high, strict=True)],
                action_space,
            )
        return GymSpace(
            [Real(n, float(lo), float(hi), logs[n]) for n, lo, hi in zip(labels, low, high, strict=True)], action_space
        )
    raise InvalidSpaceError(
        f"actions of type {type(action_space).__name__} cannot be searched; use a Box, a Dict of scalars, or a Discrete"
    )


def _options(source: Any, name: str) -> tuple[str, ...] | None:
    categories = getattr(source, "categories", None) or {}
    options = categories.get(name)
    return tuple(options) if options is not None else None


def _log_flags(source: Any, labels: Sequence[str], names: Sequence[str] | None) -> dict[str, bool]:
    flags = getattr(source, "log_scale", None)
    if flags is None:
        return dict.fromkeys(labels, False)
    order = list(names) if names is not None else list(labels)
    if len(flags) != len(order):
        raise InvalidSpaceError(f"log_scale has {len(flags)} entries for {len(order)} parameters")
    by_name = dict(zip(order, flags, strict=True))
    return {label: bool(by_name.get(label, False)) for label in labels}


def _parameter(name: str, space: gymnasium.Space[Any], log: bool, options: tuple[str, ...] | None) -> Parameter:
    if isinstance(space, spaces.Discrete):
        start, n = int(space.start), int(space.n)
        if options is not None:
            if len(options) != n:
                raise InvalidSpaceError(f"parameter {name!r}: {len(options)} names for {n} options")
            return Categorical(name, options)
        return Integer(name, start, start + n - 1, log)
    if isinstance(space, spaces.Box) and space.shape in ((), (1,)):
        low, high = space.low.item(), space.high.item()
        if np.issubdtype(space.dtype, np.integer):
            return Integer(name, int(low), int(high), log)
        return Real(name, float(low), float(high), log)
    raise InvalidSpaceError(f"parameter {name!r}: {space} is not a scalar; use a Box of shape () or a Discrete")


def _scalar(space: gymnasium.Space[Any], parameter: Parameter, value: Value) -> Any:
    if isinstance(space, spaces.Discrete):
        if isinstance(parameter, Categorical):
            return np.int64(parameter.index(value) + int(space.start))
        return np.int64(int(value))  # type: ignore[arg-type]
    return np.full(space.shape, value, dtype=space.dtype)
