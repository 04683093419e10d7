"""What bandits learn from a stream of rewards: in any order, at a constant cost, and not by halves."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from seqbdl.loops import BanditLoop
from seqbdl.posteriors.joint_gaussian import safe_cholesky
from tests.loops.conftest import played
from tests.surrogates.conftest import SMALL
from tests.surrogates.test_streams import Work


def test_late_and_shuffled_rewards_end_in_the_same_posterior() -> None:
    prompt, late = (BanditLoop((2, 3), "linear", "uniform", initial_pulls=0) for _ in range(2))
    for decision, reward in played(prompt):
        prompt.tell(decision, reward)
    rewards = played(late)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1)).tolist()
    late.tell([rewards[i][0].id for i in order[:20]], [rewards[i][1] for i in order[:20]])
    late.predict([0.0, 0.0])
    for i in order[20:]:
        late.tell(rewards[i][0], rewards[i][1])
    assert [d.arm for d, _ in rewards] == [d.arm for d in prompt.history.decisions]
    x = [0.3, -0.7]
    assert torch.allclose(prompt.predict(x), late.predict(x), atol=1e-9)
    a, b = prompt.learner.model.heads.heads, late.learner.model.heads.heads
    assert torch.allclose(a.b, b.b, atol=1e-9)
    assert torch.allclose(a.log_evidence, b.log_evidence, atol=1e-8)


STREAMED: dict[str, dict[str, Any]] = {  # nothing is learned from the first rows that later ones would have told otherwise
    "ekf": {"network": (8,), "linearize": "start"},
    "lofi": {"network": (8,), "linearize": "start", "rank": 64},
    "vbll": {"network": (8,), "num_networks": 2, "steps": 0},
    "last-layer-laplace": {"network": (8,), "num_networks": 2, "adaptation": 0.0, "prior_precision": 1.0},
}


@pytest.mark.parametrize("arms", ["onehot", "separate"])
@pytest.mark.parametrize("name", list(STREAMED))
def test_late_and_shuffled_rewards_commute_where_updates_do(name: str, arms: str) -> None:
    box = (spaces.Box(-1.0, 1.0, (2,), np.float64), spaces.Discrete(3))
    known: dict[str, Any] = {"noise": 0.01, "outcome_bounds": [[-2.0], [2.0]], "scales": {}}
    options = {"arms": arms, "refit_every": None, "memory": 0, "surrogate_options": {**STREAMED[name], **known}}
    prompt, late = (BanditLoop(box, name, "uniform", initial_pulls=0, **options) for _ in range(2))
    for decision, reward in played(prompt, 24):
        prompt.tell(decision, reward)
        prompt.predict([0.0, 0.0])  # learns now
    told = played(late, 24)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1)).tolist()
    for part in (order[:5], order[5:16], order[16:]):
        late.tell([told[i][0].id for i in part], [told[i][1] for i in part])
        late.predict([0.0, 0.0])
    assert torch.allclose(prompt.predict([0.3, -0.7]), late.predict([0.3, -0.7]), atol=1e-6)


@pytest.mark.parametrize("name", ["linear", *STREAMED])
def test_a_decision_costs_the_same_after_five_thousand(name: str) -> None:
    """Counted in calls of functions and in numbers that tensor operations touch, which no busy machine distorts."""
    options = {} if name == "linear" else {**STREAMED[name], "noise": 0.01, "outcome_bounds": [[-2.0], [2.0]], "scales": {}}
    if name in ("ekf", "lofi"):
        options["block_size"] = 64
    loop = BanditLoop((2, 3), name, "thompson", initial_pulls=0, refit_every=None, memory=0, surrogate_options=options)
    rng, work, calls, done = np.random.default_rng(0), [], [], 0
    for total in (500, 5000):
        n = total - done
        loop.observe(rng.uniform(-1, 1, (n, 2)), rng.integers(0, 3, n), rng.uniform(-1, 1, n))
        loop.predict([0.0, 0.0])
        done, count = total, [0]

        def call(frame: Any, event: str, arg: Any, count: list[int] = count) -> None:
            count[0] += 1

        with Work() as counter:
            sys.setprofile(call)
            decision = loop.ask([0.1, 0.2])
            loop.tell(decision, 0.5)
            loop.predict([0.1, 0.2])
            sys.setprofile(None)
        work.append(counter.count)
        calls.append(count[0])
    assert work[1] <= 1.5 * work[0]
    assert calls[1] <= 1.5 * calls[0]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("linear", {"forgetting": 0.9}),
        ("bayesian-last-layer", {"refit_every": None}),
        ("bayesian-last-layer", {"refit_every": 12, "memory": 5}),
        ("bayesian-last-layer", {"refit_every": None, "arms": "separate"}),
    ],
)
def test_a_failed_update_leaves_the_posterior_and_the_rows_wait(
    name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And when it succeeds later, it is as if nothing had happened."""
    loop, twin = (
        BanditLoop((2, 3), name, "uniform", initial_pulls=0, surrogate_options=SMALL.get(name), **options) for _ in range(2)
    )
    for one in (loop, twin):
        for decision, reward in played(one, 8):
            one.tell(decision, reward)
        one.predict([0.0, 0.0])
        late = [(decision, reward) for decision, reward in played(one, 5, seed=1)]
        one.tell([decision for decision, _ in late], [reward for _, reward in late])

    calls = 0

    def fail(matrix: Any, *rest: Any) -> Any:  # the second factor that is asked for cannot be had
        nonlocal calls
        calls += 1
        if calls > 1:
            raise torch.linalg.LinAlgError("not positive definite")
        return safe_cholesky(matrix, *rest)

    target = "seqbdl.inference.arm_heads" if name == "linear" else "seqbdl.inference.last_layer"
    with monkeypatch.context() as patched:
        patched.setattr(f"{target}.safe_cholesky", fail)
        for _ in range(2):
            with pytest.raises(torch.linalg.LinAlgError):
                loop.predict([0.3, 0.1])
    assert torch.equal(loop.predict([0.3, 0.1]), twin.predict([0.3, 0.1]))
    assert str(loop.state_dict()["learner"]) == str(twin.state_dict()["learner"])
