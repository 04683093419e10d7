"""Learning from streams: tasks that come one after the other, worlds that change, and campaigns that follow campaigns.

python benchmarks/continual.py            # writes benchmarks/results/continual.md
python benchmarks/continual.py --quick    # a minute, prints only
python benchmarks/continual.py --fashion FOLDER   # Split Fashion-MNIST too, from Debian's dataset-fashion-mnist
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

import seqbdl
from seqbdl.loops import BOCD, BayesOptLoop, ContinualLoop, Forgetting, Real, SoftReset, Space, TemperedBeam, run

RESULTS = Path(__file__).parent / "results" / "continual.md"
DIAGONAL = {"network": (64,), "num_branches": 1, "covariance": "diagonal-variational"}
TASK_METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "ekf, diagonal": ("ekf", DIAGONAL),
    "lofi, rank 20": ("lofi", {"network": (64,), "num_branches": 1, "rank": 20}),
    "last-layer-laplace": ("last-layer-laplace", {"network": (64,), "num_networks": 1}),
    "ensemble (512 rows of memory)": ("ensemble", {"network": (64,), "num_members": 4}),
}
PARTS = ("tasks", "change", "transfer")
KEYS = ("average_accuracy", "learning_accuracy", "backward_transfer", "average_nll", "average_ece", "seconds_per_step")
RULES: dict[str, Any] = {
    "no change expected": None,
    "forgetting 0.99": Forgetting(0.99),
    "forgetting 0.95": Forgetting(0.95),
    "forgetting 0.9": Forgetting(0.9),
    "soft reset": SoftReset(0.01),
    "tempered beam, 4": TemperedBeam(0.01, 0.0, 4),
    "BOCD, 10 run lengths": BOCD(0.01, 10),
}


def table(title: str, heads: list[str], rows: list[list[str]]) -> str:
    lines = [f"### {title}", "", "| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows), ""])


def spread(values: list[float], digits: int = 3) -> str:
    error = np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{np.mean(values):.{digits}f} ± {error:.{digits}f}" if len(values) > 1 else f"{values[0]:.{digits}f}"


def tasks(env_id: str, seeds: int, methods: list[str], **options: Any) -> list[list[str]]:
    """Average accuracy, backward transfer, NLL, ECE and seconds of every method, and of one fit to all tasks at once."""
    rows = []
    for label in methods:
        name, settings = TASK_METHODS[label]
        found: dict[str, list[float]] = {}
        for seed in range(seeds):
            env = gymnasium.make(env_id, **options)
            env.reset(seed=seed)
            steps = env.unwrapped.num_steps  # type: ignore[attr-defined]
            loop = ContinualLoop(env, name, warmup=options["chunk"], seed=seed, surrogate_options=settings)
            summary = run(loop, env, steps, progress=False).summary()  # type: ignore[arg-type]
            keys = (
                "average_accuracy",
                "learning_accuracy",
                "backward_transfer",
                "average_nll",
                "average_ece",
                "seconds_per_step",
            )
            for key in keys:
                found.setdefault(key, []).append(summary[key])  # type: ignore[index]
        rows.append([label, *(spread(values) for values in found.values())])
    name, settings = TASK_METHODS[methods[0]]
    joint = []
    for seed in range(seeds):
        env = gymnasium.make(env_id, **options).unwrapped
        env.reset(seed=seed)
        streams: Any = env
        X = torch.cat([torch.tensor(task.X) for task in streams.tasks])
        Y = torch.cat([torch.tensor(task.Y) for task in streams.tasks])
        model = seqbdl.make_surrogate(name, X.shape[1], 10, "categorical", seed=seed, **settings).fit(X, Y)
        hits = []
        for task in streams.tasks:
            probs = model.predict(torch.tensor(task.test_X)).probs
            assert probs is not None
            hits.append(float((probs.argmax(-1) == torch.tensor(task.test_Y[:, 0])).double().mean()))
        joint.append(float(np.mean(hits)))
    rows.append([f"{methods[0]}, all tasks at once", spread(joint), *[""] * 5])
    return rows


def drift(seeds: int, length: int, num_tasks: int) -> list[list[str]]:
    """Prequential log loss of every rule on abrupt and on gradual change, with the same surrogate (an exact Gaussian process)."""
    rows = []
    for label, rule in RULES.items():
        row = [label]
        for env_id, options in (
            ("seqbdl/PiecewiseRegression-v0", {"num_tasks": num_tasks, "length": length}),
            ("seqbdl/DriftingLinear-v0", {"length": num_tasks * length, "dim": 2}),
        ):
            losses, after, seconds = [], [], []
            for seed in range(seeds):
                env = gymnasium.make(env_id, **options)
                loop = ContinualLoop(env, "gp", change=rule, warmup=20, seed=seed)
                summary = run(loop, env, num_tasks * length, progress=False).summary()  # type: ignore[arg-type]
                losses.append(summary["log_loss"])  # type: ignore[index]
                after.append(summary.get("log_loss_after_changes", np.nan))  # type: ignore[attr-defined]
                seconds.append(summary["seconds_per_step"])  # type: ignore[index]
            row.append(spread(losses))
            if "Piecewise" in env_id:
                row += [spread(after), f"{1e3 * np.mean(seconds):.0f}"]
        rows.append(row)
    return rows


def wave(X: torch.Tensor, phase: float = 0.0) -> torch.Tensor:
    return torch.sin(9 * X[:, :1] + phase) * torch.cos(5 * X[:, 1:] + phase) + X[:, :1]


def transfer(seeds: int, budget: int) -> list[list[str]]:
    """Simple regret of Bayesian optimization after half the budget and after all, with an old campaign of 25 points."""
    grid = torch.cartesian_prod(*[torch.linspace(0, 1, 201, dtype=torch.float64)] * 2)
    best = float(wave(grid).max())
    space, bounds = Space([Real("a", 0, 1), Real("b", 0, 1)]), torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    rows = []
    for label, sign, phase in (("cold start", 0, 0.0), ("related", 1, 0.1), ("unrelated", 1, 2.0), ("adversarial", -1, 0.0)):
        half, whole, powers = [], [], []
        for seed in range(seeds):
            X = torch.rand(25, 2, generator=torch.Generator().manual_seed(100 + seed), dtype=torch.float64)
            old = seqbdl.make_surrogate("gp", 2, bounds=bounds).fit(X, sign * wave(X, phase)) if sign else None
            loop = BayesOptLoop(space, prior=old, initial=3 if old is not None else 5, seed=seed)
            for _ in range(budget):
                point = loop.ask()
                loop.tell(point, float(wave(torch.tensor([[point["a"], point["b"]]], dtype=torch.float64))))
            reached = best - loop.history.best_so_far()
            half.append(float(reached[budget // 2 - 1]))
            whole.append(float(reached[-1]))
            powers.append(np.nan if loop.trust is None else loop.trust.power)
        rows.append([label, spread(half, 4), spread(whole, 4), "" if not sign else f"{np.mean(powers):.2f}"])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small, prints only")
    parser.add_argument("--fashion", metavar="FOLDER", help="the folder of Fashion-MNIST's files")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    seeds = 1 if args.quick else args.seeds
    parts = []
    if "tasks" in args.parts:
        heads = ["method", "accuracy", "when learned", "backward transfer", "NLL", "ECE", "s per chunk"]
        chosen = list(TASK_METHODS)[:1] if args.quick else list(TASK_METHODS)
        sizes = {"per_task": 40, "per_test": 40, "chunk": 20, "num_tasks": 2} if args.quick else {"per_task": 100, "chunk": 20}
        found = tasks("seqbdl/SplitDigits-v0", seeds, chosen, **sizes)
        parts.append(table("Split digits, one head of ten classes, chunks of 20", heads, found))
        if args.fashion:
            sizes = {"per_task": 200, "per_test": 300, "chunk": 50, "folder": args.fashion}
            found = tasks("seqbdl/SplitFashionMNIST-v0", 1, chosen[:1], **sizes)
            parts.append(table("Split Fashion-MNIST, one head of ten classes, 200 images a task, one seed", heads, found))
    if "change" in args.parts:
        heads = ["method", "abrupt: log loss", "first 50 rows after changes", "ms a row", "gradual: log loss"]
        found = drift(seeds, *((12, 2) if args.quick else (60, 2)))
        parts.append(table("Change: log loss per row, before learning it", heads, found))
    if "transfer" in args.parts:
        heads = ["method", "regret at half the budget", "regret", "power of the old campaign"]
        parts.append(table("An old campaign of 25 points", heads, transfer(seeds, 4 if args.quick else 16)))
    text = "\n".join(parts)
    print(text)
    if not args.quick:
        asked = f"--parts {' '.join(args.parts)} --seeds {seeds}"
        head = f"# Learning from streams\n\n`python benchmarks/continual.py {asked}`; mean ± standard error.\n\n"
        args.out.write_text(head + text, encoding="utf-8")


if __name__ == "__main__":
    main()
