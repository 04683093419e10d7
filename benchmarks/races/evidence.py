"""The evidence of a full Laplace approximation against laplace-torch's."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from races.frame import NOISE, WIDTHS, D, Race, clock, data, peak_memory
from seqbdl.inference import laplace
from seqbdl.inference.evidence import NoiseTerms, evidence_at
from seqbdl.inference.gauss_newton import GaussNewtonSettings, gauss_newton
from seqbdl.likelihoods import get_likelihood
from seqbdl.networks import MLP


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
