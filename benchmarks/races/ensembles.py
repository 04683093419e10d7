"""Ten members at once against ten networks in a loop."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from botorch.utils.sampling import manual_seed
from torch import Tensor, nn

from races.frame import LIMIT, NOISE, D, Race, data, mixture_quality, network, products_alone, race, rate
from seqbdl.inference.adam import AdamSettings, adam
from seqbdl.inference.log_joint import LogJoint
from seqbdl.inference.members import by_gauss_newton
from seqbdl.inference.observations import Randomized
from seqbdl.likelihoods import get_likelihood
from seqbdl.priors import GaussianPrior


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
    least = steps / rate(products_alone(10, n, torch.float64), 0.1 if quick else 2.0)
    yield Race(f"Adam, ten members, N = {n}", "stacked", LIMIT, least / fast, 0.6, f"{fast:.2f} s", f"{least:.2f} s")
