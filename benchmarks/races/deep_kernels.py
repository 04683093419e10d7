"""Deep kernels on many rows against an exact Gaussian process, and against themselves on fewer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

import seqbdl
from races.frame import D, Race, clock, data, fitted_gp, peak_memory, race
from seqbdl.diagnostics import nlpd, rmse


def deep_kernels(quick: bool) -> Iterable[Race]:
    """``dkm`` on 2,000 rows against an exact Gaussian process with one lengthscale per input; ``due`` on ten times the rows in
    the memory of the tenth; its function draws over many candidates."""
    n, P, many, candidates_count = (60, 20, 1500, 500) if quick else (2000, 100, 100_000, 100_000)
    X, Y, test_X, test_Y = data(n)
    found: dict[str, Any] = {}
    steps = {"steps": 3, "max_iterations": 3} if quick else {}
    options = {"nu": 30.0, "num_inducing": P, "max_rows": n // 2, "seed": 0, **steps}

    def ours() -> None:
        found["dkm"] = seqbdl.make_surrogate("dkm", D, **options).fit(X, Y)

    def theirs() -> None:
        found["gp"] = fitted_gp(X, Y)

    fast, slow = race(ours, theirs, 1)
    own = found["dkm"].predict(test_X)
    with torch.no_grad():
        other = found["gp"].posterior(test_X, observation_noise=True)
        quality = f"RMSE {rmse(test_Y, own.mean):.3f}, NLPD {nlpd(test_Y, own.mean, own.std):.3f}"
        peer = f"RMSE {rmse(test_Y, other.mean):.3f}, NLPD {nlpd(test_Y, other.mean, other.variance.sqrt()):.3f}"
    yield Race(
        f"fit of {n:,} rows", f"dkm, {P} inducing points", "exact GP-ARD", slow / fast, 1.0,
        f"{fast:.1f} s, {quality}", f"{slow:.1f} s, {peer}",
    )  # fmt: skip
    few_X, few_Y, _, _ = data(many // 10, 1)
    many_X, many_Y, test_X, test_Y = data(many, 1)
    small = {"num_inducing": P, "num_frequencies": 128, **({"steps": 10} if quick else {})}

    def fit(X: Tensor, Y: Tensor) -> None:
        found["due"] = seqbdl.make_surrogate("due", D, **small).fit(X, Y)

    seconds: list[float] = []
    memory = [
        peak_memory(lambda x=x, y=y: seconds.append(clock(lambda: fit(x, y)))) for x, y in ((few_X, few_Y), (many_X, many_Y))
    ]
    prediction = found["due"].predict(test_X)
    quality = f"RMSE {rmse(test_Y, prediction.mean):.3f}, NLPD {nlpd(test_Y, prediction.mean, prediction.std):.3f}"
    yield Race(
        f"fit of {many:,} rows", "due", f"due, {many // 10:,} rows", seconds[0] / seconds[1], 0.1,
        f"{seconds[1]:.1f} s, {memory[1]:.0f} MB more, {quality}", f"{seconds[0]:.1f} s, {memory[0]:.0f} MB more",
    )  # fmt: skip
    candidates = torch.rand(candidates_count, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def draws() -> None:
        with torch.no_grad():
            functions = found["due"].sample_functions(256, torch.Generator().manual_seed(0))
            for chunk in candidates.split(500):
                functions(chunk).amax(1)

    def posterior() -> None:
        with torch.no_grad():
            for chunk in candidates.split(2000):
                found["due"].predict(chunk)

    times: list[float] = []
    peaks = [peak_memory(lambda run=run: times.append(clock(run))) for run in (posterior, draws)]
    yield Race(
        f"{candidates_count:,} candidates", "due, 256 functions of 128 frequencies", "due, posterior", times[0] / times[1], 0.01,
        f"{times[1]:.1f} s, {peaks[1]:.0f} MB more", f"{times[0]:.1f} s, {peaks[0]:.0f} MB more",
    )  # fmt: skip
