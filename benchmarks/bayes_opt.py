"""Bayesian optimization: every surrogate, BoTorch's default Gaussian process, and quasi-random search, at equal effort.

Every method starts from the same Sobol points and chooses the rest by qLogEI with 10 restarts and 256 raw samples; the
baseline runs on BoTorch alone (``SingleTaskGP``, ``fit_gpytorch_mll``, ``optimize_acqf``). One thread, CPU seconds of
the process.

    python benchmarks/bayes_opt.py --problems Hartmann6 --seeds 10     # adds to benchmarks/results/bayes_opt.csv
    python benchmarks/bayes_opt.py --report                            # writes the table and the picture from it
    python benchmarks/bayes_opt.py --quick                             # seconds, into a temporary folder
"""

from __future__ import annotations

import argparse
import csv
import itertools
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import botorch
import gpytorch
import gymnasium
import numpy as np
import pandas as pd
import torch
from botorch.acquisition import qLogExpectedImprovement
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.optim import optimize_acqf
from botorch.utils.sampling import manual_seed
from gpytorch.mlls import ExactMarginalLogLikelihood

import seqbdl
import seqbdl.envs
from seqbdl.loops import BayesOptLoop, Space, run

RESULTS = Path(__file__).parent / "results"
BASELINE, RANDOM = "SingleTaskGP (BoTorch)", "Sobol"


@dataclass(frozen=True)
class Problem:
    """Attributes:
    env: Gymnasium id.
    initial: Sobol points.
    budget: Evaluations in all.
    """

    env: str
    initial: int
    budget: int


PROBLEMS = {
    "Branin": Problem("seqbdl/Branin-v0", 6, 26),
    "Hartmann6": Problem("seqbdl/Hartmann6-v0", 10, 50),
    "Ackley10": Problem("seqbdl/Ackley10-v0", 10, 50),
    "EmbeddedHartmann6 (60-d)": Problem("seqbdl/EmbeddedHartmann6-v0", 20, 60),
}


def ours(problem: Problem, name: str, seed: int) -> Iterator[tuple[float, float]]:
    """Regret and CPU seconds after every evaluation of a loop of this library."""
    env = gymnasium.make(problem.env)
    space = Space.from_gymnasium(env.action_space, env.unwrapped)
    acquisition = "sobol" if name == RANDOM else "qLogEI"
    surrogate = "gp" if name == RANDOM else name
    loop = BayesOptLoop(space, surrogate=surrogate, acquisition=acquisition, initial=problem.initial, seed=seed)
    started = time.process_time()
    history = run(loop, env, steps=problem.budget, progress=False, seed=seed)
    seconds = time.process_time() - started
    regret = history.frame()["regret"].astype(float).tolist()
    for i, value in enumerate(regret):
        yield value, seconds * (i + 1) / len(regret)


def baseline(problem: Problem, seed: int) -> Iterator[tuple[float, float]]:
    """The same on BoTorch alone."""
    env = gymnasium.make(problem.env)
    env.reset(seed=seed)
    space = Space.from_gymnasium(env.action_space, env.unwrapped)
    design = BayesOptLoop(space, acquisition="sobol", initial=problem.initial, seed=seed).ask(n=problem.initial)
    low, high = torch.as_tensor(env.action_space.low), torch.as_tensor(env.action_space.high)
    optimum = float(env.unwrapped.optimal_value)
    bounds = torch.stack([torch.zeros_like(low), torch.ones_like(low)])
    X, Y = torch.zeros(0, low.shape[0], dtype=torch.float64), torch.zeros(0, 1, dtype=torch.float64)
    started, best = time.process_time(), math.inf
    for step in range(problem.budget):
        if step < problem.initial:
            action = np.asarray(space.to_action(design[step]))
        else:
            with manual_seed(1000 * seed + step):
                model = SingleTaskGP(X, Y)
                fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
                acquisition = qLogExpectedImprovement(model, best_f=Y.max())
                x, _ = optimize_acqf(acquisition, bounds, q=1, num_restarts=10, raw_samples=256)
            action = (low + x[0] * (high - low)).numpy()
        _, reward, _, _, info = env.step(np.clip(action, low.numpy(), high.numpy()))
        X = torch.cat([X, ((torch.as_tensor(action) - low) / (high - low)).unsqueeze(0)])
        Y = torch.cat([Y, torch.tensor([[float(reward)]], dtype=torch.float64)])
        best = min(best, optimum - float(info["true_value"]))
        yield best, time.process_time() - started


def measure(path: Path, problems: list[str], methods: list[str], seeds: range) -> None:
    """Run what the file does not hold yet and append it."""
    done: set[tuple[str, str, int]] = set()
    if path.exists():
        frame = pd.read_csv(path)
        done = set(zip(frame["problem"], frame["method"], frame["seed"], strict=True))
    path.parent.mkdir(parents=True, exist_ok=True)
    for problem in problems:
        for seed in seeds:
            for method in methods:
                if (problem, method, seed) in done:
                    continue
                spec = PROBLEMS[problem]
                curve = list(baseline(spec, seed) if method == BASELINE else ours(spec, method, seed))
                fresh = not path.exists()
                with path.open("a", newline="") as file:
                    writer = csv.writer(file)
                    if fresh:
                        writer.writerow(["problem", "method", "seed", "evaluation", "regret", "cpu_seconds"])
                    for i, (regret, seconds) in enumerate(curve):
                        writer.writerow([problem, method, seed, i + 1, f"{regret:.6g}", f"{seconds:.4g}"])
                print(f"{problem:26s} {method:24s} seed {seed}: regret {curve[-1][0]:.4g}, {curve[-1][1]:.1f} CPU s", flush=True)


