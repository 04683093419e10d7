"""Where the optimization of an acquisition function begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from botorch.models.model import Model
from botorch.utils.sampling import get_polytope_samples
from torch import Tensor

from seqbdl.acquisition._models import posterior_of
from seqbdl.acquisition._random import draw_seed, isolated_rng, multinomial, sobol_points
from seqbdl.acquisition.ascent import evaluate_in_chunks
from seqbdl.acquisition.context import observed_inputs
from seqbdl.acquisition.encoding import SearchView
from seqbdl.acquisition.mixed import Columns
from seqbdl.errors import InvalidOptionError

#: BoTorch's form: ``(indices, coefficients, rhs)`` means ``sum X[indices] * coefficients >= rhs`` (or ``=``).
LinearConstraint = tuple[Tensor, Tensor, float]
Feasible = Callable[[Tensor], Tensor]

# Standard deviation, as a share of each column's range, of the copies of good observed points.
_NEARBY = 0.05


def raw_batches(
    columns: Columns,
    n: int,
    q: int,
    generator: torch.Generator,
    around: Tensor | None,
    fixed: Mapping[int, float],
    inequality: list[LinearConstraint] | None,
    equality: list[LinearConstraint] | None,
) -> Tensor:
    """``n x q x d`` allowed points: Sobol points, a quarter of them replaced by copies near good observed points."""
    bounds = columns.bounds
    if inequality or equality:
        with isolated_rng(draw_seed(generator)):
            points = cast(Any, get_polytope_samples)(
                n=n * q, bounds=bounds, inequality_constraints=inequality, equality_constraints=equality
            )
        raw = points.reshape(n, q, -1).to(bounds)
        return _with_fixed(raw, fixed)
    raw = sobol_points(bounds, n, draw_seed(generator), q)
    if around is not None and around.shape[0] > 0:
        count = n // 4
        pick = torch.randint(around.shape[0], (count, q), generator=generator, device=generator.device)
        noise = torch.randn(count, q, bounds.shape[-1], generator=generator, device=generator.device)
        near = around.to(bounds)[pick.to(bounds.device)] + _NEARBY * (bounds[1] - bounds[0]) * noise.to(bounds)
        if bounds.shape[-1] > 8:
            # In many dimensions a point that moves in all of them is not near any more: move about eight.
            keep = torch.rand(near.shape, generator=generator, device=generator.device).to(bounds)
            near = torch.where(keep < 8.0 / bounds.shape[-1], near, around.to(bounds)[pick.to(bounds.device)])
        raw[:count] = torch.minimum(torch.maximum(near, bounds[0]), bounds[1])
    return _with_fixed(columns.snap(raw), fixed)


def pick_starts(raw: Tensor, values: Tensor, n: int, generator: torch.Generator, eta: float = 2.0) -> Tensor:
    """``n`` rows of ``raw``: the best one and others drawn with Boltzmann weights of their standardized values."""
    finite = values.isfinite()
    if raw.shape[0] <= n:
        return raw
    if not bool(finite.any()):
        return raw[:n]
    known = values[finite]
    spread = known.std() if known.shape[0] > 1 else known.new_tensor(0.0)
    if not bool(spread > 0):
        return raw[multinomial(finite.to(values), n, generator)]
    z = torch.where(finite, (values - known.mean()) / spread, values.new_tensor(-torch.inf))
    weights = torch.exp(eta * (z - z.max()))
    best = values.argmax()
    weights[best] = 0.0
    others = multinomial(weights, n - 1, generator) if n > 1 else best.new_empty(0)
    return raw[torch.cat([best.reshape(1), others])]


def one_shot_batches(view: SearchView, raw: Tensor, q: int, generator: torch.Generator, random_share: float) -> Tensor:
    """Starts for one-shot look-ahead: the look-ahead solutions begin where the posterior mean is large.

    Args:
        view: A one-shot acquisition function.
        raw: ``n x q' x d``, all random.
        q: Batch size; the other ``q' - q`` points are solutions after the fantasies.
        generator: Randomness.
        random_share: Share of solutions that stay random.
    """
    n, total, d = raw.shape
    pool = raw.reshape(-1, d)[: max(512, total)]
    model = base_model(view)
    with torch.no_grad():
        inputs = pool if view.encode is None else view.encode(pool)
        means = torch.cat([posterior_of(model, part.unsqueeze(-2)).mean[..., 0, :] for part in inputs.split(512)])
    means = (means - means.mean(dim=0)) / means.std(dim=0).clamp_min(1e-12)
    slots = n * (total - q)
    # With several objectives every start looks at another trade-off between them.
    share = torch.rand(n, means.shape[-1], generator=generator, device=generator.device).to(means)
    scores = means @ (share / share.sum(dim=-1, keepdim=True)).T  # pool x n
    weights = torch.exp(4.0 * (scores - scores.amax(dim=0)).T).double().to(generator.device)  # n x pool
    chosen = torch.multinomial(weights, total - q, replacement=True, generator=generator).to(pool.device)
    solutions = pool[chosen]
    random = torch.rand(n, total - q, 1, generator=generator, device=generator.device).to(pool) < random_share
    result = raw.clone()
    result[:, q:] = torch.where(random, raw[:, q:], solutions)
    if slots == 0:
        return raw
    return result


def base_model(view: SearchView) -> Model:
    """The surrogate itself, where the acquisition function works on a fantasized one."""
    return cast(Model, getattr(view.acqf, "_init_model", view.acqf.model))


def good_observed(view: SearchView, columns: Columns, limit: int = 5) -> Tensor | None:
    """Observed points with the largest posterior mean, where search coordinates are the surrogate's own."""
    model = base_model(view)
    observed = None if view.encode is not None else observed_inputs(model)
    if observed is None or observed.shape[0] == 0 or observed.shape[-1] != columns.bounds.shape[-1]:
        return None
    inside = ((observed >= columns.bounds[0]) & (observed <= columns.bounds[1])).all(dim=-1)
    observed = observed[inside].to(columns.bounds)
    if observed.shape[0] == 0:
        return None
    with torch.no_grad():
        mean = posterior_of(model, observed.unsqueeze(-2)).mean[..., 0, :]
    rank = ((mean - mean.mean(dim=0)) / (mean.std(dim=0, correction=0) + 1e-12)).sum(dim=-1)
    return observed[rank.topk(min(limit, rank.shape[0])).indices]


