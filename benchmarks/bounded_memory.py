"""Classification as a bandit with bounded memory: total reward over 5,000 contexts, at most 100 stored rows per arm.

On shuttle (UCI; 9 columns, 7 classes, four rows in five of one class) Nabati, Zahavy and Mannor (2021) report 4,826 of 5,000 for
their neural-linear agent with 100 rows per arm, and 4,348 for NeuralTS. Agents are told that rewards lie in [0, 1] and the sd of
their noise, 0.1; columns are standardized.

    python benchmarks/bounded_memory.py --data shuttle.csv --label Class   # adds to benchmarks/results/bounded_memory.csv
    python benchmarks/bounded_memory.py --quick                            # seconds, made-up classes, temporary folder

The data are not shipped: give a CSV file of numbers with a column of labels, such as OpenML's ``shuttle``.
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
from sklearn.datasets import make_classification

import seqbdl.envs  # noqa: F401 - registers the environments
from seqbdl.loops import BanditLoop, run

RESULTS = Path(__file__).parent / "results"
COLUMNS = ("data", "method", "seed", "contexts", "reward", "seconds")
WIDTH = 3.0  # standard deviations that surrogates map to the unit cube
HEADS = {"a0": 2.0, "b0": 0.02}
TOLD = {"outcome_bounds": [[0.0], [1.0]], "noise": 0.01, "scales": {}}
STREAM = {"refit_every": None, "memory": 0, "arms": "separate"}
METHODS: dict[str, tuple[int, dict[str, Any]]] = {  # stored rows per arm, and the loop
    "linear": (0, {"surrogate": "linear", "surrogate_options": HEADS}),
    "neural-linear": (100, {"surrogate": "neural-linear", "memory": 100, "surrogate_options": HEADS}),
    "vbll": (0, {"surrogate": "vbll", **STREAM, "surrogate_options": {"network": (64,), "num_networks": 2, "steps": 0, **TOLD}}),
    "ekf": (0, {"surrogate": "ekf", **STREAM, "surrogate_options": {"network": (32,), "linearize": "start", **TOLD}}),
}


def play(X: np.ndarray, y: np.ndarray, method: str, seed: int, contexts: int) -> tuple[float, float]:
    """Total reward, and CPU seconds."""
    env: Any = gymnasium.make("seqbdl/ClassificationBandit-v0", X=X, y=y)
    settings = dict(METHODS[method][1])
    if settings.get("arms") == "separate":
        box = torch.full((X.shape[1],), WIDTH, dtype=torch.float64)
        settings["surrogate_options"] = {**settings["surrogate_options"], "bounds": torch.stack([-box, box])}
    start = time.process_time()
    loop = BanditLoop(env, propensity_samples=0, seed=seed, **settings)
    reward = run(loop, env, contexts, progress=False).total_reward()
    return reward, time.process_time() - start


def measure(path: Path, data: str, X: np.ndarray, y: np.ndarray, methods: list[str], seeds: int, contexts: int) -> str:
    """Run what the file does not hold yet, and write the table beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_text(",".join(COLUMNS) + "\n", encoding="utf-8")
    done = set(pd.read_csv(path)[list(COLUMNS[:4])].itertuples(index=False, name=None))
    for seed in range(seeds):
        for method in methods:
            if (data, method, seed, contexts) not in done:
                found = play(X, y, method, seed, contexts)
                with path.open("a", encoding="utf-8", newline="") as file:
                    csv.writer(file).writerow((data, method, seed, contexts, *found))
    rows = pd.read_csv(path)
    lines = ["| method | data | contexts | stored rows per arm | total reward | seeds | CPU s |", "| --- |" + " --- |" * 6]
    for (data, method, n), group in rows.groupby(["data", "method", "contexts"], sort=False):
        spread = f" ± {group['reward'].sem():.0f}" if len(group) > 1 else ""
        cells = (method, data, n, METHODS[method][0], f"{group['reward'].mean():.0f}{spread}", len(group))
        lines.append("| " + " | ".join(str(cell) for cell in cells) + f" | {group['seconds'].mean():.0f} |")
    text = "\n".join(lines) + "\n"
    command = f"python benchmarks/bounded_memory.py --data {data}.csv --label Class --seeds {rows['seed'].nunique()}"
    head = f"Total reward, mean ± standard error; 1 for the right class.\n\n    {command}"
    path.with_suffix(".md").write_text(f"{head}\n\n{text}", encoding="utf-8")
    return text


def main() -> None:
    """Run what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a CSV file of numbers and labels")
    parser.add_argument("--label", default="Class", help="its column of labels")
    parser.add_argument("--contexts", type=int, default=5000)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--methods", nargs="+", choices=sorted(METHODS), default=list(METHODS))
    parser.add_argument("--out", type=Path, default=RESULTS / "bounded_memory.csv")
    parser.add_argument("--quick", action="store_true", help="seconds, into a temporary folder")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.quick:
        X, y = make_classification(400, 9, n_informative=6, n_classes=4, weights=[0.7, 0.2, 0.05], random_state=0)
        with tempfile.TemporaryDirectory() as folder:
            print(measure(Path(folder) / "quick.csv", "made up", X, y, ["linear", "vbll"], 1, 60))
        return
    if args.data is None:
        parser.error("--data: give a CSV file; the data are not shipped")
    table = pd.read_csv(args.data)
    X, y = table.drop(columns=args.label).to_numpy(float), table[args.label].to_numpy()
    print(measure(args.out, args.data.stem, X, y, args.methods, args.seeds, args.contexts))


if __name__ == "__main__":
    main()
