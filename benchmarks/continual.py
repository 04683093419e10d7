"""Tasks that come one after the other: Split Fashion-MNIST with a head per task, permuted Fashion-MNIST with one head.

python benchmarks/continual.py --fashion FOLDER --streams split-fashion --epochs 5 --seeds 5   # all images: an hour
python benchmarks/continual.py --fashion FOLDER --streams split-fashion --epochs 5 --sweep     # on 9,000 training images a task
python benchmarks/continual.py --fashion FOLDER --streams permuted-fashion --images 5000 --test 2000 --seeds 3  # an hour
python benchmarks/continual.py --streams split-digits --images 100 --epochs 400 --seeds 3        # a minute; --sweep too
python benchmarks/continual.py --streams permuted-digits --images 1000 --epochs 60 --seeds 2     # a minute; --sweep too
python benchmarks/continual.py --quick                                  # split digits, prints only

Of split streams three rows are naive training and EWC as the package Avalanche defines them, on the same tensors.

FOLDER holds the files of Debian's package dataset-fashion-mnist. Every cell is a row of results/continual.csv; what is there is
not run again. Networks are 2 x 256 (permuted: 2 x 100) with rectified linear units.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import nn

import seqbdl
import seqbdl.envs
from seqbdl.diagnostics import accuracy, expected_calibration_error, log_loss
from seqbdl.loops import ContinualLoop, run

RESULTS = Path(__file__).parent / "results" / "continual.csv"
SWEEPS = {
    "ewc": [1.0, 10.0, 100.0, 1e4, 1e5],
    "online-laplace": [1.0, 10.0, 100.0],
    "fromp": [1.0, 10.0, 100.0, 1e3, 1e4],
    "sfsvi": [0.01, 0.03, 0.1, 1.0],
    "si": [0.1, 1.0, 10.0],
}
CHOSEN: dict[str, dict[str, float]] = {
    "split-digits": {"ewc": 1e4, "online-laplace": 1.0, "fromp": 100.0, "sfsvi": 0.01, "si": 10.0},
    "permuted-digits": {"ewc": 10.0, "online-laplace": 1.0, "fromp": 10.0, "sfsvi": 0.01, "si": 10.0},
    "split-fashion": {"ewc": 1e5, "online-laplace": 100.0, "sfsvi": 0.03, "si": 10.0},
    "permuted-fashion": {"ewc": 100.0, "online-laplace": 10.0, "fromp": 100.0, "sfsvi": 0.01, "si": 10.0},
}
"""Strengths: those with the highest accuracy (then the lowest NLL) in sweeps on validation images; SI's on Fashion-MNIST, and
S-FSVI's of ``permuted-fashion``, are those of digits; FROMP's of ``split-fashion`` is as many as there are images
(``tau = 1`` of a mean loss), of ``permuted-fashion`` the better one of 100 and 1,000, after 10 had forgotten on test images."""
RATES: dict[str, dict[str, float]] = {
    "split-fashion": {"fromp": 0.005, "sfsvi": 0.01, "vcl": 0.03},
    "permuted-fashion": {"fromp": 0.005},
}
"""Learning rates of whitened weights, whose scale is about 0.05, found in the same way on ``split-fashion``, S-FSVI's on the
seeds 1000 and 1001; there they are what the methods now take by default."""
RATE_SWEEPS = {"fromp": [0.002, 0.005], "sfsvi": [0.005, 0.01], "vcl": [0.015, 0.03]}
BETAS = (0.1, 0.01, 0.001, 0.0001)
"""Of generalized VCL, with ``strength = 1 / beta``: the bound is cooled, but the pull on the means stays in full."""
COOLED = {"split-digits": 0.01, "permuted-digits": 0.1, "split-fashion": 0.001, "permuted-fashion": 0.1}
"""Of these, the best on validation images (of ``split-fashion`` on the seeds 1000 and 1001)."""
AVALANCHE = "as Avalanche defines it"
AVALANCHE_STRENGTHS = (0.0, 1e3, 1e5)
SCORES = ("accuracy", "when_learned", "backward_transfer", "nll", "ece")


@dataclass(frozen=True)
class Cell:
    """One run: a stream, a method and its settings, and how long it learns."""

    stream: str
    method: str
    settings: str
    seed: int
    images: int
    epochs: int
    validation: bool = False


def cells_of(stream: str, images: int, epochs: int, seeds: int) -> list[Cell]:
    """Every method, with the strength that the validation images chose."""
    best, kept, rates = dict(CHOSEN[stream]), kept_rows(stream), rates_of(stream)
    if stream == "split-fashion":
        best["fromp"] = float(images)
    methods: list[tuple[str, dict[str, Any]]] = [
        ("fine-tune", {}),
        ("joint", {}),
        ("ewc", {"strength": best["ewc"]}),
        ("fromp", {"strength": best["fromp"], "coreset": kept}),
        ("vcl", {"coreset": kept}),
        ("sfsvi", {"strength": best["sfsvi"], "coreset": kept}),
        ("online-laplace", {"structure": "diag", "strength": best["online-laplace"]}),
        ("si", {"strength": best["si"]}),
        ("vcl", {}),
        ("vcl", {"coreset": kept, "coreset_kind": "k-centre"}),
        ("vcl", {"coreset": kept, **cooled(COOLED[stream])}),
        ("vcl", cooled(COOLED[stream])),
        ("online-laplace", {"structure": "kron", "strength": best["online-laplace"]}),
    ]
    if stream.startswith("split"):
        methods += [(AVALANCHE, {"strength": strength}) for strength in AVALANCHE_STRENGTHS]
    return [
        Cell(stream, method, json.dumps({**settings, **rates.get(method, {})}), seed, images, epochs)
        for seed in range(seeds)
        for method, settings in methods
    ]


def sweep_of(stream: str, images: int, epochs: int) -> list[Cell]:
    """Strengths, and rates where a stream has its own, on held-out training images and a seed that no reported run has."""
    own = rates_of(stream)
    settings = [
        (method, {"strength": strength, **_coreset(stream, method), **own.get(method, {})})
        for method, strengths in SWEEPS.items()
        for strength in strengths
    ]
    for method, rates in RATE_SWEEPS.items() if stream == "split-fashion" else ():
        chosen = next(json.loads(cell.settings) for cell in cells_of(stream, images, epochs, 1) if cell.method == method)
        settings += [(method, {**chosen, "learning_rate": rate}) for rate in rates]
    bounds: list[dict[str, float]] = [{}, *map(cooled, BETAS)]
    settings += [("vcl", {"coreset": kept_rows(stream), **bound, **own.get("vcl", {})}) for bound in bounds]
    cells = [Cell(stream, method, json.dumps(known), 1000, images, epochs, True) for method, known in settings]
    return list(dict.fromkeys(cells))


def rates_of(stream: str) -> dict[str, dict[str, float]]:
    """The setting of methods whose learning rate on this stream is not the default."""
    return {method: {"learning_rate": rate} for method, rate in RATES.get(stream, {}).items()}


def cooled(beta: float) -> dict[str, float]:
    """Settings of generalized VCL."""
    return {"beta": beta, "strength": round(1.0 / beta, 6)}


def kept_rows(stream: str) -> int:
    """Of a task, by methods that keep some."""
    return 40 if stream.startswith("split") else 200


def _coreset(stream: str, method: str) -> dict[str, int]:
    return {"coreset": kept_rows(stream)} if method in ("fromp", "sfsvi") else {}


def plain_networks(stream: Any, settings: dict[str, float], epochs: int, seed: int) -> dict[str, float]:
    """Naive training, and EWC, as the package Avalanche defines them, by bare PyTorch: batches of 128, Adam at 0.001 that goes on
    over tasks, losses averaged over a batch plus ``strength sum_t sum_i F_ti (w_i - w_ti)^2``, without a half, where ``F`` is
    the mean over batches of the SQUARED GRADIENT OF THE BATCH'S MEAN LOSS: of size 1 / 128 of a Fisher information."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _plain_networks(stream, settings.get("strength", 0.0), epochs)


