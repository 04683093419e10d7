"""Races of the inference methods against other people's packages: quality first, then CPU time.

Every race runs both sides in this process, one thread, in turn, and reports the ratio of the medians of CPU seconds. A
race is lost when the quality is worse. The workload is the one that decision loops have: two hidden layers of 64, Hartmann6
inputs, noise sd 0.1, float64. Peers are optional (Pyro, laplace-torch); a race whose peer is missing says so.

    python benchmarks/inference.py                        # all races, writes benchmarks/results/inference.{csv,md}
    python benchmarks/inference.py --races gradients acquisition
    python benchmarks/inference.py --quick                # seconds, small sizes, writes nothing
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).parent))  # the folder beside this script, under ``python -P`` too
from races.chains import gradients, sampling
from races.decisions import acquisition, thompson, updating
from races.deep_kernels import deep_kernels
from races.ensembles import ensembles
from races.evidence import evidence
from races.frame import Race

RESULTS = Path(__file__).parent / "results"
RACES: dict[str, Callable[[bool], Iterable[Race]]] = {
    "evidence": evidence,
    "ensembles": ensembles,
    "gradients": gradients,
    "sampling": sampling,
    "acquisition": acquisition,
    "thompson": thompson,
    "updating": updating,
    "deep_kernels": deep_kernels,
}


def version(package: str) -> str:
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{package} not installed"


def report(frame: pd.DataFrame, command: str) -> str:
    """The table, as Markdown."""
    packages = ", ".join(version(p) for p in ("seqbdl", "torch", "botorch", "gpytorch", "pyro-ppl", "laplace-torch"))
    lines = [
        "# Inference, races",
        "",
        f"Command: `{command}`. Versions: {packages}. One thread; ratios of medians of CPU seconds (or of rates), above 1 when "
        "ours is ahead; shared machine: read seconds as ratios.",
        "",
        "| race | method | peer | ratio | goal | ours | peer's |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in frame.fillna("").to_dict("records"):
        ratio = "" if row["ratio"] == "" else f"{row['ratio']:.3g}"
        cells = [row["race"], row["method"], row["peer"], ratio, f"{row['goal']:g}", row["ours"], row["theirs"]]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--races", nargs="+", default=list(RACES), choices=list(RACES))
    parser.add_argument("--out", type=Path, default=RESULTS / "inference.csv", help="the .md stands beside it")
    parser.add_argument("--quick", action="store_true", help="small sizes, writes nothing")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)])  # the first of a process pays for lazy imports
    del optimizer
    known = pd.read_csv(options.out) if options.out.exists() and not options.quick else pd.DataFrame(columns=["section"])
    rows: list[dict[str, Any]] = known[~known["section"].isin(options.races)].to_dict("records")
    for name in options.races:
        for line in RACES[name](options.quick):
            rows.append({"section": name, **asdict(line)})
            outcome = f"{line.ratio:.3g} (goal {line.goal:g})"
            print(f"{line.race}: {line.method} / {line.peer}: {outcome}; {line.ours}; {line.theirs}", flush=True)
            if not options.quick:
                options.out.parent.mkdir(parents=True, exist_ok=True)
                pd.DataFrame(rows).to_csv(options.out, index=False)
    text = report(pd.DataFrame(rows), "python benchmarks/inference.py" + (" --quick" if options.quick else ""))
    if not options.quick:
        options.out.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main(sys.argv[1:])