def starting_points(
    view: SearchView,
    columns: Columns,
    q: int,
    num_restarts: int,
    raw_samples: int,
    generator: torch.Generator,
    around: Tensor | None,
    fixed: Mapping[int, float],
    inequality: list[LinearConstraint] | None = None,
    equality: list[LinearConstraint] | None = None,
    feasible: Feasible | None = None,
) -> Tensor:
    """The chosen starts, ``num_restarts x q' x d``; ``q'`` counts the solutions of one-shot look-ahead too."""
    total = view.augmented(q)
    if around is None:
        around = good_observed(view, columns)
    raw = raw_batches(columns, raw_samples, total, generator, around, fixed, inequality, equality)
    if view.one_shot:
        raw = _with_fixed(columns.snap(one_shot_batches(view, raw, q, generator, random_share=0.1)), fixed)
    if feasible is not None:
        allowed = feasible(raw)
        if not bool(allowed.any()):
            raise InvalidOptionError(f"none of {raw_samples} points satisfies the constraints; relax them or raise raw_samples")
        raw = raw[allowed]
    values = evaluate_in_chunks(view.rows, raw, chunk_size=max(16, 512 // total))
    return pick_starts(raw, values, num_restarts, generator)


def _with_fixed(X: Tensor, fixed: Mapping[int, float]) -> Tensor:
    for column, value in fixed.items():
        X[..., column] = value
    return X
