"""Worlds that change, campaigns that follow campaigns, and what it costs to refit.

python benchmarks/drift.py            # writes benchmarks/results/drift.md
python benchmarks/drift.py --quick    # a minute, prints only
python benchmarks/drift.py --parts streams   # real streams, of the package river where it is installed

Tables of parts that are not run again stay in the file.
"""

from __future__ import annotations

import argparse
import math
import re
import time
from itertools import islice
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

import seqbdl
from seqbdl.acquisition import make_acquisition
from seqbdl.loops import (
    BOCD,
    AdaptiveForgetting,
    BanditLoop,
    BayesOptLoop,
    ContinualLoop,
    Forgetting,
    Real,
    SoftReset,
    Space,
    TemperedBeam,
    run,
)

RESULTS = Path(__file__).parent / "results" / "drift.md"
PARTS = ("change", "streams", "bandit", "transfer", "refit")
RULES: dict[str, Any] = {
    "no change expected": None,
    "forgetting 0.99": Forgetting(0.99),
    "forgetting 0.95": Forgetting(0.95),
    "forgetting 0.9": Forgetting(0.9),
    "adaptive forgetting": AdaptiveForgetting(0.01),
    "soft reset": SoftReset(0.01),
    "tempered beam, 4": TemperedBeam(0.01, 0.0, 4),
    "BOCD, 10 run lengths": BOCD(0.01, 10),
}
TRANSFERS = (
    ("cold start", 0, 0.0, "none"),
    ("related", 1, 0.1, "evidence"),
    ("related, full trust", 1, 0.1, "full"),
    ("unrelated", 1, 2.0, "evidence"),
    ("unrelated, full trust", 1, 2.0, "full"),
    ("adversarial", -1, 0.0, "evidence"),
    ("adversarial, full trust", -1, 0.0, "full"),
)
"""Old campaigns: sign and phase of what they optimized, and how far they are trusted."""
LAST_LAYER = {"network": (16,), "num_networks": 1, "adaptation": 0.0}
WARMUP = 20  # rows of a real stream


