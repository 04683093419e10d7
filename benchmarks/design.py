"""What a way of choosing experiments teaches: the one-step loop and trained policies against designs that do not learn.

Every run draws true parameters from the prior, measures ``T`` times, and is scored by the information that its history holds
about them: the lower bound sPCE and the upper bound sNMC (A. Foster et al., "Deep adaptive design", ICML 2021) with the same
contrastive draws, independent of those that chose the designs. Goals: death process (T = 4) at least 2.08 nats; hyperbolic
discounting (T = 20) at least 4.88 at no more than 50 ms a decision; location finding (two sources) at least 8.0 for T = 10, and
10.9 for T = 30. The published deep adaptive design, trained far longer, has 7.97 and 10.9 there.

The CSV is written after every method, and a row that it holds is not measured again.

    python benchmarks/design.py                                        # death process and hyperbolic discounting
    python benchmarks/design.py --problems location --runs 256         # longer
    python benchmarks/design.py --problems location-30 --methods policy --updates 20000
    python benchmarks/design.py --quick                                # seconds, writes nothing
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from seqbdl.acquisition.eig import sequence_bounds
from seqbdl.acquisition.policies import rollout
from seqbdl.envs.design_models import DeathProcess, HyperbolicDiscounting, LocationFinding
from seqbdl.envs.design_science import Pharmacokinetic, Preference
from seqbdl.loops import ExperimentDesignLoop, Real, Space, train_policy

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Problem:
    """One experiment and the ways of designing it.

    Attributes:
        model: With ``sample``, ``simulate`` and ``log_prob``.
        space: Of designs.
        steps: ``T``.
        contrastive: ``L`` of the bounds.
        options: Of the loop.
        fixed: Designs that do not learn: from a generator, ``T x d``.
        goal: For the loop's lower bound; NaN where none is published.
        policy: Options of the training of a policy; empty: none is trained.
        upper: Whether the upper bound means something at so many contrastive draws.
    """

    model: Any
    space: Space
    steps: int
    contrastive: int
    options: dict[str, Any]
    fixed: dict[str, Callable[[torch.Generator], Tensor]]
    goal: float = math.nan
    policy: dict[str, Any] = field(default_factory=dict)
    upper: bool = True


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    problem: str
    method: str
    runs: int
    steps: int
    lower: float
    upper: float
    standard_error: float
    contrastive: int
    milliseconds: float
    goal: float
    training_seconds: float = math.nan
    updates: float = math.nan


def near_sources(posterior: Any, n: int, generator: torch.Generator) -> Tensor:
    """Half of the candidates around sources that the posterior holds possible, half uniform in [-3, 3]^2."""
    theta = posterior.sample(n // 2, generator).reshape(-1, 2, 2)[:, 0]
    around = theta + 0.4 * torch.randn(theta.shape, generator=generator, dtype=torch.float64)
    anywhere = 6 * torch.rand(n - n // 2, 2, generator=generator, dtype=torch.float64) - 3
    return torch.cat([around, anywhere]).clamp(-4.0, 4.0)


def uniform(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=generator, dtype=torch.float64)


def offers(generator: torch.Generator) -> Tensor:
    """Rewards of 1 to 99, delays log-uniform from 0.01 to 100,000 days."""
    u = uniform(generator, 20, 2)
    return torch.stack([1 + 98 * u[:, 0], 10 ** (-2 + 7 * u[:, 1])], dim=-1)


def normal_places(generator: torch.Generator, steps: int) -> Tensor:
    return torch.randn(steps, 2, generator=generator, dtype=torch.float64)


LOCATION = Problem(
    LocationFinding(),
    Space([Real("x1", -4.0, 4.0), Real("x2", -4.0, 4.0)]),
    10,
    100_000,
    {"num_particles": 4096, "propose": near_sources},
    {"random, standard normal": lambda generator: normal_places(generator, 10)},
    8.0,
    {"updates": 4000, "batch_size": 64, "num_contrastive": 1023},
)
PROBLEMS = {
    "death": Problem(
        DeathProcess(),
        Space([Real("time", 0.01, 20.0, log=True)]),
        4,
        20_000,
        {"grid": [torch.linspace(1e-3, 8.0, 300, dtype=torch.float64)], "num_candidates": 64},
        {
            "static, all at 1.2": lambda generator: torch.full((4, 1), 1.2, dtype=torch.float64),
            "random, log-uniform": lambda generator: 0.01 * 2000 ** uniform(generator, 4, 1),
        },
        2.08,
    ),
    "hyperbolic": Problem(
        HyperbolicDiscounting(),
        Space([Real("reward_now", 0.01, 99.99), Real("delay", 0.01, 1e5, log=True)]),
        20,
        20_000,
        {"num_particles": 2048, "num_candidates": 512, "search_outer": 256},
        {"random": offers},
        4.88,
    ),
    "location": LOCATION,
    "location-30": replace(
        LOCATION,
        steps=30,
        contrastive=500_000,  # as published: a lower bound never passes log(L + 1)
        fixed={"random, standard normal": lambda generator: normal_places(generator, 30)},
        goal=10.9,
    ),
    "pharmacokinetic": Problem(
        Pharmacokinetic(),
        Space([Real("hour", 0.0, 24.0)]),
        5,
        100_000,
        {"num_particles": 2048, "num_candidates": 64},
        {
            "random, 24 sigmoid(U(-5, 5))": lambda generator: 24 * (10 * uniform(generator, 5, 1) - 5).sigmoid(),
            "equally spaced": lambda generator: torch.linspace(4.8, 24.0, 5, dtype=torch.float64).unsqueeze(-1),
        },
        policy={"updates": 1000, "batch_size": 128, "num_contrastive": 255},
    ),
    "preference": Problem(
        Preference(),
        Space([Real(f"{basket}{i + 1}", 0.01, 100.0) for basket in "ab" for i in range(3)]),
        10,
        100_000,
        {"num_particles": 4096, "num_candidates": 256},
        {"random": lambda generator: 0.01 + 99.99 * uniform(generator, 10, 6)},
        upper=False,
    ),
}


def fixed_runs(problem: Problem, choose: Callable[[torch.Generator], Tensor], theta: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    designs = torch.stack([choose(generator) for _ in theta])
    return designs, problem.model.simulate(theta.unsqueeze(1), designs, generator)


def loop_runs(problem: Problem, theta: Tensor, seed: int) -> tuple[Tensor, Tensor, float]:
    """Designs, outcomes and CPU seconds for each decision (choosing, and absorbing the outcome)."""
    names, seconds = problem.space.names, 0.0
    designs, outcomes = [], []
    for i, truth in enumerate(theta):
        loop = ExperimentDesignLoop(problem.model, problem.space, seed=seed + 7919 * i, **problem.options)
        noise = torch.Generator().manual_seed(seed + 104_729 + i)
        for _ in range(problem.steps):
            start = time.process_time()
            point = loop.ask()
            seconds += time.process_time() - start
            x = torch.tensor([point[name] for name in names], dtype=torch.float64)
            y = problem.model.simulate(truth, x, noise)
            start = time.process_time()
            loop.tell(point, y)
            seconds += time.process_time() - start
        x, y = loop.data()
        designs.append(x)
        outcomes.append(y)
    return torch.stack(designs), torch.stack(outcomes), seconds / (len(theta) * problem.steps)


def policy_runs(problem: Problem, updates: int | None, theta: Tensor, seed: int) -> tuple[Tensor, Tensor, float, float, int]:
    """Designs, outcomes, CPU seconds for each decision, CPU seconds of the training, updates of the training."""
    options = problem.policy | ({} if updates is None else {"updates": updates})
    start = time.process_time()
    policy = train_policy(problem.model, problem.space, problem.steps, seed=seed, progress=False, **options)
    trained = time.process_time() - start
    with torch.no_grad():
        designs, outcomes = rollout(policy, problem.model, theta, generator=torch.Generator().manual_seed(seed + 1))
        start = time.process_time()
        for t in range(problem.steps):
            policy(designs[0, :t], outcomes[0, :t])
    return designs, outcomes, (time.process_time() - start) / problem.steps, trained, options["updates"]


def race(
    name: str, methods: list[str], runs: int, seed: int, updates: int | None, done: set[tuple[str, str, int]]
) -> Iterator[Row]:
    """The rows of one problem, one after the other, but for those that are done."""
    problem = PROBLEMS[name]
    theta = problem.model.sample(runs, torch.Generator().manual_seed(seed))
    if "fixed" in methods:
        for method, choose in problem.fixed.items():
            if (name, method, runs) not in done:
                yield _row(name, method, problem, theta, *fixed_runs(problem, choose, theta, seed + 1), math.nan, seed)
    if "loop" in methods and (name, "ExperimentDesignLoop", runs) not in done:
        yield _row(name, "ExperimentDesignLoop", problem, theta, *loop_runs(problem, theta, seed + 2), seed)
    if "policy" in methods and problem.policy and (name, "policy", runs) not in done:
        designs, outcomes, seconds, trained, count = policy_runs(problem, updates, theta, seed + 4)
        row = _row(name, "policy", problem, theta, designs, outcomes, seconds, seed)
        yield replace(row, training_seconds=trained, updates=count)


def _row(
    name: str, method: str, problem: Problem, theta: Tensor, designs: Tensor, outcomes: Tensor, seconds: float, seed: int
) -> Row:
    source = torch.Generator().manual_seed(seed + 3)
    if problem.upper:
        bounds = sequence_bounds(problem.model, designs, outcomes, theta, problem.contrastive, source)
        assert bounds.lower is not None
        assert bounds.upper is not None
        values = float(bounds.lower), float(bounds.upper), float(bounds.standard_error)
    else:  # run by run: the error of the lower bound alone
        runs = [
            sequence_bounds(problem.model, designs[i : i + 1], outcomes[i : i + 1], theta[i : i + 1], problem.contrastive, source)
            for i in range(len(theta))
        ]
        low = torch.stack([bounds.lower for bounds in runs if bounds.lower is not None])
        values = float(low.mean()), math.nan, float(low.std() / math.sqrt(len(low)))
    return Row(name, method, len(theta), problem.steps, *values, problem.contrastive, 1000 * seconds, problem.goal)


def report(frame: pd.DataFrame, command: str) -> str:
    """The table, as Markdown."""
    lines = [
        "# Bayesian experimental design",
        "",
        f"Command: `{command}`. Information in nats, lower bound (sPCE) and upper bound (sNMC) with L contrastive draws; the "
        "standard error is over runs, of the noisier bound. CPU milliseconds a decision: choosing a design, and (of the loop) "
        "absorbing its outcome; one thread. The goal is for the best lower bound. No upper bound is shown of preferences: their "
        "utility scale has so heavy a tail that it says nothing below ten million contrastive draws.",
        "",
        "| problem | T | method | runs | lower | upper | standard error | L | CPU ms a decision | goal | CPU s of training |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]

    def shown(value: float, form: str) -> str:
        return "" if math.isnan(value) else format(value, form)

    for row in frame.to_dict("records"):
        training = shown(row["training_seconds"], ".0f")
        training += f" ({row['updates']:.0f} updates)" if training else ""
        cells = [row["problem"], str(row["steps"]), row["method"], str(row["runs"]), f"{row['lower']:.3f}"]
        cells += [shown(row["upper"], ".3f"), f"{row['standard_error']:.3f}", str(row["contrastive"])]
        cells += [shown(row["milliseconds"], ".0f" if row["milliseconds"] >= 10 else ".2g"), shown(row["goal"], "g"), training]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", default=["death", "hyperbolic"], choices=list(PROBLEMS))
    parser.add_argument("--methods", nargs="+", default=["fixed", "loop", "policy"], choices=["fixed", "loop", "policy"])
    parser.add_argument("--updates", type=int, help="of a policy's training; the problem's own by default")
    parser.add_argument("--runs", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "design.csv", help="the .md stands beside it")
    parser.add_argument("--quick", action="store_true", help="two runs, writes nothing")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    runs, updates = (2, 3) if options.quick else (options.runs, options.updates)
    rows: list[dict[str, Any]] = []
    if options.out.exists() and not options.quick:
        rows = pd.read_csv(options.out).to_dict("records")
    done = {(row["problem"], row["method"], row["runs"]) for row in rows}
    command = "python benchmarks/design.py --problems ... --methods ... --runs ..."
    for name in options.problems:
        for row in race(name, options.methods, runs, options.seed, updates, done):
            print(row, flush=True)
            rows.append(asdict(row))
            if not options.quick:
                options.out.parent.mkdir(parents=True, exist_ok=True)
                frame = pd.DataFrame(rows).sort_values(["problem", "runs"], kind="stable")
                frame.to_csv(options.out, index=False)
                options.out.with_suffix(".md").write_text(report(frame, command))
    print(report(pd.DataFrame(rows), command))


if __name__ == "__main__":
    main(sys.argv[1:])
