"""Races are fair: shared initial designs, one budget, and the same results for the same seeds."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from seqbdl.cli.race import RANDOM, Evaluation, Task, Trace, initial_design, race, run_task

BRANIN = Task("nngp", 3, "seqbdl/Branin-v0", budget=6)


def test_initial_design_depends_on_the_seed_only() -> None:
    first = initial_design(BRANIN, 4)
    again = initial_design(replace(BRANIN, method=RANDOM), 4)
    other = initial_design(replace(BRANIN, seed=4), 4)
    assert [e.point for e in first] == [e.point for e in again]
    assert [e.reward for e in first] == [e.reward for e in again]
    assert [e.point for e in first] != [e.point for e in other]


@pytest.mark.parametrize("method", ["nngp", RANDOM])
def test_runs_start_from_the_design_and_repeat(method: str) -> None:
    task = replace(BRANIN, method=method, initial=initial_design(BRANIN, 4))
    first, second = run_task(task), run_task(task)
    assert first.evaluations[:4] == task.initial
    assert len(first.evaluations) == 6
    assert [e.point for e in first.evaluations] == [e.point for e in second.evaluations]
    assert all(e.true_value is not None for e in first.evaluations)


def test_deadline_ends_a_run() -> None:
    task = replace(BRANIN, method=RANDOM, initial=initial_design(BRANIN, 2), deadline=time.time() - 1.0)
    assert len(run_task(task).evaluations) == 2


def test_workers_share_designs_and_report_everything(tmp_path: Path) -> None:
    seen: list[tuple[tuple[str, int], Evaluation]] = []
    tasks = [
        replace(BRANIN, method=RANDOM, seed=0, budget=4),
        replace(BRANIN, method="nngp", seed=0, budget=4),
        replace(BRANIN, method=RANDOM, seed=9, budget=3, initial=()),
    ]
    traces: list[Trace] = list(race(tasks, 3, 2, lambda key, e: seen.append((key, e)), tmp_path / "log"))
    by_key = {trace.task.key: trace for trace in traces}
    assert len(by_key) == 3
    shared = [[e.point for e in by_key[key].evaluations[:3]] for key in ((RANDOM, 0), ("nngp", 0))]
    assert shared[0] == shared[1]
    assert len(by_key[RANDOM, 9].evaluations) == 3
    assert len(seen) == 4 + 4 + 3
    assert (tmp_path / "log").exists()


def test_an_error_in_a_worker_is_not_lost(tmp_path: Path) -> None:
    tasks = [replace(BRANIN, method="no-such-surrogate", seed=0, budget=4)]
    with pytest.raises(ValueError, match="no-such-surrogate"):
        list(race(tasks, 2, 1, lambda key, e: None, tmp_path / "log"))
