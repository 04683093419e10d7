"""BanditLoop: choosing, learning late and in any order, arms that come and go, refusals, state, the driver."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

import seqbdl
from seqbdl.envs import DelayedFeedback
from seqbdl.errors import SeqbdlError, StateError
from seqbdl.loops import BanditLoop, run
from seqbdl.posteriors.joint_gaussian import safe_cholesky
from seqbdl.serialization import load_tree, save_tree
from tests.surrogates.conftest import SMALL
from tests.surrogates.test_streams import Work


def wheel(delta: float = 0.5) -> Any:
    return gymnasium.make("seqbdl/WheelBandit-v0", delta=delta)


def played(loop: BanditLoop, n: int = 30, seed: int = 0) -> list[Any]:
    """Decisions in random contexts, and rewards that are linear in them."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(n):
        x = rng.uniform(-1, 1, loop.space.context_dim)
        decision = loop.ask(x)
        out.append((decision, float(x.sum() * (decision.arm - 1) + 0.1 * rng.standard_normal())))
    return out


@pytest.mark.parametrize("name", [*seqbdl.list_surrogates(), "linear", "neural-linear"])
def test_every_surrogate_plays_the_wheel(name: str) -> None:
    loop = BanditLoop(
        wheel(),
        name,
        surrogate_options=SMALL.get(name),
        refit_every=None,
        absorb_every=1 if "linear" in name else 95,
        propensity_samples=0,
    )
    history = run(loop, wheel(), 200, progress=False)
    assert len(history.complete) == 200
    assert np.isfinite(history.regret()).all()
    assert loop.pending == []


@pytest.mark.parametrize("policy", ["thompson", "ucb", "ids", "epsilon-greedy", "greedy"])
def test_policies_learn_a_linear_bandit(policy: str) -> None:
    env = gymnasium.make("seqbdl/LinearBandit-v0", context_dim=3, num_arms=4)
    options = {"a0": 2.0, "b0": 0.1}
    loop = BanditLoop(
        env, "linear", policy, epsilon=0.02, num_draws=64, propensity_samples=16, surrogate_options=options
    )  # exploring costs epsilon times what uniform play loses
    history = run(loop, env, 300, progress=False)
    table = history.frame()
    assert table["regret"][-100:].mean() < 0.1  # uniform play loses about 0.8 a round
    model = table[table["source"] == "model"]
    assert ((model["propensity"] > 0) & (model["propensity"] <= 1)).all()


def test_uniform_regret_on_the_wheel_is_the_exact_one() -> None:
    env = wheel(0.7)
    regret = run(BanditLoop(env, "linear", "uniform", initial_pulls=0), env, 1500, progress=False).frame()["regret"]
    assert regret.mean() == pytest.approx(env.unwrapped.uniform_regret, abs=4 * regret.std() / np.sqrt(1500))


def test_thompson_propensities_are_the_chances_of_being_best() -> None:
    loop = BanditLoop((2, 3), "linear", propensity_samples=4000)
    for decision, reward in played(loop):
        loop.tell(decision, reward)
    x = np.array([0.1, -0.2])
    decisions = loop.ask(x, 400)
    counts = np.bincount([d.arm for d in decisions], minlength=3) / 400
    p = np.array(decisions[0].propensities)
    assert p.sum() == pytest.approx(1.0)
    assert (np.abs(counts - p) < 4 * np.sqrt(p * (1 - p) / 400) + 0.02).all()
    heads = loop.learner.model.heads.heads
    z = torch.tensor([0.1, -0.2, 1.0], dtype=torch.float64)
    spread = torch.linalg.solve_triangular(heads.factor, z.expand(3, 3).unsqueeze(-1), upper=False).squeeze(-1).norm(dim=-1)
    law = torch.distributions.StudentT(2 * heads.a, heads.mean @ z, (heads.b / heads.a).sqrt() * spread)
    rng = np.random.default_rng(0)
    exact = law.loc.numpy() + law.scale.numpy() * rng.standard_t(2 * heads.a.numpy(), (100_000, 3))
    chances = np.bincount(exact.argmax(1), minlength=3) / 100_000
    assert (np.abs(chances - p) < 4 * np.sqrt(p * (1 - p) / 4000) + 0.005).all()


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


def test_asking_does_not_change_the_posterior() -> None:
    loop = BanditLoop((2, 3), "bayesian-last-layer", initial_pulls=1, surrogate_options=SMALL["bayesian-last-layer"])
    for decision, reward in played(loop, 12):
        loop.tell(decision, reward)
    before = loop.predict([0.1, 0.2])
    loop.ask(np.zeros((5, 2)))
    assert torch.equal(loop.predict([0.1, 0.2]), before)


