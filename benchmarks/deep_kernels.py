"""Deep kernels: the representation-learning curve, and what deep kernel learning by its evidence does to predictions.

Diabetes progression (442 patients, ten measurements, shipped with scikit-learn): 200 rows to learn from, the rest to test, the
mean over splits. The curve is the test log-likelihood and error of ``dkm`` over ``nu``, from the infinitely wide network to free
Gram matrices, plain and with stochastic kernel regularization. The pitfall is a network's features under a Gaussian process,
all by the marginal likelihood, 800 steps of Adam, beside ``dkl``, ``due``, ``dkm``, ``dwp``, ``nngp`` and ``gp`` at their
defaults. Digits (1,797 images of 8 x 8 pixels, shipped with scikit-learn): ``dkm`` on their pixels as vectors, and with
convolutions.

    python benchmarks/deep_kernels.py            # benchmarks/results/deep_kernels.csv, .md and .png; minutes
    python benchmarks/deep_kernels.py --sections digits --splits 2    # rows that the .csv holds are not measured again
    python benchmarks/deep_kernels.py --quick    # seconds, writes nothing
    python benchmarks/deep_kernels.py --data FOLDER   # ... and the curve on yacht, from FOLDER/yacht (see uci.py)
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from gpytorch.distributions import MultivariateNormal
from gpytorch.kernels import RBFKernel, ScaleKernel
from gpytorch.likelihoods import GaussianLikelihood
from gpytorch.means import ConstantMean
from gpytorch.mlls import ExactMarginalLogLikelihood
from gpytorch.models import ExactGP
from sklearn.datasets import load_diabetes, load_digits
from torch import Tensor, nn

import seqbdl

RESULTS = Path(__file__).parent / "results"
NUS = (math.inf, 300.0, 100.0, 30.0, 10.0, 3.0, 1.0)
DEFAULTS = ("gp", "nngp", "dkl", "due", "dkm", "dwp")
SECTIONS = ("curve", "pitfall", "digits")
KEY = ["section", "set", "method", "nu", "split"]
Parts = tuple[Tensor, Tensor, Tensor, Tensor]


class PlainDKL(ExactGP):
    """A Gaussian process on a network's features: the usual recipe."""

    def __init__(self, X: Tensor, y: Tensor, likelihood: GaussianLikelihood) -> None:
        super().__init__(X, y, likelihood)
        widths = (X.shape[1], 64, 64, 8)
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(widths):
            layers += [nn.Linear(a, b), nn.ReLU()]
        self.network = nn.Sequential(*layers[:-1])
        self.mean_module, self.covar_module = ConstantMean(), ScaleKernel(RBFKernel(ard_num_dims=8))

    def forward(self, X: Tensor) -> MultivariateNormal:
        features = self.network(X)
        return MultivariateNormal(self.mean_module(features), self.covar_module(features))


