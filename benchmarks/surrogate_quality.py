"""How good the posteriors are: held-out density, error, coverage and CPU seconds against BoTorch's default Gaussian process.

Noisy test functions (noise sd 0.1 of the function's sd, not told to anybody), ``N`` training rows in ``D`` dimensions,
1,000 test rows. Densities are of Gaussians with the predictive moments, for all methods.

    python benchmarks/surrogate_quality.py             # adds to benchmarks/results/surrogate_quality.{csv,md} what is missing
    python benchmarks/surrogate_quality.py --methods laplace --cells 6x200 --seeds 1 --out /some/folder/try.csv
    python benchmarks/surrogate_quality.py --quick     # seconds, writes nothing
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import botorch
import pandas as pd
import torch
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.test_functions import Ackley, Branin, Hartmann
from botorch.test_functions.base import BaseTestProblem
from gpytorch.mlls import ExactMarginalLogLikelihood
from torch import Tensor

import seqbdl
from seqbdl.diagnostics import coverage, nlpd, rmse

RESULTS = Path(__file__).parent / "results"
BASELINE = "SingleTaskGP (BoTorch)"
CELLS = [(2, 50), (2, 200), (6, 50), (6, 200), (20, 50), (20, 200)]
TEST_ROWS = 1000


def problem(dimension: int) -> BaseTestProblem:
    """Branin, Hartmann6, or Ackley of the given dimension."""
    return {2: Branin(), 6: Hartmann(6)}.get(dimension) or Ackley(dim=dimension)


def draw(dimension: int, rows: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and test inputs in the unit cube and noisy outcomes of unit scale, each ``n x d`` or ``n x 1``."""
    generator = torch.Generator().manual_seed(seed)
    function = problem(dimension)
    low, high = function.bounds.double()
    X = torch.rand(rows + TEST_ROWS, dimension, generator=generator, dtype=torch.float64)
    values = function.evaluate_true(low + (high - low) * X).unsqueeze(-1)
    Y = (values - values[rows:].mean()) / values[rows:].std()
    Y = Y + 0.1 * torch.randn(Y.shape, generator=generator, dtype=torch.float64)
    return X[:rows], Y[:rows], X[rows:], Y[rows:]


def predict(method: str, X: Tensor, Y: Tensor, test: Tensor, seed: int) -> tuple[Tensor, Tensor, float]:
    """Predictive mean and standard deviation of observations, ``n x 1``, and the CPU seconds of fitting."""
    started = time.process_time()
    if method == BASELINE:
        model = SingleTaskGP(X, Y)
        fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
        seconds = time.process_time() - started
        with torch.no_grad():
            posterior = model.posterior(test.unsqueeze(-2), observation_noise=True)
        return posterior.mean.squeeze(-2), posterior.variance.sqrt().squeeze(-2), seconds
    bounds = torch.stack([torch.zeros(X.shape[1]), torch.ones(X.shape[1])])
    surrogate = seqbdl.make_surrogate(method, X.shape[1], bounds=bounds, seed=seed).fit(X, Y)
    seconds = time.process_time() - started
    prediction = surrogate.predict(test)
    return prediction.mean, prediction.std, seconds


def measure(
    methods: list[str], cells: list[tuple[int, int]], seeds: range, path: Path | None = None, known: pd.DataFrame | None = None
) -> pd.DataFrame:
    """One row per method, cell and seed; what ``known`` holds already is not measured again, ``path`` is kept up to date."""
    rows = [] if known is None else known.to_dict("records")
    done = {(row["D"], row["N"], row["seed"], row["method"]) for row in rows}
    for dimension, n in cells:
        for seed in seeds:
            X, Y, test_X, test_Y = draw(dimension, n, seed)
            for method in methods:
                if (dimension, n, seed, method) in done:
                    continue
                mean, sd, seconds = predict(method, X, Y, test_X, seed)
                rows.append(
                    {
                        "D": dimension,
                        "N": n,
                        "seed": seed,
                        "method": method,
                        "nlpd": float(nlpd(test_Y, mean, sd)),
                        "rmse": float(rmse(test_Y, mean)),
                        "coverage": float(coverage(test_Y, mean, sd, 0.95)),
                        "cpu_seconds": seconds,
                    }
                )
                print(f"D {dimension} N {n} seed {seed} {method}: nlpd {rows[-1]['nlpd']:.2f}, {seconds:.2f} CPU s", flush=True)
                if path is not None:
                    pd.DataFrame(rows).to_csv(path, index=False, float_format="%.5g")
    return pd.DataFrame(rows)


def report(frame: pd.DataFrame, command: str) -> str:
    """The table as Markdown: means over seeds."""
    means = frame.groupby(["method", "D", "N"])[["nlpd", "rmse", "coverage", "cpu_seconds"]].mean()
    cells = sorted(set(zip(frame["D"], frame["N"], strict=True)))
    methods = sorted(frame["method"].unique(), key=lambda m: means.loc[m]["nlpd"].mean())
    lines = [
        "# Quality of the posteriors",
        "",
        f"Command: `{command}`. Versions: seqbdl {seqbdl.__version__}, torch {torch.__version__.split('+')[0]}, botorch "
        f"{botorch.__version__}. Means over at most {frame['seed'].nunique()} seeds. One thread; shared machine: read CPU "
        "seconds as ratios.",
        "",
        "Each cell: negative log predictive density (lower is better) / RMSE / coverage of the 95 % interval / CPU seconds "
        "per fit.",
        "",
        "| method | " + " | ".join(f"D {d}, N {n}" for d, n in cells) + " |",
        "| --- |" + " --- |" * len(cells),
    ]
    for method in methods:
        row = [means.loc[(method, d, n)] if (method, d, n) in means.index else None for d, n in cells]
        texts = [
            f"{r['nlpd']:.2f} / {r['rmse']:.2f} / {r['coverage']:.2f} / {r['cpu_seconds']:.2g}" if r is not None else ""
            for r in row
        ]
        lines.append(f"| {method} | " + " | ".join(texts) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    methods = [BASELINE, *seqbdl.list_surrogates()]
    parser.add_argument("--methods", nargs="+", default=methods, choices=methods)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--cells", nargs="+", default=[f"{d}x{n}" for d, n in CELLS], help="such as 6x200: dimensions, rows")
    parser.add_argument("--out", type=Path, default=RESULTS / "surrogate_quality.csv", help="the .md stands beside it")
    parser.add_argument("--again", action="store_true", help="measure again what the file holds of these methods")
    parser.add_argument("--quick", action="store_true", help="a smoke run that writes nothing")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.quick:
        frame = measure([BASELINE, "nngp"], [(2, 20)], range(1))
        print(report(frame, "python benchmarks/surrogate_quality.py --quick"))
        return
    measure([BASELINE], [(2, 20)], range(1))  # the first fit of a process pays for lazy imports
    cells = [(int(d), int(n)) for d, n in (cell.split("x") for cell in options.cells)]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    known = pd.read_csv(options.out) if options.out.exists() else None
    if known is not None and options.again:
        known = known[~known["method"].isin(options.methods)]
    frame = measure(options.methods, cells, range(options.seeds), options.out, known)
    frame.to_csv(options.out, index=False, float_format="%.5g")
    text = report(frame, f"python benchmarks/surrogate_quality.py --seeds {options.seeds}")
    options.out.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main(sys.argv[1:])
