"""Function draws and where they are largest.

A surrogate's ``sample_functions`` gives functions that can be evaluated anywhere, again and again; their maximizers are
exact samples of the posterior over the optimum, which Thompson sampling and the entropy searches need.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from botorch.models.model import Model
from botorch.sampling.pathwise import draw_matheron_paths
from torch import Tensor

from seqbdl.acquisition._random import draw_seed, isolated_rng, sobol_points
from seqbdl.acquisition.mixed import Columns, alternate
from seqbdl.acquisition.scores import Objective, Scorer
from seqbdl.errors import InvalidOptionError

Encode = Callable[[Tensor], Tensor]


class Draws(Protocol):
    """n functions: ``draws(X)`` maps ``batch x q x d`` to ``n x batch x q x m``."""

    def __call__(self, X: Tensor, /) -> Tensor: ...

    def __len__(self) -> int: ...


class FunctionSource(Protocol):
    """What draws functions: a surrogate."""

    def sample_functions(self, n: int, generator: torch.Generator | None = None) -> Draws: ...


class SelectedDraws:
    """Chosen outputs of function draws."""

    def __init__(self, draws: Draws, indices: Sequence[int]) -> None:
        self._draws = draws
        self._indices = list(indices)

    def __call__(self, X: Tensor) -> Tensor:
        return self._draws(X)[..., self._indices]

    def __len__(self) -> int:
        return len(self._draws)


class _MatheronDraws:
    """Pathwise draws of a model that is not one of ours."""

    def __init__(self, model: Model, n: int, seed: int) -> None:
        with isolated_rng(seed):
            self._path: Any = cast(Any, draw_matheron_paths)(model, sample_shape=torch.Size([n]))
        self._n = n
        self._single = model.num_outputs == 1

    def __call__(self, X: Tensor) -> Tensor:
        values: Tensor = self._path(X.reshape(-1, X.shape[-1]))  # n x N, or n x m x N
        values = values.unsqueeze(-1) if self._single else values.transpose(-1, -2)
        return values.reshape(self._n, *X.shape[:-1], values.shape[-1])

    def __len__(self) -> int:
        return self._n


def function_draws(surrogate: Model, n: int, generator: torch.Generator | None = None) -> Draws:
    """``n`` function draws of a surrogate, or of any BoTorch model that has Matheron paths."""
    if n < 1:
        raise InvalidOptionError(f"n={n} function draws were asked for; ask for one or more")
    sample = getattr(surrogate, "sample_functions", None)
    if callable(sample):
        return cast(Draws, sample(n, generator=generator))
    return _MatheronDraws(surrogate, n, draw_seed(generator))


def evaluate_own(draws: Draws, X: Tensor, owners: Tensor) -> Tensor:
    """Each q-batch under its own draw: ``X`` ``b x q x d`` and ``owners`` ``b`` give ``b x q x m``.

    Draws that offer ``paired(X, owners)`` evaluate only what is asked for; else all draws are evaluated everywhere.
    """
    paired = getattr(draws, "paired", None)
    if callable(paired):
        return cast(Tensor, paired(X, owners))
    everything = draws(X)
    return everything[owners, torch.arange(X.shape[0], device=X.device)]


@dataclass(frozen=True)
class Optima:
    """Where function draws are largest: ``inputs`` ``n x d``, ``outcomes`` ``n x m``, objective ``values`` ``n``."""

    inputs: Tensor
    outcomes: Tensor
    values: Tensor


# Draws that are maximized together. All of them are evaluated at all of their trial points, so the work grows with the
# square of this and only linearly with the number of groups.
_TOGETHER = 16


def sample_optima(
    surrogate: Model, n: int, generator: torch.Generator | None, bounds: Tensor, scorer: Scorer, **options: Any
) -> Optima:
    """Draw ``n`` functions and maximize each; ``options`` are those of :func:`maximize_draws`."""
    parts = []
    for start in range(0, n, _TOGETHER):
        draws = function_draws(surrogate, min(_TOGETHER, n - start), generator)
        parts.append(maximize_draws(draws, bounds, scorer, draw_seed(generator), **options))
    return Optima(
        inputs=torch.cat([part.inputs for part in parts]),
        outcomes=torch.cat([part.outcomes for part in parts]),
        values=torch.cat([part.values for part in parts]),
    )


def maximize_draws(
    draws: Draws,
    bounds: Tensor,
    scorer: Scorer,
    seed: int,
    num_restarts: int = 4,
    raw_samples: int = 512,
    maxiter: int = 100,
    discrete_dims: Mapping[int, Sequence[float]] | None = None,
    cat_dims: Mapping[int, Sequence[float]] | None = None,
    encode: Encode | None = None,
    start: Tensor | None = None,
) -> Optima:
    """Maximize every draw over a box: Sobol points, the best of them per draw as starts, batched gradient ascent.

    Args:
        draws: ``n`` functions of the surrogate's inputs.
        bounds: ``2 x d``, of the search coordinates.
        scorer: Objective and constraints.
        seed: Of the Sobol points.
        num_restarts: Ascents for each draw.
        raw_samples: Sobol points that all draws share.
        maxiter: Steps of each ascent.
        discrete_dims: Allowed values of columns, see :func:`seqbdl.acquisition.optimize_acquisition`.
        cat_dims: The same for columns without an order.
        encode: Search coordinates to the surrogate's inputs; the identity by default.
        start: Further points ``k x d`` to consider as starts, for instance those observed.
    """
    n = len(draws)
    columns = Columns(bounds, discrete_dims, cat_dims)
    raw = sobol_points(bounds, raw_samples, seed).squeeze(-2)
    if start is not None and start.shape[0] > 0:
        raw = torch.cat([raw, start.to(raw)])
    raw = columns.snap(raw)
    mapped = raw if encode is None else encode(raw)
    chunk = max(64, 65536 // n)
    with torch.no_grad():
        samples = torch.cat([draws(mapped[i : i + chunk]) for i in range(0, mapped.shape[0], chunk)], dim=-2)
        ranked = scorer.ranked(samples, mapped)  # n x raw
        weight = _penalty_weight(scorer, samples, mapped)
    restarts = min(num_restarts, raw.shape[0])
    chosen = ranked.topk(restarts, dim=-1).indices  # n x restarts
    starts = raw[chosen].reshape(n * restarts, 1, -1)
    owners = torch.arange(n, device=raw.device).repeat_interleave(restarts)

    def value(X: Tensor, rows: Tensor) -> Tensor:
        inputs = X if encode is None else encode(X)
        own = evaluate_own(draws, inputs, owners[rows])
        return scorer.penalized(own, inputs, weight)[..., 0]

    X, _ = alternate(value, starts, columns, maxiter=maxiter)
    with torch.no_grad():
        inputs = X if encode is None else encode(X)
        outcomes = evaluate_own(draws, inputs, owners)[..., 0, :]
        final = scorer.ranked(outcomes.unsqueeze(-2), inputs)[..., 0]
    best = final.reshape(n, restarts).argmax(dim=-1) + restarts * torch.arange(n, device=raw.device)
    values = scorer.value(outcomes.unsqueeze(-2), inputs)[..., 0]
    return Optima(inputs=X[best, 0].detach(), outcomes=outcomes[best], values=values[best].detach())


def _penalty_weight(scorer: Scorer, samples: Tensor, X: Tensor) -> float:
    """A violation of one typical constraint deviation costs ten times the objective's range."""
    excess = scorer.violation(samples)
    if excess is None:
        return 0.0
    value = scorer.value(samples, X)
    spread = float(value.max() - value.min())
    scale = float(excess[excess > 0].mean()) if bool((excess > 0).any()) else 1.0
    return 10.0 * max(spread, 1e-6) / max(scale, 1e-12)