def report(path: Path, command: str, note: str = "") -> str:
    """The table, as Markdown, and the picture beside the file."""
    frame = pd.read_csv(path)
    last = frame.loc[frame.groupby(["problem", "method", "seed"])["evaluation"].idxmax()]
    lines = [
        "# Bayesian optimization, simple regret",
        "",
        f"Command: `{command}`. Versions: seqbdl {seqbdl.__version__}, torch {torch.__version__.split('+')[0]}, botorch "
        f"{botorch.__version__}, gpytorch {gpytorch.__version__}. One thread; qLogEI, 10 restarts, 256 raw samples for "
        "all; the same Sobol start per seed. Shared machine: read CPU seconds as ratios.",
        "",
        "`log10 behind` is the difference of the medians' log10 regret to the baseline (negative: better). `wins` counts "
        "seeds with lower regret than the baseline. Our loop adds starts near good points to its Sobol starts.",
    ]
    for problem, rows in last.groupby("problem", sort=False):
        spec = PROBLEMS[problem]
        reference = rows[rows["method"] == BASELINE].set_index("seed")["regret"]
        lines += [
            "",
            f"## {problem}: {spec.initial} Sobol + {spec.budget - spec.initial} evaluations",
            "",
            "| method | seeds | median regret | quartiles | log10 behind | wins | CPU s per iteration |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        order = rows.groupby("method")["regret"].median().sort_values().index
        for method in order:
            own = rows[rows["method"] == method].set_index("seed")
            regret = own["regret"].clip(lower=1e-6)
            shared = regret.index.intersection(reference.index)
            behind, wins = "", ""
            if len(shared) and method != BASELINE:
                gap = math.log10(regret[shared].median()) - math.log10(max(reference[shared].median(), 1e-6))
                behind, wins = f"{gap:+.2f}", f"{int((regret[shared] < reference[shared]).sum())}/{len(shared)}"
            cpu = own["cpu_seconds"].median() / (spec.budget - spec.initial)
            lines.append(
                f"| {method} | {len(own)} | {regret.median():.4g} | {regret.quantile(0.25):.3g} to {regret.quantile(0.75):.3g} "
                f"| {behind} | {wins} | {cpu:.2f} |"
            )
    if note:
        lines += ["", note]
    text = "\n".join(lines) + "\n"
    path.with_suffix(".md").write_text(text)
    draw(frame, path.with_suffix(".png"))
    return text


def draw(frame: pd.DataFrame, path: Path) -> None:
    """Median simple regret over evaluations, one panel per problem."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    problems = list(dict.fromkeys(frame["problem"]))
    methods = sorted(frame["method"].unique(), key=lambda m: (m == RANDOM, m == BASELINE, m))
    colours = dict(zip(methods, itertools.cycle(plt.get_cmap("tab20").colors), strict=False))
    figure, axes = plt.subplots(1, len(problems), figsize=(4.6 * len(problems), 3.8), squeeze=False, layout="constrained")
    for axis, problem in zip(axes[0], problems, strict=True):
        for method in methods:
            rows = frame[(frame["problem"] == problem) & (frame["method"] == method)]
            if rows.empty:
                continue
            curves = rows.groupby("evaluation")["regret"]
            middle = curves.median().clip(lower=1e-6)
            style = {"color": colours[method], "linestyle": "--" if method in (BASELINE, RANDOM) else "-"}
            axis.plot(middle.index, middle, label=method, linewidth=1.6, **style)
            if method == BASELINE:  # its quartiles
                axis.fill_between(
                    middle.index, curves.quantile(0.25).clip(lower=1e-6), curves.quantile(0.75), alpha=0.15, color=colours[method]
                )
        axis.axvline(PROBLEMS[problem].initial, color="0.8", zorder=0)
        axis.set(title=problem, xlabel="evaluations", yscale="log")
    axes[0][0].set_ylabel("median simple regret")
    handles = {line.get_label(): line for axis in axes[0] for line in axis.get_lines() if line.get_label() in methods}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    methods = [RANDOM, BASELINE, *seqbdl.list_surrogates()]
    parser.add_argument("--problems", nargs="+", default=list(PROBLEMS), choices=list(PROBLEMS))
    parser.add_argument("--methods", nargs="+", default=methods, choices=methods)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0, help="for seeds that no design decision has seen")
    parser.add_argument("--out", type=Path, default=RESULTS / "bayes_opt.csv")
    parser.add_argument("--note", default="", help="a remark to stand below the tables")
    parser.add_argument("--report", action="store_true", help="only write table and picture from the measurements")
    parser.add_argument("--quick", action="store_true", help="a smoke run in a temporary folder")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.quick:
        PROBLEMS["Branin"] = Problem("seqbdl/Branin-v0", 4, 6)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "quick.csv"
            measure(path, ["Branin"], [RANDOM, BASELINE, "nngp"], range(1))
            print(report(path, "python benchmarks/bayes_opt.py --quick"))
        return
    if not options.report:
        seeds = range(options.first_seed, options.first_seed + options.seeds)
        measure(options.out, options.problems, options.methods, seeds)
    print(report(options.out, f"python benchmarks/bayes_opt.py --seeds {options.seeds}", options.note))


if __name__ == "__main__":
    main(sys.argv[1:])
