"""The driver: environments, functions, callbacks, checkpoints."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import seqbdl
from seqbdl.errors import InvalidOptionError, ShapeError, StateError
from seqbdl.loops import (
    BayesOptLoop,
    Callback,
    Categorical,
    Checkpoint,
    EarlyStopping,
    Integer,
    Real,
    Space,
    TensorBoard,
    run,
)
from seqbdl.loops.callbacks import Run

SPACE = Space([Real("x", -1, 1), Real("y", -1, 1)])


def make(**options: Any) -> BayesOptLoop:
    quick = {"acquisition_options": {"mc_samples": 16}, "optimizer_options": {"num_restarts": 2, "raw_samples": 16}}
    return BayesOptLoop(options.pop("space", SPACE), **{"initial": 4, **quick, **options})


def points(history: Any) -> list[Any]:
    return [record.point for record in history]


def test_an_environment(bowl: Any) -> None:
    env = bowl()
    loop = make(space=Space.from_gymnasium(env.action_space, env))
    history = run(loop, env, 14, progress=False, seed=1)
    assert history is loop.history
    frame = history.frame()
    assert len(frame) == 14
    assert history.optimal_value == 0.0
    assert frame["regret"].iloc[-1] < 0.3
    true = -((frame["x"] - 0.3) ** 2) - (frame["y"] + 0.2) ** 2
    np.testing.assert_allclose(frame["true_value"], true)
    assert 0.0 < (frame["outcome"] - true).std() < 0.2


def test_several_outcomes_constraints_and_failures(bowl: Any) -> None:
    env = bowl(constraints=1, outcomes=2, fail_above=0.5)
    loop = make(num_outcomes=2, constraints=1, outcome_names=env.outcome_names, ref_point=[-3, -3], initial=8)
    history = run(loop, env, 10, progress=False)
    statuses = {record.status for record in history}
    assert statuses == {"complete", "failed"}
    for record in history:
        assert (record.status == "failed") == (float(record.point["x"]) > 0.5)  # type: ignore[arg-type]
    assert history.failed[0].reason == "x is too high"
    assert all(abs(r.constraints[0] - (r.point["x"] - 0.1)) < 1e-12 for r in history.complete)  # type: ignore[operator]


def test_known_noise_is_handed_on_when_asked(bowl: Any) -> None:
    loop = make()
    run(loop, bowl(noise=0.3), 5, progress=False, known_noise=True)
    assert [record.variances for record in loop.history] == [[0.09]] * 5
    other = make()
    run(other, bowl(noise=0.3), 5, progress=False)
    assert [record.variances for record in other.history] == [None] * 5


def test_loops_that_do_not_fit_the_environment(bowl: Any) -> None:
    with pytest.raises(InvalidOptionError, match="objective='maximize'"):
        run(make(objective="minimize"), bowl(), 3, progress=False)
    with pytest.raises(InvalidOptionError, match="1 constraints, the loop 0"):
        run(make(), bowl(constraints=1), 3, progress=False)
    with pytest.raises(InvalidOptionError, match="Gymnasium environment or a function"):
        run(make(), "Branin", 3, progress=False)  # type: ignore[arg-type]
    with pytest.raises(InvalidOptionError, match="batch_size=0"):
        run(make(), bowl(), 3, progress=False, batch_size=0)


def test_batches_end_exactly_at_the_budget(bowl: Any) -> None:
    history = run(make(), bowl(), 11, progress=False, batch_size=3)
    assert [record.batch for record in history] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3]
    assert not history.pending


def test_a_function_that_raises_and_returns_nonsense() -> None:
    def broken(point: Any) -> Any:
        if point["x"] > 0.5:
            raise RuntimeError("no coolant")
        if point["y"] > 0.5:
            return None
        if point["y"] < -0.5:
            return float("nan")
        return point["x"]

    loop = make(initial=12)
    history = run(loop, broken, 15, progress=False)
    assert len(history) == 15
    reasons = {record.reason for record in history}
    assert {"RuntimeError: no coolant", "the objective returned None", "outcome is nan", ""} <= reasons
    with pytest.raises(RuntimeError, match="no coolant"):
        run(make(initial=12), broken, 15, progress=False, on_error="raise")
    with pytest.raises(InvalidOptionError, match="on_error='ignore'"):
        run(make(), broken, 3, progress=False, on_error="ignore")


def test_a_wrong_shape_is_an_error_and_what_was_told_stays() -> None:
    loop = make()
    count = 0

    def changes_its_mind(point: Any) -> Any:
        nonlocal count
        count += 1
        return [1.0, 2.0] if count == 3 else 1.0

    with pytest.raises(ShapeError, match="has 2 values; expected 1"):
        run(loop, changes_its_mind, 5, progress=False)
    assert [record.status for record in loop.history] == ["complete", "complete", "pending"]
    run(loop, lambda point: 2.0, 2, progress=False)  # the pending one first
    assert [record.status for record in loop.history] == ["complete"] * 4


def test_exhausted_spaces_end_the_run() -> None:
    space = Space([Integer("n", 1, 3), Categorical("c", ["a", "b"])])
    history = run(make(space=space, initial=2), lambda p: float(p["n"]), 20, progress=False, batch_size=4)
    assert len(history) == 6


def test_callbacks_are_called_in_order(bowl: Any) -> None:
    class Spy(Callback):
        def __init__(self) -> None:
            self.calls: list[Any] = []

        def on_start(self, run: Run) -> None:
            self.calls.append("start")

        def on_ask(self, run: Run, actions: list[Any]) -> None:
            self.calls.append(len(actions))

        def on_tell(self, run: Run, record: Any) -> None:
            self.calls.append((record.step, run.done))

        def on_end(self, run: Run) -> None:
            self.calls.append("end")

    spy = Spy()
    run(make(), bowl(), 3, callbacks=[spy, Callback()], progress=False, batch_size=2)
    assert spy.calls == ["start", 2, (0, 1), (1, 2), 1, (2, 3), "end"]


def test_early_stopping(bowl: Any) -> None:
    history = run(make(), lambda p: 1.0, 30, [EarlyStopping(patience=3)], progress=False)
    assert len(history) == 4
    history = run(make(objective="minimize"), lambda p: p["x"], 30, [EarlyStopping(target=-0.9)], progress=False)
    assert len(history) < 30
    best = history.best()
    assert best is not None
    assert best.outcomes[0] <= -0.9
    for options in ({}, {"patience": 0}):
        with pytest.raises(InvalidOptionError):
            EarlyStopping(**options)


def test_tensorboard_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = builtins.__import__

    def no_tensorboard(name: str, *args: Any, **kwargs: Any) -> Any:
        if "tensorboard" in name:
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_tensorboard)
    with pytest.raises(ImportError, match=r"pip install 'seqbdl\[lab\]'"):
        TensorBoard(tmp_path)


def test_tensorboard_writes_curves(bowl: Any, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is an optional extra")
    run(make(), bowl(), 3, [TensorBoard(tmp_path)], progress=False)
    assert list(tmp_path.glob("events*"))


@pytest.mark.parametrize("surrogate_refit", ["every", "update"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_resuming_after_any_write_gives_the_same_queries(
    bowl: Any, tmp_path: Path, surrogate_refit: str, batch_size: int
) -> None:
    class Interrupt(Callback):
        """Stops the run at a given write of the checkpoint, just after it."""

        def __init__(self, at: int) -> None:
            self.left = at

        def count(self) -> None:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt

        def on_ask(self, run: Run, actions: list[Any]) -> None:
            self.count()

        def on_tell(self, run: Run, record: Any) -> None:
            self.count()

    def settings() -> Any:
        return {"progress": False, "batch_size": batch_size, "seed": 5}

    whole = run(make(refit=surrogate_refit), bowl(), 9, **settings())
    for at in range(0, 12, 2):
        path = tmp_path / f"run-{at}"
        with pytest.raises(KeyboardInterrupt):
            run(make(refit=surrogate_refit), bowl(), 9, [Interrupt(at)], checkpoint=path, **settings())
        resumed = run(make(refit=surrogate_refit), bowl(), 9, checkpoint=path, **settings())
        assert points(resumed) == points(whole)
        assert resumed.frame()["outcome"].tolist() == whole.frame()["outcome"].tolist()
    # once more when all is done: nothing is asked
    again = run(make(refit=surrogate_refit), bowl(), 9, checkpoint=path, **settings())
    assert points(again) == points(whole)
    # and on from there
    longer = run(make(refit=surrogate_refit), bowl(), 12, checkpoint=path, **settings())
    assert points(longer)[:9] == points(whole)
    assert len(longer) == 12


@pytest.mark.parametrize("refit", ["every", "update"])
@pytest.mark.parametrize("surrogate", seqbdl.list_surrogates())
def test_every_surrogate_resumes_exactly(bowl: Any, tmp_path: Path, surrogate: str, refit: str) -> None:
    def start() -> BayesOptLoop:
        short = {"warmup": 20, "samples": 20, "num_chains": 2, "num_members": 16} if surrogate == "hmc" else {}
        return make(surrogate=surrogate, refit=refit, surrogate_options=short)

    whole = run(start(), bowl(), 8, progress=False)
    for stop in (5, 7):
        run(start(), bowl(), stop, progress=False, checkpoint=tmp_path / "run")
    resumed = run(start(), bowl(), 8, progress=False, checkpoint=tmp_path / "run")
    assert points(resumed) == points(whole)


def test_checkpoints_of_other_runs_are_refused(bowl: Any, tmp_path: Path) -> None:
    path = tmp_path / "run"
    run(make(), bowl(), 2, [Checkpoint(path)], progress=False)
    other = Space([Real("x", -1, 2), Real("y", -1, 1)])
    with pytest.raises(StateError, match="another space"):
        run(make(space=other), bowl(), 4, progress=False, checkpoint=path)
    with pytest.raises(StateError, match="another directions"):
        run(make(objective="minimize"), lambda p: 0.0, 4, progress=False, checkpoint=path)
    path.write_bytes(b"something else")
    with pytest.raises(StateError):
        run(make(), bowl(), 4, progress=False, checkpoint=path)


def test_progress_can_be_silenced(bowl: Any, capfd: pytest.CaptureFixture[str]) -> None:
    run(make(), bowl(), 2, progress=False)
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""
    run(make(), bowl(), 2, progress=True)
    assert "2/2" in capfd.readouterr().err
