"""Several methods on one problem from the same initial designs, spread over worker processes.

Every worker is a fresh process with one thread; it reports each evaluation through a queue as it happens.
"""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass, field, replace
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import gymnasium
import torch

import seqbdl.envs  # noqa: F401  (registers the environments, in every worker)
from seqbdl.errors import SeqbdlError
from seqbdl.loops import BayesOptLoop, Space

RANDOM = "random search"


class RaceError(SeqbdlError):
    """A run failed in its worker; the worker's log has the traceback."""


@dataclass(frozen=True)
class Evaluation:
    """One evaluated point.

    Attributes:
        point: Where.
        reward: What was measured, to be maximized.
        true_value: The reward without noise, where the problem knows it.
        seconds: Spent to choose the point.
        failure: Why there is no outcome (the reward is then the problem's penalty); `None` when there is one.
        extra: Further numbers that the problem tells, such as a score on held-out data.
    """

    point: Mapping[str, Any]
    reward: float
    true_value: float | None
    seconds: float
    failure: str | None = None
    extra: Mapping[str, float] = field(default_factory=dict)

    @property
    def value(self) -> float:
        """The noise-free value where the problem knows it, the measured one otherwise."""
        return self.reward if self.true_value is None else self.true_value


@dataclass(frozen=True)
class Task:
    """One run: a method, a seed, and the evaluations it starts from (not repeated); `None` takes the shared design."""

    method: str
    seed: int
    env_id: str
    budget: int
    env_options: Mapping[str, Any] = field(default_factory=dict)
    initial: tuple[Evaluation, ...] | None = None
    deadline: float | None = None
    surrogate_options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, int]:
        return self.method, self.seed


@dataclass(frozen=True)
class Trace:
    """What a run did. It has fewer evaluations than its budget when the deadline came first."""

    task: Task
    evaluations: tuple[Evaluation, ...]
    seconds: float

    def best_so_far(self) -> list[float]:
        """The best value after one, two, ... evaluations."""
        best: list[float] = []
        for evaluation in self.evaluations:
            best.append(max(evaluation.value, best[-1]) if best else evaluation.value)
        return best


Watcher = Callable[[tuple[str, int], Evaluation], None]
"""Told of every evaluation, with the key of its run."""


def open_problem(env_id: str, seed: int, options: Mapping[str, Any]) -> tuple[gymnasium.Env[Any, Any], Space]:
    """The environment, reset under its seed, and its space."""
    env = gymnasium.make(env_id, **options)
    env.reset(seed=seed)
    return env, Space.from_gymnasium(env.action_space, env.unwrapped)


def make_loop(task: Task, space: Space) -> BayesOptLoop:
    """The loop of a method: a surrogate's name, or random search."""
    if task.method == RANDOM:
        return BayesOptLoop(space, acquisition="random", initial=0, seed=task.seed)
    options = dict(task.surrogate_options)
    return BayesOptLoop(space, surrogate=task.method, initial=0, seed=task.seed, surrogate_options=options)


def initial_design(task: Task, count: int) -> tuple[Evaluation, ...]:
    """The first `count` points of a scrambled Sobol sequence under the task's seed, evaluated."""
    env, space = open_problem(task.env_id, task.seed, task.env_options)
    loop = BayesOptLoop(space, acquisition="sobol", initial=count, seed=task.seed)
    points = loop.ask(n=count)
    return tuple(_evaluate(env, space, point, 0.0) for point in (points if isinstance(points, list) else [points]))


