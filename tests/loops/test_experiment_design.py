"""The design loop: what it chooses, what it learned, what it refuses, and that it resumes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gymnasium
import matplotlib as mpl
import pytest
import torch
from torch import Tensor

import seqbdl.envs  # noqa: F401 (registers the problems)
from seqbdl.envs.design_models import DeathProcess, HyperbolicDiscounting, LinearGaussian
from seqbdl.errors import InvalidDataError, InvalidOptionError, InvalidSpaceError, ShapeError, StateError
from seqbdl.loops import ExperimentDesignLoop, Real, Space, run
from seqbdl.serialization import load_tree, save_tree

mpl.use("Agg")
LINE = Space([Real("x1", -1.0, 1.0), Real("x2", -1.0, 1.0)])
AXES = [torch.linspace(-5, 5, 81, dtype=torch.float64)] * 2
SMALL: dict[str, Any] = {"num_candidates": 16, "search_outer": 32, "num_outer": 64, "num_inner": 64}
SMALL |= {"num_particles": 256, "moves": 3}


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_gradients_find_the_corners_of_a_linear_experiment() -> None:
    """The variance of theta . x is largest in a corner; expected bounds enclose the closed form."""
    model = LinearGaussian()
    loop = ExperimentDesignLoop(model, LINE, grid=AXES, optimizer="gradient", steps=80, num_candidates=8, num_outer=1024)
    point = loop.ask()
    assert abs(point["x1"]) > 0.95
    assert abs(point["x2"]) > 0.95
    design = torch.tensor([[point["x1"], point["x2"]]], dtype=torch.float64)
    truth = float(model.information(design))
    low, high, error = loop.history.expected[0]
    assert low < truth + 4 * error
    assert high > truth - 4 * error


def test_the_second_design_is_orthogonal_to_the_first_even_before_its_outcome() -> None:
    candidates = torch.tensor([[1.0, 1.0], [1.0, -1.0], [0.9, 0.9], [-1.0, -1.0]], dtype=torch.float64)
    for pending in (True, False):
        loop = ExperimentDesignLoop(LinearGaussian(), candidates, grid=AXES, num_outer=1024, search_outer=512)
        first = loop.ask() if not pending else None
        if first is not None:
            loop.tell(first, 0.3)
            second = loop.ask()
        else:
            first, second = loop.ask(n=2)
        assert first["x0"] * second["x0"] + first["x1"] * second["x1"] == 0


def test_it_reports_exact_information_on_a_grid() -> None:
    model = LinearGaussian()
    loop = ExperimentDesignLoop(model, LINE, grid=[torch.linspace(-6, 6, 301)] * 2)
    designs = torch.tensor([[1.0, 0.5], [-0.2, 0.8]], dtype=torch.float64)
    outcomes = torch.tensor([[0.4], [1.1]], dtype=torch.float64)
    for x, y in zip(designs.tolist(), outcomes, strict=True):
        loop.tell(x, y)
    mean, covariance = model.posterior(designs, outcomes)
    truth = 0.5 * (float(covariance.trace() + mean.square().sum()) - 2 - float(covariance.logdet()))
    bounds = loop.information()
    assert bounds.lower is not None
    assert float(bounds.lower) == pytest.approx(truth, abs=1e-4)
    assert loop.summary()["mean"].tolist() == pytest.approx(mean.tolist(), abs=1e-4)
    particles = ExperimentDesignLoop(model, LINE, **SMALL | {"num_particles": 4096})
    for x, y in zip(designs.tolist(), outcomes, strict=True):
        particles.tell(x, y)
    low, high, error = particles.history.gained[1]
    assert low < truth + 4 * error + 0.05
    assert high > truth - 4 * error - 0.05


def test_greedy_designs_of_the_death_process_beat_a_bad_one() -> None:
    """The first design of an exact posterior, against the published static choice and a time when nobody is infected."""
    times = torch.tensor([[0.02], [1.2], [15.0]], dtype=torch.float64)
    loop = ExperimentDesignLoop(DeathProcess(), times, grid=[torch.linspace(0.01, 8, 200)])
    assert loop.ask()["x0"] == pytest.approx(1.2)


@pytest.mark.parametrize("name", ["DeathProcess", "LocationFinding", "HyperbolicDiscounting", "PreyPopulation"])
def test_the_driver_runs_it_in_environments(name: str) -> None:
    env: Any = gymnasium.make(f"seqbdl/{name}-v0")
    model = env.unwrapped.model
    loop = ExperimentDesignLoop(model, env, **SMALL)
    history = run(loop, env, steps=3, progress=False, seed=1)
    assert len(history.complete) == 3
    frame = history.frame()
    assert (frame["expected_lower"] > 0).all()
    assert (frame["gained_upper"] >= frame["gained_lower"]).all()
    assert loop.summary().index.tolist() == list(model.parameter_names)
    assert "information gained" in history.summary()
    assert history.plot().get_ylabel() == "information (nats)"


def test_learning_narrows_the_posterior_around_the_truth() -> None:
    env: Any = gymnasium.make("seqbdl/DeathProcess-v0")
    loop = ExperimentDesignLoop(env.unwrapped.model, env, grid=[torch.linspace(0.01, 8, 300)], num_candidates=24)
    before = float(loop.summary()["sd"].iloc[0])
    run(loop, env, steps=4, progress=False, seed=3)
    row = loop.summary().iloc[0]
    assert row["sd"] < before
    assert abs(row["mean"] - float(env.unwrapped.truth)) < 5 * row["sd"]


def test_a_resumed_loop_asks_the_same(tmp_path: Path) -> None:
    def fresh() -> ExperimentDesignLoop:
        return ExperimentDesignLoop(HyperbolicDiscounting(), SPACE, **SMALL)

    SPACE = Space([Real("reward_now", 0.01, 99.99), Real("delay", 0.01, 1e5, log=True)])
    loop = fresh()
    for answer in (1, 0):
        loop.tell(loop.ask(), answer)
    waiting = loop.ask()
    save_tree(tmp_path / "state", loop.state_dict())
    other = fresh()
    other.load_state_dict(load_tree(tmp_path / "state"))
    assert [r.point for r in other.history.pending] == [waiting]
    for each in (loop, other):
        each.tell(waiting, 1)
    assert other.ask() == loop.ask()
    assert other.summary().equals(loop.summary())
    wrong = ExperimentDesignLoop(DeathProcess(), Space([Real("time", 0.01, 20.0)]), **SMALL)
    with pytest.raises(StateError, match="another"):
        wrong.load_state_dict(loop.state_dict())
    with pytest.raises(StateError, match="version"):
        loop.load_state_dict({"version": 0})


def test_late_failed_and_unasked_outcomes() -> None:
    loop = ExperimentDesignLoop(LinearGaussian(), LINE, **SMALL)
    first, second = loop.ask(n=2)
    loop.tell(second, 0.1)
    theta = loop.posterior.theta
    record = loop.tell(first, failed=True, reason="spilled")
    assert record.reason == "spilled"
    assert loop.posterior.theta is theta
    loop.tell([0.5, 0.5], 0.2)
    records = loop.tell([{"x1": 0.0, "x2": 1.0}, {"x1": 1.0, "x2": 0.0}], [0.1, 0.4])
    assert len(records) == 2
    designs, outcomes = loop.data()
    assert designs.tolist()[1:] == [[0.5, 0.5], [0.0, 1.0], [1.0, 0.0]]
    assert outcomes.squeeze(-1).tolist() == [0.1, 0.2, 0.1, 0.4]


def test_bad_outcomes_are_refused_and_change_nothing() -> None:
    loop = ExperimentDesignLoop(LinearGaussian(), LINE, **SMALL)
    state = loop.state_dict()
    cases: list[tuple[object, object, type[Exception], str]] = [
        ([0.0, 3.0], 0.1, InvalidSpaceError, "outside its space"),
        ([0.0], 0.1, ShapeError, "2 parameters"),
        ([0.0, 0.1], math.nan, InvalidDataError, "nan"),
        ([0.0, 0.1], None, InvalidDataError, "no outcome"),
        ([0.0, 0.1], [0.1, 0.2], ShapeError, "2 values"),
    ]
    for action, outcome, error, text in cases:
        with pytest.raises(error, match=text):
            loop.tell(action, outcome)
    with pytest.raises(InvalidOptionError, match="Yvar"):
        loop.tell([0.0, 0.1], 0.1, Yvar=0.2)
    death = ExperimentDesignLoop(DeathProcess(), Space([Real("time", 0.01, 20.0)]), **SMALL)
    with pytest.raises(InvalidDataError, match="impossible"):
        death.tell([1.0], 51)
    assert len(death.history) == 0
    assert len(loop.history) == 0
    assert torch.equal(loop.state_dict()["generator"], state["generator"])


class WrongShape(LinearGaussian):
    """Its likelihood keeps the dimension of the outcome."""

    def log_prob(self, y: Tensor, theta: Tensor, design: Tensor) -> Tensor:
        return super().log_prob(y, theta, design).unsqueeze(-1)


def test_bad_models_and_settings_are_refused() -> None:
    wrong = ExperimentDesignLoop(WrongShape(), LINE, **SMALL)
    with pytest.raises(ShapeError, match="log_prob answered"):
        wrong.ask()
    with pytest.raises(ShapeError, match="log_prob answered"):
        wrong.tell([0.0, 0.0], 0.1)
    bad: list[tuple[dict[str, Any], str]] = [
        ({"posterior": "vi"}, "not one of"),
        ({"posterior": "grid"}, "go together"),
        ({"optimizer": "bo"}, "candidates"),
        ({"candidates": 3}, "unknown option"),
        ({"num_particles": 1}, "at least 2"),
        ({"num_outer": 0}, "at least 1"),
    ]
    for options, text in bad:
        with pytest.raises(InvalidOptionError, match=text):
            ExperimentDesignLoop(LinearGaussian(), LINE, **options)
    with pytest.raises(InvalidOptionError, match="no method"):
        ExperimentDesignLoop(object(), LINE)  # type: ignore[arg-type]
    with pytest.raises(InvalidOptionError, match="real parameters"):
        ExperimentDesignLoop(LinearGaussian(), torch.eye(2), optimizer="gradient")
    outside = ExperimentDesignLoop(LinearGaussian(), LINE, propose=lambda p, n, g: torch.full((2, 2), 7.0), **SMALL)
    with pytest.raises(InvalidSpaceError, match="row 0"):
        outside.ask()


def test_own_candidates_are_used() -> None:
    def axis(posterior: object, n: int, generator: torch.Generator) -> Tensor:
        return torch.rand(n, 1, generator=generator, dtype=torch.float64) * torch.tensor([[1.0, 0.0]], dtype=torch.float64)

    loop = ExperimentDesignLoop(LinearGaussian(), LINE, propose=axis, **SMALL)
    assert loop.ask()["x2"] == 0.0


class DrawsOnly:
    """A model without a prior density: its prior draws are reweighted."""

    def __init__(self) -> None:
        self.inner = LinearGaussian(dim=1)
        self.sample, self.simulate, self.log_prob = self.inner.sample, self.inner.simulate, self.inner.log_prob


def test_models_without_a_prior_density_are_importance_sampled() -> None:
    loop = ExperimentDesignLoop(DrawsOnly(), Space([Real("x", -1.0, 1.0)]), num_particles=20_000, num_candidates=8)
    loop.tell([1.0], 0.5)
    mean, covariance = LinearGaussian(dim=1).posterior(torch.ones(1, 1).double(), torch.full((1, 1), 0.5).double())
    assert loop.summary()["mean"].iloc[0] == pytest.approx(float(mean), abs=4 * float(covariance) ** 0.5 / 80)
    assert loop.ask() is not None
