"""The Bayesian optimization loop: what it asks, in every kind of space and problem."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from botorch.acquisition import qSimpleRegret

import seqbdl
from seqbdl.acquisition import AcquisitionContext
from seqbdl.errors import InvalidOptionError, InvalidSpaceError, ShapeError, UnknownNameError
from seqbdl.loops import BayesOptLoop, Categorical, Integer, Ordinal, Real, Space, SpaceExhaustedError
from seqbdl.loops.proposals import choose_acquisition


def play(loop: BayesOptLoop, function: Any, steps: int, n: int = 1) -> BayesOptLoop:
    for _ in range(steps):
        asked = loop.ask(n=n)
        points = [asked] if n == 1 else asked
        loop.tell(points, [function(point) for point in points])
    return loop


@pytest.mark.parametrize("objective", ["minimize", "maximize"])
def test_beats_random_search_on_branin(branin_space: Space, branin_function: Any, objective: str) -> None:
    sign = 1.0 if objective == "minimize" else -1.0
    found: dict[str, list[float]] = {"qLogNEI": [], "random": []}
    for method, values in found.items():
        for seed in range(3):
            loop = BayesOptLoop(
                branin_space,
                "gp",
                method,
                objective=objective,
                seed=seed,
                optimizer_options={} if method == "random" else {"num_restarts": 4, "raw_samples": 64},
            )
            play(loop, lambda point: sign * branin_function(point), 25)
            best = loop.history.best()
            assert best is not None
            values.append(sign * best.outcomes[0])
    assert np.median(found["qLogNEI"]) < 0.397887 + 0.1
    assert np.median(found["random"]) > np.median(found["qLogNEI"]) + 0.5


def test_history_is_in_the_users_units(branin_space: Space, branin_function: Any, fast: dict[str, Any]) -> None:
    loop = play(BayesOptLoop(branin_space, objective="minimize", initial=5, **fast), branin_function, 8)
    frame = loop.history.frame()
    assert frame["outcome"].tolist() == [branin_function(record.point) for record in loop.history]
    assert frame["best_so_far"].tolist() == frame["outcome"].cummin().tolist()
    assert frame["source"].tolist() == ["initial"] * 5 + ["model"] * 3
    mean, sd = loop.predict([record.point for record in loop.history])
    assert np.abs(mean[:, 0] - frame["outcome"]).max() < 5.0
    assert frame["predicted_outcome_sd"].iloc[5:].gt(0).all()
    assert sd.shape == (8, 1)


def test_initial_design_counts_what_was_told(branin_space: Space, branin_function: Any, fast: dict[str, Any]) -> None:
    loop = BayesOptLoop(branin_space, initial=4, **fast)
    told = [{"x": 0.0, "y": 3.0}, {"x": 4.0, "y": 9.0}, {"x": -30.0, "y": 1.0}]  # the last lies outside the space
    loop.tell(told, [branin_function(point) for point in told])
    play(loop, branin_function, 2)
    assert [record.source for record in loop.history] == ["told", "told", "told", "initial", "model"]
    assert [record.batch for record in loop.history] == [-1, -1, -1, 0, 1]


def test_same_seed_same_queries_and_the_global_generator_is_left_alone(
    branin_space: Space, branin_function: Any, fast: dict[str, Any]
) -> None:
    runs = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        np.random.seed(noise)  # noqa: NPY002 - to show that nobody reads it
        before = torch.random.get_rng_state()
        loop = play(BayesOptLoop(branin_space, seed=3, **fast), branin_function, 8)
        assert torch.equal(before, torch.random.get_rng_state())
        runs.append([record.point for record in loop.history])
    assert runs[0] == runs[1]
    other = play(BayesOptLoop(branin_space, seed=4, **fast), branin_function, 8)
    assert [record.point for record in other.history] != runs[0]


def test_batches_are_spread_and_pending_points_count(branin_space: Space, branin_function: Any, fast: dict[str, Any]) -> None:
    loop = play(BayesOptLoop(branin_space, objective="minimize", **fast), branin_function, 6)
    batch = loop.ask(n=3)
    X = branin_space.encode(batch)
    assert float(torch.pdist(X).min()) > 1e-3
    # asked one by one without telling: the earlier ones are pending, and none is asked again
    more = [loop.ask() for _ in range(3)]
    assert float(torch.pdist(branin_space.encode(batch + more)).min()) > 1e-3
    assert len(loop.history.pending) == 6
    elsewhere = BayesOptLoop(branin_space, objective="minimize", **fast)
    play(elsewhere, branin_function, 6)
    moved = elsewhere.ask(pending=[batch[0]])
    assert float((branin_space.encode([moved]) - X[:1]).norm()) > 1e-3


@pytest.mark.parametrize("unit", [1e-6, 1e5])
def test_queries_do_not_depend_on_the_outcomes_unit(branin_space: Space, branin_function: Any, unit: float) -> None:
    batches = []
    for scale in (1.0, unit):
        loop = BayesOptLoop(branin_space, objective="minimize", seed=2, initial=10)
        play(loop, lambda point, scale=scale: scale * branin_function(point), 10)
        batches.append(branin_space.encode(loop.ask(n=3)))
    assert float(torch.pdist(batches[1]).min()) > 0.02
    assert float((batches[0] - batches[1]).abs().max()) < 0.02


def test_large_batches_use_thompson_sampling(branin_space: Space, branin_function: Any) -> None:
    assert choose_acquisition("auto", 1, 21) == "thompson"
    assert choose_acquisition("auto", 1, 20) == "qLogNEI"
    assert choose_acquisition("auto", 2, 20) == "qLogNEHVI"
    loop = BayesOptLoop(branin_space, objective="minimize", optimizer_options={"num_restarts": 1, "raw_samples": 32})
    play(loop, branin_function, 8)
    batch = loop.ask(n=21)
    assert len({branin_space.key(point) for point in batch}) == 21


@pytest.mark.parametrize("acquisition", ["thompson", "qLogEI", "qUCB", "LogEI", "qKG"])
def test_other_acquisitions(branin_space: Space, branin_function: Any, fast: dict[str, Any], acquisition: str) -> None:
    options = dict(fast)
    if acquisition == "qKG":
        options["acquisition_options"] = {"num_fantasies": 4}
    loop = BayesOptLoop(branin_space, acquisition=acquisition, objective="minimize", initial=6, **options)
    play(loop, branin_function, 8)
    assert all(branin_space.contains(record.point) for record in loop.history)


def test_an_acquisition_of_ones_own(branin_space: Space, branin_function: Any) -> None:
    seen: list[AcquisitionContext] = []

    def build(surrogate: seqbdl.Surrogate, context: AcquisitionContext) -> qSimpleRegret:
        seen.append(context)
        return qSimpleRegret(surrogate)

    loop = BayesOptLoop(branin_space, acquisition=build, objective="minimize", initial=4)
    play(loop, branin_function, 6)
    assert len(seen) == 2
    assert seen[0].surrogate is loop.surrogate


@pytest.mark.parametrize("noise", [None, 0.04])
def test_recommends_by_the_posterior_mean_under_noise(noise: float | None) -> None:
    generator = np.random.default_rng(0)
    space = Space([Real("x", -1, 1)])
    loop = BayesOptLoop(space, acquisition="qUCB", noise=noise, replicates=True, seed=1)
    points = [{"x": x} for x in np.linspace(-1, 1, 30)]
    outcomes = [-((p["x"] - 0.3) ** 2) + 0.2 * generator.normal() for p in points]
    outcomes[2] = 0.5  # a lucky draw far from the optimum
    loop.tell(points, outcomes)
    assert loop.history.best() is loop.history[2]
    assert abs(loop.recommend()["x"] - 0.3) < 0.25


def test_known_variances_reach_the_surrogate(branin_space: Space, fast: dict[str, Any]) -> None:
    loop = BayesOptLoop(branin_space, initial=2, **fast)
    points = branin_space.sample(6, seed=9)
    loop.tell(points, np.arange(6.0), Yvar=np.full(6, 0.25))
    loop.ask()
    assert loop.surrogate._Yvar is not None
    torch.testing.assert_close(loop.surrogate._Yvar, torch.full((6, 1), 0.25, dtype=torch.double))


def test_outcome_constraints(fast: dict[str, Any]) -> None:
    space = Space([Real("x", -1, 1), Real("y", -1, 1)])

    def evaluate(point: Any) -> dict[str, float]:
        return {"yield": -((point["x"] - 0.5) ** 2) - point["y"] ** 2, "heat": point["x"] - 0.1}

    loop = BayesOptLoop(space, constraints=["heat"], outcome_names=["yield"], initial=6, **fast)
    play(loop, evaluate, 18)
    best = loop.history.best()
    assert best is not None
    assert best.constraints[0] <= 0
    assert best.outcomes[0] > -0.2  # the optimum on the constraint is -0.16, the one without it is 0
    frame = loop.history.frame()
    assert (frame["feasible"] == (frame["heat"] <= 0)).all()
    assert evaluate(loop.recommend())["heat"] <= 0.02


@pytest.mark.parametrize("num_outcomes", [1, 2])
def test_feasible_points_are_looked_for_first(fast: dict[str, Any], num_outcomes: int) -> None:
    space = Space([Real("x", -1, 1), Real("y", -1, 1)])

    def evaluate(point: Any) -> list[float]:
        distance = math.hypot(point["x"] - 0.6, point["y"] + 0.5)
        return [point["x"], point["y"]][:num_outcomes] + [distance - 0.2]

    fast["acquisition_options"]["prune_baseline"] = True  # of the method that follows; qLogPF has no such option
    loop = BayesOptLoop(space, constraints=1, num_outcomes=num_outcomes, initial=2, **fast)
    start = [{"x": -0.9, "y": 0.9}, {"x": -0.5, "y": -0.5}, {"x": 0.5, "y": 0.5}, {"x": -0.2, "y": 0.1}]
    loop.tell(start, [evaluate(point) for point in start])
    assert choose_acquisition("auto", num_outcomes, 1, feasible=False) == "qLogPF"
    play(loop, evaluate, 10)
    feasible = [record.step for record in loop.history if record.feasible]
    assert len(feasible) >= 3  # a random point is feasible with probability 0.03


def test_several_outcomes_in_different_directions(fast: dict[str, Any]) -> None:
    space = Space([Real("x", 0, 1), Real("y", 0, 1)])

    def evaluate(point: Any) -> list[float]:
        return [-((point["x"] - 0.2) ** 2) - 0.1 * point["y"], (point["x"] - 0.8) ** 2 + 0.1 * point["y"]]

    loop = BayesOptLoop(space, num_outcomes=2, objective=["maximize", "minimize"], ref_point=[-0.6, 0.6], initial=6, **fast)
    play(loop, evaluate, 5)
    play(loop, evaluate, 5, n=2)
    frame = loop.history.frame()
    volume = frame["best_so_far"].to_numpy()
    assert (np.diff(volume[~np.isnan(volume)]) >= -1e-12).all()
    front = loop.history.pareto()
    assert len(front) >= 4
    assert np.mean([record.point["y"] for record in front]) < 0.2
    assert {space.key(point) for point in loop.recommend()} <= {space.key(record.point) for record in loop.history}
    random = play(
        BayesOptLoop(space, "gp", "random", num_outcomes=2, objective=["maximize", "minimize"], ref_point=[-0.6, 0.6]),
        evaluate,
        15,
    )
    assert volume[-1] > random.history.best_so_far()[-1]


def test_several_outcomes_by_thompson_sampling() -> None:
    space = Space([Real("x", 0, 1), Real("y", 0, 1)])
    loop = BayesOptLoop(
        space,
        acquisition="thompson",
        num_outcomes=2,
        initial=5,
        optimizer_options={"num_restarts": 1, "raw_samples": 64},
    )
    play(loop, lambda p: [-((p["x"] - 0.2) ** 2) - p["y"], -((p["x"] - 0.8) ** 2) - p["y"]], 5)
    batch = loop.ask(n=6)
    x = [point["x"] for point in batch]
    assert max(x) - min(x) > 0.1  # different weights, different ends of the front


MIXED = Space([Real("t", 20, 90), Integer("n", 1, 6), Categorical("c", ["a", "b", "c"]), Ordinal("g", [1, 2, 5, 10])])


def mixed(point: Any) -> float:
    bonus = {"a": 0.0, "b": 1.0, "c": 0.3}[point["c"]]
    return bonus - ((point["t"] - 60) / 40) ** 2 - 0.1 * (point["n"] - 4) ** 2 - 0.05 * abs(point["g"] - 5)


@pytest.mark.parametrize("acquisition", ["qLogNEI", "thompson"])
def test_mixed_spaces(fast: dict[str, Any], acquisition: str) -> None:
    loop = BayesOptLoop(MIXED, acquisition=acquisition, **fast)
    play(loop, mixed, 8)
    play(loop, mixed, 6, n=2)
    assert all(MIXED.contains(record.point) for record in loop.history)
    assert len({MIXED.key(record.point) for record in loop.history}) == 20
    best = loop.history.best()
    assert best is not None
    assert best.outcomes[0] > 0.6
    assert best.point["c"] == "b"


@pytest.mark.parametrize("acquisition", ["auto", "thompson", "random", "sobol"])
def test_finite_spaces_are_searched_to_the_end(fast: dict[str, Any], acquisition: str) -> None:
    space = Space([Integer("n", 1, 3), Categorical("c", ["a", "b"]), Integer("m", 0, 1)])
    loop = BayesOptLoop(space, acquisition=acquisition, acquisition_options={"mc_samples": 16})
    function = lambda p: p["n"] + (p["c"] == "b") - p["m"]  # noqa: E731
    play(loop, function, 1)
    play(loop, function, 3, n=3)
    assert loop.remaining == 2
    with pytest.raises(SpaceExhaustedError, match="3 points were asked, 2 are left"):
        loop.ask(n=3)
    play(loop, function, 1, n=2)
    assert len({space.key(record.point) for record in loop.history}) == 12
    with pytest.raises(SpaceExhaustedError, match="replicates=True"):
        loop.ask()
    assert loop.recommend() == {"n": 3, "c": "b", "m": 0}


def test_replicates_are_asked_where_wanted() -> None:
    space = Space([Integer("n", 0, 1)])
    loop = BayesOptLoop(space, replicates=True, acquisition_options={"mc_samples": 16})
    play(loop, lambda p: float(p["n"]), 6)
    assert loop.remaining is None
    assert len(loop.history) == 6


def test_integers_do_not_collapse_a_batch(fast: dict[str, Any]) -> None:
    # too many points for a table, and an optimum in a corner that every start would round to
    space = Space([Integer("a", 0, 200), Integer("b", 0, 200)])
    loop = BayesOptLoop(space, initial=5, **fast)
    play(loop, lambda p: -0.01 * (p["a"] + p["b"]), 5)
    for _ in range(3):
        batch = loop.ask(n=4)
        loop.tell(batch, [-0.01 * (p["a"] + p["b"]) for p in batch])
    assert len({space.key(record.point) for record in loop.history}) == 17


@pytest.mark.parametrize("acquisition", ["auto", "thompson", "qUCB"])
def test_candidates(acquisition: str) -> None:
    generator = np.random.default_rng(0)
    pool = generator.uniform(-1, 1, size=(60, 3))
    worth = -np.square(pool - 0.2).sum(1)
    space = Space.from_candidates(pool)
    loop = BayesOptLoop(space, acquisition=acquisition, initial=6, acquisition_options={"mc_samples": 16})
    play(loop, lambda p: worth[p["candidate"]], 10)
    play(loop, lambda p: worth[p["candidate"]], 4, n=2)
    rows = [record.point["candidate"] for record in loop.history]
    assert len(set(rows)) == 18
    assert loop.recommend()["candidate"] == int(worth.argmax())
    assert loop.remaining == 42


def test_one_shot_methods_cannot_search_a_table() -> None:
    loop = BayesOptLoop(Space.from_candidates(np.arange(9.0)[:, None]), acquisition="qMultiStep", initial=3)
    play(loop, lambda p: p["x0"], 3)
    with pytest.raises(InvalidOptionError, match="'qMultiStep' chooses several points in one shot"):
        loop.ask()


def test_fixed_parameters(branin_space: Space, branin_function: Any, fast: dict[str, Any]) -> None:
    loop = BayesOptLoop(branin_space, initial=3, **fast)
    for _ in range(5):
        point = loop.ask(fixed={"x": 2.5})
        assert point["x"] == 2.5
        loop.tell(point, branin_function(point))
    thompson = BayesOptLoop(MIXED, acquisition="thompson", initial=3, optimizer_options={"num_restarts": 1})
    play(thompson, mixed, 4)
    assert all(point["c"] == "c" and point["n"] == 2 for point in thompson.ask(n=3, fixed={"c": "c", "n": 2}))
    finite = BayesOptLoop(Space([Integer("n", 1, 3), Categorical("c", ["a", "b"])]), initial=2)
    play(finite, lambda p: float(p["n"]), 2)
    assert finite.ask(fixed={"c": "b"})["c"] == "b"
    with pytest.raises(InvalidSpaceError, match="fixed names 'z'"):
        loop.ask(fixed={"z": 1})
    with pytest.raises(InvalidSpaceError, match="99"):
        loop.ask(fixed={"x": 99})


@pytest.mark.parametrize("refit", ["every", 3, "update"])
def test_refit_schedules(
    branin_space: Space, branin_function: Any, fast: dict[str, Any], refit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, int]] = []
    cls = seqbdl.surrogates.surrogate_class("gp")
    for name in ("_fit", "_update"):
        original = getattr(cls, name)

        def spy(self: Any, X: Any, *rest: Any, _name: str = name, _original: Any = original) -> None:
            calls.append((_name, len(X)))
            _original(self, X, *rest)

        monkeypatch.setattr(cls, name, spy)
    play(BayesOptLoop(branin_space, initial=4, refit=refit, **fast), branin_function, 9)
    expected = {
        "every": [("_fit", n) for n in (4, 5, 6, 7, 8)],
        3: [("_fit", 4), ("_update", 1), ("_update", 1), ("_fit", 7), ("_update", 1)],
        "update": [("_fit", 4)] + [("_update", 1)] * 4,
    }
    assert calls == expected[refit]


def test_a_surrogate_instance(branin_space: Space, branin_function: Any, fast: dict[str, Any]) -> None:
    surrogate = seqbdl.make_surrogate("gp", 2, bounds=branin_space.bounds)
    loop = play(BayesOptLoop(branin_space, surrogate, initial=4, **fast), branin_function, 6)
    assert loop.surrogate is surrogate
    assert surrogate.train_inputs is not None
    assert len(surrogate.train_inputs[0]) == 5
    with pytest.raises(InvalidOptionError, match="input_dim=3 and 1 outputs; the space needs input_dim=2"):
        BayesOptLoop(branin_space, seqbdl.make_surrogate("gp", 3))
    with pytest.raises(InvalidOptionError, match="set them on the instance"):
        BayesOptLoop(branin_space, surrogate, noise=0.1)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"surrogate": "gpp"}, UnknownNameError, "unknown surrogate 'gpp'.*gp"),
        ({"surrogate": 3}, InvalidOptionError, "registered name"),
        (
            {"acquisition": "EI!"},
            UnknownNameError,
            "unknown acquisition function 'EI!'.*auto, thompson, random, sobol.*qLogNEI",
        ),
        ({"objective": "max"}, InvalidOptionError, "'maximize', 'minimize'"),
        ({"objective": ["maximize"], "num_outcomes": 2}, InvalidOptionError, "1 directions"),
        ({"num_outcomes": 0}, InvalidOptionError, "at least one outcome"),
        ({"constraints": -1}, InvalidOptionError, "constraints=-1"),
        ({"constraints": ["outcome"]}, InvalidOptionError, "'outcome' is used twice"),
        ({"outcome_names": ["x"]}, InvalidOptionError, "both a parameter and an outcome"),
        ({"outcome_names": ["a", "b"]}, InvalidOptionError, "2 entries"),
        ({"initial": -1}, InvalidOptionError, "initial=-1"),
        ({"refit": "often"}, InvalidOptionError, "refit='often'"),
        ({"refit": 0}, InvalidOptionError, "refit=0"),
        ({"ref_point": [0.0]}, ShapeError, "two or more outcomes"),
        ({"surrogate_options": {"colour": 1}}, UnknownNameError, "'colour'"),
    ],
)
def test_bad_settings_are_refused(branin_space: Space, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        BayesOptLoop(branin_space, **options)


def test_bad_calls_are_refused(branin_space: Space) -> None:
    with pytest.raises(InvalidSpaceError, match="use Space"):
        BayesOptLoop([(0, 1)])  # type: ignore[arg-type]
    loop = BayesOptLoop(branin_space)
    with pytest.raises(InvalidOptionError, match="n=0"):
        loop.ask(n=0)
    with pytest.raises(ValueError, match="tell an outcome first"):
        loop.recommend()
    with pytest.raises(ValueError, match="tell an outcome first"):
        loop.predict([{"x": 0, "y": 0}])
    assert math.isnan(loop.history.append(0, {"x": 0, "y": 0}, "told").outcomes[0])
