"""The wheel bandit at 2,000 contexts: cumulative regret in percent of what uniform play loses on average in the same contexts.

The wheel of Riquelme, Tucker and Snoek (2018), noise sd 0.05, expected regret, two pulls of every arm first, one setting for
all radii. A run finds the rare corners or does not, so the median stands beside the mean. Every finished run is a row of the
CSV file; runs that are there are not repeated.

"Told" methods know that rewards lie in [0, 50] and take the sd of the noise for 1, as do all from ``ekf`` on but the last: no
posterior explores for rewards that its prior, or ten rewards of about 1, rule out. ``linear`` and ``neural-linear`` have the
priors of the published runs (inverse gamma 6, 6; precision 0.25).

    python benchmarks/wheel.py --seeds 5 --methods linear neural-linear   # adds to benchmarks/results/wheel.csv
    python benchmarks/wheel.py --quick                                    # seconds, into a temporary folder
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pandas as pd
import torch

import seqbdl.envs  # noqa: F401 - registers the environments
from seqbdl.loops import BanditLoop, run

RESULTS = Path(__file__).parent / "results"
DELTAS = (0.5, 0.7, 0.9, 0.95, 0.99)
COLUMNS = ("method", "delta", "seed", "contexts", "percent", "seconds")
RANGE = [[0.0], [50.0]]  # of rewards
TOLD = {"outcome_bounds": RANGE, "noise": 1.0}
TOLD_HEADS = {"prior_precision": 25.0**-2, "a0": 1e6, "b0": 1e6}  # the same knowledge, in the words of exact heads
STREAM = {"refit_every": None, "memory": 0}  # the posterior becomes the prior, reward by reward; no row is kept
TANGENTS = {"network": (48,), "linearize": "start", "scales": {}, **TOLD}
FEATURES = {"network": (64,), "num_networks": 2, "scales": {}, **TOLD}
METHODS: dict[str, dict[str, Any]] = {
    "uniform": {"surrogate": "linear", "policy": "uniform"},
    "linear": {"surrogate": "linear"},
    "neural-linear": {"surrogate": "neural-linear"},
    "linear, told": {"surrogate": "linear", "surrogate_options": TOLD_HEADS},
    "neural-linear, told": {"surrogate": "neural-linear", "surrogate_options": TOLD_HEADS},
    "neural-linear, 100 rows per arm": {"surrogate": "neural-linear", "memory": 100},
    "ekf": {"surrogate": "ekf", **STREAM, "surrogate_options": TANGENTS},
    "ekf, upper bounds": {"surrogate": "ekf", "policy": "ucb", **STREAM, "surrogate_options": TANGENTS},
    "lofi": {"surrogate": "lofi", **STREAM, "surrogate_options": {**TANGENTS, "num_branches": 1, "rank": 64}},
    "vbll": {"surrogate": "vbll", **STREAM, "surrogate_options": {**FEATURES, "steps": 0}},
    "last-layer-laplace": {
        "surrogate": "last-layer-laplace",
        **STREAM,
        "surrogate_options": {**FEATURES, "adaptation": 0.0, "prior_precision": 1.0},
    },
    "bayesian-last-layer": {
        "surrogate": "bayesian-last-layer",
        **STREAM,
        "surrogate_options": {"network": (64,), "num_networks": 2, **TOLD},
    },
    "epinet": {"surrogate": "epinet", **STREAM, "absorb_every": 20, "surrogate_options": {"scales": {}, **TOLD}},
    "mfvi": {"surrogate": "mfvi", **STREAM, "absorb_every": 20, "surrogate_options": {"scales": {}, **TOLD}},
    "ensemble": {"surrogate": "ensemble", **STREAM, "absorb_every": 20, "surrogate_options": {"scales": {}, **TOLD}},
    "ekf, untold": {"surrogate": "ekf", **STREAM, "surrogate_options": {"network": (48,), "linearize": "start"}},
}


def play(method: str, delta: float, seed: int, contexts: int) -> dict[str, Any]:
    """One run."""
    env: Any = gymnasium.make("seqbdl/WheelBandit-v0", delta=delta)
    start = time.process_time()
    loop = BanditLoop(env, propensity_samples=0, seed=seed, **METHODS[method])
    history = run(loop, env, contexts, progress=False)
    outside = np.linalg.norm(history.contexts, axis=1) >= delta
    uniform = np.where(outside, 39.16, 0.16).sum()  # what uniform play loses on average in these very contexts
    percent = 100.0 * history.regret()[-1] / uniform
    return dict(zip(COLUMNS, (method, delta, seed, contexts, percent, time.process_time() - start), strict=True))


def table(rows: pd.DataFrame) -> str:
    """Mean ± standard error (median) of every method and radius, with the seeds behind it."""
    deltas = sorted(rows["delta"].unique())
    lines = ["| method | " + " | ".join(f"{delta:g}" for delta in deltas) + " | CPU s per run |"]
    lines.append("|" + " --- |" * (len(deltas) + 2))
    for method in rows["method"].unique():
        mine, cells = rows[rows["method"] == method], []
        for delta in deltas:
            values = mine[mine["delta"] == delta]["percent"].to_numpy()
            se = f" ± {values.std(ddof=1) / np.sqrt(len(values)):.2f}" if len(values) > 1 else ""
            cells.append(f"{values.mean():.2f}{se} ({np.median(values):.1f}), n={len(values)}" if len(values) else "")
        lines.append(f"| {method} | " + " | ".join(cells) + f" | {mine['seconds'].mean():.1f} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--contexts", type=int, default=2000)
    parser.add_argument("--deltas", type=float, nargs="+", default=list(DELTAS))
    parser.add_argument("--methods", nargs="+", choices=sorted(METHODS), default=list(METHODS))
    parser.add_argument("--out", type=Path, default=RESULTS / "wheel.csv")
    parser.add_argument("--quick", action="store_true", help="seconds, into a temporary folder")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.quick:
        args.seeds, args.contexts, args.deltas = 1, 60, [0.5]
        args.methods, args.out = ["uniform", "linear", "neural-linear"], Path(tempfile.mkdtemp()) / "wheel.csv"
    args.out.parent.mkdir(parents=True, exist_ok=True)
    done = set()
    if args.out.exists():
        old = pd.read_csv(args.out)
        done = set(zip(old["method"], old["delta"], old["seed"], old["contexts"], strict=True))
    else:
        args.out.write_text(",".join(COLUMNS) + "\n", encoding="utf-8")
    for seed in range(args.seeds):
        for method in args.methods:
            for delta in args.deltas:
                if (method, delta, seed, args.contexts) not in done:
                    with args.out.open("a", encoding="utf-8", newline="") as file:
                        csv.DictWriter(file, COLUMNS).writerow(play(method, delta, seed, args.contexts))
    rows = pd.read_csv(args.out)
    text = table(rows[rows["contexts"] == args.contexts])
    counts = rows[rows["contexts"] == args.contexts].groupby("method", sort=False)["seed"].nunique()
    calls = [
        f"python benchmarks/wheel.py --contexts {args.contexts} --seeds {n} --methods {name!r}" for name, n in counts.items()
    ]
    how = "\n    ".join(calls)
    what = f"Percent of the expected regret of uniform play in the same {args.contexts} contexts: mean ± standard error (median)."
    head = what + "\n\n    " + how + "\n\n"
    args.out.with_suffix(".md").write_text(head + text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
