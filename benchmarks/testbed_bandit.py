"""Do joint predictions decide? Regret of Thompson sampling in the Neural Testbed's bandit against scores of predictions.

The bandit of Osband et al. (2022): 100 actions from ``N(0, I_2)``, rewards 0 or 1 whose chances a random ReLU network gives at
temperature 0.1. A score of joint predictions (``tau = 10`` labels at two inputs) should tell agents' regret better than one of
marginal predictions (``tau = 1``): every posterior here is scored by ``benchmarks/testbed.py`` on problems of the bandit's
family, plays the bandit with the same options, and ranks are correlated over posteriors.

    python benchmarks/testbed_bandit.py --steps 10000 --seeds 8          # adds to benchmarks/results/testbed_bandit.csv
    python benchmarks/testbed_bandit.py --steps 10000 --methods laplace  # one posterior; runs that are there are not repeated
    python benchmarks/testbed_bandit.py --quick                          # seconds, into a temporary folder
"""

from __future__ import annotations

import argparse
import csv
import itertools
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

import seqbdl.envs  # noqa: F401 - registers the environments
from seqbdl.loops import BanditLoop, run
from seqbdl.surrogates import surrogate_class, surrogate_options

sys.path.insert(0, str(Path(__file__).parent))  # the script beside this one, under ``python -P`` too
import testbed

RESULTS = Path(__file__).parent / "results"
COLUMNS = ("method", "seed", "steps", "regret", "seconds")
PLAYED = ("epinet", "vbll", "last-layer-laplace", "dkm", "due", "mc-dropout", "subspace")  # a run takes about a minute
ENSEMBLES = ("ensemble of 2", "ensemble")
METHODS = (*PLAYED, *ENSEMBLES, "laplace", "hypermodel", "swag", "ensemble-plus", "ekf", "lofi")
TEMPERATURE = 0.1
SCORED = [testbed.Problem(2, ratio, TEMPERATURE, seed) for ratio, seed in itertools.product((1, 10, 100), range(5))]
SCHEDULE = {"initial_pulls": 0, "refit_every": 2.0, "absorb_every": 10, "memory": 50}  # refits see the last 50 rewards of an arm


def options_of(method: str, seed: int) -> dict[str, Any]:
    """What ``benchmarks/testbed.py`` tells the method, with the bandit's constant context as one more input that does nothing."""
    problem = testbed.Problem(2, 100, TEMPERATURE, seed % 5)
    known = testbed.knowledge(problem, "bernoulli")
    known["bounds"] = torch.cat([torch.tensor([[0.0], [1.0]], dtype=torch.float64), known["bounds"]], 1)
    known["scales"] = {**known["scales"], "inputs": [0.0, *[known["scales"]["inputs"]] * 2]}
    del known["seed"]  # the loop's
    method, own = testbed.VARIANTS.get(method, (method, {}))
    takes = surrogate_options(surrogate_class(method))
    size = testbed.AGENTS[method](problem) if method in testbed.AGENTS else {}
    return {key: value for key, value in known.items() if key in takes} | size | own


def play(method: str, seed: int, steps: int) -> dict[str, Any]:
    """One run."""
    env: Any = gymnasium.make("seqbdl/NeuralTestbedBandit-v0", input_dim=2, temperature=TEMPERATURE)
    env.reset(seed=seed)
    start = time.process_time()
    loop = BanditLoop(
        env,
        testbed.VARIANTS.get(method, (method, {}))[0],
        reward="binary",
        arm_features=env.unwrapped.arm_features,
        propensity_samples=0,
        seed=seed,
        surrogate_options=options_of(method, seed),
        **SCHEDULE,
    )
    regret = run(loop, env, steps, progress=False).regret()[-1]
    return dict(zip(COLUMNS, (method, seed, steps, regret, time.process_time() - start), strict=True))