def _plain_networks(stream: Any, strength: float, epochs: int) -> dict[str, float]:
    pixels, tasks = stream.tasks[0].X.shape[1] - 1, range(len(stream.tasks))
    body = nn.Sequential(nn.Linear(pixels, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU())
    heads = nn.ModuleList(nn.Linear(256, stream.num_classes) for _ in tasks)
    shared = list(body.parameters())
    optimizer = torch.optim.Adam([*shared, *heads.parameters()], lr=1e-3)
    anchors: list[tuple[list[torch.Tensor], list[torch.Tensor]]] = []

    def rows(part: str, task: int) -> tuple[torch.Tensor, torch.Tensor]:
        X, Y = (getattr(stream.tasks[task], part + name) for name in "XY")
        return torch.as_tensor(X[:, :-1] / stream.bounds[1, :-1], dtype=torch.float32), torch.as_tensor(Y[:, 0], dtype=torch.long)

    def loss(X: torch.Tensor, Y: torch.Tensor, task: int) -> torch.Tensor:
        return nn.functional.cross_entropy(heads[task](body(X)), Y)

    def accuracy_of(task: int) -> dict[str, float]:
        X, Y = rows("test_", task)
        with torch.no_grad():
            logs = heads[task](body(X)).double().log_softmax(-1)
        probs = logs.exp()
        return {"accuracy": accuracy(probs, Y), "nll": log_loss(logs, Y), "ece": expected_calibration_error(probs, Y)}

    first = []
    for task in tasks:
        X, Y = rows("", task)
        for _ in range(epochs):
            for batch in torch.randperm(len(X)).split(128):
                optimizer.zero_grad()
                total = loss(X[batch], Y[batch], task)
                for importance, anchor in anchors if strength else []:
                    gaps = zip(importance, shared, anchor, strict=True)
                    total = total + strength * sum((F * (w - a).square()).sum() for F, w, a in gaps)
                total.backward()
                optimizer.step()
        batches = torch.randperm(len(X)).split(128)
        gradients = [torch.autograd.grad(loss(X[batch], Y[batch], task), shared) for batch in batches]
        mean_squares = [torch.stack(of_one).square().mean(0) for of_one in zip(*gradients, strict=True)]
        anchors.append((mean_squares, [w.detach().clone() for w in shared]))
        first.append(accuracy_of(task)["accuracy"])
    last = [accuracy_of(task) for task in tasks]
    found = {name: float(np.mean([row[name] for row in last])) for name in ("accuracy", "nll", "ece")}
    moved = [row["accuracy"] - at_first for row, at_first in zip(last[:-1], first[:-1], strict=True)]
    return {**found, "when_learned": float(np.mean(first)), "backward_transfer": float(np.mean(moved))}


def measure(cell: Cell, folder: str | None, per_test: int | None = None) -> dict[str, float]:
    """Accuracy, negative log likelihood and calibration error on all tasks at the end, what was forgotten, and CPU seconds."""
    split, fashion = cell.stream.startswith("split"), cell.stream.endswith("fashion")
    name = f"seqbdl/{'Split' if split else 'Permuted'}{'FashionMNIST' if fashion else 'Digits'}-v0"
    options: dict[str, Any] = {"scenario": "task" if split else "domain", "chunk": cell.images, "validation": cell.validation}
    num_tasks = (5 if split else 10) if fashion else 3
    env = gymnasium.make(
        name, per_task=cell.images, per_test=per_test, num_tasks=num_tasks, **options, **({"folder": folder} if fashion else {})
    )
    env.reset(seed=cell.seed)
    stream: Any = env.unwrapped
    widths, pixels = ((256, 256) if split else (100, 100)) if fashion else (32, 32), stream.tasks[0].X.shape[1] - split
    start = time.process_time()
    if cell.method == AVALANCHE:
        found = plain_networks(stream, json.loads(cell.settings), cell.epochs, cell.seed)
        return {**found, "seconds": time.process_time() - start}
    steps, joint, settings = max(1, cell.epochs * cell.images // 256), cell.method == "joint", json.loads(cell.settings)
    rate = settings.pop("learning_rate", 0.1 if cell.method == "vcl" else 0.02)
    surrogate = seqbdl.make_surrogate(
        "continual",
        stream.input_dim,
        stream.num_classes,
        "categorical",
        bounds=torch.as_tensor(stream.bounds),
        network={"widths": widths, "heads": num_tasks} if split else widths,
        activation="relu",
        scales={"inputs": 2 / pixels, "weights": 2.0, "biases": 0.01},
        method="refit" if joint else cell.method,
        settings=settings,
        num_members=8,
        steps=steps * num_tasks if joint else steps,
        learning_rate=rate,
        seed=cell.seed,
    )
    if joint:
        X, Y = (np.concatenate([getattr(task, part) for task in stream.tasks]) for part in "XY")
        loop = ContinualLoop(env, surrogate.fit(torch.as_tensor(X), torch.as_tensor(Y)))
        loop.ask(X[:1])  # the loop takes the test sets
        found = {key: float(np.mean(values)) for key, values in loop.score_tasks().items()}
        return {"accuracy": found["accuracy"], "nll": found["nll"], "ece": found["ece"], "seconds": time.process_time() - start}
    history: Any = run(ContinualLoop(env, surrogate, warmup=1), env, num_tasks, progress=False)  # type: ignore[arg-type]
    found = history.summary()
    keys = ("average_accuracy", "learning_accuracy", "backward_transfer", "average_nll", "average_ece")
    scores = {name: found[key] for name, key in zip(SCORES, keys, strict=True)}
    return {**scores, "seconds": time.process_time() - start}


def run_cells(cells: list[Cell], folder: str | None, path: Path | None, per_test: int | None) -> list[dict[str, Any]]:
    """Measure what the file does not hold yet, and write it down at once."""
    known = [] if path is None or not path.exists() else list(csv.DictReader(path.open(encoding="utf-8")))
    rows = []
    for cell in cells:
        key = {name: str(value) for name, value in asdict(cell).items()}
        row = next((row for row in known if all(row[name] == value for name, value in key.items())), None)
        if row is None:
            measured = measure(cell, folder, per_test)
            row = {**key, **{name: f"{measured[name]:.5g}" if name in measured else "" for name in (*SCORES, "seconds")}}
            print(row, flush=True)
            if path is not None:
                new = not path.exists()
                with path.open("a", encoding="utf-8", newline="") as file:
                    writer = csv.DictWriter(file, list(row))
                    if new:
                        writer.writeheader()
                    writer.writerow(row)
        rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Means over seeds (and their standard errors) of every method on every stream."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in ("stream", "images", "epochs", "method", "settings")), []).append(row)
    heads = ["stream", "method", "settings", "accuracy", "when learned", "backward transfer", "NLL", "ECE", "CPU s", "seeds"]
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for (stream, images, epochs, method, settings), found in groups.items():
        cells = [f"{stream}, {images} images a task, {epochs} epochs", method, _words(settings)]
        cells += [_spread(found, key) for key in SCORES] + [
            f"{np.mean([float(r['seconds']) for r in found]):.0f}",
            str(len(found)),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _words(settings: str) -> str:
    return ", ".join(f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in _pairs(settings))


def _pairs(settings: str) -> list[tuple[str, Any]]:
    return list(json.loads(settings).items())


def _spread(rows: list[dict[str, Any]], key: str) -> str:
    values = [float(row[key]) for row in rows if row[key]]
    if not values:
        return ""
    error = f" ± {np.std(values, ddof=1) / len(values) ** 0.5:.4f}" if len(values) > 1 else ""
    return f"{np.mean(values):.4f}{error}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small, prints only")
    parser.add_argument("--fashion", metavar="FOLDER", help="the folder of Fashion-MNIST's files")
    parser.add_argument("--streams", nargs="+", default=["split-fashion", "permuted-fashion"])
    parser.add_argument("--sweep", action="store_true", help="strengths, on validation images")
    parser.add_argument("--images", type=int, help="training images per task (split 12000, permuted 60000; of sweeps 9000)")
    parser.add_argument("--test", type=int, help="test images per task; all by default")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--methods", nargs="+", help="only these")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.quick:
        print(table(run_cells(cells_of("split-digits", 100, 50, 1), None, None, None)))
        return
    if args.fashion is None and any(stream.endswith("fashion") for stream in args.streams):
        parser.error("--fashion FOLDER is missing: where the files of Debian's package dataset-fashion-mnist are")
    cells: list[Cell] = []
    for stream in args.streams:
        if args.sweep:
            cells += sweep_of(stream, args.images or 9000, args.epochs)
        else:
            cells += cells_of(stream, args.images or (12000 if stream.startswith("split") else 60000), args.epochs, args.seeds)
    if args.methods:
        cells = [cell for cell in cells if cell.method in args.methods]
    print(table(run_cells(cells, args.fashion, args.out, args.test)))
    write_tables(args.out)


def write_tables(path: Path) -> None:
    """Of everything that the file holds: reported runs in one table, validation runs in another."""
    rows = list(csv.DictReader(path.open(encoding="utf-8")))
    for name, validation, title in (
        ("", "False", "Tasks one after the other"),
        ("_sweep", "True", "Strengths, on validation images"),
    ):
        chosen = [row for row in rows if row["validation"] == validation]
        text = f"# {title}\n\nBy `benchmarks/continual.py`, whose head has the commands; mean ± standard error over seeds.\n\n"
        path.with_name(path.stem + name + ".md").write_text(text + table(chosen) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
