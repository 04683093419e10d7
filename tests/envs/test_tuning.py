"""Tuning a real network: it learns, repeats itself exactly, fails where it should, and random search is not enough."""

from __future__ import annotations

import math
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from seqbdl.envs.tuning import TuneNetworkEnv, load_splits, score

GOOD: dict[str, float | int] = {
    "learning_rate": 0.15,
    "one_minus_momentum": 0.5,
    "weight_decay": 1e-4,
    "init_scale": 1.3,
    "label_smoothing": 0.0,
    "width": 256,
    "layers": 4,
    "activation": 0,
}


def make(**options: Any) -> TuneNetworkEnv:
    env = gymnasium.make("seqbdl/TuneDigits-v0", **options).unwrapped
    assert isinstance(env, TuneNetworkEnv)
    env.reset(seed=0)
    return env


def test_a_good_configuration_reads_digits_it_has_not_seen() -> None:
    env = make()
    reward, info = env.step(GOOD)[1::3]
    assert reward > -0.25
    assert info["test_accuracy"] > 0.93
    assert info["true_value"] == reward
    assert info["noise_variance"].tolist() == [0.0]


def test_the_problem_is_deterministic() -> None:
    first = make().step(GOOD)[1]
    assert make().step(GOOD)[1] == first
    assert make(seed=1).step(GOOD)[1] != first


def test_the_default_dtype_does_not_matter() -> None:
    first = make().step(GOOD)[1]
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad():
            assert make().step(GOOD)[1] == first
    finally:
        torch.set_default_dtype(before)


def test_fresh_seeds_make_it_noisy_and_reproducible() -> None:
    env = make(fresh_seeds=True)
    small = {**GOOD, "width": 16, "layers": 1}
    rewards = [env.step(small)[1] for _ in range(2)]
    assert rewards[0] != rewards[1]
    env.reset(seed=0)
    _, reward, _, _, info = env.step(small)
    assert reward == rewards[0]
    assert info["true_value"] is None
    assert info["noise_variance"] is None


def test_a_bad_configuration_is_worse_and_a_diverging_one_fails() -> None:
    env = make()
    assert env.step({**GOOD, "learning_rate": 1e-4, "layers": 1, "width": 8})[1] < -1.0
    _, reward, _, _, info = env.step({**GOOD, "learning_rate": 1.0, "one_minus_momentum": 0.01, "init_scale": 10.0})
    assert info["failed"]
    assert "diverged" in info["reason"]
    assert reward == pytest.approx(math.log(1e-3))
    # The next evaluation is not touched by the failure.
    assert env.step(GOOD)[1] == make().step(GOOD)[1]


@pytest.mark.parametrize(("dataset", "rows"), [("digits", 1797), ("breast_cancer", 569), ("wine", 178)])
def test_splits_are_disjoint_and_complete(dataset: str, rows: int) -> None:
    splits = load_splits(dataset, seed=3)
    assert sum(len(split.x) for split in splits) == rows
    assert len(splits[0].x) <= 500
    for split in splits:
        assert len(split.x) == len(split.y)
        assert torch.isfinite(split.x).all()
        assert set(split.y.tolist()) == set(splits[0].y.tolist())


@pytest.mark.parametrize("env_id", ["seqbdl/TuneBreastCancer-v0", "seqbdl/TuneWine-v0"])
def test_other_data_sets_can_be_tuned_too(env_id: str) -> None:
    env = gymnasium.make(env_id)
    env.reset(seed=0)
    info = env.step({**GOOD, "width": 64, "layers": 2})[4]
    assert info["test_accuracy"] > 0.9


def test_unknown_data_sets_are_refused() -> None:
    with pytest.raises(ValueError, match="dataset"):
        TuneNetworkEnv("mnist")


def test_score() -> None:
    log_probabilities = torch.log(torch.tensor([[0.5, 0.5], [0.9, 0.1], [1e-9, 1.0 - 1e-9]]))
    loss, accuracy = score(log_probabilities, torch.tensor([1, 0, 0]))
    assert loss == pytest.approx(-(math.log(0.5) + math.log(0.9) + math.log(1e-3)) / 3)
    assert accuracy == pytest.approx(1 / 3)
    assert math.isnan(score(torch.tensor([[np.nan, 0.0]]), torch.tensor([0]))[0])
