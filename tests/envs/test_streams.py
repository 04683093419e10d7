"""Streams: Gymnasium's check, tasks as promised, scores by hand, positions that can be restored."""

from __future__ import annotations

import gzip
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

from seqbdl.envs import EnvInfo, list_envs
from seqbdl.envs.image_stream import ImageStreamEnv, read_idx
from seqbdl.envs.stream import DriftingLinearEnv
from seqbdl.envs.table_stream import TableStreamEnv

STREAMS = [
    pytest.param(info, id=info.id, marks=pytest.mark.skipif(not info.available, reason=f"needs: {info.install}"))
    for info in list_envs("stream")
]


TABLE = {"X": np.arange(24.0).reshape(12, 2), "y": np.arange(12.0) ** 2, "changes": (5,)}


def make(id: str) -> Any:
    return gymnasium.make(id, **(TABLE if id == "seqbdl/TabularStream-v0" else {})).unwrapped


@pytest.fixture(params=STREAMS)
def env(request: pytest.FixtureRequest) -> Any:
    info: EnvInfo = request.param
    return make(info.id)


def good(env: Any) -> np.ndarray:
    if env.num_classes is None:
        return np.tile([0.0, 1.0], (env.chunk, 1))
    return np.full((env.chunk, env.num_classes), 1.0 / env.num_classes)


def test_gymnasium_check(env: Any) -> None:
    expected = ("symmetric and normalized space", "maximum value is infinity", "minimum value is -infinity", "action_space.high")
    with warnings.catch_warnings(record=True) as remarks:
        warnings.simplefilter("always")
        check_env(env)
    texts = [str(remark.message) for remark in remarks]
    assert [text for text in texts if not any(part in text for part in expected)] == []


def test_a_stream_runs_to_its_end_and_continues_from_any_place(env: Any) -> None:
    observation, _ = env.reset(seed=3)
    first = observation
    seen = []
    middle = min(7, env.num_steps - 1)
    for step in range(env.num_steps):
        if step == middle:
            position, there = env.get_position(), observation
        observation, reward, ended, _, info = env.step(good(env))
        outcome = info["outcome"]
        seen.append((outcome["task"], outcome["changed"], outcome["last"]))
        assert outcome["Y"].shape == (env.chunk, 1)
        assert np.isfinite(reward)
        assert ended == (step == env.num_steps - 1)
    assert [i for i, (_, changed, _) in enumerate(seen) if changed][1:] == env.changes
    assert sum(last for *_, last in seen) == len(env.tasks)
    with pytest.raises(ValueError, match="ended"):
        env.step(good(env))
    other: Any = make(env.spec.id)
    other.reset(seed=99)
    assert np.array_equal(other.set_position(position), there)
    assert np.array_equal(env.reset(seed=3)[0], first)


def test_scores_by_hand() -> None:
    env = DriftingLinearEnv(dim=1, length=4, chunk=2)
    env.reset(seed=0)
    y = env.tasks[0].Y[:2, 0]
    _, reward, *_ = env.step([[y[0], 2.0], [y[1] + 1.0, 1.0]])
    assert reward == pytest.approx(0.5 * (-np.log(2.0) - 0.5 - np.log(2 * np.pi)))
    digits = ImageStreamEnv(chunk=1)
    digits.reset(seed=0)
    weights = np.full(10, 0.1)
    weights[int(digits.tasks[0].Y[0, 0])] = 1.1
    _, reward, *_ = digits.step(weights[None])
    assert reward == pytest.approx(np.log(1.1 / 2.0))


def test_image_tasks() -> None:
    split = ImageStreamEnv(scenario="domain")
    split.reset(seed=0)
    assert all(set(task.Y.ravel()) == {0.0, 1.0} for task in split.tasks)
    whole = ImageStreamEnv(protocol="permuted", num_tasks=2, per_task=50, per_test=20)
    whole.reset(seed=0)
    assert whole.tasks[1].X.shape == (50, 64)
    np.testing.assert_allclose(sorted(whole.tasks[0].X.mean(0)), sorted(whole.tasks[0].X.mean(0)))
    images = whole._images[0].reshape(-1, 64) / 16
    assert any((whole.tasks[0].X[0] == image).all() for image in images)
    assert any((np.sort(whole.tasks[1].X[0]) == np.sort(image)).all() for image in images)
    turned = ImageStreamEnv(protocol="rotated", num_tasks=2)
    turned.reset(seed=0)
    square = turned.tasks[1].X[0].reshape(8, 8)  # by 90 degrees: no pixel is interpolated
    assert any(np.allclose(square, np.rot90(image, k)) for image in whole._images[0] / 16 for k in (1, 3))


def test_a_stream_that_says_the_task() -> None:
    env = ImageStreamEnv(scenario="task", num_tasks=3, per_task=20, per_test=10, chunk=20)
    observation, info = env.reset(seed=0)
    assert (env.input_dim, env.num_classes) == (65, 2)
    assert env.observation_space.high[0, -1] == 2.0
    for task in range(3):
        assert info["task"] == task
        assert (observation[:, -1] == task).all()
        assert (env.test_set(task)[0][:, -1] == task).all()
        assert set(env.tasks[task].Y.ravel()) == {0.0, 1.0}
        assert env.observation_space.contains(observation)
        observation, _, ended, _, info = env.step(np.full((20, 2), 0.5))
    assert ended
    assert "task" not in info
    plain = ImageStreamEnv(scenario="domain", num_tasks=3, per_task=20, per_test=10, chunk=20)
    plain.reset(seed=0)
    assert np.array_equal(plain.tasks[1].X, env.tasks[1].X[:, :-1])  # the same images in the same order
    many = ImageStreamEnv(protocol="permuted", scenario="task", num_tasks=2, per_task=20)
    many.reset(seed=0)
    assert (many.num_classes, many.tasks[1].X.shape[1]) == (10, 65)


