"""What a decision costs: acquisition functions, joint draws over candidates, one more observation."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from botorch.acquisition import qLogExpectedImprovement
from botorch.models import SingleTaskGP
from botorch.optim import optimize_acqf
from botorch.sampling import SobolQMCNormalSampler
from botorch.sampling.pathwise import draw_matheron_paths
from botorch.utils.sampling import manual_seed
from torch import Tensor

import seqbdl
from races.frame import LIMIT, NOISE, D, Race, clock, data, fitted_gp, peak_memory, products_alone, race, rate


def acquisition(quick: bool) -> Iterable[Race]:
    """qLogEI over 128 function samples against the Gaussian process, 10 restarts, 256 raw samples."""
    n, repeats = (20, 1) if quick else (200, 3)
    X, Y, _, _ = data(n)
    bounds = torch.stack([torch.zeros(D), torch.ones(D)]).double()
    gp = fitted_gp(X, Y)
    surrogate = seqbdl.make_surrogate("ensemble", D, bounds=bounds, num_members=128, noise=NOISE, max_iterations=3).fit(X, Y)

    def maximize(model: Any, q: int) -> None:
        with manual_seed(0):
            acqf = qLogExpectedImprovement(model, best_f=Y.max(), sampler=SobolQMCNormalSampler(torch.Size([128]), seed=0))
            optimize_acqf(acqf, bounds, q=q, num_restarts=10, raw_samples=256)

    for q in (1, 4):
        fast, slow = race(lambda q=q: maximize(surrogate, q), lambda q=q: maximize(gp, q), repeats)  # type: ignore[misc]
        yield Race(f"qLogEI, q = {q}", "128 functions", "SingleTaskGP", slow / fast, 2.0, f"{fast:.2f} s", f"{slow:.2f} s")
        with _counted(surrogate) as asked:
            maximize(surrogate, q)
        least = sum(
            count / rate(products_alone(128, points, torch.float64, "inputs" if with_slopes else ""), 0.02 if quick else 0.2)
            for (points, with_slopes), count in asked.items()
        )
        yield Race(f"qLogEI, q = {q}", "128 functions", LIMIT, least / fast, 0.6, f"{fast:.2f} s", f"{least:.2f} s")


@contextlib.contextmanager
def _counted(surrogate: Any) -> Iterator[Counter[tuple[int, bool]]]:
    """How often the posterior was asked at how many points, and whether with slopes."""
    asked: Counter[tuple[int, bool]] = Counter()
    answer = surrogate.posterior

    def posterior(X: Tensor, *args: Any, **kwargs: Any) -> Any:
        asked[X.shape[:-1].numel(), X.requires_grad] += 1
        return answer(X, *args, **kwargs)

    surrogate.posterior = posterior
    try:
        yield asked
    finally:
        del surrogate.posterior


def thompson(quick: bool) -> Iterable[Race]:
    """256 joint draws over many candidates, their maxima kept: time, and memory where it is bounded."""
    n, few, many = (20, 500, 1000) if quick else (200, 10_000, 100_000)
    X, Y, _, _ = data(n)
    bounds = torch.stack([torch.zeros(D), torch.ones(D)]).double()
    gp = fitted_gp(X, Y)
    surrogate = seqbdl.make_surrogate("ensemble", D, bounds=bounds, num_members=256, noise=NOISE, max_iterations=3).fit(X, Y)
    candidates = torch.rand(many, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def ours(count: int, dtype: torch.dtype = torch.float64) -> None:
        with torch.no_grad():
            draws = surrogate.sample_functions(256, torch.Generator().manual_seed(0))
            for chunk in candidates[:count].to(dtype).split(2000):
                draws(chunk).amax(1)

    def joint() -> None:
        with torch.no_grad(), manual_seed(0):
            gp.posterior(candidates[:few]).rsample(torch.Size([256])).amax(1)

    def pathwise() -> None:
        with torch.no_grad(), manual_seed(0):
            paths = draw_matheron_paths(gp, torch.Size([256]))
            for chunk in candidates.split(2000):
                paths(chunk).amax(-1)

    fast, slow = race(lambda: ours(few), joint, 1)
    yield Race(f"256 draws, {few:,} candidates", "functions", "GP joint", slow / fast, 8.0, f"{fast:.2f} s", f"{slow:.2f} s")
    at_once = (8, 32, 256)  # networks whose activations are in the caches, or not
    least = min(256 / k * few / 2000 / rate(products_alone(k, 2000, torch.float64, ""), 0.1 if quick else 2.0) for k in at_once)
    yield Race(f"256 draws, {few:,} candidates", "functions", LIMIT, least / fast, 0.6, f"{fast:.2f} s", f"{least:.2f} s")
    single = clock(lambda: ours(few, torch.float32))
    yield Race(
        f"256 draws, {few:,} candidates in float32", "functions", "GP joint, float64", slow / single, 8.0,
        f"{single:.2f} s", f"{slow:.2f} s",
    )  # fmt: skip
    memory: list[float] = []
    fast, slow = race(lambda: memory.append(peak_memory(lambda: ours(many))), pathwise, 1)
    yield Race(
        f"256 draws, {many:,} candidates", "functions", "GP pathwise", slow / fast, 2.0,
        f"{fast:.2f} s, {memory[-1]:.0f} MB", f"{slow:.2f} s",
    )  # fmt: skip


def updating(quick: bool) -> Iterable[Race]:
    """One more observation: exact recursion against the Gaussian process's, and against fitting again."""
    n, repeats = (30, 2) if quick else (1000, 5)
    X, Y, test_X, _ = data(n + 100)
    X, Y, new_X, new_Y = X[:n], Y[:n], X[n : n + 1], Y[n : n + 1]
    gp = SingleTaskGP(X, Y).eval()
    with torch.no_grad():
        gp.posterior(test_X)  # its caches
    bounds = torch.stack([torch.zeros(D), torch.ones(D)]).double()
    surrogate = seqbdl.make_surrogate("bayesian-last-layer", D, bounds=bounds, noise=NOISE)
    fitting = clock(lambda: surrogate.fit(X, Y))
    twice, once = seqbdl.make_surrogate("bayesian-last-layer", D, bounds=bounds, noise=NOISE), surrogate.save_state()
    twice.load_state(once).update(new_X, new_Y).update(X[:5], Y[:5])
    batch = seqbdl.make_surrogate("bayesian-last-layer", D, bounds=bounds, noise=NOISE).load_state(once)
    batch.update(torch.cat([new_X, X[:5]]), torch.cat([new_Y, Y[:5]]))
    with torch.no_grad():
        gap = float((twice.posterior(test_X).mean - batch.posterior(test_X).mean).abs().max())

    def theirs() -> None:
        with torch.no_grad():
            gp.condition_on_observations(new_X, new_Y).posterior(test_X[:1])

    def ours() -> None:
        with torch.no_grad():
            surrogate.load_state(once).update(new_X, new_Y).posterior(test_X[:1])

    fast, slow = race(ours, theirs, repeats)
    note = f"{1e3 * fast:.1f} ms with a prediction, batch result to {gap:.0e}"
    conditioned = "GP condition_on_observations"
    yield Race(f"one more row, N = {n}", "last layer", conditioned, slow / fast, 50.0, note, f"{1e3 * slow:.1f} ms")
    yield Race(f"one more row, N = {n}", "last layer", "its own fit", fitting / fast, 500.0, note, f"{fitting:.2f} s")
