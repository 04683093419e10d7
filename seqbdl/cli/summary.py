"""What a race has shown, in numbers and in words that follow from the numbers."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from seqbdl.cli.race import RANDOM, Trace
from seqbdl.cli.report import Table, format_number


@dataclass(frozen=True)
class Goal:
    """How an outcome is shown: a reward named `-loss` is read as `loss`, where less is better."""

    label: str
    sign: float = 1.0

    @classmethod
    def named(cls, name: str) -> Goal:
        name = name.replace("_", " ").strip()
        return cls(name[1:].strip(), -1.0) if name.startswith(("-", "−")) else cls(name)

    @property
    def better(self) -> str:
        return "higher is better" if self.sign > 0 else "lower is better"

    def show(self, value: float | None) -> str:
        return format_number(None if value is None else self.sign * value)


@dataclass(frozen=True)
class RandomNeed:
    """How many evaluations random search needs, on average, to be as good as a target.

    The chance that one random evaluation is at least as good is estimated from a pool of independent ones.
    The waiting time is geometric, its mean one over the chance.
    """

    hits: int
    pool: int

    @classmethod
    def of(cls, target: float, pool: Sequence[float]) -> RandomNeed:
        return cls(sum(value >= target for value in pool), len(pool))

    @property
    def evaluations(self) -> float | None:
        """The mean waiting time, or `None` when no evaluation of the pool was as good."""
        return self.pool / self.hits if self.hits else None

    def __str__(self) -> str:
        return f"> {self.pool}" if self.evaluations is None else f"≈ {round(self.evaluations)}"

    def sentence(self) -> str:
        """The same for a reader."""
        if self.evaluations is None:
            return f"more than {self.pool} evaluations (none of {self.pool} random evaluations was as good)"
        return f"about {round(self.evaluations)} evaluations on average ({self.hits} of {self.pool} were as good)"


@dataclass(frozen=True)
class MethodResult:
    """A method over all seeds, at a number of evaluations that all runs reached.

    Attributes:
        finals: The best value of each seed.
        caught: For each seed, the evaluations it took to be as good as random search was in the end; `None` if never.
        need: What random search would need to reach the method's median.
        seconds: Seconds to choose one point, the median.
    """

    method: str
    finals: tuple[float, ...]
    caught: tuple[int | None, ...]
    wins: int
    need: RandomNeed
    seconds: float

    @property
    def median(self) -> float:
        return statistics.median(self.finals)


@dataclass(frozen=True)
class RaceResult:
    """All methods, best first; random search is among them.

    Attributes:
        evaluations: The number of evaluations at which runs are compared.
        seeds: How many seeds are compared.
        cut: How many seeds are left out because a time limit cut their runs short.
        methods: Best first.
        pool: Values of independent random evaluations.
        traces: The runs that are compared.
    """

    evaluations: int
    seeds: int
    cut: int
    methods: tuple[MethodResult, ...]
    pool: tuple[float, ...]
    traces: tuple[Trace, ...]

    @property
    def random(self) -> MethodResult:
        return next(result for result in self.methods if result.method == RANDOM)

    @property
    def surrogates(self) -> list[MethodResult]:
        return [result for result in self.methods if result.method != RANDOM]


def summarize(traces: Sequence[Trace], pool: Sequence[float], initial: int) -> RaceResult:
    """Compare the runs at equal numbers of evaluations.

    A time limit may have cut runs short. Then the seeds that got farthest, counted by their shortest run, are compared
    at that run's number of evaluations, and the others are left out.

    Args:
        traces: One run for every method and seed, `RANDOM` among the methods.
        pool: Values of independent random evaluations, those of the random runs included.
        initial: Size of the initial design, whose points cost no thinking.
    """
    reached: dict[int, int] = {}
    for trace in traces:
        reached[trace.task.seed] = min(len(trace.evaluations), reached.get(trace.task.seed, len(trace.evaluations)))
    evaluations = max(reached.values())
    left_out = sum(count < evaluations for count in reached.values())
    traces = [trace for trace in traces if reached[trace.task.seed] == evaluations]
    by_method: dict[str, dict[int, Trace]] = {}
    for trace in traces:
        by_method.setdefault(trace.task.method, {})[trace.task.seed] = trace
    reference = {seed: trace.best_so_far()[evaluations - 1] for seed, trace in by_method[RANDOM].items()}
    results = [_method(method, runs, reference, pool, evaluations, initial) for method, runs in by_method.items()]
    results.sort(key=lambda result: result.median, reverse=True)
    return RaceResult(evaluations, len(reference), left_out, tuple(results), tuple(pool), tuple(traces))


def _method(
    method: str,
    runs: Mapping[int, Trace],
    reference: Mapping[int, float],
    pool: Sequence[float],
    evaluations: int,
    initial: int,
) -> MethodResult:
    curves = {seed: trace.best_so_far()[:evaluations] for seed, trace in runs.items()}
    finals = tuple(curve[-1] for curve in curves.values())
    caught = tuple(_first(curve, reference[seed]) for seed, curve in curves.items())
    seconds = [item.seconds for trace in runs.values() for item in trace.evaluations[initial:evaluations]]
    return MethodResult(
        method=method,
        finals=finals,
        caught=caught,
        wins=sum(curve[-1] > reference[seed] for seed, curve in curves.items()),
        need=RandomNeed.of(statistics.median(finals), pool),
        seconds=statistics.median(seconds) if seconds else 0.0,
    )


def _first(curve: Sequence[float], target: float) -> int | None:
    return next((count for count, value in enumerate(curve, 1) if value >= target), None)


def table(result: RaceResult, goal: Goal) -> Table:
    """One row for every method, best first."""
    rows = []
    for item in result.methods:
        reached = [n for n in item.caught if n is not None]
        is_random = item.method == RANDOM
        rows.append(
            [
                item.method,
                goal.show(item.median),
                f"{goal.show(min(item.finals))} … {goal.show(max(item.finals))}",
                "–" if is_random else f"{item.wins} of {result.seeds}",
                "–" if is_random or not reached else format_number(statistics.median(reached)),
                "–" if is_random else str(item.need),
                f"{item.seconds:.2f}",
            ]
        )
    columns = (
        "method",
        goal.label,
        "worst … best",
        "beats random",
        "matches at",
        "random needs",
        "s/choice",
    )
    return Table(columns, rows, marked=[0])


def verdict(result: RaceResult, goal: Goal) -> list[str]:
    """Sentences that say whether model-based search was better than random search, and by how much."""
    best = max(result.surrogates, key=lambda item: item.median)
    random = result.random
    over = f"median of {result.seeds} seeds" if result.seeds > 1 else "one seed"
    reached, usual = goal.show(best.median), goal.show(random.median)
    lines = [
        f"After {result.evaluations} evaluations {best.method} reached a {goal.label} of {reached} ({over}); "
        f"random search reached {usual} ({goal.better})."
    ]
    if best.median > random.median:
        lines.append(f"To reach what {best.method} found, random search needs {best.need.sentence()}.")
    better = [item.method for item in result.surrogates if item.median > random.median]
    others = [item.method for item in result.surrogates if item.median <= random.median]
    if not better:
        lines.append("No surrogate beat random search on this run.")
    elif others:
        lines.append(f"Better than random search: {', '.join(better)}. Not better: {', '.join(others)}.")
    else:
        count = {1: "It", 2: "Both surrogates"}.get(len(better), f"All {len(better)} surrogates")
        wins = sum(item.wins for item in result.surrogates)
        runs = result.seeds * len(result.surrogates)
        lines.append(f"{count} beat random search in the median, and in {wins} of {runs} single runs.")
    if result.cut:
        lines.append(f"{result.cut} more seed(s) were cut short by the time limit and are left out.")
    return lines
