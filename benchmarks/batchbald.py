"""BatchBALD against batchbald-redux: the same batch, and how many CPU seconds it takes.

The workload is the one that the peer's authors call expensive: 10,000 pool points, 100 function draws, 10 classes, a batch of 5
with 10,000 label configurations (so that both sides are exact up to the last pick). Two pools: logits independent between points
("independent": no two points tell the same, the hardest for pruning), and draws of a linear classifier ("linear": points are
alike). Both sides run in this process, one thread, in turn. The peer is optional (``pip install batchbald-redux``); a row says so
where it is missing.

    python benchmarks/batchbald.py                    # both pools, writes benchmarks/results/batchbald.{csv,md}
    python benchmarks/batchbald.py --pools linear
    python benchmarks/batchbald.py --quick            # seconds, small sizes, writes nothing
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from seqbdl.acquisition.batches import batchbald

RESULTS = Path(__file__).parent / "results"
GOAL = 20.0
PEER = "batchbald-redux"


@dataclass(frozen=True)
class Size:
    """Of a workload: points, function draws, classes, batch and label configurations."""

    points: int = 10_000
    draws: int = 100
    classes: int = 10
    batch: int = 5
    configurations: int = 10_000


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        pool: Which pool.
        method: Ours, or the peer.
        cpu_seconds: For the whole batch, checks included.
        ratio: How many times cheaper than the peer; ``None`` where it did not run.
        picks: Indices in pick order.
        information: Joint information of the batch in nats.
        note: What else there is to say.
    """

    pool: str
    method: str
    cpu_seconds: float | None
    ratio: float | None
    picks: str
    information: float | None
    note: str = ""


def independent(size: Size, seed: int) -> Tensor:
    """Log-probabilities ``n x N x C`` of independent logits with standard deviation 2."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2.0 * torch.randn(size.points, size.draws, size.classes, generator=generator, dtype=torch.float64)
    return logits.log_softmax(-1).transpose(0, 1)


def linear(size: Size, seed: int) -> Tensor:
    """Log-probabilities ``n x N x C`` of linear classifiers on 20 inputs, drawn around one of them."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(size.points, 20, generator=generator, dtype=torch.float64)
    centre = torch.randn(20, size.classes, generator=generator, dtype=torch.float64)
    around = torch.randn(size.draws, 20, size.classes, generator=generator, dtype=torch.float64)
    return (inputs @ (centre + 0.5 * around)).log_softmax(-1)


POOLS: dict[str, Callable[[Size, int], Tensor]] = {"independent": independent, "linear": linear}


def race(pool: str, size: Size, seed: int) -> Iterable[Row]:
    """Both sides on one pool, ours first."""
    log_probs = POOLS[pool](size, seed)
    start = time.process_time()
    ours = batchbald(log_probs, size.batch, torch.Generator().manual_seed(seed), num_configurations=size.configurations)
    seconds = time.process_time() - start
    picks, information = ours.indices.tolist(), float(ours.scores[-1])
    if importlib.util.find_spec("batchbald_redux") is None:
        yield Row(pool, "seqbdl", seconds, None, _spelled(picks), information, str(ours.status))
        yield Row(pool, PEER, None, None, "", None, "not installed")
        return
    os.environ["TQDM_DISABLE"] = "1"  # read when the peer is imported
    peer = importlib.import_module("batchbald_redux.batchbald")
    points_first = log_probs.transpose(0, 1).contiguous()
    start = time.process_time()
    theirs = peer.get_batchbald_batch(points_first, size.batch, size.configurations, dtype=torch.double)
    their_seconds = time.process_time() - start
    same = "same picks" if picks == theirs.indices else "OTHER PICKS"
    gap = abs(information - theirs.scores[-1])
    yield Row(pool, "seqbdl", seconds, their_seconds / seconds, _spelled(picks), information, str(ours.status))
    note = f"{same}, information apart by {gap:.1e}"
    yield Row(pool, PEER, their_seconds, 1.0, _spelled(theirs.indices), theirs.scores[-1], note)


def _spelled(picks: list[int]) -> str:
    return " ".join(str(i) for i in picks)


def version(package: str) -> str:
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{package} not installed"


def report(frame: pd.DataFrame, size: Size, command: str) -> str:
    """The table, as Markdown."""
    packages = ", ".join(version(p) for p in ("seqbdl", "torch", PEER))
    lines = [
        "# BatchBALD, race",
        "",
        f"Command: `{command}`. Versions: {packages}. {size.points} points, {size.draws} draws, {size.classes} classes, a batch "
        f"of {size.batch}, {size.configurations} label configurations, float64. One thread, CPU seconds; shared machine: read "
        f"them as ratios. Goal: {GOAL:g} times cheaper, same picks.",
        "",
        "| method | pool | CPU seconds | ratio | picks | joint information | note |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in frame.to_dict("records"):
        cells = [row["method"], row["pool"], _number(row["cpu_seconds"], ".3g"), _number(row["ratio"], ".3g")]
        cells += [row["picks"], _number(row["information"], ".9f"), row["note"]]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _number(value: Any, form: str) -> str:
    return "" if pd.isna(value) else format(value, form)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pools", nargs="+", default=list(POOLS), choices=list(POOLS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "batchbald.csv", help="the .md stands beside it")
    parser.add_argument("--quick", action="store_true", help="small sizes, writes nothing")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    size = Size(points=300, draws=20, classes=4, batch=4, configurations=256) if options.quick else Size()
    rows: list[dict[str, Any]] = []
    for pool in options.pools:
        for row in race(pool, size, options.seed):
            rows.append(asdict(row))
            print(row, flush=True)
    frame = pd.DataFrame(rows)
    quick = " --quick" if options.quick else ""
    text = report(frame, size, f"python benchmarks/batchbald.py --pools {' '.join(options.pools)}{quick}")
    if not options.quick:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        frame.to_csv(options.out, index=False)
        options.out.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main(sys.argv[1:])
