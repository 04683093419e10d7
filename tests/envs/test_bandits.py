"""Bandits: Gymnasium's check, exact expected regrets, paired randomness, delays, positions."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

from seqbdl.envs import ClassificationBanditEnv, DelayedFeedback, list_envs
from seqbdl.envs.bandit import LinearBanditEnv, NeuralTestbedBanditEnv, WheelBanditEnv

BANDITS = list_envs("bandit")
TABLE = {"X": np.arange(12.0).reshape(6, 2), "y": ["a", "b", "c", "a", "b", "c"]}


def make(id: str, **options: Any) -> Any:
    arguments = TABLE if id == "seqbdl/ClassificationBandit-v0" else {}
    return gymnasium.make(id, **arguments, **options).unwrapped


@pytest.fixture(params=[info.id for info in BANDITS])
def env(request: pytest.FixtureRequest) -> Any:
    return make(request.param)


def test_gymnasium_check(env: Any) -> None:
    expected = ("symmetric and normalized space", "maximum value is infinity", "minimum value is -infinity")
    with warnings.catch_warnings(record=True) as remarks:
        warnings.simplefilter("always")
        check_env(env, skip_render_check=True)
    texts = [str(remark.message) for remark in remarks]
    assert [text for text in texts if not any(part in text for part in expected)] == []


def test_rounds_do_not_depend_on_what_is_played(env: Any) -> None:
    def play(arms: list[int]) -> list[tuple[list[float], list[float]]]:
        out = []
        context, _ = env.reset(seed=4)
        for arm in arms:
            shown, reward, terminated, _, info = env.step(arm)
            assert np.array_equal(shown, context)
            assert terminated
            assert type(reward) is float
            assert info["regret"] == pytest.approx(info["mean_rewards"].max() - info["mean_rewards"][arm])
            assert info["true_value"] == info["mean_rewards"][arm]
            out.append((context.tolist(), info["mean_rewards"].tolist()))
            context, _ = env.reset()
        return out

    assert play([0] * 8) == play([1] * 8)


def test_odds_that_walk() -> None:
    """One step before every round, the first one too; the best drawn reward is what hindsight compares with."""
    bandit = make("seqbdl/DriftingBernoulliBandit-v0", num_arms=3, drift=0.01)
    bandit.reset(seed=0)
    before, missed = bandit.problem["p"].copy(), []
    steps = []
    for _ in range(400):
        _, reward, *_, info = bandit.step(1)
        missed.append(info["hindsight_regret"])
        assert info["hindsight_regret"] in (0.0, 1.0 - reward)
        bandit.reset()
        steps.append(bandit.problem["p"] - before)
        before = bandit.problem["p"].copy()
    inside = np.abs(np.array(steps))[(np.array(steps) != 0)]
    assert 0.06 < inside.std() * (1 - 2 / np.pi) ** -0.5 < 0.14  # of |N(0, 0.01)|, less what was clipped
    assert 0.0 < np.mean(missed) < 1.0
    with pytest.raises(ValueError, match="drift"):
        make("seqbdl/DriftingBernoulliBandit-v0", drift=-1.0)


def test_position(env: Any) -> None:
    env.reset(seed=1)
    env.step(0)
    context, _ = env.reset()
    position = env.get_position()
    ahead = [env.step(0)[1], env.reset()[0].tolist(), env.step(1)[1]]
    twin = make(env.spec.id)
    twin.reset(seed=9)
    assert np.array_equal(twin.set_position(position), context)
    assert [twin.step(0)[1], twin.reset()[0].tolist(), twin.step(1)[1]] == ahead


@pytest.mark.parametrize(("action", "text"), [(-1, "arm"), (99999, "arm"), (0.5, "integer"), ("a", "integer")])
def test_bad_arms_are_refused(env: Any, action: Any, text: str) -> None:
    env.reset(seed=0)
    with pytest.raises(ValueError, match=text):
        env.step(action)
    env.step(0)
    with pytest.raises(ValueError, match="reset"):
        env.step(0)


@pytest.mark.parametrize(("delta", "percent"), [(0.5, 124.4), (0.7, 124.1), (0.9, 122.5), (0.95, 120.1), (0.99, 103.7)])
def test_the_wheel_by_its_exact_lines(delta: float, percent: float) -> None:
    env = WheelBanditEnv(delta)
    assert env.uniform_regret == pytest.approx(39.16 * (1 - delta**2) + 0.16 * delta**2)
    assert 100 * 48.8 * (1 - delta**2) / env.uniform_regret == pytest.approx(percent, abs=0.05)


def test_the_wheel_plays_as_defined() -> None:
    env = WheelBanditEnv(0.8)
    contexts, gaps, wins = [], [], []
    env.reset(seed=0)
    for _ in range(4000):
        x, reward, *_, info = env.step(0)
        contexts.append(x)
        gaps.append(np.mean(info["mean_rewards"].max() - info["mean_rewards"]))
        outside = np.linalg.norm(x) >= 0.8
        right, up = x[0] > 0, x[1] > 0
        corner = (0 if up else 1) if right else (2 if up else 3)
        assert info["optimal_arm"] == (corner if outside else 4)
        if outside and right and up:
            wins.append(reward)
        env.reset()
    radii = np.linalg.norm(contexts, axis=1)
    assert radii.max() <= 1.0
    assert np.mean(radii >= 0.8) == pytest.approx(0.36, abs=4 * np.sqrt(0.36 * 0.64 / 4000))
    assert np.mean(gaps) == pytest.approx(env.uniform_regret, abs=4 * np.std(gaps) / np.sqrt(4000))
    assert np.mean(wins) == pytest.approx(50.0, abs=0.01)
    assert np.std(wins) == pytest.approx(0.01, rel=0.3)


def test_linear_arms_have_unit_norm_and_the_right_noise() -> None:
    env = LinearBanditEnv(num_arms=7, nonzero=3)
    env.reset(seed=0)
    assert np.allclose(np.linalg.norm(env.problem["beta"], axis=1), 1.0)
    assert ((env.problem["beta"] != 0).sum(axis=1) == 3).all()
    residuals = []
    for _ in range(1000):
        _, reward, *_, info = env.step(6)
        residuals.append(reward - info["true_value"])
        env.reset()
    assert np.std(residuals) == pytest.approx(0.07, rel=0.1)


def test_drift_and_abrupt_changes() -> None:
    drifting, abrupt = LinearBanditEnv(drift=0.05), LinearBanditEnv(change_every=5)
    wheel = WheelBanditEnv(0.5, change_every=3)
    for env in (drifting, abrupt, wheel):
        env.reset(seed=0)
    betas = []
    for _ in range(11):
        betas.append((drifting.problem["beta"], abrupt.problem["beta"], wheel.problem["arms"].tolist()))
        for env in (drifting, abrupt, wheel):
            env.step(0)
            env.reset()
    steps = [np.linalg.norm(b[0] - a[0]) for a, b in itertools.pairwise(betas)]
    assert all(0 < step < 1 for step in steps)
    assert [not np.array_equal(a[1], b[1]) for a, b in itertools.pairwise(betas)] == [i % 5 == 4 for i in range(10)]
    assert all(sorted(arms) == [0, 1, 2, 3] for *_, arms in betas)


def test_the_testbed_has_actions_and_chances() -> None:
    env = NeuralTestbedBanditEnv()
    with pytest.raises(ValueError, match="reset"):
        _ = env.arm_features
    env.reset(seed=0)
    assert env.arm_features.shape == (100, 2)
    means = env.step(3)[4]["mean_rewards"]
    assert ((means >= 0) & (means <= 1)).all()
    env.reset(seed=1)
    assert not np.array_equal(env.step(3)[4]["mean_rewards"], means)


def test_a_table_is_a_bandit() -> None:
    env = ClassificationBanditEnv(**TABLE, standardize=False)
    context, _ = env.reset(seed=0)
    seen = []
    for _ in range(12):
        row = int(np.flatnonzero((context == env.X).all(axis=1))[0])
        right = list(env.classes).index(TABLE["y"][row])
        assert env.step(right)[1] == 1.0
        seen.append(row)
        context, _ = env.reset()
    assert sorted(seen[:6]) == sorted(seen[6:]) == list(range(6))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "dataset"),
        ({"dataset": "no such"}, "breast_cancer"),
        ({"X": [[1.0]], "y": [0]}, "class"),
        ({"X": [[1.0], [np.nan]], "y": [0, 1]}, "row 1"),
        ({"X": [["a"], ["b"]], "y": [0, 1]}, "number"),
        ({"X": [[1.0], [2.0]], "y": [0]}, "shapes"),
        ({**TABLE, "flip": 0.7}, "flip"),
    ],
)
def test_bad_tables_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        ClassificationBanditEnv(**options)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.floats(1.0, 20.0))
def test_delayed_rewards_all_arrive_and_are_the_right_ones(seed: int, mean_delay: float) -> None:
    prompt, late = WheelBanditEnv(0.7), DelayedFeedback(WheelBanditEnv(0.7), mean_delay, seed)
    prompt.reset(seed=seed)
    late.reset(seed=seed)
    wanted, got = {}, {}
    for i in range(20):
        _, reward, *_, info = prompt.step(i % 5)
        wanted[info["round"]] = reward
        _, nothing, *_, info = late.step(i % 5)
        assert nothing == 0.0
        for number, value in info["arrived"]:
            assert number not in got
            assert number < i
            got[number] = value
        prompt.reset()
        late.reset()
    got.update(late.flush())
    assert got == wanted
    assert late.flush() == []


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (WheelBanditEnv, {"delta": 1.0}),
        (WheelBanditEnv, {"std": -1.0}),
        (WheelBanditEnv, {"change_every": 0}),
        (LinearBanditEnv, {"nonzero": 11}),
        (LinearBanditEnv, {"noise": float("nan")}),
        (LinearBanditEnv, {"num_arms": 1}),
        (NeuralTestbedBanditEnv, {"temperature": 0.0}),
    ],
)
def test_bad_settings_are_refused(kind: Any, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        kind(**options)