def test_validation_images_are_training_images() -> None:
    env, plain = (ImageStreamEnv(num_tasks=1, validation=validation) for validation in (True, False))
    for stream in (env, plain):
        stream.reset(seed=0)
    known = {row.tobytes() for row in plain.tasks[0].X}
    assert {row.tobytes() for row in [*env.tasks[0].X, *env.tasks[0].test_X]} <= known
    assert not {row.tobytes() for row in env.tasks[0].X} & {row.tobytes() for row in env.tasks[0].test_X}


def test_files_in_idx_format(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    head = bytes([0, 0, 8, 3]) + np.array(array.shape, ">i4").tobytes()
    (tmp_path / "a.gz").write_bytes(gzip.compress(head + array.tobytes()))
    assert np.array_equal(read_idx(tmp_path / "a.gz"), array)
    with pytest.raises(ValueError, match="apt-get install"):
        ImageStreamEnv("fashion-mnist", folder=str(tmp_path))


@given(kind=st.sampled_from(["shape", "nan", "spread", "negative"]))
@settings(max_examples=8, deadline=None)
def test_bad_actions(kind: str) -> None:
    env = DriftingLinearEnv(length=5) if kind == "spread" else ImageStreamEnv(chunk=2)
    env.reset(seed=0)
    action = good(env)
    if kind == "shape":
        action = action[:1]
    elif kind == "nan":
        action[0, 0] = np.nan
    elif kind == "spread":
        action[0, 1] = 0.0
    else:
        action[1, 2] = -1.0
    with pytest.raises(ValueError, match="action"):
        env.step(action)


@pytest.mark.parametrize("options", [{"protocol": "x"}, {"dataset": "x"}, {"scenario": "tasks"}, {"num_tasks": 6}, {"chunk": 0}])
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        ImageStreamEnv(**options)


def test_a_task_too_short_for_a_chunk_is_refused() -> None:
    """It would never be shown."""
    env = ImageStreamEnv(num_tasks=2, per_task=20, chunk=21)
    with pytest.raises(ValueError, match="task 0 has only 20 rows"):
        env.reset(seed=0)


def test_a_table_with_earlier_outcomes() -> None:
    """Lags are the last outcome first; differences are of successive outcomes; nothing of the row's own outcome is shown."""
    env = TableStreamEnv(**TABLE, lags=2, difference=True)
    env.reset(seed=0)
    X, Y = (np.concatenate([getattr(task, part) for task in env.tasks]) for part in "XY")
    assert X[0].tolist() == [4.0, 5.0, 1.0, 0.0]
    assert X[-1].tolist() == [22.0, 23.0, 100.0, 81.0]
    assert Y[:, 0].tolist() == [2.0 * t - 1 for t in range(2, 12)]
    assert env.changes == [3]  # row 5, two of history left out
    plain = TableStreamEnv(TABLE["X"][:, 0], TABLE["y"])
    assert plain.input_dim == 1
    assert plain.num_steps == 0  # before reset


def test_a_table_of_labels() -> None:
    env = TableStreamEnv(TABLE["X"], list("bacabacabaca"), classes=True, lags=1, bounds=np.tile([[-1.0], [30.0]], 5))
    observation, _ = env.reset(seed=0)
    assert env.num_classes == 3
    assert env.classes is not None
    assert env.classes.tolist() == ["a", "b", "c"]
    assert observation.tolist() == [[2.0, 3.0, 0.0, 1.0, 0.0]]  # the last label was b
    *_, info = env.step([[1.0, 0.0, 0.0]])
    assert info["outcome"]["Y"].tolist() == [[0.0]]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"lags": 1, "chunk": 2}, "chunk=1"),
        ({"difference": True, "chunk": 2}, "chunk=1"),
        ({"lags": -1}, "lags=-1"),
        ({"classes": True, "difference": True}, "labels"),
        ({"X": [["a"]] * 12}, "no number"),
        ({"y": np.full(12, np.nan)}, "row 0"),
        ({"y": np.zeros(11)}, "12"),
        ({"changes": (12,)}, "part"),
        ({"changes": (0,)}, "part"),
        ({"lags": 12}, "history"),
        ({"bounds": np.zeros((2, 2))}, "smaller"),
        ({"bounds": np.zeros((2, 3))}, "shape"),
        ({"X": 1.0}, "X"),
    ],
)
def test_bad_tables(change: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        TableStreamEnv(**{**TABLE, **change})


@given(n=st.integers(3, 15), lags=st.integers(0, 2), difference=st.booleans())
@settings(max_examples=25, deadline=None)
def test_tables_of_any_size(n: int, lags: int, difference: bool) -> None:
    y = np.random.default_rng(n).normal(size=n)
    env = TableStreamEnv(np.arange(float(n)), y, lags=lags, difference=difference)
    env.reset(seed=0)
    skipped = max(lags, int(difference))
    (task,) = env.tasks
    assert task.X.shape == (n - skipped, 1 + lags)
    assert np.allclose(task.Y[:, 0] + (y[skipped - 1 : -1] if difference else 0.0), y[skipped:])
    for k in range(lags):
        assert np.allclose(task.X[:, 1 + k], y[skipped - 1 - k : n - 1 - k])
