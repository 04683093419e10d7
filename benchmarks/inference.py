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
import contextlib
import importlib.metadata
import itertools
import math
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import torch
from botorch.acquisition import qLogExpectedImprovement
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.optim import optimize_acqf
from botorch.sampling import SobolQMCNormalSampler
from botorch.sampling.pathwise import draw_matheron_paths
from botorch.test_functions import Hartmann
from botorch.utils.sampling import manual_seed
from gpytorch.mlls import ExactMarginalLogLikelihood
from torch import Tensor, nn

import seqbdl
from seqbdl.diagnostics import coverage, nlpd, rmse
from seqbdl.diagnostics.convergence import chain_convergence
from seqbdl.inference import laplace
from seqbdl.inference.adam import AdamSettings, adam
from seqbdl.inference.evidence import NoiseTerms, evidence_at
from seqbdl.inference.gauss_newton import GaussNewtonSettings, gauss_newton
from seqbdl.inference.log_joint import LogJoint
from seqbdl.inference.members import by_gauss_newton
from seqbdl.inference.observations import Randomized
from seqbdl.likelihoods import get_likelihood
from seqbdl.networks import MLP
from seqbdl.priors import GaussianPrior

RESULTS = Path(__file__).parent / "results"
WIDTHS, D, NOISE = (64, 64), 6, 0.01
TEST_ROWS = 500


@dataclass(frozen=True)
class Race:
    """One line of the table.

    Attributes:
        race: What was raced.
        method: Ours.
        peer: The other side.
        ratio: How many times cheaper ours is (or how many times the rate).
        goal: What was aimed at.
        ours: Quality and seconds of ours.
        theirs: Of the peer.
    """

    race: str
    method: str
    peer: str
    ratio: float
    goal: float
    ours: str
    theirs: str


def data(n: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and test rows of Hartmann6, standardized, with noise of sd 0.1: ``n x d``, ``n x 1`` twice."""
    generator = torch.Generator().manual_seed(seed)
    X = torch.rand(n + TEST_ROWS, D, generator=generator, dtype=torch.float64)
    Y = Hartmann(6, negate=True).evaluate_true(X).unsqueeze(-1)
    Y = (Y - Y.mean()) / Y.std() + math.sqrt(NOISE) * torch.randn(Y.shape, generator=generator, dtype=torch.float64)
    return X[:n], Y[:n], X[n:], Y[n:]


def network() -> MLP:
    """Two hidden layers with the prior scales of a smooth function on this problem."""
    ones = torch.ones(3, dtype=torch.float64)
    return MLP(WIDTHS, torch.full((D,), 1.5, dtype=torch.float64), ones[:2], ones)


def clock(run: Callable[[], Any]) -> float:
    """CPU seconds of one call."""
    started = time.process_time()
    run()
    return time.process_time() - started


def race(ours: Callable[[], Any], theirs: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Medians of CPU seconds, the two sides in turn."""
    times = [(clock(ours), clock(theirs)) for _ in range(repeats)]
    return statistics.median(t[0] for t in times), statistics.median(t[1] for t in times)


def rate(run: Callable[[], Any], seconds: float) -> float:
    """Calls per CPU second."""
    run()
    started, calls = time.process_time(), 0
    while time.process_time() - started < seconds:
        run()
        calls += 1
    return calls / (time.process_time() - started)


def peak_memory(run: Callable[[], Any]) -> float:
    """The growth of resident memory during a call, in MB, watched every two milliseconds."""
    process, done, peak = psutil.Process(), threading.Event(), 0
    before = process.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, process.memory_info().rss)
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run()
    finally:
        done.set()
        watcher.join()
    return max(0, peak - before) / 2**20


def fitted_gp(X: Tensor, Y: Tensor) -> SingleTaskGP:
    model = SingleTaskGP(X, Y)
    fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
    return model


def mixture_quality(values: Tensor, Y: Tensor) -> str:
    """RMSE, density and coverage of the Gaussian with the moments of ``S x n x 1`` members and the known noise."""
    mean, sd = values.mean(0), (values.var(0) + NOISE).sqrt()
    inside = float(coverage(Y, mean, sd, 0.95))
    return f"RMSE {float(rmse(Y, mean)):.3f}, NLL {float(nlpd(Y, mean, sd)):.2f}, coverage {inside:.2f}"


