"""The design loop with trained policies, simulators without likelihood, and models with a goal."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor

import seqbdl
import seqbdl.envs
from seqbdl.acquisition.eig import DiscrepancyModel, FunctionModel
from seqbdl.acquisition.policies import DesignPolicy
from seqbdl.envs.design_models import LinearGaussian
from seqbdl.errors import InvalidOptionError, InvalidSpaceError
from seqbdl.loops import ExperimentDesignLoop, Integer, Real, Space, run, train_policy
from seqbdl.loops.design_search import GivenHistory
from seqbdl.serialization import load_tree, save_tree

LINE = Space([Real("x1", -1.0, 1.0), Real("x2", -1.0, 1.0)])
QUICK: dict[str, Any] = {"batch_size": 32, "num_contrastive": 31, "hidden": 16, "progress": False}


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Simulator:
    """The line without its likelihood."""

    reparametrized = True
    line = LinearGaussian()

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return self.line.sample(n, generator)

    def simulate(self, theta: Tensor, design: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return self.line.simulate(theta, design, generator)


def test_a_policy_is_trained_by_one_call_and_used_by_ask(tmp_path: Path) -> None:
    env: Any = gymnasium.make("seqbdl/LocationFinding-v0")
    model = env.unwrapped.model
    policy = train_policy(model, env, 3, updates=5, **QUICK)
    policy.save(tmp_path / "location.policy")
    loop = ExperimentDesignLoop(model, env, policy=DesignPolicy.load(tmp_path / "location.policy"), num_particles=256, moves=2)
    history = run(loop, env, steps=3, progress=False, seed=1)
    designs, outcomes = loop.data()
    for t in range(3):
        torch.testing.assert_close(policy(designs[:t], outcomes[:t]), designs[t])
    frame = history.frame()
    assert (frame["source"] == "policy").all()
    assert frame["expected_lower"].isna().all()
    assert frame["gained_lower"].notna().all()
    assert loop.last_bounds is None


def test_one_design_at_a_time() -> None:
    policy = train_policy(LinearGaussian(), LINE, 2, updates=1, **QUICK)
    loop = ExperimentDesignLoop(LinearGaussian(), LINE, policy=policy, num_particles=64)
    point = loop.ask()
    with pytest.raises(InvalidOptionError, match="under way"):
        loop.ask()
    loop.tell(point, failed=True, reason="lost")
    assert loop.ask() == point  # nothing was learned
    loop.tell(point, 0.5)
    assert loop.ask() != point


def test_a_resumed_loop_asks_the_same(tmp_path: Path) -> None:
    policy = train_policy(Simulator(), LINE, 2, updates=2, **QUICK)
    loops = [ExperimentDesignLoop(Simulator(), LINE, policy=policy, seed=3) for _ in range(2)]
    loops[0].tell(loops[0].ask(), 0.4)
    save_tree(tmp_path / "state", loops[0].state_dict())
    loops[1].load_state_dict(load_tree(tmp_path / "state"))
    assert loops[0].ask() == loops[1].ask()
    assert torch.equal(loops[0].posterior.weighted()[1], loops[1].posterior.weighted()[1])


def test_a_critic_is_an_amortized_posterior() -> None:
    """Weights of prior draws by a trained critic, against the closed form of a line."""
    model = LinearGaussian(dim=1)
    blind = Simulator()
    blind.line = model
    space = Space([Real("x", 0.5, 1.0)])
    options = QUICK | {"batch_size": 256, "hidden": 32, "learning_rate": 5e-3}
    policy = train_policy(blind, space, 2, updates=250, seed=1, **options)
    loop = ExperimentDesignLoop(blind, space, policy=policy, num_particles=20_000)
    designs, outcomes = torch.tensor([[0.8], [1.0]]).double(), torch.tensor([[0.6], [0.9]]).double()
    loop.tell({"x": 0.8}, 0.6)
    loop.tell({"x": 1.0}, 0.9)
    mean, covariance = model.posterior(designs, outcomes)
    row = loop.summary().iloc[0]
    # As good as the training: a quarter of a posterior standard deviation, and a quarter of its size.
    sd = float(covariance.sqrt())
    assert abs(row["mean"] - float(mean)) < 0.25 * sd
    assert row["sd"] == pytest.approx(sd, rel=0.25)
    told = loop.information()
    assert (told.lower, told.upper) == (None, None)
    truth = 0.5 * (float(covariance) + float(mean) ** 2 - 1 - math.log(float(covariance)))
    assert told.estimate is not None
    assert float(told.estimate) == pytest.approx(truth, abs=0.2)
    assert loop.history.gained == {}
    assert "complete" in loop.history.summary()
    draws = loop.posterior.sample(2000, rng())
    assert float(draws.mean()) == pytest.approx(row["mean"], abs=4 * sd / math.sqrt(2000))
    assert loop.posterior.effective > 1000


def test_a_discrepancy_makes_the_loop_spread_its_designs() -> None:
    """A slope under a smooth error: what is known about the error at one place is no news there."""
    surrogate = seqbdl.make_surrogate("gp", input_dim=1)

    class Slope:
        def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
            return torch.randn(n, 1, generator=generator, dtype=torch.float64)

    model = DiscrepancyModel(lambda theta, x: 3 * (theta * (x - 0.5)).sum(-1), Slope(), surrogate, 0.1, 64, rng())
    candidates = torch.tensor([[0.0], [0.02], [1.0]], dtype=torch.float64)
    options = {"search_outer": 64, "search_inner": 64, "num_outer": 128, "num_inner": 128}
    loop = ExperimentDesignLoop(model, candidates, num_particles=20_000, **options)
    loop.tell([0.0], 0.5)
    assert loop.ask()["x0"] == 1.0
    assert loop.summary().shape[0] == 2


def test_nuisances_follow_what_was_told() -> None:
    """After an exact look at one of two values, draws of the nuisance given the goal agree with it."""
    surrogate = seqbdl.make_surrogate("gp", input_dim=1)
    model: Any = FunctionModel(
        surrogate,
        64,
        noise=0.05,
        generator=rng(),
        goal=lambda f: (f > 0).double(),
        points=torch.tensor([[1.0]], dtype=torch.float64),
    )
    design = torch.zeros(1, 1, dtype=torch.float64)
    seen = model.simulate(torch.tensor([[5.0]]).double(), design, rng())
    given = GivenHistory(model, design, seen)
    before = model.nuisances(torch.full((8, 1), 5.0).double(), 200, rng())
    after = given.nuisances(torch.full((8, 1), 5.0).double(), 200, rng())
    assert after.shape == before.shape
    misses = [(model.log_prob(seen[0], draws, design[0]) < -10).double().mean() for draws in (before, after)]
    assert float(misses[1]) < 0.1 < float(misses[0])


def test_what_cannot_be_is_refused() -> None:
    policy = train_policy(LinearGaussian(), LINE, 2, updates=1, **QUICK)
    with pytest.raises(InvalidOptionError, match="other designs"):
        ExperimentDesignLoop(LinearGaussian(), Space([Real("x1", -1.0, 1.0), Real("x2", -2.0, 1.0)]), policy=policy)
    with pytest.raises(InvalidOptionError, match="other designs"):
        ExperimentDesignLoop(LinearGaussian(), np.eye(2), policy=policy)
    with pytest.raises(InvalidOptionError, match="log_prob"):
        ExperimentDesignLoop(Simulator(), LINE)
    with pytest.raises(InvalidOptionError, match="log_prob"):
        ExperimentDesignLoop(Simulator(), LINE, policy=policy)  # without a critic nothing can be learned
    with pytest.raises(InvalidOptionError, match="critic"):
        ExperimentDesignLoop(LinearGaussian(), LINE, "amortized", policy=policy)
    implicit = train_policy(Simulator(), LINE, 2, updates=1, **QUICK)
    with pytest.raises(InvalidOptionError, match="'amortized'"):
        ExperimentDesignLoop(Simulator(), LINE, "importance", policy=implicit)
    with pytest.raises(InvalidSpaceError, match="real numbers"):
        train_policy(LinearGaussian(dim=1), Space([Integer("n", 1, 5)]), 2)
    with pytest.raises(InvalidSpaceError, match="real numbers"):
        train_policy(LinearGaussian(), np.eye(2), 2)
