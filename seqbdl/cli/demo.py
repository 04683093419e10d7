"""`seqbdl demo`: surrogates against random search on a real problem, with a picture and a report."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from seqbdl.cli.plots import race_figure
from seqbdl.cli.race import RANDOM, Evaluation, Task, Trace, available_cores, race
from seqbdl.cli.report import Report, Section, Table, embed, format_number, versions
from seqbdl.cli.summary import Goal, RaceResult, summarize, table, verdict
from seqbdl.envs import list_envs

PIECE = 25  # random evaluations in one task
POOL_SEED = 10_000  # the extra random evaluations use seeds from here on, far from those of the runs


@dataclass(frozen=True)
class DemoSettings:
    """What the demo does.

    Attributes:
        out: Folder for the report, the picture and the tables; made if missing.
        env_id: The problem.
        surrogates: Registered names.
        budget: Evaluations of each run, the initial design included.
        initial: Size of the initial design, shared by all methods under one seed.
        seeds: Number of runs of each method.
        random_pool: Random evaluations, in all, to tell how many random search needs.
        workers: Worker processes; all available cores by default, at most eight.
        time_limit: Seconds after which runs stop early; methods are then compared at equal numbers of evaluations.
    """

    out: Path
    env_id: str = "seqbdl/TuneDigits-v0"
    env_options: Mapping[str, Any] = field(default_factory=dict)
    surrogates: tuple[str, ...] = ("dkl", "laplace", "nngp")  # the slowest first: shorter in all
    budget: int = 40
    initial: int = 10
    seeds: int = 3
    random_pool: int = 800
    workers: int | None = None
    time_limit: float = 240.0


@dataclass(frozen=True)
class DemoResult:
    """What came out, and where it was written."""

    race: RaceResult
    traces: tuple[Trace, ...]
    goal: Goal
    headline: tuple[str, ...]
    report: Path
    seconds: float


def run_demo(settings: DemoSettings, console: Console) -> DemoResult:
    """Race the surrogates against random search and write the report.

    Raises:
        gymnasium.error.Error: when the problem does not exist.
        OSError: when the folder cannot be written.
    """
    start = time.time()
    settings.out.mkdir(parents=True, exist_ok=True)
    log = settings.out / "log.txt"
    log.write_text("", encoding="utf-8")
    goal, description = _describe(settings)
    console.print(f"[bold]{settings.env_id}[/]: {description}")
    tasks = _tasks(settings, start + settings.time_limit)
    workers = settings.workers or min(available_cores(), 8, len(tasks))
    runs = f"{settings.seeds} run{'s' if settings.seeds > 1 else ''} each"
    console.print(
        f"{', '.join(settings.surrogates)} and {RANDOM}: {runs}, {settings.budget} evaluations a run, the first "
        f"{settings.initial} shared (Sobol). {workers} processes."
    )
    finished = _watch(tasks, settings, workers, goal, console)
    traces = tuple(trace for trace in finished if trace.task.seed < POOL_SEED)
    result = summarize(traces, _random_values(finished, settings.initial), settings.initial)
    seconds = time.time() - start
    headline = tuple(verdict(result, goal))
    figure = race_figure(result, settings.initial, goal)
    figure.savefig(settings.out / "race.png", dpi=130)
    report = Report(
        title=f"Bayesian optimization against random search: {settings.env_id}",
        subtitle=description,
        headline=headline,
        sections=_sections(result, embed(figure), goal),
        provenance=[*versions(), f"{workers} processes, {seconds:.0f} s in all", time.strftime("%Y-%m-%d %H:%M")],
    ).write(settings.out / "report.html")
    _write_tables(settings.out, finished, result, headline)
    return DemoResult(result, traces, goal, headline, report, seconds)


def _describe(settings: DemoSettings) -> tuple[Goal, str]:
    """The outcome, and what the problem is in its own words."""
    env = gymnasium.make(settings.env_id, **settings.env_options)
    names = getattr(env.unwrapped, "outcome_names", ())
    known = {info.id: info.summary for info in list_envs()}
    env.close()
    return Goal.named(str(names[0])) if names else Goal("reward"), known.get(settings.env_id, settings.env_id)


def _tasks(settings: DemoSettings, deadline: float) -> list[Task]:
    """One run for every method and seed, and as many more random evaluations as the pool wants, in small pieces."""
    options: dict[str, Any] = {"env_id": settings.env_id, "env_options": settings.env_options, "deadline": deadline}
    missing = settings.random_pool - settings.seeds * (settings.budget - settings.initial)
    pool = [
        Task(RANDOM, POOL_SEED + piece, budget=min(PIECE, missing - first), initial=(), **options)
        for piece, first in enumerate(range(0, max(missing, 0), PIECE))
    ]
    tasks: list[Task] = []
    for seed in range(settings.seeds):
        # Whole seeds first, each with its share of the pool: where time is short, there is something to compare.
        tasks += [Task(method, seed, budget=settings.budget, **options) for method in (*settings.surrogates, RANDOM)]
        tasks += pool[seed :: settings.seeds]
    return tasks


def _watch(tasks: Sequence[Task], settings: DemoSettings, workers: int, goal: Goal, console: Console) -> list[Trace]:
    """Run everything under live bars, one for every method."""
    progress = Progress(
        TextColumn("{task.description:<14}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("best {task.fields[best]}"),
        TimeElapsedColumn(),
        console=console,
    )
    bars: dict[str, TaskID] = {}
    best: dict[str, float] = {}
    for task in tasks:
        if task.method not in bars:
            total = sum(other.budget for other in tasks if other.method == task.method)
            bars[task.method] = progress.add_task(task.method, total=total, best="–")

    def on_evaluation(key: tuple[str, int], evaluation: Evaluation) -> None:
        method, seed = key
        if seed < POOL_SEED:  # the bar of random search shows its best within the budget that the others have
            best[method] = max(best.get(method, float("-inf")), evaluation.value)
        progress.update(bars[method], advance=1, best=goal.show(best.get(method)))

    finished = []
    with progress:
        for trace in race(tasks, settings.initial, workers, on_evaluation, settings.out / "log.txt"):
            finished.append(trace)
            if trace.task.seed < POOL_SEED and len(trace.evaluations) > settings.initial:
                final = goal.show(trace.best_so_far()[-1])
                early = "" if len(trace.evaluations) == trace.task.budget else ", stopped by the time limit"
                progress.console.print(
                    f"  {trace.task.method}, seed {trace.task.seed}: best {final} after "
                    f"{len(trace.evaluations)} evaluations, {trace.seconds:.0f} s{early}"
                )
    return finished


def _random_values(traces: Sequence[Trace], initial: int) -> list[float]:
    """All independent random evaluations: the pool, and the random runs after their Sobol points."""
    values = []
    for trace in traces:
        if trace.task.method == RANDOM:
            skip = initial if trace.task.seed < POOL_SEED else 0
            values += [evaluation.value for evaluation in trace.evaluations[skip:]]
    return values


def _sections(result: RaceResult, image: str, goal: Goal) -> list[Section]:
    winners = []
    for item in result.methods:
        runs = [trace for trace in result.traces if trace.task.method == item.method]
        every = [e for trace in runs for e in trace.evaluations[: result.evaluations]]
        winners.append((item.method, max(every, key=lambda e: e.value)))
    names, extra = list(winners[0][1].point), list(winners[0][1].extra)
    titles = [goal.label, *(key.replace("_", " ") for key in extra)]
    rows = [
        [method, goal.show(e.value), *(format_number(e.extra.get(key)) for key in extra)]
        + [_cell(e.point[name]) for name in names]
        for method, e in winners
    ]
    return [
        Section("The race", image=image),
        Section(
            "In numbers",
            f"All methods share the initial design of a seed. The {goal.label} ({goal.better}) is the median of the "
            f"best values of {result.seeds} runs after {result.evaluations} evaluations. “Matches at”: the evaluation "
            f"at which a method was as good as random search in the end. “Random needs”: the mean number of random "
            f"evaluations until one is as good as the method's median, estimated from {len(result.pool)} of them.",
            table=table(result, goal),
        ),
        Section("The best configuration of each method", table=Table(["method", *titles, *names], rows, marked=[0])),
    ]


def _cell(value: object) -> str:
    return format_number(value) if isinstance(value, float) else str(value)


def _write_tables(out: Path, traces: Sequence[Trace], result: RaceResult, headline: Sequence[str]) -> None:
    """`evaluations.csv`, one row for every evaluation, and `summary.json`."""
    names = list(traces[0].evaluations[0].point)
    with (out / "evaluations.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["method", "seed", "evaluation", *names, "reward", "value", "seconds_to_choose"])
        for trace in traces:
            for count, item in enumerate(trace.evaluations, 1):
                point = [item.point[name] for name in names]
                row = [trace.task.method, trace.task.seed, count, *point, item.reward, item.value, item.seconds]
                writer.writerow(row)
    methods = [
        {
            "method": item.method,
            "finals": item.finals,
            "median": item.median,
            "seeds_better_than_random": None if item.method == RANDOM else item.wins,
            "random_needs": item.need.evaluations,
            "random_hits": item.need.hits,
            "random_pool": item.need.pool,
            "seconds_per_choice": item.seconds,
        }
        for item in result.methods
    ]
    content = {"evaluations": result.evaluations, "seeds": result.seeds, "verdict": headline, "methods": methods}
    (out / "summary.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