def table(title: str, heads: list[str], rows: list[list[str]]) -> str:
    lines = [f"### {title}", "", "| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows), ""])


def spread(values: list[float], digits: int = 3) -> str:
    error = np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{np.mean(values):.{digits}f} ± {error:.{digits}f}" if len(values) > 1 else f"{values[0]:.{digits}f}"


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


def real_streams(length: int) -> dict[str, tuple[Any, Any]]:
    """Inputs and outcomes in their order: approval of a president from five polls, the flow of water in a main and the
    temperature of an office by the hour of the day, the pace of a runner who runs and walks in turn; empty without river."""
    try:
        from river import datasets
        from river.drift import datasets as changing
    except ModuleNotFoundError:
        return {}

    def hour(time: Any) -> list[float]:
        angle = 2 * math.pi * (time.hour + time.minute / 60) / 24
        return [math.sin(angle), math.cos(angle)]

    streams = {
        "approval": ((list(x.values())[1:], y) for x, y in datasets.TrumpApproval()),
        "water": ((hour(x["Time"]), y) for x, y in datasets.WaterFlow()),
        "pace": (([0.0], y["Pace"]) for _, y in changing.RunLog()),
        "office": ((hour(x["time"]), y["V1"]) for x, y in changing.Occupancy()),
    }
    return {name: tuple(zip(*islice(rows, length), strict=True)) for name, rows in streams.items()}  # type: ignore[misc]


def repeated(env: Any) -> float:
    """Log loss of the forecast that the last outcome comes again, with the spread of all changes so far."""
    env.reset(seed=0)
    (task,) = env.tasks
    spread = np.sqrt((task.Y[:, 0] ** 2).cumsum() / np.arange(1, len(task.Y) + 1))[WARMUP - 1 : -1]
    return float((0.5 * (task.Y[WARMUP:, 0] / spread) ** 2 + np.log(spread) + 0.5 * math.log(2 * math.pi)).mean())


def streams(length: int) -> list[list[str]]:
    """Prequential log loss per row of every rule on real streams, with an exact last layer on random features that learns the
    noise too; it predicts outcomes, or changes from the last outcome, which it sees."""
    repeat = "the last outcome again"
    rows = {label: [label] for label in [repeat, *RULES]}
    for X, y in real_streams(length).values():
        for known in ({}, {"lags": 1, "difference": True}):
            env: Any = gymnasium.make("seqbdl/TabularStream-v0", X=X, y=y, **known)
            rows[repeat].append(f"{repeated(env.unwrapped):.3f}" if known else "")
            for label, rule in RULES.items():
                loop = ContinualLoop(env, "bayesian-last-layer", change=rule, warmup=WARMUP, surrogate_options=LAST_LAYER)
                steps = len(y) - bool(known)
                history: Any = run(loop, env, steps, progress=False)  # type: ignore[arg-type]
                rows[label].append(f"{history.losses[-(steps - WARMUP) :].mean():.3f}")
    return list(rows.values())


def bandit(seeds: int, rounds: int) -> list[list[str]]:
    """Regret on ten arms whose odds walk at random; half of what a policy that knows the odds has cannot be avoided."""
    rows = []
    for label, options in {
        "upper bound, forgetting 0.94": {"policy": "ucb", "beta": 1.0, "forgetting": 0.94},
        "upper bound, forgetting 0.99": {"policy": "ucb", "beta": 1.0, "forgetting": 0.99},
        "Thompson, forgetting 0.94": {"policy": "thompson", "forgetting": 0.94},
        "upper bound, no forgetting": {"policy": "ucb", "beta": 1.0},
    }.items():
        drawn, expected = [], []
        for seed in range(seeds):
            env: Any = gymnasium.make("seqbdl/DriftingBernoulliBandit-v0").unwrapped
            settings = {"prior_precision": 0.3, "b0": 0.9}
            loop = BanditLoop(
                env, "linear", refit_every=None, memory=0, propensity_samples=0, seed=seed, surrogate_options=settings, **options
            )
            context, _ = env.reset(seed=seed)
            totals = np.zeros(2)
            for _ in range(rounds):
                arm: Any = loop.ask(context)
                _, reward, *_, info = env.step(arm)
                loop.tell(arm, reward)
                totals += info["hindsight_regret"], info["regret"]
                context, _ = env.reset()
            drawn.append(totals[0])
            expected.append(totals[1])
        rows.append([label, spread(drawn, 1), spread(expected, 1)])
    return rows


def refit(seeds: int, budget: int) -> list[list[str]]:
    """Regret of Bayesian optimization, and seconds in the model, when it is fitted anew with every trial, with every fifth, or
    once."""
    grid = torch.cartesian_prod(*[torch.linspace(0, 1, 201, dtype=torch.float64)] * 2)
    best, space = float(wave(grid).max()), Space([Real("a", 0, 1), Real("b", 0, 1)])
    rows = []
    for surrogate, options in {"gp": {}, "ensemble": {"num_members": 8}, "last-layer-laplace": {}}.items():
        for policy in ("every", 5, "update"):
            regrets, seconds = [], []
            for seed in range(seeds):
                loop = BayesOptLoop(
                    space,
                    surrogate,
                    "qLogEI",
                    refit=policy,
                    initial=8,
                    seed=seed,
                    surrogate_options=options,  # type: ignore[arg-type]
                )
                start = time.process_time()
                for _ in range(budget):
                    point = loop.ask()
                    loop.tell(point, float(wave(torch.tensor([[point["a"], point["b"]]], dtype=torch.float64))))
                seconds.append((time.process_time() - start) / budget)
                regrets.append(float(best - loop.history.best_so_far()[-1]))
            rows.append([surrogate, str(policy), spread(regrets, 4), f"{np.mean(seconds):.2f}"])
    return rows


def wave(X: torch.Tensor, phase: float = 0.0) -> torch.Tensor:
    return torch.sin(9 * X[:, :1] + phase) * torch.cos(5 * X[:, 1:] + phase) + X[:, :1]


def transfer(seeds: int, budget: int) -> list[list[str]]:
    """Bayesian optimization with an old campaign of 25 points, trusted as the evidence says, or fully: simple regret after half
    the budget and after all, and the share of that half that is needed to come as far as the cold start of the same seed does."""
    grid = torch.cartesian_prod(*[torch.linspace(0, 1, 201, dtype=torch.float64)] * 2)
    best = float(wave(grid).max())
    space, bounds = Space([Real("a", 0, 1), Real("b", 0, 1)]), torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    half = budget // 2
    rows, goals = [], []
    for label, sign, phase, powers in TRANSFERS:
        regrets, needed, found = [], [], []
        for seed in range(seeds):
            X = torch.rand(25, 2, generator=torch.Generator().manual_seed(100 + seed), dtype=torch.float64)
            old = seqbdl.make_surrogate("gp", 2, bounds=bounds).fit(X, sign * wave(X, phase)) if sign else None
            options: dict[str, Any] = {"acquisition": full_trust(old)} if old is not None and powers == "full" else {"prior": old}
            loop = BayesOptLoop(space, initial=3, seed=seed, **options)
            for _ in range(budget):
                point = loop.ask()
                loop.tell(point, float(wave(torch.tensor([[point["a"], point["b"]]], dtype=torch.float64))))
            reached = best - loop.history.best_so_far()
            goals += [reached[half - 1]] if not sign else []
            there = np.flatnonzero(reached <= goals[seed] + 1e-12)
            needed.append((there[0] + 1 if len(there) else np.inf) / half)
            regrets.append((float(reached[half - 1]), float(reached[-1])))
            found.append(np.nan if loop.trust is None else loop.trust.power)
        power = f"{np.mean(found):.2f}" if powers == "evidence" and sign else ""
        rows.append(
            [label, spread([r[0] for r in regrets], 4), spread([r[1] for r in regrets], 4), f"{np.median(needed):.2f}", power]
        )
    return rows


def full_trust(old: seqbdl.Surrogate) -> Any:
    """The default acquisition function, of the old campaign's posterior updated on all new rows."""

    def factory(surrogate: seqbdl.Surrogate, context: Any) -> Any:
        (X,) = surrogate.train_inputs  # type: ignore[misc]
        return make_acquisition("qLogEI", seqbdl.prior_from(old).update(X, surrogate.train_targets.reshape(-1, 1)))

    return factory


def parts(names: list[str], quick: bool, seeds: int, length: int = 50) -> dict[str, str]:
    """A table per part."""
    out = {}
    if "change" in names:
        heads = ["method", "abrupt: log loss", "first 50 rows after changes", "ms a row", "gradual: log loss"]
        out["change"] = table(
            "Change: log loss per row, before learning it", heads, drift(seeds, *((12, 2) if quick else (60, 2)))
        )
    if "streams" in names and real_streams(2):
        heads = ["method", *(head for name in real_streams(2) for head in (name, f"{name}, from the last outcome on"))]
        out["streams"] = table("Real streams: log loss per row, before learning it", heads, streams(length))
    if "bandit" in names:
        heads = ["method", "regret to the best draw", "expected regret"]
        rounds = 50 if quick else 10_000
        out["bandit"] = table(f"Ten arms whose odds walk at random, {rounds} rounds", heads, bandit(seeds, rounds))
    if "transfer" in names:
        heads = [
            "method",
            "regret at half the budget",
            "regret",
            "of half the budget, to the cold start's regret there (median)",
            "power of the old campaign",
        ]
        out["transfer"] = table("An old campaign of 25 points", heads, transfer(seeds, 4 if quick else 16))
    if "refit" in names:
        heads = ["surrogate", "refit", "regret", "CPU s a trial"]
        out["refit"] = table("When the model is fitted anew", heads, refit(seeds, 9 if quick else 25))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small, prints only")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--length", type=int, default=500, help="rows of the real streams")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.quick:
        print("\n".join(parts(args.parts, True, 1).values()))
        return
    for name in args.parts:
        text = parts([name], False, args.seeds, args.length).get(name)
        if text is None:
            print(f"{name}: skipped; it needs the package river")
            continue
        print(text, flush=True)
        size = f" --length {args.length}" if name == "streams" else f" --seeds {args.seeds}"
        command = f"`python benchmarks/drift.py --parts {name}{size}`; mean ± standard error."
        old = args.out.read_text(encoding="utf-8") if args.out.exists() else "# Change, transfer and refits\n"
        block = f"<!-- {name} -->\n{text}\n{command}\n<!-- end {name} -->\n"
        pattern = re.compile(f"<!-- {name} -->.*<!-- end {name} -->\n", re.DOTALL)
        new = pattern.sub(lambda _, block=block: block, old) if pattern.search(old) else old + "\n" + block
        args.out.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