@pytest.mark.parametrize(("reward", "surrogate"), [("binary", "laplace"), ("count", "laplace")])
@pytest.mark.parametrize("policy", ["thompson", "ids", "greedy"])
def test_binary_and_count_rewards(reward: str, surrogate: str, policy: str) -> None:
    rng = np.random.default_rng(0)
    loop = BanditLoop(
        (1, 2), surrogate, policy, reward=reward, initial_pulls=4, num_draws=32, propensity_samples=8,
        absorb_every=20, refit_every=None, surrogate_options=SMALL["laplace"],
    )  # fmt: skip
    for _ in range(60):
        decision = loop.ask(rng.uniform(-1, 1, 1))
        mean = 0.9 if decision.arm == 1 else 0.1
        loop.tell(decision, float(rng.random() < mean) if reward == "binary" else float(rng.poisson(5 * mean)))
    predicted = loop.predict([0.0])
    assert predicted[1] > predicted[0]
    assert (predicted >= 0).all()


def test_arms_with_features_that_come_and_go() -> None:
    loop = BanditLoop(
        (1, 3), "bayesian-last-layer", arm_features=[[0.0], [0.5], [1.0]], initial_pulls=1, refit_every=None,
        propensity_samples=20, surrogate_options=SMALL["bayesian-last-layer"],
    )  # fmt: skip
    for _ in range(12):
        decision = loop.ask([0.0])
        loop.tell(decision, 3.0 * loop.space.features[decision.arm, 0].item())
    assert loop.add_arm([0.9]) == 3
    loop.remove_arm(2)
    assert loop.arms == [0, 1, 3]
    decision = loop.ask([0.0], arms=[0, 3])
    assert decision.offered == (0, 3)
    new = loop.ask([0.0], arms=[0, 1], arm_features=[[0.2], [0.8]])
    loop.tell([decision.id, new.id], [2.7, 1.0])
    with pytest.raises(SeqbdlError, match="removed"):
        loop.ask([0.0], arms=[2])
    loop.restore_arm(2)
    assert loop.predict([0.0]).shape == (4,)


@pytest.mark.parametrize("name", ["linear", "neural-linear"])
def test_a_new_head_answers_from_the_prior(name: str) -> None:
    loop = BanditLoop((2, 3), name, initial_pulls=0)
    for decision, reward in played(loop):
        loop.tell(decision, reward)
    loop.add_arm()
    assert loop.predict([0.1, 0.2])[3] == 0.0
    state = loop.state_dict()
    twin = BanditLoop((2, 3), name, initial_pulls=0)
    twin.load_state_dict(state)
    assert torch.equal(twin.predict([0.1, 0.2]), loop.predict([0.1, 0.2]))


@pytest.mark.parametrize("name", ["linear", "bayesian-last-layer"])
def test_reset_forgets(name: str) -> None:
    arms = "separate" if name != "linear" else "auto"
    loop = BanditLoop((2, 3), name, arms=arms, initial_pulls=1, refit_every=None, surrogate_options=SMALL.get(name))
    fresh = loop.predict([0.5, 0.5])
    for decision, reward in played(loop):
        loop.tell(decision, reward)
    known = loop.predict([0.5, 0.5])
    loop.reset([0])
    after = loop.predict([0.5, 0.5])
    assert after[0] == fresh[0]
    assert torch.equal(after[1:], known[1:])
    loop.reset()
    assert torch.equal(loop.predict([0.5, 0.5]), fresh)


