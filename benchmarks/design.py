"""What a way of choosing experiments teaches: the one-step loop against designs that do not learn.

Every run draws true parameters from the prior, measures ``T`` times, and is scored by the information that its history holds
about them: the lower bound sPCE and the upper bound sNMC (A. Foster et al., "Deep adaptive design", ICML 2021) with the same
contrastive draws, independent of those that chose the designs. Goals: death process (T = 4) at least 2.08 nats; hyperbolic
discounting (T = 20) at least 4.88 at no more than 50 ms a decision; location finding (two sources, T = 10) at least 8.0.

    python benchmarks/design.py                                        # death process and hyperbolic discounting
    python benchmarks/design.py --problems location --runs 256         # longer
    python benchmarks/design.py --quick                                # seconds, writes nothing
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from seqbdl.acquisition.eig import sequence_bounds
from seqbdl.envs.design_models import DeathProcess, HyperbolicDiscounting, LocationFinding
from seqbdl.loops import ExperimentDesignLoop, Real, Space

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
        goal: For the loop's lower bound.
    """

    model: Any
    space: Space
    steps: int
    contrastive: int
    options: dict[str, Any]
    fixed: dict[str, Callable[[torch.Generator], Tensor]]
    goal: float


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
    "location": Problem(
        LocationFinding(),
        Space([Real("x1", -4.0, 4.0), Real("x2", -4.0, 4.0)]),
        10,
        100_000,
        {"num_particles": 4096, "propose": near_sources},
        {"random, standard normal": lambda generator: torch.randn(10, 2, generator=generator, dtype=torch.float64)},
        8.0,
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


def race(name: str, runs: int, seed: int) -> list[Row]:
    problem = PROBLEMS[name]
    theta = problem.model.sample(runs, torch.Generator().manual_seed(seed))
    rows = []
    for method, choose in problem.fixed.items():
        found = fixed_runs(problem, choose, theta, seed + 1)
        rows.append(_row(name, method, problem, theta, *found, math.nan, seed))
        print(rows[-1], flush=True)
    designs, outcomes, seconds = loop_runs(problem, theta, seed + 2)
    rows.append(_row(name, "ExperimentDesignLoop", problem, theta, designs, outcomes, seconds, seed))
    print(rows[-1], flush=True)
    return rows


def _row(
    name: str, method: str, problem: Problem, theta: Tensor, designs: Tensor, outcomes: Tensor, seconds: float, seed: int
) -> Row:
    source = torch.Generator().manual_seed(seed + 3)
    bounds = sequence_bounds(problem.model, designs, outcomes, theta, problem.contrastive, source)
    assert bounds.lower is not None
    assert bounds.upper is not None
    values = float(bounds.lower), float(bounds.upper), float(bounds.standard_error)
    return Row(name, method, len(theta), problem.steps, *values, problem.contrastive, 1000 * seconds, problem.goal)


def report(frame: pd.DataFrame, command: str) -> str:
    """The table, as Markdown."""
    lines = [
        "# Bayesian experimental design",
        "",
        f"Command: `{command}`. Information in nats, lower bound (sPCE) and upper bound (sNMC) with L contrastive draws; the "
        "standard error is over runs, of the noisier bound. CPU milliseconds a decision: choosing a design, and absorbing its "
        "outcome; one thread. The goal is for the loop's lower bound.",
        "",
        "| method | problem | T | runs | lower | upper | standard error | L | CPU ms a decision | goal |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in frame.to_dict("records"):
        ms = "" if math.isnan(row["milliseconds"]) else f"{row['milliseconds']:.0f}"
        lines.append(
            f"| {row['method']} | {row['problem']} | {row['steps']} | {row['runs']} | {row['lower']:.3f} | {row['upper']:.3f} "
            f"| {row['standard_error']:.3f} | {row['contrastive']} | {ms} | {row['goal']:g} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", default=["death", "hyperbolic"], choices=list(PROBLEMS))
    parser.add_argument("--runs", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "design.csv", help="the .md stands beside it")
    parser.add_argument("--quick", action="store_true", help="two runs, writes nothing")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    runs = 2 if options.quick else options.runs
    frame = pd.DataFrame([asdict(row) for name in options.problems for row in race(name, runs, options.seed)])
    quick = " --quick" if options.quick else ""
    text = report(frame, f"python benchmarks/design.py --problems {' '.join(options.problems)} --runs {runs}{quick}")
    if not options.quick:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        frame.to_csv(options.out, index=False)
        options.out.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main(sys.argv[1:])