def report(path: Path, steps: int, command: str) -> str:
    """Write the table beside the CSV file."""
    runs = pd.read_csv(path)
    runs = runs[runs["steps"] == steps]
    scores = pd.read_csv(scores_of(path)).pivot_table(index="method", columns="tau", values="kl")
    grouped = runs.groupby("method")["regret"]
    both = pd.DataFrame({"regret": grouped.mean(), "se": grouped.sem(), "n": grouped.count()}).join(scores, how="inner")
    lines = ["| method | regret | seeds | KL, tau 1 | KL, tau 10 |", "| --- | --- | --- | --- | --- |"]
    for method, row in both.sort_values("regret").iterrows():
        spread = "" if pd.isna(row["se"]) else f" ± {row['se']:.1f}"
        lines.append(f"| {method} | {row['regret']:.1f}{spread} | {row['n']:.0f} | {row[1]:.3f} | {row[10]:.3f} |")
    lines += ["", correlations(runs, scores)] if len(both) > 2 else []
    text = "\n".join(lines) + "\n"
    head = f"Cumulative expected regret after {steps} decisions, mean ± standard error, and scores of the posteriors."
    path.with_suffix(".md").write_text(f"{head}\n\n    {command}\n\n{text}", encoding="utf-8")
    return text


def correlations(runs: pd.DataFrame, scores: pd.DataFrame, resamples: int = 2000) -> str:
    """Spearman's, over the posteriors that played every seed, with the spread under resampled seeds."""
    regrets = runs.pivot_table(index="method", columns="seed", values="regret").dropna()
    scores = scores.loc[scores.index.intersection(regrets.index)]
    regrets, generator = regrets.loc[scores.index], np.random.default_rng(0)

    def both(columns: npt.NDArray[np.int64]) -> list[float]:
        mean = regrets.iloc[:, columns].mean(axis=1)
        return [float(mean.corr(scores[tau], method="spearman")) for tau in (10, 1)]

    seeds = regrets.shape[1]
    joint, marginal = both(np.arange(seeds))
    drawn = np.array([both(generator.integers(seeds, size=seeds)) for _ in range(resamples)])
    low, high = np.quantile(drawn[:, 0] - drawn[:, 1], [0.05, 0.95])
    alike = float(scores[10].corr(scores[1], method="spearman"))
    return (
        f"Rank correlation of regret over {len(scores)} posteriors: {joint:.2f} with the joint score, {marginal:.2f} with the "
        f"marginal one; under resampled seeds the difference lies in [{low:.2f}, {high:.2f}], nine times of ten. The two scores "
        f"rank posteriors with a correlation of {alike:.2f}."
    )


def scores_of(path: Path) -> Path:
    return path.with_name(path.stem + "_scores.csv")


def measure(path: Path, methods: list[str], seeds: int, steps: int, problems: list[Any], settings: Any) -> None:
    """Run what the files do not hold yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    done: set[tuple[Any, ...]] = set()
    if path.exists():
        done = set(pd.read_csv(path)[list(COLUMNS[:3])].itertuples(index=False, name=None))
    else:
        path.write_text(",".join(COLUMNS) + "\n", encoding="utf-8")
    testbed.measure(scores_of(path), problems, methods, settings)
    for seed, method in itertools.product(range(seeds), methods):
        if (method, seed, steps) not in done:
            row = play(method, seed, steps)
            with path.open("a", encoding="utf-8", newline="") as file:
                csv.DictWriter(file, COLUMNS).writerow(row)
            print(f"{method:20s} seed {seed}: regret {row['regret']:.1f}, {row['seconds']:.1f} CPU s", flush=True)


def main() -> None:
    """Run what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[*PLAYED, *ENSEMBLES])
    parser.add_argument("--out", type=Path, default=RESULTS / "testbed_bandit.csv")
    parser.add_argument("--quick", action="store_true", help="seconds, into a temporary folder")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.quick:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "quick.csv"
            measure(
                path,
                ["last-layer-laplace", "ensemble", "epinet"],
                1,
                30,
                SCORED[:1],
                testbed.Settings(draws=50, samples=50, steps=20),
            )
            print(report(path, 30, "python benchmarks/testbed_bandit.py --quick"))
        return
    measure(args.out, args.methods, args.seeds, args.steps, SCORED, testbed.Settings())
    print(report(args.out, args.steps, f"python benchmarks/testbed_bandit.py --steps {args.steps} --seeds {args.seeds}"))


if __name__ == "__main__":
    main()
