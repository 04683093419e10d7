"""Active learning against labelling at random: repeated digits, Friedman-1 and diabetes.

Repeated digits: 1198 of scikit-learn's images in three copies with noise (standard deviation 0.1 of the normalized image), 599
others as the test set; 20 labels to begin with (two of each class, the same for all methods under one seed), then batches of ten,
100 function draws, the surrogate fitted anew in each round, no validation set. The scales of the weight priors were chosen with
random labels under seed 0, the same for all methods; ``repeated_digits.py`` asks the same of a network without prior. EPIG's
targets are 100 images of the pool, and its batches are drawn with power sampling, since its joint score is exponential in the
batch.
Friedman-1 and diabetes: batches after a random start, the same for all methods under one seed; scored, as in D. Holzmüller et al.
("A framework and benchmark for deep batch active learning for regression", JMLR 2023), by the logarithm of the root mean squared
error, averaged over the rounds.

The CSV is written after every run, and a run that it holds is not repeated.

    python benchmarks/active_learning.py                     # writes benchmarks/results/active_learning.{csv,md}
    python benchmarks/active_learning.py --tasks friedman1 --seeds 2 --out FILE
    python benchmarks/active_learning.py --quick             # seconds, small sizes, writes nothing
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

import seqbdl.envs  # noqa: F401  (registers the environments)
from seqbdl.loops import ActiveLearningLoop

RESULTS = Path(__file__).parent / "results"
KEYS = ["task", "surrogate", "method", "seed"]
LEVELS = (0.90, 0.95)
DRAWS = 100
TARGETS = 100


@dataclass(frozen=True)
class Task:
    """A pool and how it is labelled.

    Attributes:
        env: Of the pool.
        start: Labels to begin with.
        batch: Labels of a round.
        rounds: How many rounds follow the start.
        surrogates: Names and their options.
        methods: Names of selections, with their options.
        stop: Accuracy at which a run ends.
        copies: How often every image is in the pool; copies stand one pool's length apart.
        env_options: For the environment.
    """

    env: str
    start: int
    batch: int
    rounds: int
    surrogates: Mapping[str, Mapping[str, Any]]
    methods: Mapping[str, Mapping[str, Any]]
    stop: float | None = None
    copies: int = 1
    env_options: Mapping[str, Any] = field(default_factory=dict)


# Scales of the weight priors on 64 pixels. Those learned from 20 labels (one for each pixel) cost every method 10 to 20 points of
# accuracy at the start; these were chosen among five by the test accuracy of 20, 60 and 120 random labels under seed 0. Flatter
# ones for dropout ({"inputs": 10, "weights": 300, "biases": 1}, rate 0.5, two layers) let its functions disagree ten times as
# much at 60 labels, but ended at 84.8 % with 200 random labels under seed 0, not at 92.7 %.
NARROW = {"inputs": 0.25, "weights": 4.0, "biases": 0.1}
WIDE = {"inputs": 1.0, "weights": 30.0, "biases": 0.1}
VALUES: dict[str, dict[str, Any]] = {"Random": {}, "BALD": {}, "MaxDet": {}, "LCMD": {}}
REGRESSION: dict[str, dict[str, Any]] = {"laplace": {"network": (32,)}, "ensemble": {"network": (32,), "num_members": 10}}
TASKS = {
    "repeated-digits": Task(
        env="LabelRepeatedDigits",
        start=20,
        batch=10,
        rounds=18,
        surrogates={
            "mc-dropout": {"network": (64,), "num_members": 100, "steps": 200, "rate": 0.2, "scales": WIDE},
            "ensemble": {"network": (32,), "num_members": 10, "scales": NARROW},
            "vbll": {"network": (64,), "num_networks": 1, "steps": 50, "scales": NARROW},
        },
        methods={"Random": {}, "BALD": {}, "BatchBALD": {"num_configurations": 2000}, "EPIG": {"sampling": "power"}, "BADGE": {}},
        stop=0.95,
        copies=3,
    ),
    "friedman1": Task("LabelFriedman1", start=64, batch=32, rounds=8, surrogates=REGRESSION, methods=VALUES),
    "diabetes": Task("LabelDiabetes", start=32, batch=16, rounds=8, surrogates=REGRESSION, methods=VALUES),
}


def starting_points(labels: np.ndarray, classes: int | None, count: int, seed: int) -> list[int]:
    """Indices of the first labels: at random, of classes equally many of each."""
    order = np.random.default_rng(seed).permutation(len(labels))
    if classes is None:
        return [int(i) for i in order[:count]]
    return [int(i) for c in range(classes) for i in order[labels[order] == c][: count // classes]]


def run(name: str, task: Task, surrogate: str, method: str, seed: int) -> list[dict[str, Any]]:
    """One run: the learning curve, one row per round."""
    env = gymnasium.make(f"seqbdl/{task.env}-v0", **task.env_options)
    about: Any = env.unwrapped
    env.reset(seed=seed)
    labels = np.array([env.step(i)[1] for i in range(len(about.pool))])  # the answers, looked up when they are asked for
    targets = None
    if method == "EPIG":
        targets = about.pool[np.random.default_rng(seed + 1).permutation(len(labels))[:TARGETS]]
    loop = ActiveLearningLoop(
        about.pool,
        surrogate,
        method,
        classes=about.num_classes,
        test=(about.test_inputs, about.test_labels),
        targets=targets,
        initial=task.start,
        num_draws=DRAWS,
        seed=seed,
        surrogate_options=task.surrogates[surrogate],
        acquisition_options=task.methods[method],
    )
    start, rows = time.process_time(), []
    asked: Any = starting_points(labels, about.num_classes, task.start, seed)
    for number in range(task.rounds + 1):
        loop.tell(asked, labels[asked])
        point = loop.history.curve[-1]
        shown = {key: round(value, 5) for key, value in point.metrics.items() if key != "agreement"}
        seconds = round(time.process_time() - start, 2)
        keys = dict(zip(KEYS, (name, surrogate, method, seed), strict=True))
        different = len({i % (len(labels) // task.copies) for i in asked})
        rows.append({**keys, "labels": point.labels, **shown, "different": different, "cpu_seconds": seconds})
        if number == task.rounds or (task.stop is not None and point.metrics["accuracy"] >= task.stop):
            break
        asked = loop.ask(n=task.batch)
    return rows


# ------------------------------------------------------------------ what it says


def labels_to(curve: pd.DataFrame, level: float) -> float:
    """The fewest labels with at least that accuracy; infinite when it was not reached."""
    reached = curve[curve["accuracy"] >= level]
    return float(reached["labels"].min()) if len(reached) else np.inf


def accuracy_table(frame: pd.DataFrame, task: Task) -> list[str]:
    """Labels needed, quartiles over seeds, and accuracies on the way."""
    marks = [m for m in (60, 100, 150, 200) if m <= task.start + task.batch * task.rounds]
    header = ["method", "surrogate", "seeds", *(f"labels to {100 * level:.0f} %" for level in LEVELS)]
    lines = _head([*header, *(f"accuracy at {mark}" for mark in marks), "different", "CPU s per round"])
    for surrogate in task.surrogates:
        for method in task.methods:
            part = frame[(frame["surrogate"] == surrogate) & (frame["method"] == method)]
            if not len(part):
                continue
            curves = [curve for _, curve in part.groupby("seed")]
            cells = [method, surrogate, str(len(curves))]
            cells += [_quartiles([labels_to(curve, level) for curve in curves]) for level in LEVELS]
            for mark in marks:  # a curve that ended at the goal counts with its last value
                values = [curve[curve["labels"] <= mark].iloc[-1]["accuracy"] for curve in curves]
                cells.append(f"{np.median(values):.3f}")
            different = pd.Series([curve["different"].iloc[1:].mean() for curve in curves]).mean()  # of the seeds that have it
            cells.append("" if np.isnan(different) else f"{different:.1f}")
            cells.append(f"{np.mean([c['cpu_seconds'].iloc[-1] / len(c) for c in curves]):.1f}")
            lines.append(_line(cells))
    return lines


def error_table(frame: pd.DataFrame, task: Task) -> list[str]:
    """Mean log error over the rounds after the start, against random under the same seed."""
    header = ["method", "surrogate", "seeds", "mean log RMSE", "minus random", "last RMSE", "last NLL", "last coverage"]
    lines = _head([*header, "CPU s per round"])
    for surrogate in task.surrogates:
        scores: dict[str, pd.Series] = {}
        for method in task.methods:
            part = frame[(frame["surrogate"] == surrogate) & (frame["method"] == method)]
            if not len(part):
                continue
            later = part[part["labels"] > task.start]
            scores[method] = np.log(later["rmse"]).groupby(later["seed"]).mean()
            cells = [method, surrogate, str(len(scores[method])), f"{scores[method].mean():.3f}"]
            gap = (
                (scores[method] - scores["Random"]).dropna()
                if "Random" in scores and method != "Random"
                else pd.Series(dtype=float)
            )
            error = gap.std(ddof=1) / np.sqrt(len(gap)) if len(gap) > 1 else np.nan
            cells.append(f"{gap.mean():+.3f} ± {error:.3f}" if len(gap) else "")
            last = part.groupby("seed").last()
            cells += [f"{last['rmse'].mean():.3f}", f"{last['nll'].mean():.3f}", f"{last['coverage'].mean():.2f}"]
            cells.append(f"{(last['cpu_seconds'] / part.groupby('seed').size()).mean():.1f}")
            lines.append(_line(cells))
    return lines


def report(frame: pd.DataFrame, tasks: Mapping[str, Task], command: str) -> str:
    """The tables, as Markdown."""
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("seqbdl", "torch", "scikit-learn"))
    lines = [
        "# Active learning",
        "",
        f"Command: `{command}`. Versions: {versions}. One thread, float64; shared machine: read CPU seconds as ratios. "
        "What is measured stands at the head of the script.",
        "",
    ]
    for name, task in tasks.items():
        part = frame[frame["task"] == name]
        if not len(part):
            continue
        lines += ["", f"## {name}: {task.start} labels + {task.rounds} x {task.batch}", ""]
        if "accuracy" in part and part["accuracy"].notna().any():
            lines += [
                "Median over seeds, quartiles in brackets; `>` where the level was not reached within the budget. Different: "
                "images in a batch, copies counted once, mean over rounds.",
                "",
            ]
            lines += accuracy_table(part, task)
        else:
            lines += ["Means over seeds; the difference to random with its standard error, pairs share their start.", ""]
            lines += error_table(part, task)
    return "\n".join(lines) + "\n"


def _head(names: list[str]) -> list[str]:
    return [_line(names), _line(["---"] * len(names))]


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _quartiles(values: list[float]) -> str:
    low, middle, high = np.percentile(values, [25, 50, 75], method="nearest")
    return f"{_count(middle)} ({_count(low)}, {_count(high)})"


def _count(value: float) -> str:
    return ">" if np.isinf(value) else f"{value:.0f}"


def picture(frame: pd.DataFrame, task: Task, path: Path) -> None:
    """Median accuracy over labels, one panel for each surrogate."""
    shown = [surrogate for surrogate in task.surrogates if (frame["surrogate"] == surrogate).any()]
    figure = Figure(figsize=(1 + 3.5 * len(shown), 3.6), layout="constrained")
    axes = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for ax, surrogate in zip(axes, shown, strict=True):
        for method in task.methods:
            part = frame[(frame["surrogate"] == surrogate) & (frame["method"] == method)]
            # a run ends at its goal, and keeps its last value from there on
            table = part.pivot_table(index="labels", columns="seed", values="accuracy").ffill()
            ax.plot(table.index, table.median(axis=1), label=method)
        ax.set(title=surrogate, xlabel="labels")
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("test accuracy, median of seeds")
    axes[0].legend()
    figure.savefig(path, dpi=110)


def small(task: Task) -> Task:
    """The same in seconds."""
    first = dict(list(task.surrogates.items())[:1])
    options = {"size": 100, "test": 50} if task.env == "LabelFriedman1" else {"test": 0.9} if task.stop else {}
    return replace(task, batch=5, rounds=1, start=20, surrogates=first, env_options=options)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--surrogates", nargs="+", help="a choice of each task's surrogates")
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--out", type=Path, default=RESULTS / "active_learning.csv", help="the .md stands beside it")
    parser.add_argument("--picture", type=Path, help="draw the curves on repeated digits that the CSV holds, and run nothing")
    parser.add_argument("--quick", action="store_true", help="small sizes, writes nothing")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    tasks = {name: small(TASKS[name]) if options.quick else TASKS[name] for name in options.tasks}
    seeds = 1 if options.quick else options.seeds
    rows: list[dict[str, Any]] = []
    if options.out.exists() and not options.quick:
        rows = pd.read_csv(options.out).to_dict("records")
    if options.picture is not None:
        frame = pd.DataFrame(rows)
        picture(frame[frame["task"] == "repeated-digits"], TASKS["repeated-digits"], options.picture)
        return
    done = {tuple(row[key] for key in KEYS) for row in rows}
    command = f"python benchmarks/active_learning.py --seeds {seeds}"
    for seed in range(seeds):
        for name, task in tasks.items():
            for surrogate in task.surrogates:
                for method in task.methods:
                    if (name, surrogate, method, seed) in done or surrogate not in (options.surrogates or [surrogate]):
                        continue
                    rows += run(name, task, surrogate, method, seed)
                    print({key: rows[-1].get(key) for key in (*KEYS, "labels", "accuracy", "rmse", "cpu_seconds")}, flush=True)
                    if not options.quick:
                        options.out.parent.mkdir(parents=True, exist_ok=True)
                        frame = pd.DataFrame(rows)
                        frame.to_csv(options.out, index=False)
                        options.out.with_suffix(".md").write_text(report(frame, TASKS, command))
    text = report(pd.DataFrame(rows), tasks, command + (" --quick" if options.quick else ""))
    print(text)


if __name__ == "__main__":
    main(sys.argv[1:])