def optimal_samples(
    surrogate: Model,
    bounds: Tensor,
    n: int = 16,
    generator: torch.Generator | None = None,
    num_restarts: int = 4,
    raw_samples: int = 512,
    objective: Objective | None = None,
    candidates: Tensor | None = None,
    start: Tensor | None = None,
) -> Optima:
    """Samples of the posterior over the optimum: ``n`` function draws, each maximized.

    Args:
        surrogate: Anything with ``sample_functions``, or a BoTorch model with Matheron paths.
        bounds: ``2 x d``, of the surrogate's inputs.
        n: Number of draws.
        generator: Randomness; moves on.
        num_restarts: Ascents per draw.
        raw_samples: Random points per draw from which the starts of ascents are chosen.
        objective: Which output, or a callable of samples; needed with several outputs.
        candidates: ``N x d``; given, the maximum is over these points alone.
        start: Points ``k x d`` worth starting from, for instance those observed.
    """
    scorer = Scorer(surrogate.num_outputs, objective)
    if n < 1:
        raise InvalidOptionError(f"n={n} optima were asked for; ask for one or more")
    if candidates is None:
        options = {"num_restarts": num_restarts, "raw_samples": raw_samples, "start": start}
        return sample_optima(surrogate, n, generator, bounds, scorer, **options)
    draws = function_draws(surrogate, n, generator)
    with torch.no_grad():
        chunk = max(64, 65536 // n)
        best_values = candidates.new_full((n,), -torch.inf)
        best = torch.zeros(n, dtype=torch.long, device=candidates.device)
        for i in range(0, candidates.shape[0], chunk):
            part = candidates[i : i + chunk]
            values, index = scorer.value(draws(part), part).max(dim=-1)
            better = values > best_values
            best_values = torch.where(better, values, best_values)
            best = torch.where(better, index + i, best)
        inputs = candidates[best]
        outcomes = evaluate_own(draws, inputs.unsqueeze(-2), torch.arange(n, device=inputs.device))[..., 0, :]
    return Optima(inputs=inputs, outcomes=outcomes, values=best_values)