def looped_adam(X: Tensor, Y: Tensor, members: int, steps: int, seed: int = 0) -> list[nn.Module]:
    """Networks in PyTorch's plain style, one after the other, each by Adam on all rows."""
    nets: list[nn.Module] = []
    with manual_seed(seed):
        for _ in range(members):
            net = nn.Sequential(nn.Linear(D, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1)).double()
            optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
            for _ in range(steps):
                optimizer.zero_grad()
                loss = (net(2 * X - 1) - Y).square().mean() + 1e-4 * sum(p.square().sum() for p in net.parameters()) / X.shape[0]
                loss.backward()
                optimizer.step()
            nets.append(net)
    return nets


def ensembles(quick: bool) -> Iterable[Race]:
    """Ten members by Gauss-Newton with randomized targets, against ten networks in a loop; the same Adam stacked."""
    steps = 20 if quick else 1000
    for n, goal in ((30, 1.0),) if quick else ((200, 20.0), (1000, 3.0)):
        X, Y, test_X, test_Y = data(n)
        net, found = network(), {}
        variance = torch.full_like(Y, NOISE)

        def ours(n: int = n, X: Tensor = X, Y: Tensor = Y, variance: Tensor = variance, found: dict[str, Any] = found) -> None:
            generator = torch.Generator().manual_seed(0)
            anchors = torch.randn(10, network().num_params, generator=generator, dtype=torch.float64)
            white = torch.randn(10, n, 1, generator=generator, dtype=torch.float64)
            seen = Randomized(get_likelihood("gaussian"), Y, variance, white)
            found["ours"] = by_gauss_newton(network(), X, seen, anchors, anchors)  # with the settings of the ensembles

        def theirs(X: Tensor = X, Y: Tensor = Y, found: dict[str, Any] = found) -> None:
            found["loop"] = looped_adam(X, Y, 10, steps)

        fast, slow = race(ours, theirs, 1)
        with torch.no_grad():
            own = mixture_quality(net.forward(found["ours"], test_X), test_Y)
            other = mixture_quality(torch.stack([m(2 * test_X - 1) for m in found["loop"]]), test_Y)
        yield Race(
            f"ten members, N = {n}", "Gauss-Newton", f"Adam, loop, {steps} steps", slow / fast, goal,
            f"{fast:.2f} s; {own}", f"{slow:.2f} s; {other}",
        )  # fmt: skip
    n = 30 if quick else 200
    X, Y, test_X, test_Y = data(n)
    joint = LogJoint(network(), get_likelihood("gaussian"), GaussianPrior(), X, Y, torch.full_like(Y, NOISE))
    start = torch.randn(10, joint.network.num_params, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    settings = AdamSettings(steps=steps, learning_rate=3e-2, decay=False)
    result: dict[str, Tensor] = {}

    def stacked() -> None:
        generator = torch.Generator().manual_seed(0)
        result["z"] = adam(lambda z, rows: -joint.value_and_gradient(z, rows)[1], start, n, settings, generator)

    nets: list[nn.Module] = []
    fast, slow = race(stacked, lambda: nets.extend(looped_adam(X, Y, 10, steps)), 1)
    with torch.no_grad():
        own = mixture_quality(joint.network.forward(result["z"], test_X), test_Y)
        other = mixture_quality(torch.stack([m(2 * test_X - 1) for m in nets[:10]]), test_Y)
    yield Race(
        f"Adam, ten members, N = {n}", "stacked", "loop", slow / fast, 4.0, f"{fast:.2f} s; {own}", f"{slow:.2f} s; {other}"
    )
    least = steps / rate(_limit(10, n, torch.float64), 0.1 if quick else 2.0)
    yield Race(f"Adam, ten members, N = {n}", "stacked", LIMIT, least / fast, 0.6, f"{fast:.2f} s", f"{least:.2f} s")


def gradients(quick: bool) -> Iterable[Race]:
    """Gradients of the log joint a second: 16 chains against one autograd chain, Pyro, and what the machine could do."""
    n, seconds = (30, 0.1) if quick else (200, 4.0)
    X, Y, _, _ = data(n)
    for dtype, name in ((torch.float64, "float64"), (torch.float32, "float32")):
        net = network()
        noise = torch.full_like(Y, NOISE).to(dtype)
        converted = MLP(WIDTHS, torch.full((D,), 1.5, dtype=dtype), torch.ones(2, dtype=dtype), torch.ones(3, dtype=dtype))
        joint = LogJoint(converted, get_likelihood("gaussian"), GaussianPrior(), X.to(dtype), Y.to(dtype), noise)
        z = torch.randn(16, net.num_params, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
        ours = 16 * rate(lambda joint=joint, z=z: joint.value_and_gradient(z), seconds)  # type: ignore[misc]
        chain = rate(_autograd_chain(X.to(dtype), Y.to(dtype)), seconds)
        limit = 16 * rate(_limit(16, n, dtype), seconds)
        peers = [("one autograd chain", chain, 3.0), (LIMIT, limit, 0.6)]
        pyro_rate = _pyro_rate(X.to(dtype), Y.to(dtype), seconds)
        if pyro_rate is not None:
            peers.append(("Pyro", pyro_rate, 15.0))
        for peer, theirs, goal in peers:
            yield Race(f"gradients, {name}", "16 chains", peer, ours / theirs, goal, f"{ours:.0f}/s", f"{theirs:.0f}/s")


def _weights(dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = (D, *WIDTHS, 1)
    weights = []
    for a, b in itertools.pairwise(sizes):
        weights += [torch.randn(a, b, generator=generator, dtype=dtype), torch.randn(b, generator=generator, dtype=dtype)]
    return weights


def _log_joint(weights: list[Tensor], X: Tensor, Y: Tensor) -> Tensor:
    h = 2 * X - 1
    for i in range(0, len(weights), 2):
        h = h @ (weights[i] / math.sqrt(weights[i].shape[0])) + weights[i + 1]
        h = torch.tanh(h) if i + 2 < len(weights) else h
    return -0.5 * (Y - h).square().sum() / NOISE - 0.5 * torch.stack([w.square().sum() for w in weights]).sum()


def _autograd_chain(X: Tensor, Y: Tensor) -> Callable[[], Any]:
    weights = [w.requires_grad_(True) for w in _weights(X.dtype)]
    return lambda: torch.autograd.grad(_log_joint(weights, X, Y), weights)


def _limit(networks: int, n: int, dtype: torch.dtype, slopes: str = "weights") -> Callable[[], None]:
    """The matrix products of a forward pass and of the slopes in the weights, in the inputs, or none (``""``), and the
    activations, nothing else."""
    sizes = (D, *WIDTHS, 1)
    acts = [torch.randn(networks, n, s).to(dtype) for s in sizes]
    weights = [torch.randn(networks, a, b).to(dtype) for a, b in itertools.pairwise(sizes)]

    def run() -> None:
        for layer, w in enumerate(weights):
            acts[layer] @ w
            if slopes == "weights":
                acts[layer].mT @ acts[layer + 1]
            if slopes == "inputs" or (slopes and layer):
                acts[layer + 1] @ w.mT
            if layer + 1 < len(weights):
                torch.tanh(acts[layer + 1])

    return run


LIMIT = "matrix products and activations alone"
"""A peer that no implementation on this machine can pass: by how much it is ahead is what is left to gain."""


def _pyro_model(X: Tensor, Y: Tensor) -> Callable[[], None]:
    import pyro
    import pyro.distributions as dist

    def model() -> None:
        h = 2 * X - 1
        sizes = (D, *WIDTHS, 1)
        for i, (a, b) in enumerate(itertools.pairwise(sizes)):
            w = pyro.sample(f"w{i}", dist.Normal(torch.zeros(a, b).to(X), 1.0).to_event(2))
            c = pyro.sample(f"b{i}", dist.Normal(torch.zeros(b).to(X), 1.0).to_event(1))
            h = h @ (w / math.sqrt(a)) + c
            h = torch.tanh(h) if i + 2 < len(sizes) else h
        pyro.sample("y", dist.Normal(h, math.sqrt(NOISE)).to_event(2), obs=Y)

    return model


def _pyro_rate(X: Tensor, Y: Tensor, seconds: float) -> float | None:
    try:
        from pyro.infer.mcmc.util import initialize_model
    except ImportError:
        return None
    with manual_seed(0):
        start, potential, _, _ = initialize_model(_pyro_model(X, Y))
    leaves = {k: v.detach().requires_grad_(True) for k, v in start.items()}
    return rate(lambda: torch.autograd.grad(potential(leaves), list(leaves.values())), seconds)


def sampling(quick: bool) -> Iterable[Race]:
    """Effective predictions a CPU second of HMC, against Pyro's NUTS with its defaults."""
    n, chains, warmup, samples = (20, 4, 3, 12) if quick else (200, 16, 8, 40)
    X, Y, test_X, test_Y = data(n)
    bounds, found = torch.stack([torch.zeros(D), torch.ones(D)]).double(), {}
    # A quarter turn takes 150 to 400 steps here: cut at 100, chains walk at random (measured on other rows, data seed 7).
    options = {"num_chains": chains, "warmup": warmup, "samples": samples, "num_members": chains * samples, "max_steps": 400}
    surrogate = seqbdl.make_surrogate("hmc", D, bounds=bounds, noise=NOISE, **options)
    fast = clock(lambda: surrogate.fit(X, Y))
    with torch.no_grad():
        everything = surrogate.posterior(test_X).values  # every state of every chain: draws run slower than chains
    values = everything[:, :100].unflatten(0, (samples, chains))  # draws x chains x points
    mixed = chain_convergence(values)
    ess, r_hat = float(mixed.ess_bulk.median()), float(mixed.r_hat.max())
    quality = mixture_quality(everything, test_Y)
    own = f"{fast:.1f} s, ESS {ess:.0f}, R-hat up to {r_hat:.2f}; {quality}"
    try:
        from pyro.infer import MCMC, NUTS
    except ImportError:
        yield Race("prediction ESS per second", f"hmc, {chains} chains", "Pyro NUTS (not installed)", math.nan, 30.0, own, "")
        return
    counts = (3, 24) if quick else (60, 60)

    def theirs() -> None:
        with manual_seed(0):
            sampler = MCMC(NUTS(_pyro_model(X, Y)), num_samples=counts[1], warmup_steps=counts[0], disable_progbar=True)
            sampler.run()
        found["pyro"] = sampler.get_samples()

    slow = clock(theirs)
    predictions = []
    for s in range(counts[1]):
        h = 2 * test_X - 1
        for i in range(3):
            h = h @ (found["pyro"][f"w{i}"][s] / math.sqrt(h.shape[-1])) + found["pyro"][f"b{i}"][s]
            h = torch.tanh(h) if i < 2 else h
        predictions.append(h)
    values = torch.stack(predictions)
    halves = values[:, :100].unflatten(0, (2, -1)).transpose(0, 1)  # one chain, split
    moved = bool((halves != halves[:1, :1]).any())
    other_ess = float(chain_convergence(halves).ess_bulk.median()) if moved else 1.0
    yield Race(
        "prediction ESS per second", f"hmc, {chains} chains", f"Pyro NUTS, {counts[0]} + {counts[1]}",
        (ess / fast) / (other_ess / slow), 30.0, own, f"{slow:.1f} s, ESS {other_ess:.0f}; {mixture_quality(values, test_Y)}",
    )  # fmt: skip


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
            count / rate(_limit(128, points, torch.float64, "inputs" if with_slopes else ""), 0.02 if quick else 0.2)
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
    least = min(256 / k * few / 2000 / rate(_limit(k, 2000, torch.float64, ""), 0.1 if quick else 2.0) for k in at_once)
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


def evidence(quick: bool) -> Iterable[Race]:
    """Full Laplace with 100 steps of the evidence, against laplace-torch's full Laplace of the same network and mode."""
    n = 20 if quick else 200
    X, Y, test_X, _ = data(n)
    widths = (8, 8) if quick else WIDTHS
    ones = torch.ones(3, dtype=torch.float64)
    net = MLP(widths, torch.full((D,), 1.5, dtype=torch.float64), ones[:2], ones)
    zeros = torch.zeros(1, net.num_params, dtype=torch.float64)
    start = torch.randn(1, net.num_params, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    variance = torch.full_like(Y, NOISE)
    z = gauss_newton(net, X, Y.unsqueeze(0), variance, zeros, start, GaussNewtonSettings(60)).z
    found: dict[str, Any] = {}

    rows = laplace.Rows(get_likelihood("gaussian"), X, Y, variance)

    def ours() -> None:
        f = net.forward(z, X)[0]
        terms = NoiseTerms(n, ((Y - f).square() / variance).sum(), variance.log().mean())
        curve = evidence_at(net, z, zeros, X, rows.root(f), "full", False, terms)
        for step in range(100):  # steps of the precision and of the noise, with their gradient
            theta = torch.full((2,), 0.01 * step, dtype=torch.float64, requires_grad=True)
            torch.autograd.grad(curve(theta[:1], theta[1]), theta)
        posterior = laplace.laplace_at(net, rows, z, zeros, "full")
        found["evidence"] = float(posterior.log_evidence)
        found["variance"] = laplace.joint(net, posterior, test_X[:100, None]).variance.flatten()

    fast = statistics.median(clock(ours) for _ in range(3))
    memory = peak_memory(ours)
    own = f"{fast:.3f} s, {memory:.0f} MB"
    try:
        from laplace import Laplace
    except ImportError:
        yield Race("full Laplace, 100 evidence steps", "dual", "laplace-torch (not installed)", math.nan, 1000.0, own, "")
        return
    module = _as_module(net, z, widths)
    prior = _raw_precision(net, widths)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=n)
    options = {"sigma_noise": torch.tensor([math.sqrt(NOISE)], dtype=torch.float64), "prior_precision": prior}
    peer = Laplace(module, "regression", subset_of_weights="all", hessian_structure="full", **options)
    curvature = clock(lambda: peer.fit(loader))
    value: list[float] = []
    step = clock(lambda: value.append(float(peer.log_marginal_likelihood(prior.clone().requires_grad_(True)).detach())))
    spread: list[Tensor] = []
    predicting = clock(lambda: spread.append(peer(test_X[:100])[1].flatten().detach()))
    slow = curvature + 100 * step + predicting
    gaps = (found["evidence"] - value[0], float((found["variance"] / spread[0] - 1).abs().max()))
    yield Race(
        "full Laplace, 100 evidence steps", "dual", "laplace-torch", slow / fast, 1000.0,
        f"{own}; log evidence {found['evidence']:.4f} differs by {gaps[0]:.1e}, variances by {gaps[1]:.1e} of themselves",
        f"curvature {curvature:.1f} s + 100 x {step:.2f} s + predictions {predicting:.2f} s",
    )  # fmt: skip


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


class _Erf(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.erf(0.5 * math.sqrt(math.pi) * x)


class _Centre(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x - 1


def _as_module(net: MLP, z: Tensor, widths: tuple[int, ...]) -> nn.Module:
    """The network at ``z`` in PyTorch's plain style, with raw weights."""
    layers: list[nn.Module] = [_Centre()]
    for i, (w, b) in enumerate(net.layers(z)):
        w, b = w[0, 0], b[0, 0, 0]
        if i == 0:
            w = net._input_scale.unsqueeze(-1) * w
        linear = nn.Linear(*w.shape).double()
        linear.weight.data, linear.bias.data = w.T.contiguous(), b.contiguous()
        layers += [linear] if i == len(widths) else [linear, _Erf()]
    return nn.Sequential(*layers)


def _raw_precision(net: MLP, widths: tuple[int, ...]) -> Tensor:
    """Prior precision of the raw weights, in the module's order: what a unit precision of whitened weights means."""
    pieces = []
    for i, (a, b) in enumerate(zip(net.sizes[:-1], net.sizes[1:], strict=True)):
        scale = net._weight_scale[i].expand(a) * (net._input_scale if i == 0 else 1.0)
        pieces += [scale.square().reciprocal().expand(b, a).flatten(), net._bias_scale[i].square().reciprocal().expand(b)]
    return torch.cat(pieces)


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
