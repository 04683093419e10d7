"""Spaces of environments: actions that the environment takes."""

from __future__ import annotations

from collections import OrderedDict
from types import SimpleNamespace
from typing import Any, cast

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from seqbdl.errors import InvalidSpaceError
from seqbdl.loops import Categorical, Integer, Real, Space


def env(**attributes: Any) -> gymnasium.Env[Any, Any]:
    return cast("gymnasium.Env[Any, Any]", SimpleNamespace(unwrapped=SimpleNamespace(**attributes)))


def test_box() -> None:
    action_space = spaces.Box(np.array([0.1, -5.0]), np.array([10.0, 5.0]), dtype=np.float64)
    space = Space.from_gymnasium(action_space, env(parameter_names=("rate", "shift"), log_scale=(True, False)))
    assert space.parameters == (Real("rate", 0.1, 10.0, log=True), Real("shift", -5.0, 5.0))
    for point in space.sample(20, seed=0):
        assert action_space.contains(space.to_action(point))
    np.testing.assert_allclose(space.to_action({"rate": 1.0, "shift": 2.0}), [1.0, 2.0])
    assert Space.from_gymnasium(action_space).names == ("x0", "x1")


def test_dict_of_scalars() -> None:
    action_space = spaces.Dict(
        OrderedDict(
            rate=spaces.Box(1e-4, 1.0, (), np.float64),
            kernel=spaces.Discrete(3, start=1),
            layers=spaces.Discrete(4, start=2),
        )
    )
    names = tuple(action_space.spaces)
    about = env(parameter_names=names, log_scale=tuple(n == "rate" for n in names), categories={"kernel": ("a", "b", "c")})
    space = Space.from_gymnasium(action_space, about)
    by_name = {parameter.name: parameter for parameter in space.parameters}
    assert by_name == {
        "rate": Real("rate", 1e-4, 1.0, log=True),
        "kernel": Categorical("kernel", ("a", "b", "c")),
        "layers": Integer("layers", 2, 5),
    }
    for point in space.random(20, torch.Generator().manual_seed(0)):
        assert action_space.contains(space.to_action(point))
    action = space.to_action({"rate": 0.5, "kernel": "b", "layers": 4})
    assert (float(action["rate"]), int(action["kernel"]), int(action["layers"])) == (0.5, 2, 4)


def test_pool() -> None:
    pool = np.random.default_rng(0).normal(size=(7, 2))
    space = Space.from_gymnasium(spaces.Discrete(7), env(candidates=pool, parameter_names=("a", "b")))
    assert space.names == ("a", "b")
    assert [int(space.to_action(space.table_point(row))) for row in range(7)] == list(range(7))
    with pytest.raises(InvalidSpaceError, match="7 candidates, the action space 8"):
        Space.from_gymnasium(spaces.Discrete(8), env(candidates=pool))


def test_integers_and_arms() -> None:
    box = spaces.Box(np.array([0, 1]), np.array([3, 9]), dtype=np.int64)
    space = Space.from_gymnasium(box)
    assert space.parameters == (Integer("x0", 0, 3), Integer("x1", 1, 9))
    assert box.contains(space.to_action({"x0": 2, "x1": 5}))
    arms = Space.from_gymnasium(spaces.Discrete(5))
    assert int(arms.to_action({"action": 4})) == 4


@pytest.mark.parametrize(
    "action_space",
    [spaces.MultiBinary(3), spaces.Box(-np.inf, np.inf, (2,), np.float64), spaces.Dict({"a": spaces.Box(0, 1, (2,))})],
)
def test_other_spaces_are_refused(action_space: gymnasium.Space[Any]) -> None:
    with pytest.raises(InvalidSpaceError):
        Space.from_gymnasium(action_space)
