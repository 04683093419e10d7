"""Every registered problem: Gymnasium's own check, the promised attributes, seeds, and the refusal of bad actions."""

from __future__ import annotations

import math
import warnings
from typing import Any

import gymnasium
import numpy as np
import pandas as pd
import pytest
import torch
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from hypothesis import given
from hypothesis import strategies as st

import seqbdl.envs
from seqbdl.envs import DecisionEnv, EnvInfo, Evaluation, list_envs

INFOS = list_envs("points")
ARGUMENTS: dict[str, dict[str, Any]] = {
    "seqbdl/TablePool-v0": {
        "table": pd.DataFrame({"a": [1.0, 2.0, 2.0], "b": [0.0, 1.0, 1.0], "y": [3.0, 5.0, 7.0]}),
        "target": "y",
    },
    "seqbdl/LabelTable-v0": {
        "table": pd.DataFrame({"a": [1.0, 2.0, 2.0, 3.0], "b": [0.0, 1.0, 1.0, 2.0], "y": ["no", "yes", "yes", "no"]}),
        "target": "y",
    },
}
# What Gymnasium says about every problem in natural units; any other remark fails the test.
EXPECTED_REMARKS = ("symmetric and normalized space", "maximum value is infinity", "minimum value is -infinity")


@pytest.fixture(params=INFOS, ids=lambda info: info.id)
def env(request: pytest.FixtureRequest) -> Any:
    info: EnvInfo = request.param
    if not info.available:
        pytest.skip(f"needs: {info.install}")
    return gymnasium.make(info.id, **ARGUMENTS.get(info.id, {})).unwrapped


def test_ids_are_registered_and_described() -> None:
    assert len({info.id for info in INFOS}) == len(INFOS)
    for info in INFOS:
        assert info.id in gymnasium.registry
        assert 0 < len(info.summary) < 80
        assert info.available or info.install.startswith("pip install")


def test_gymnasium_check(env: Any) -> None:
    with warnings.catch_warnings(record=True) as remarks:
        warnings.simplefilter("always")
        check_env(env)
    texts = [str(remark.message) for remark in remarks]
    assert [text for text in texts if not any(part in text for part in EXPECTED_REMARKS)] == []


def test_attributes_fit_the_action_space(env: Any) -> None:
    d = len(env.parameter_names)
    assert d > 0
    assert len(set(env.parameter_names)) == d
    assert len(env.log_scale) == d
    assert env.num_outcomes == len(env.outcome_names)
    space = env.action_space
    if isinstance(space, spaces.Box):
        assert space.dtype == np.float64
        assert space.shape == (d,)
    elif isinstance(space, spaces.Dict):
        assert tuple(space.spaces) == env.parameter_names
        for name, options in env.categories.items():
            part = space[name]
            assert isinstance(part, spaces.Discrete)
            assert part.n == len(options)
            assert part.start == 0
    else:
        assert env.candidates.shape == (space.n, d)
    if env.num_outcomes > 1 and not hasattr(env, "model"):  # an experiment has outcomes and no objectives
        assert env.ref_point.shape == (env.num_outcomes,)
    if any(env.log_scale) and isinstance(space, spaces.Box):
        assert (space.low[list(env.log_scale)] > 0).all()


def test_step_answers_as_promised(env: Any) -> None:
    observation, info = env.reset(seed=0)
    assert observation.tolist() == [0.0] * env.num_outcomes
    env.action_space.seed(0)
    for _ in range(3):
        observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
        assert type(reward) is float
        assert math.isfinite(reward)
        assert not terminated
        assert not truncated
        assert info["outcomes"].shape == (env.num_outcomes,)
        assert info["noise_variance"] is None or info["noise_variance"].shape == (env.num_outcomes,)
        if env.num_constraints:
            assert info["constraints"].shape == (env.num_constraints,)
        else:
            assert "constraints" not in info
        if info["failed"]:
            assert info["reason"]
            assert np.isnan(info["outcomes"]).all()
            assert reward == env.failure_reward
        else:
            assert np.array_equal(observation, info["outcomes"])
            assert reward == pytest.approx(info["outcomes"].mean())
            if env.optimal_value is not None and not env.num_constraints:
                assert info["true_value"] <= env.optimal_value + 1e-6


