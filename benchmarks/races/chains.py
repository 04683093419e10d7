"""Chains of samplers: gradients of the log joint a second, and effective predictions a second."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from botorch.utils.sampling import manual_seed
from torch import Tensor

import seqbdl
from races.frame import LIMIT, NOISE, WIDTHS, D, Race, clock, data, mixture_quality, network, products_alone, rate
from seqbdl.diagnostics.convergence import chain_convergence
from seqbdl.inference.log_joint import LogJoint
from seqbdl.likelihoods import get_likelihood
from seqbdl.networks import MLP
from seqbdl.priors import GaussianPrior


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
        limit = 16 * rate(products_alone(16, n, dtype), seconds)
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