def run_task(task: Task, watcher: Watcher | None = None) -> Trace:
    """Run a method to the end of its budget, or to its deadline."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    # Another stream than the one that measured the initial design, where the problem is noisy.
    env, space = open_problem(task.env_id, task.seed + 1_000_003, task.env_options)
    loop = make_loop(task, space)
    done = list(task.initial or ())
    if done:
        for evaluation in done:
            _tell(loop, evaluation)
    while len(done) < task.budget and (task.deadline is None or time.time() < task.deadline):
        asked = time.perf_counter()
        point = loop.ask()
        evaluation = _evaluate(env, space, point, time.perf_counter() - asked)
        _tell(loop, evaluation)
        done.append(evaluation)
        if watcher is not None:
            watcher(task.key, evaluation)
    env.close()
    return Trace(task, tuple(done), time.perf_counter() - start)


def _evaluate(env: gymnasium.Env[Any, Any], space: Space, point: Mapping[str, Any], seconds: float) -> Evaluation:
    _, reward, _, _, info = env.step(space.to_action(point))
    true_value = info.get("true_value")
    extra = {key: float(value) for key, value in info.items() if isinstance(value, float) and key != "true_value"}
    return Evaluation(
        point=dict(point),
        reward=float(reward),
        true_value=None if true_value is None else float(true_value),
        seconds=seconds,
        failure=str(info.get("reason", "failed")) if info.get("failed") else None,
        extra=extra,
    )


def _tell(loop: BayesOptLoop, evaluation: Evaluation) -> None:
    if evaluation.failure is None:
        loop.tell(evaluation.point, evaluation.reward)
    else:
        loop.tell(evaluation.point, failed=True, reason=evaluation.failure)


def available_cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def race(
    tasks: Iterable[Task],
    initial: int,
    workers: int,
    report: Watcher,
    log: Path | None = None,
) -> Iterator[Trace]:
    """Run all tasks, each from the initial design of its seed, and give back traces as they end.

    Args:
        tasks: The runs; those whose `initial` is `None` get the shared design of their seed.
        initial: Size of the shared initial designs.
        workers: Number of worker processes.
        report: Called in this process with every evaluation.
        log: Where the workers' standard error goes, so that it does not run through a live display.
    """
    tasks = list(tasks)
    context = multiprocessing.get_context("spawn")
    queue: SimpleQueue[tuple[tuple[str, int], Evaluation]] = context.SimpleQueue()
    with ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(log, queue)) as pool:
        first = {task.seed: task for task in tasks if task.initial is None}
        designs = dict(zip(first, pool.map(_safe_design, first.values(), [initial] * len(first)), strict=True))
        started = [task if task.initial is not None else replace(task, initial=designs[task.seed]) for task in tasks]
        for task in started:
            for evaluation in task.initial or ():
                report(task.key, evaluation)
        pending = {pool.submit(_safe_run, task) for task in started}
        try:
            while pending:
                done, pending = wait(pending, timeout=0.1, return_when=FIRST_COMPLETED)
                while not queue.empty():  # a run's evaluations are in the queue before its result is there
                    report(*queue.get())
                for future in done:
                    yield future.result()
        finally:
            for future in pending:
                future.cancel()


_emit: Watcher | None = None  # in a worker: puts evaluations into the queue to the parent


def _start_worker(log: Path | None, queue: SimpleQueue[tuple[tuple[str, int], Evaluation]]) -> None:
    """Remember the queue, and send standard error, that of libraries in C included, to a file."""
    global _emit
    _emit = lambda key, evaluation: queue.put((key, evaluation))  # noqa: E731
    if log is not None:
        handle = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.dup2(handle, 2)
        os.close(handle)


def _safe_run(task: Task) -> Trace:
    """In a worker: exceptions of any class become one that can travel between processes."""
    try:
        return run_task(task, _emit)
    except Exception as error:
        traceback.print_exc()
        raise RaceError(f"{task.method}, seed {task.seed}: {type(error).__name__}: {error}") from None


def _safe_design(task: Task, count: int) -> tuple[Evaluation, ...]:
    try:
        return initial_design(task, count)
    except Exception as error:
        traceback.print_exc()
        raise RaceError(f"initial design, seed {task.seed}: {type(error).__name__}: {error}") from None
