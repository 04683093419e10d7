"""Policies on an experiment whose best designs are known in closed form, and what they refuse."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from seqbdl.acquisition.eig import sequence_bounds
from seqbdl.acquisition.policies import DesignBox, DesignPolicy, PolicySettings, policy_bounds, rollout, train_policy
from seqbdl.acquisition.policies.training import _contrastive_step
from seqbdl.envs.design_models import HyperbolicDiscounting, LinearGaussian
from seqbdl.errors import DivergedError, InvalidDataError, InvalidOptionError, InvalidSpaceError, ShapeError, StateError

SQUARE = DesignBox(torch.tensor([-1.0, -1.0]), torch.tensor([1.0, 1.0]), torch.tensor([False, False]))
HALF_TURN = DesignBox(torch.zeros(1), torch.full((1,), math.pi), torch.tensor([False]))
QUICK: dict[str, Any] = {"batch_size": 64, "num_contrastive": 63, "hidden": 32, "learning_rate": 2e-3, "progress": False}


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Compass(LinearGaussian):
    """Both coefficients of a line, measured along a direction: two experiments tell most at a right angle."""

    def simulate(self, theta: Tensor, design: Tensor, generator: torch.Generator | None = None) -> Tensor:
        y = super().simulate(theta, _direction(design), generator)
        return y if self.reparametrized else y.detach()

    def log_prob(self, y: Tensor, theta: Tensor, design: Tensor) -> Tensor:
        return super().log_prob(y, theta, _direction(design))

    def information(self, designs: Tensor) -> Tensor:
        return super().information(_direction(designs))


BEST = math.log(1 + (1.0 / 0.5) ** 2)  # of two directions at a right angle: twice log(1 + 4) / 2


def _direction(angle: Tensor) -> Tensor:
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


class Simulator:
    """The same without its likelihood; the information is about the first coefficient where ``first`` says so."""

    reparametrized = True

    def __init__(self, first: bool = False) -> None:
        self.line = Compass()
        if first:
            self.goal = lambda theta: theta[..., :1]

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return self.line.sample(n, generator)

    def simulate(self, theta: Tensor, design: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return self.line.simulate(theta, design, generator)


def test_two_designs_reach_the_best_information() -> None:
    """Training reaches the optimum, both bounds enclose what the designs are worth, and no policy beats the optimum."""
    model = Compass()
    policy = train_policy(model, HALF_TURN, 2, updates=200, generator=rng(1), **QUICK)
    assert len(policy.trace) == 200
    with torch.no_grad():
        designs, _ = rollout(policy, model, model.sample(2000, rng(2)), generator=rng(3))
    worth = float(model.information(designs).mean())  # the designs of a line do not depend on outcomes where they are best
    assert 0.97 * BEST < worth <= BEST
    bounds = policy_bounds(policy, model, 2000, 1000, generator=rng(4))
    assert bounds.lower is not None
    assert bounds.upper is not None
    assert float(bounds.lower) < worth + 4 * float(bounds.standard_error)
    assert float(bounds.upper) > worth - 4 * float(bounds.standard_error)
    assert float(bounds.upper - bounds.lower) < 0.1


def test_a_simulator_is_enough() -> None:
    model = Simulator()
    policy = train_policy(model, HALF_TURN, 2, updates=250, generator=rng(1), **QUICK | {"learning_rate": 1e-2})
    assert policy.objective == "infonce"
    with torch.no_grad():
        designs, _ = rollout(policy, model, model.sample(500, rng(2)), generator=rng(3))
    worth = float(model.line.information(designs).mean())
    assert 0.97 * BEST < worth <= BEST
    bounds = policy_bounds(policy, model, 2048, generator=rng(4))
    assert bounds.lower is not None
    assert bounds.upper is None
    assert 0.8 * worth < float(bounds.lower) < worth + 4 * float(bounds.standard_error)


def test_the_other_critic_bounds_from_below_too() -> None:
    model = Simulator()
    policy = train_policy(model, HALF_TURN, 2, objective="nwj", updates=150, generator=rng(1), **QUICK)
    with torch.no_grad():
        designs, _ = rollout(policy, model, model.sample(500, rng(2)), generator=rng(3))
    worth = float(model.line.information(designs).mean())
    bounds = policy_bounds(policy, model, 2048, generator=rng(4))
    assert bounds.lower is not None
    assert 0.25 * worth < float(bounds.lower) < worth + 4 * float(bounds.standard_error)


def test_a_goal_turns_designs_towards_it() -> None:
    """About the first coefficient alone a line is best measured along the first axis, angle zero; training starts at one."""
    box = DesignBox(torch.tensor([-0.5]), torch.tensor([2.5]), torch.tensor([False]))
    policy = train_policy(Simulator(first=True), box, 1, updates=200, generator=rng(0), **QUICK)
    angle = float(policy(torch.zeros(0, 1), torch.zeros(0, 1)))
    assert abs(math.cos(angle)) > 0.98


def test_the_score_has_the_gradient_of_the_path() -> None:
    """The same bound, with gradients through the outcomes and without: their means agree within Monte Carlo error."""
    settings = PolicySettings(batch_size=128, num_contrastive=15, hidden=8, code=4, gradient_limit=math.inf)
    policy = train_policy(Compass(), HALF_TURN, 2, settings, updates=1, generator=rng(3), progress=False).requires_grad_()
    means, errors = [], []
    for model in (Compass(), Compass(reparametrized=False)):
        generator = rng(7)
        steps = [_contrastive_step(model, policy, settings, generator)[1] for _ in range(150)]
        slopes = torch.stack([torch.autograd.grad(step, policy.emitter.weights[-1])[0].flatten() for step in steps])
        means.append(slopes.mean(0))
        errors.append(slopes.std(0) / math.sqrt(len(slopes)))
    assert bool((means[0].abs() > 6 * errors[0]).any())
    assert bool(((means[0] - means[1]).abs() < 4 * torch.hypot(*errors)).all())


@pytest.mark.parametrize(("slope", "length"), [(1e-3, None), (1e6, 0.5)])
def test_steep_histories_are_shortened_and_others_left_alone(slope: float, length: float | None) -> None:
    line = LinearGaussian()
    policy = train_policy(line, SQUARE, 1, updates=1, generator=rng(3), **QUICK).requires_grad_()
    slopes = []
    for limit in (math.inf, 0.5):
        designs, _ = rollout(policy, line, line.sample(1, rng(4)), generator=rng(5), gradient_limit=limit)
        slopes.append(torch.autograd.grad(slope * designs.sum(), policy.emitter.biases[-1])[0].squeeze())
    assert torch.allclose(slopes[0] / slopes[0].norm(), slopes[1] / slopes[1].norm())
    assert float(slopes[1].norm()) == pytest.approx(float(slopes[0].norm()) if length is None else length)


class Recall:
    """Remembered or not, ``p(1) = sigmoid(2 (theta - length))`` with ``theta ~ N(0, 1)``: by symmetry length zero tells most."""

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return torch.randn(n, 1, generator=generator, dtype=torch.float64)

    def simulate(self, theta: Tensor, design: Tensor, generator: torch.Generator | None = None) -> Tensor:
        probs = (2 * (theta - design)).sigmoid()
        return (torch.rand(probs.shape, generator=generator, dtype=torch.float64) < probs).double()

    def log_prob(self, y: Tensor, theta: Tensor, design: Tensor) -> Tensor:
        return torch.nn.functional.logsigmoid(2 * (2 * y - 1) * (theta - design)).squeeze(-1)


def test_discrete_outcomes_train_by_their_score() -> None:
    """The first word is of middle length, the second longer where that was remembered and shorter where not."""
    box = DesignBox(torch.tensor([-2.0]), torch.tensor([2.0]), torch.tensor([False]))
    policy = train_policy(Recall(), box, 2, updates=250, generator=rng(), **QUICK)
    first = policy(torch.zeros(0, 1), torch.zeros(0, 1))
    assert abs(float(first)) < 0.3
    forgotten, remembered = (float(policy(first.reshape(1, 1), torch.tensor([[y]]))) for y in (0.0, 1.0))
    assert forgotten < -0.2
    assert remembered > 0.2


def test_the_order_of_a_history_makes_no_difference() -> None:
    policy = train_policy(LinearGaussian(), SQUARE, 4, updates=2, **QUICK)
    designs, outcomes = rollout(policy, LinearGaussian(), LinearGaussian().sample(3, rng()), generator=rng())
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(policy(designs, outcomes), policy(designs[:, order], outcomes[:, order]))
    step = policy(designs[:, :3], outcomes[:, :3])  # what the rollout did at its last step
    torch.testing.assert_close(step, designs[:, 3])


def test_training_is_deterministic_and_leaves_the_global_generator_alone(capsys: pytest.CaptureFixture[str]) -> None:
    state = torch.get_rng_state()
    policies = [train_policy(LinearGaussian(), SQUARE, 2, updates=5, generator=rng(seed), **QUICK) for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), state)
    assert policies[0].trace == policies[1].trace != policies[2].trace
    assert capsys.readouterr().err == ""
    train_policy(LinearGaussian(), SQUARE, 2, updates=2, **{**QUICK, "progress": True})
    assert "update" in capsys.readouterr().err


@pytest.mark.parametrize("model", [Compass(), Simulator(first=True)], ids=["likelihood", "simulator"])
def test_a_saved_policy_answers_the_same(model: Any, tmp_path: Path) -> None:
    policy = train_policy(model, HALF_TURN, 2, updates=3, **QUICK)
    policy.save(tmp_path / "line.policy")
    again = DesignPolicy.load(tmp_path / "line.policy")
    theta = model.sample(6, rng())
    designs, outcomes = rollout(policy, model, theta, generator=rng())
    assert torch.equal(rollout(again, model, theta, generator=rng())[0], designs)
    assert (again.horizon, again.objective) == (2, policy.objective)
    assert (policy.critic is None) == hasattr(model, "log_prob")
    if policy.critic is not None and again.critic is not None:
        assert torch.equal(again.critic(designs, outcomes, theta[:, :1]), policy.critic(designs, outcomes, theta[:, :1]))
    with pytest.raises(StateError, match="no policy"):
        DesignPolicy.from_tree({"kind": "grid"})


def test_the_bounds_are_those_of_the_sequences() -> None:
    model, policy = LinearGaussian(), train_policy(LinearGaussian(), SQUARE, 2, updates=1, **QUICK)
    generator = rng(5)
    theta = model.sample(50, generator)
    with torch.no_grad():
        expected = sequence_bounds(model, *rollout(policy, model, theta, generator=generator), theta, 20, generator)
    found = policy_bounds(policy, model, 50, 20, generator=rng(5))
    assert found.lower is not None
    assert expected.lower is not None
    assert float(found.lower) == pytest.approx(float(expected.lower), abs=1e-12)


@given(st.integers(1, 4), st.integers(0, 2**31 - 1))
def test_boxes_are_inverted(dim: int, seed: int) -> None:
    generator = rng(seed)
    low = 0.1 + torch.rand(dim, generator=generator, dtype=torch.float64)
    log = torch.rand(dim, generator=generator) < 0.5
    box = DesignBox(low - 2 * (~log).double(), low + 1, log)
    u = torch.rand(5, dim, generator=generator, dtype=torch.float64)
    designs = box.from_unit(u)
    assert bool(((designs >= box.low) & (designs <= box.high)).all())
    torch.testing.assert_close(box.to_unit(designs), u)
    assert box == DesignBox(**box.to_tree())
    assert box != SQUARE or dim == 2


def test_what_cannot_be_is_refused() -> None:
    line = LinearGaussian()
    with pytest.raises(InvalidSpaceError, match="low < high"):
        DesignBox(torch.ones(1), torch.ones(1), torch.tensor([False]))
    with pytest.raises(InvalidSpaceError, match="low > 0"):
        DesignBox(-torch.ones(1), torch.ones(1), torch.tensor([True]))
    with pytest.raises(InvalidSpaceError, match="one entry"):
        DesignBox(torch.zeros(2), torch.ones(1), torch.tensor([False]))
    with pytest.raises(InvalidOptionError, match="updtes"):
        train_policy(line, SQUARE, 2, updtes=3)
    with pytest.raises(InvalidOptionError, match="objective"):
        PolicySettings(objective="pce")
    with pytest.raises(InvalidOptionError, match="batch_size=1"):
        PolicySettings(batch_size=1)
    with pytest.raises(InvalidOptionError, match="learning_rate"):
        PolicySettings(learning_rate=0.0)
    with pytest.raises(InvalidOptionError, match="gradient_limit"):
        PolicySettings(gradient_limit=0.0)
    with pytest.raises(InvalidOptionError, match="horizon"):
        train_policy(line, SQUARE, 0)
    with pytest.raises(InvalidOptionError, match="needs a model with log_prob"):
        train_policy(Simulator(), HALF_TURN, 2, objective="spce")
    with pytest.raises(InvalidOptionError, match="gradients through outcomes"):
        train_policy(HyperbolicDiscounting(), SQUARE, 2, objective="infonce")
    policy = train_policy(line, SQUARE, 2, updates=1, **QUICK)
    with pytest.raises(ShapeError, match="t x 2"):
        policy(torch.zeros(1, 3), torch.zeros(1, 1))
    with pytest.raises(InvalidDataError, match="NaN"):
        policy(torch.zeros(1, 2), torch.full((1, 1), math.nan))
    critic = train_policy(Simulator(), HALF_TURN, 2, updates=1, **QUICK)
    with pytest.raises(InvalidOptionError, match="eight sets"):
        policy_bounds(critic, Simulator(), 8)


def test_gradients_that_are_not_finite_are_named() -> None:
    class Broken(LinearGaussian):
        def log_prob(self, y: Tensor, theta: Tensor, design: Tensor) -> Tensor:
            return super().log_prob(y, theta, design) + (design.sum(-1) * 0).sqrt()  # infinite slope times zero

    with pytest.raises(DivergedError, match="not finite"):
        train_policy(Broken(), SQUARE, 1, updates=3, **QUICK)