def plain_dkl(parts: Parts, steps: int, seed: int) -> dict[str, float]:
    """Everything by the evidence, ``steps`` steps of Adam at 0.01."""
    X, Y, test_X, test_Y = parts
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        shift, scale = X.mean(0), X.std(0)
        mean, std = Y.mean(), Y.std()
        inputs, y = (X - shift) / scale, ((Y - mean) / std).squeeze(-1)
        likelihood = GaussianLikelihood().double()
        model = PlainDKL(inputs, y, likelihood).double()
    objective = ExactMarginalLogLikelihood(likelihood, model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        loss = -objective(model(inputs), y)
        loss.backward()
        optimizer.step()
    evidence = -float(loss.detach())
    model.eval()
    likelihood.eval()
    with torch.no_grad():
        prediction = likelihood(model((test_X - shift) / scale))
    return {"evidence": evidence, **scored(mean + std * prediction.mean, std * prediction.stddev, test_Y.squeeze(-1))}


def scored(mean: Tensor, sd: Tensor, y: Tensor) -> dict[str, float]:
    density = torch.distributions.Normal(mean, sd).log_prob(y).mean()
    return {"log_likelihood": float(density), "rmse": float((mean - y).square().mean().sqrt())}


def surrogate_scores(name: str, parts: Parts, seed: int, **options: Any) -> dict[str, float]:
    X, Y, test_X, test_Y = parts
    surrogate = seqbdl.make_surrogate(name, X.shape[1], seed=seed, **options).fit(X, Y)
    prediction = surrogate.predict(test_X)
    scores = scored(prediction.mean, prediction.std, test_Y)
    evidence = surrogate.log_evidence()
    if evidence is not None:  # per row, of standardized targets, as that of the plain recipe
        scores["evidence"] = evidence / len(Y) + float(Y.std().log())
    return scores


def diabetes(split: int, rows: int) -> Parts:
    inputs, outcomes = load_diabetes(return_X_y=True)
    X, Y = torch.from_numpy(inputs).double(), torch.from_numpy(outcomes).double().unsqueeze(-1)
    order = torch.randperm(len(X), generator=torch.Generator().manual_seed(split))
    train, test = order[:rows], order[200:]
    return X[train], Y[train], X[test], Y[test]


def yacht(folder: Path, split: int) -> Parts:
    table = np.loadtxt(folder / "yacht" / "data.txt")
    test = np.loadtxt(folder / "yacht" / "test_rows.csv", delimiter=",", dtype=int, ndmin=2)[split]
    train = np.setdiff1d(np.arange(len(table)), test)
    parts = (table[train, :-1], table[train, -1:], table[test, :-1], table[test, -1:])
    X, Y, test_X, test_Y = (torch.as_tensor(part, dtype=torch.float64) for part in parts)
    return X, Y, test_X, test_Y


def digits(split: int, rows: int) -> Parts:
    """Pixels in [0, 1]; the last 797 of a shuffle are the test."""
    inputs, labels = load_digits(return_X_y=True)
    X, Y = torch.from_numpy(inputs).double() / 16, torch.from_numpy(labels).double().unsqueeze(-1)
    order = torch.randperm(len(X), generator=torch.Generator().manual_seed(split))
    train, test = order[:rows], order[1000:]
    return X[train], Y[train], X[test], Y[test]


def classifier_scores(parts: Parts, seed: int, **options: Any) -> dict[str, float]:
    X, Y, test_X, test_Y = parts
    bounds = torch.stack([torch.zeros(64), torch.ones(64)]).double()
    surrogate = seqbdl.make_surrogate("dkm", 64, 10, likelihood="categorical", bounds=bounds, seed=seed, **options).fit(X, Y)
    probabilities, labels = surrogate.predict(test_X).mean, test_Y.long()
    error = (probabilities.argmax(-1, keepdim=True) != labels).double().mean()
    return {"log_likelihood": float(probabilities.gather(-1, labels).log().mean()), "error_rate": float(error)}


Job = tuple[str, str, str, float, int, Callable[[], dict[str, float]]]


def jobs(sections: Sequence[str], quick: bool, data: Path | None, splits: int) -> Iterator[Job]:
    """Section, set, method, ``nu``, split, and what measures it."""
    n, steps = (30, 20) if quick else (200, 800)
    few: dict[str, Any] = {"steps": 5, "max_iterations": 5} if quick else {}
    for split in range(splits):
        for name in ("diabetes",) if data is None else ("diabetes", "yacht"):
            parts = diabetes(split, n) if name == "diabetes" or data is None else yacht(data, split)
            for nu in NUS[::3] if quick else NUS:
                for stochastic in (False,) if math.isinf(nu) else (False, True):
                    options = {"nu": nu, "stochastic": stochastic, "num_inducing": 20 if quick else 60, **few}
                    run = partial(surrogate_scores, "dkm", parts, split, **options)
                    if "curve" in sections:
                        yield "curve", name, "dkm, stochastic" if stochastic else "dkm", nu, split, run
        parts = diabetes(split, n)
        if "pitfall" in sections:
            for count in (steps // 8, steps):
                yield "pitfall", "diabetes", f"plain DKL, {count} steps", math.nan, split, partial(plain_dkl, parts, count, split)
            for method in DEFAULTS[:3] if quick else DEFAULTS:
                yield "pitfall", "diabetes", method, math.nan, split, partial(surrogate_scores, method, parts, split)
        if "digits" in sections:
            for rows in (30,) if quick else (100, 300):
                for method, shape in (("vectors", None), ("convolutions", (1, 8, 8))):
                    for nu in (math.inf, 30.0):
                        options = {"nu": nu, "image_shape": shape, "num_inducing": 10 if quick else 60, **few}
                        run = partial(classifier_scores, digits(split, rows), split, **options)
                        yield "digits", f"{rows} images", f"dkm, {method}", nu, split, run


def measure(todo: Iterator[Job], known: pd.DataFrame, out: Path | None) -> pd.DataFrame:
    """The table, with the rows that are not known yet; it is written after every one."""
    rows = known.to_dict("records")
    held = {_key(row) for row in rows}
    for section, data_set, method, nu, split, run in todo:
        row: dict[str, Any] = dict(zip(KEY, (section, data_set, method, nu, split), strict=True))
        if _key(row) in held:
            continue
        started = time.process_time()
        row |= run()
        row["cpu_seconds"] = time.process_time() - started
        rows.append(row)
        print(f"{section:8s} {data_set} {method} nu {nu:g} split {split}: {row['log_likelihood']:.3f}", flush=True)
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            pd.DataFrame(rows).to_csv(out, index=False, float_format="%.6g")
    return pd.DataFrame(rows)


def _key(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (*(str(row[name]) for name in KEY[:3]), f"{row['nu']:g}", str(int(row["split"])))


def report(frame: pd.DataFrame, command: str) -> str:
    """The tables, as Markdown: medians over splits, since single failures are large."""
    lines = [
        "# Deep kernels",
        "",
        f"Command: `{command}`, beside rows measured before. seqbdl {seqbdl.__version__}; medians over splits, one thread.",
        "",
    ]
    lines += ["## By the evidence alone, and at the defaults: diabetes", ""]
    lines += ["| method | evidence per row | test log-likelihood | RMSE | CPU s |", "| --- | --- | --- | --- | --- |"]
    for method, own in frame[frame["section"] == "pitfall"].groupby("method", sort=False):
        evidence = own["evidence"].median() if "evidence" in own else math.nan
        text = "" if math.isnan(evidence) else f"{evidence:+.2f}"
        lines.append(
            f"| {method} | {text} | {own['log_likelihood'].median():.3f} | {own['rmse'].median():.3g} | "
            f"{own['cpu_seconds'].median():.2g} |"
        )
    for name, rows in frame[frame["section"] == "curve"].groupby("set", sort=False):
        lines += ["", f"## Representation learning over nu: {name}", ""]
        lines += ["| nu | method | test log-likelihood | RMSE |", "| --- | --- | --- | --- |"]
        for (nu, method), own in rows.groupby(["nu", "method"], sort=False):
            lines.append(f"| {nu:g} | {method} | {own['log_likelihood'].median():.3f} | {own['rmse'].median():.3g} |")
    for name, rows in frame[frame["section"] == "digits"].groupby("set", sort=False):
        lines += ["", f"## Digits: {name}", ""]
        lines += ["| nu | method | test log-likelihood | error | CPU s |", "| --- | --- | --- | --- | --- |"]
        for (nu, method), own in rows.groupby(["nu", "method"], sort=False):
            lines.append(
                f"| {nu:g} | {method} | {own['log_likelihood'].median():.3f} | {own['error_rate'].median():.2%} | "
                f"{own['cpu_seconds'].median():.2g} |"
            )
    return "\n".join(lines) + "\n"


def plot(frame: pd.DataFrame, path: Path) -> None:
    """Test log-likelihood and error over ``nu``."""
    curve = frame[frame["section"] == "curve"]
    sets = list(curve["set"].unique())
    figure, axes = plt.subplots(2, len(sets), figsize=(4.5 * len(sets), 5), sharex=True, squeeze=False)
    places = {nu: i for i, nu in enumerate(NUS)}
    for column, name in enumerate(sets):
        for method, rows in curve[curve["set"] == name].groupby("method", sort=False):
            medians = rows.groupby("nu", sort=False)[["log_likelihood", "rmse"]].median()
            x = [places[nu] for nu in medians.index]
            for line, (axis, key) in enumerate(zip(axes[:, column], ("log_likelihood", "rmse"), strict=True)):
                axis.plot(x, medians[key], marker="o", label=method if line == 0 else None)
        axes[0, column].set_title(name)
        axes[0, column].legend(frameon=False)
        axes[1, column].set_xticks(range(len(NUS)), ["∞" if math.isinf(nu) else f"{nu:g}" for nu in NUS])
        axes[1, column].set_xlabel("nu: infinitely wide network … free Gram matrices")
    axes[0, 0].set_ylabel("test log-likelihood")
    axes[1, 0].set_ylabel("RMSE")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=None, help="folder of the UCI sets, for yacht")
    parser.add_argument("--sections", nargs="+", default=list(SECTIONS), choices=SECTIONS)
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS / "deep_kernels.csv", help="the .md and .png stand beside it")
    parser.add_argument("--quick", action="store_true", help="small sizes, writes nothing")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    known = pd.read_csv(options.out) if options.out.exists() and not options.quick else pd.DataFrame(columns=KEY)
    todo = jobs(options.sections, options.quick, options.data, 1 if options.quick else options.splits)
    frame = measure(todo, known, None if options.quick else options.out)
    command = f"python benchmarks/deep_kernels.py --sections {' '.join(options.sections)} --splits {options.splits}"
    command += "" if options.data is None else " --data FOLDER"
    text = report(frame, command)
    if not options.quick:
        options.out.with_suffix(".md").write_text(text)
        plot(frame, options.out.with_suffix(".png"))
    print(text)


if __name__ == "__main__":
    main(sys.argv[1:])
