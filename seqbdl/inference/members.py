"""The fit of S networks, each to its own objective: by Gauss-Newton in the dual, or by mini-batch Adam. All ensembles share it.

Member ``s`` minimizes ``misfit_s(f(z_s)) + precision / 2 |z_s - a_s|^2``; misfits are sums over rows, and may be randomized
member by member. Gauss-Newton takes tens of steps of ``N x N`` algebra: by far the cheapest on a few hundred rows. Its cost grows
like ``N^3``; beyond, mini-batches reach equally good predictions earlier, and any architecture can take them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from seqbdl.errors import InvalidOptionError
from seqbdl.inference.adam import AdamSettings, adam
from seqbdl.inference.gauss_newton import GaussNewtonSettings, minimize
from seqbdl.inference.observations import Joined, Observations, Randomized, Remembered, cast
from seqbdl.networks import Network

FITS = ("auto", "gauss-newton", "adam")

_DESCENT = GaussNewtonSettings(max_iterations=15)
_BATCHES = AdamSettings(steps=2000, learning_rate=0.03, batch_size=64)

_SINGLE = 1e5
"""Float32 is exact to 6e-8: up to this ratio of prior variance to noise the matrices of Gauss-Newton survive it."""

_NESTED = 300
"""Rows times latent functions from which the first steps of Gauss-Newton see a part of the rows."""

_WARM = 1.5
"""An update starts where the last fit ended and takes few steps: so many times more rows go to Gauss-Newton then."""

_JACOBIAN_ENTRIES = 2**26
"""Of dense Jacobians (half a gigabyte), which networks that are not matrix-free form."""


@dataclass(frozen=True)
class FitSettings:
    """Attributes:
    method: ``"gauss-newton"``, ``"adam"``, or ``"auto"``: Gauss-Newton up to ``max_rows``, Adam beyond.
    gauss_newton: When to stop.
    adam: Steps, rate and batches.
    max_rows: Rows times latent functions that ``"auto"`` gives to Gauss-Newton.
    """

    method: str = "auto"
    gauss_newton: GaussNewtonSettings = _DESCENT
    adam: AdamSettings = _BATCHES
    max_rows: int = 400

    def __post_init__(self) -> None:
        if self.method not in FITS:
            raise InvalidOptionError(f"fit={self.method!r} must be one of {', '.join(FITS)}")
        if self.max_rows < 1:
            raise InvalidOptionError(f"max_rows={self.max_rows} must be at least 1")


DEFAULT_FIT = FitSettings()


@dataclass(frozen=True)
class Held:
    """What members must keep while they learn something new.

    Attributes:
        X: ``r x d``.
        values: The values that they have there, and how firmly.
    """

    X: Tensor
    values: Remembered


def chosen_method(network: Network, num_members: int, num_rows: int, settings: FitSettings, warm: bool = False) -> str:
    """``"gauss-newton"`` or ``"adam"``."""
    if settings.method != "auto":
        return settings.method
    size = num_rows * network.num_outputs
    dense = num_members * size * network.num_params
    few = size <= settings.max_rows * (_WARM if warm else 1.0) and (network.matrix_free or dense <= _JACOBIAN_ENTRIES)
    return "gauss-newton" if few else "adam"


def fit_members(
    network: Network,
    X: Tensor,
    observations: Randomized,
    anchors: Tensor,
    start: Tensor,
    generator: torch.Generator,
    settings: FitSettings = DEFAULT_FIT,
    precision: float = 1.0,
    held: Held | None = None,
) -> Tensor:
    """Every member's minimizer, ``S x P``.

    Args:
        network: Over whitened weights.
        X: ``n x d`` in the unit cube.
        observations: At the rows of ``X``.
        anchors: ``S x P`` centres of the penalty.
        start: ``S x P`` where to begin.
        generator: Orders mini-batches.
        settings: Which way, and when to stop.
        precision: Of the penalty.
        held: Old knowledge that the members keep (see :class:`Remembered`).
    """
    held_rows = 0 if held is None else held.X.shape[0]
    if chosen_method(network, start.shape[0], X.shape[0] + held_rows, settings, held is not None) == "adam":
        return _by_adam(network, X, observations, anchors, start, generator, settings.adam, precision, held)
    if held is None:
        return by_gauss_newton(network, X, observations, anchors, start, settings.gauss_newton, precision)
    joined = Joined(held.values, observations, held_rows)
    return by_gauss_newton(network, torch.cat([held.X, X]), joined, anchors, start, settings.gauss_newton, precision)


def by_gauss_newton(
    network: Network,
    X: Tensor,
    observations: Observations,
    anchors: Tensor,
    start: Tensor,
    settings: GaussNewtonSettings = _DESCENT,
    precision: float = 1.0,
) -> Tensor:
    """Gauss-Newton in float32 as far as it goes, where that is safe, and the last steps in float64; ``S x P``.

    Args:
        network: Over whitened weights.
        X: ``n x d``.
        observations: At the rows of ``X``.
        anchors: ``S x P``.
        start: ``S x P``.
        settings: When to stop.
        precision: Of the penalty.
    """
    if not network.matrix_free or _stiffness(network, X, observations, start) > _SINGLE * precision:
        return minimize(network, X, observations, anchors, start, settings, precision).z
    single = torch.float32
    coarse = _on_more_and_more_rows(
        network, X.to(single), cast(observations, single), anchors.to(single), start.to(single), settings, precision
    )
    last = replace(settings, max_iterations=2)
    return minimize(network, X, observations, anchors, coarse.to(start), last, precision).z


def _on_more_and_more_rows(
    network: Network,
    X: Tensor,
    observations: Observations,
    anchors: Tensor,
    start: Tensor,
    settings: GaussNewtonSettings,
    precision: float,
) -> Tensor:
    """Gauss-Newton on every fourth row, on every other, on all: a step costs between ``N^2`` and ``N^3``, so that the first
    ones, which go far, are nearly free. A member whose start is better than what that leads to keeps it: in a loop starts are
    the last round's solutions."""
    z, size = start, X.shape[0] * network.num_outputs
    if isinstance(observations, Randomized) and size >= _NESTED:
        for stride in (4, 2):
            rows = torch.arange(0, X.shape[0], stride, device=X.device)
            z = minimize(network, X[rows], observations.rows(rows), anchors, z, settings, precision).z
        z = better_start(network, X, observations, anchors, z, start)
        settings = replace(settings, max_iterations=max(1, settings.max_iterations // 2))
    return minimize(network, X, observations, anchors, z, settings, precision).z


def _stiffness(network: Network, X: Tensor, observations: Observations, z: Tensor) -> float:
    """The largest information of a row about the weights, in units of the prior's precision: of the diagonal of ``R^T J J^T
    R``."""
    tangents = network.tangents(z, X)
    blocks = network.tangent_gram(tangents, torch.Size([X.shape[0]]), 1)  # S x n x l x l
    root = observations.root(tangents.values)
    variance = blocks.diagonal(dim1=-2, dim2=-1)
    scaled = root.square() * variance if root.dim() == variance.dim() else (root.square() * variance.unsqueeze(-1)).sum(-2)
    return float(scaled.max())


def _by_adam(
    network: Network,
    X: Tensor,
    observations: Randomized,
    anchors: Tensor,
    start: Tensor,
    generator: torch.Generator,
    settings: AdamSettings,
    precision: float,
    held: Held | None,
) -> Tensor:
    dtype = torch.float32 if network.matrix_free else start.dtype
    rows, seen, centre = X.to(dtype), cast(observations, dtype), anchors.to(dtype)
    held_rows = 0 if held is None else held.X.shape[0]
    kept = (held.X.to(dtype), cast(held.values, dtype)) if held is not None and held_rows else None
    size = held_rows if settings.batch_size is None else min(settings.batch_size, held_rows)

    def gradient(z: Tensor, index: Tensor | None) -> Tensor:
        inputs, part = (rows, seen) if index is None else (rows[index], seen.rows(index))
        f, back = network.pullback(z, inputs)
        total = precision * (z - centre) - back((X.shape[0] / inputs.shape[0]) * part.score(f))
        if kept is not None:
            some = torch.randint(held_rows, (size,), generator=generator) if size < held_rows else torch.arange(size)
            f, back = network.pullback(z, kept[0][some])
            total = total - back((held_rows / size) * kept[1].rows(some).score(f))
        return total

    return adam(gradient, start.to(dtype), X.shape[0], settings, generator).to(start)


def better_start(network: Network, X: Tensor, observations: Observations, anchors: Tensor, *starts: Tensor) -> Tensor:
    """Of several starts, member by member, the one with the smaller objective; ``S x P``.

    Args:
        network: Over whitened weights.
        X: ``n x d``.
        observations: At the rows of ``X``.
        anchors: ``S x P``.
        starts: ``S x P`` each.
    """
    losses = torch.stack([observations.misfit(network.forward(z, X)) + 0.5 * (z - anchors).square().sum(-1) for z in starts])
    losses = torch.where(losses.isfinite(), losses, torch.full_like(losses, math.inf))
    pick = losses.argmin(0)
    return torch.stack(starts)[pick, torch.arange(pick.shape[0], device=pick.device)]