def test_bad_input_changes_nothing() -> None:
    loop = BanditLoop((2, 3), "linear", propensity_samples=10)
    for decision, reward in played(loop, 8):
        loop.tell(decision, reward)
    waiting = loop.ask([0.1, 0.1])
    save = loop.state_dict()
    bad: list[tuple[Any, str]] = [
        (lambda: loop.tell(999, 1.0), "no decision"),
        (lambda: loop.tell(0, 1.0), "told before"),
        (lambda: loop.tell([waiting.id, waiting.id], [1.0, 1.0]), "twice"),
        (lambda: loop.tell([waiting.id, 3], [1.0, 1.0]), "told before"),
        (lambda: loop.tell(waiting, float("nan")), "reward"),
        (lambda: loop.tell([waiting.id], [1.0, 2.0]), "rewards"),
        (lambda: loop.tell(waiting, 1.0, constraints=[1.0]), "constraints"),
        (lambda: loop.tell(True, 1.0), "id"),
        (lambda: loop.tell(replace(waiting, arm=(waiting.arm + 1) % 3), 1.0), "played arm"),
        (lambda: loop.ask([0.1, float("nan")]), "entry 1"),
        (lambda: loop.ask([0.1]), "shape"),
        (lambda: loop.ask(None), "shape|context"),
        (lambda: loop.ask([0.1, 0.2], arms=[7]), "arms"),
        (lambda: loop.ask([0.1, 0.2], arms=[]), "at least one"),
        (lambda: loop.ask([0.1, 0.2], n=0), "n=0"),
        (lambda: loop.observe([[0.0, 0.0]], [5], [1.0]), "arms"),
        (lambda: loop.observe([[0.0, 0.0]], [1], [1.0, 2.0]), "rewards"),
    ]
    for call, text in bad:
        with pytest.raises(SeqbdlError, match=text):
            call()
    after = loop.state_dict()
    assert str(after["history"]) == str(save["history"])  # as text, for NaN
    assert torch.equal(after["generator"], save["generator"])
    assert torch.equal(after["learner"]["model"]["heads"]["mean"], save["learner"]["model"]["heads"]["mean"])
    loop.tell(waiting, 1.0)


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


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"policy": "best"}, "policy"),
        ({"reward": "prices"}, "reward"),
        ({"reward": "binary"}, "continuous"),
        ({"arms": "onehot"}, "head"),
        ({"surrogate": "ekf", "forgetting": 0.9}, "forgetting"),
        ({"surrogate": "ekf", "memory": 0}, "refit_every"),
        ({"surrogate": "ekf", "arms": "features"}, "arm_features"),
        ({"refit_every": 1.0}, "refit_every"),
        ({"epsilon": 2.0}, "epsilon"),
        ({"surrogate": "no such"}, "known"),
        ({"forgetting": 1.5}, "forgetting"),
        ({"surrogate_options": {"forgetting_kind": "none"}}, "forgetting_kind"),
        ({"surrogate": "neural-linear", "memory": 0}, "memory"),
    ],
)
def test_bad_settings_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(SeqbdlError, match=text):
        BanditLoop((2, 3), **{"surrogate": "linear", **options})


@pytest.mark.parametrize("given", [3, (2,), (0, 3), (spaces.Discrete(3), 3), (2, spaces.Discrete(3, start=1))])
def test_what_is_no_bandit_is_refused(given: Any) -> None:
    with pytest.raises(SeqbdlError, match="env_or_spaces"):
        BanditLoop(given)


@pytest.mark.parametrize("name", ["linear", "neural-linear", "ekf"])
def test_a_saved_loop_goes_on_the_same(name: str, tmp_path: Any) -> None:
    def make() -> BanditLoop:
        return BanditLoop((2, 3), name, refit_every=20, memory=8, propensity_samples=5, surrogate_options=SMALL.get(name))

    loop, twin = make(), make()
    rewards = played(loop, 25)
    for decision, reward in rewards[:-2]:
        loop.tell(decision, reward)
    save_tree(tmp_path / "loop", loop.state_dict())
    twin.load_state_dict(load_tree(tmp_path / "loop"))
    for one in (loop, twin):
        one.tell(rewards[-1][0].id, rewards[-1][1])
    a, b = (one.ask(np.linspace(-1, 1, 8).reshape(4, 2)) for one in (loop, twin))
    assert a == b
    assert twin.pending == loop.pending
    with pytest.raises(StateError, match="policy"):
        BanditLoop((2, 3), name, "greedy", surrogate_options=SMALL.get(name)).load_state_dict(loop.state_dict())


def test_the_driver_resumes_in_the_same_context(tmp_path: Any) -> None:
    def once(steps: list[int], file: str) -> Any:
        for n in steps:
            env = wheel()
            history = run(BanditLoop(env, "linear", propensity_samples=0), env, n, progress=False, checkpoint=tmp_path / file)
        return history.frame()

    whole, parts = once([40], "a"), once([17, 40], "b")
    assert whole.equals(parts)


def test_the_driver_waits_for_delayed_rewards() -> None:
    env = DelayedFeedback(wheel(), mean_delay=5.0, seed=1)
    loop = BanditLoop(env, "linear", propensity_samples=0)
    history = run(loop, env, 100, progress=False)
    assert len(history) == 100
    assert 0 < len(loop.pending) < 30
    for number, value in env.flush():
        loop.tell(number, value)  # one run: rounds are ids
    assert loop.pending == []
    assert np.isfinite(history.regret()).all()


def test_history_says_and_draws() -> None:
    env = wheel()
    history = run(BanditLoop(env, "linear", propensity_samples=5), env, 30, progress=False)
    assert "30 decisions" in history.summary()
    assert "regret" in history.summary()
    assert history.total_reward() == pytest.approx(history.frame()["reward"].sum())
    assert history.plot(label="linear").get_ylabel() == "cumulative regret"
    assert history.plot_arms().get_ylabel() == "share of decisions"


def test_logged_decisions_teach() -> None:
    rng = np.random.default_rng(0)
    X, arms = rng.uniform(-1, 1, (40, 2)), rng.integers(0, 3, 40)
    rewards = X[:, 0] * arms
    loop = BanditLoop((2, 3), "linear")
    loop.observe(X, arms, rewards)
    assert loop.predict([1.0, 0.0]).argmax() == 2
    assert loop.ask([1.0, 0.0]).arm == 2