def test_the_state_of_np_random_is_the_state_of_the_problem(env: Any) -> None:
    env.reset(seed=5)
    env.action_space.seed(5)
    action = env.action_space.sample()
    env.step(action)
    state = env.np_random.bit_generator.state
    first = [env.step(action)[1] for _ in range(2)]
    env.np_random.bit_generator.state = state
    assert [env.step(action)[1] for _ in range(2)] == first


def global_states() -> tuple[bytes, bytes]:
    """The states of the two global generators, PyTorch's and NumPy's."""
    # Looking at the global generator is the point here.
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002
    return torch.get_rng_state().numpy().tobytes(), numpy_state["state"]["key"].tobytes()


def test_global_generators_are_left_alone(env: Any) -> None:
    before = global_states()
    env.reset(seed=0)
    env.step(env.action_space.sample())
    assert global_states() == before


def bad_actions(space: spaces.Space[Any]) -> list[tuple[Any, str]]:
    """Actions that must be refused, and a part of what the error must say."""
    if isinstance(space, spaces.Discrete):
        above = int(space.start + space.n)
        return [(above, "integer"), (-1, "integer"), (0.5, "integer"), (math.nan, "finite"), ("a", "number")]
    if isinstance(space, spaces.Box):
        middle = (space.low + space.high) / 2
        outside, nan = middle.copy(), middle.copy()
        outside[-1] = space.high[-1] + 1.0
        nan[0] = math.nan
        return [
            (middle[:-1], "shape"),
            (middle[None], "shape"),
            (outside, f"entry {len(middle) - 1}"),
            (nan, "entry 0"),
            ("text", "array of numbers"),
        ]
    assert isinstance(space, spaces.Dict)
    good = space.sample()
    name = next(iter(space.spaces))
    part = space[name]
    assert isinstance(part, spaces.Box | spaces.Discrete)
    high = part.start + part.n if isinstance(part, spaces.Discrete) else float(part.high) + 1
    return [
        ({k: v for k, v in good.items() if k != name}, "missing"),
        ({**good, "no such": 1}, "unknown"),
        ({**good, name: high}, name),
        ({**good, name: math.nan}, "finite"),
        ({**good, name: [1.0, 2.0]}, "one number"),
        ([1.0], "dictionary"),
    ]


def test_bad_actions_are_refused(env: Any) -> None:
    env.reset(seed=0)
    for action, text in bad_actions(env.action_space):
        with pytest.raises(ValueError, match=text):
            env.step(action)


def test_a_point_off_a_bound_by_rounding_is_moved_onto_it() -> None:
    env: Any = gymnasium.make("seqbdl/Branin-v0").unwrapped
    env.reset(seed=0)
    space = env.action_space
    exact = env.step(space.high)[1]
    assert env.step(space.high + 1e-10)[1] == exact


class Parabola(DecisionEnv):
    """A user's own problem: what `DecisionEnv` asks of a subclass."""

    def __init__(self) -> None:
        super().__init__(spaces.Box(-1.0, 1.0, (2,), np.float64), parameter_names=("a", "b"), failure_reward=-9.0)

    def _evaluate(self, point: Any) -> Evaluation:
        if point[0] < 0:
            return self.failure("the left half is forbidden", place="left")
        return Evaluation(np.array([-float((point**2).sum())]))


def test_a_subclass_is_a_problem() -> None:
    env = Parabola()
    env.reset(seed=0)
    assert env.step([0.5, 0.5])[1] == -0.5
    observation, reward, _, _, info = env.step([-0.5, 0.5])
    assert observation.tolist() == [0.0]
    assert reward == -9.0
    assert info["reason"] == "the left half is forbidden"
    assert info["place"] == "left"
    with pytest.raises(ValueError, match=r"entry 1 \(b\) is 1.5"):
        env.step([0.0, 1.5])


@given(st.floats(), st.floats())
def test_exactly_the_points_inside_are_accepted(a: float, b: float) -> None:
    env = Parabola()
    if all(abs(value) <= 1.0 for value in (a, b)):
        assert np.array_equal(np.asarray(env.check_action((a, b))), [a, b])
    elif not all(abs(value) <= 1.0 + 1e-8 for value in (a, b)):
        with pytest.raises(ValueError, match="action"):
            env.check_action((a, b))


def test_the_package_offers_its_classes_when_asked() -> None:
    assert all(hasattr(seqbdl.envs, name) for name in seqbdl.envs.__all__)
    assert not hasattr(seqbdl.envs, "NoSuchEnv")
