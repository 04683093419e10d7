"""What races have in common: the workload, clocks, and the least that any implementation must pay."""

from __future__ import annotations

import itertools
import math
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.test_functions import Hartmann
from gpytorch.mlls import ExactMarginalLogLikelihood
from torch import Tensor

from seqbdl.diagnostics import coverage, nlpd, rmse
from seqbdl.networks import MLP

WIDTHS, D, NOISE = (64, 64), 6, 0.01
TEST_ROWS = 500
LIMIT = "matrix products and activations alone"
"""A peer that no implementation on this machine can pass: by how much it is ahead is what is left to gain."""


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


def products_alone(networks: int, n: int, dtype: torch.dtype, slopes: str = "weights") -> Callable[[], None]:
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
