"""BanditLoop: choosing, learning late and in any order, arms that come and go, refusals, state, the driver."""

from __future__ import annotations

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
from seqbdl.serialization import load_tree, save_tree
from tests.loops.conftest import played
from tests.surrogates.conftest import SMALL


def wheel(delta: float = 0.5) -> Any:
    return gymnasium.make("seqbdl/WheelBandit-v0", delta=delta)


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
