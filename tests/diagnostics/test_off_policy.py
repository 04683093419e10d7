"""Off-policy estimates against the true value of the other policy, coverage, and refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from seqbdl.diagnostics.off_policy import METHODS, off_policy_value
from seqbdl.errors import SeqbdlError

MEANS = np.array([0.2, 0.5, 0.8])
TARGET = np.array([0.1, 0.2, 0.7])


def logged(n: int, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    chances = np.array([0.5, 0.3, 0.2])
    arms = rng.choice(3, n, p=chances)
    rewards = (rng.random(n) < MEANS[arms]).astype(float)
    return {"arms": arms, "rewards": rewards, "propensities": chances[arms], "target": np.tile(TARGET, (n, 1))}


@pytest.mark.parametrize("method", METHODS)
def test_intervals_cover_the_true_value(method: str) -> None:
    true, hits, errors = TARGET @ MEANS, 0, []
    for seed in range(300):
        log = logged(400, seed)
        extra = {"predicted": np.tile([0.3, 0.4, 0.7], (400, 1))} if method == "dr" else {}
        estimate = off_policy_value(**log, method=method, **extra)
        hits += estimate.interval[0] <= true <= estimate.interval[1]
        errors.append(estimate.value - true)
        assert 1 < estimate.effective_size < 400
    assert abs(np.mean(errors)) < 4 * np.std(errors) / np.sqrt(300) + (0.005 if method == "snips" else 0)
    assert abs(hits / 300 - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 300)


def test_by_hand() -> None:
    log = {"arms": [0, 1], "rewards": [1.0, 2.0], "propensities": [0.5, 0.25], "target": [[1.0, 0.0], [0.5, 0.5]]}
    assert off_policy_value(**log, method="ips").value == pytest.approx((2 * 1 + 2 * 2) / 2)
    assert off_policy_value(**log, method="snips").value == pytest.approx(6 / 4)
    exact = off_policy_value(**log, method="dr", predicted=[[1.0, 5.0], [3.0, 2.0]])
    assert exact.value == pytest.approx((1.0 + 2.5) / 2)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"method": "magic"}, "method"),
        ({"method": "dr"}, "predicted"),
        ({"propensities": [0.5, 0.0]}, "row 1"),
        ({"rewards": [1.0, np.nan]}, "row 1"),
        ({"arms": [0, 2]}, "row 1"),
        ({"target": [[1.0, 0.0], [0.5, 0.6]]}, "row 1"),
        ({"arms": [0]}, "one of each"),
        ({"level": 1.0}, "level"),
    ],
)
def test_bad_logs_are_refused(change: dict[str, Any], text: str) -> None:
    log = {"arms": [0, 1], "rewards": [1.0, 2.0], "propensities": [0.5, 0.25], "target": [[1.0, 0.0], [0.5, 0.5]]}
    with pytest.raises(SeqbdlError, match=text):
        off_policy_value(**{**log, **change})
