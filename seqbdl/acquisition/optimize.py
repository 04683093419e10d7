"""Maximize an acquisition function over a box, a mixed space or a list of candidates.

All randomness comes from the generator that is passed; torch's global generator is left as it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from botorch.acquisition.acquisition import AcquisitionFunction
from botorch.acquisition.analytic import AnalyticAcquisitionFunction
from botorch.acquisition.max_value_entropy_search import MaxValueBase
from botorch.optim import optimize_acqf
from botorch.optim.parameter_constraints import evaluate_feasibility
from torch import Tensor

from seqbdl.acquisition._random import draw_seed, isolated_rng
from seqbdl.acquisition.draw_entropy import DrawEntropySearch
from seqbdl.acquisition.draws import Encode
from seqbdl.acquisition.encoding import EncodedAcquisition, SearchView
from seqbdl.acquisition.initial import LinearConstraint, starting_points
from seqbdl.acquisition.mixed import Columns, alternate
from seqbdl.acquisition.pool import optimize_over_candidates
from seqbdl.errors import InvalidOptionError


def optimize_acquisition(
    acqf: AcquisitionFunction,
    bounds: Tensor | None = None,
    q: int = 1,
    num_restarts: int = 10,
    raw_samples: int = 256,
    generator: torch.Generator | None = None,
    discrete_dims: Mapping[int, Sequence[float]] | None = None,
    cat_dims: Mapping[int, Sequence[float]] | None = None,
    candidates: Tensor | None = None,
    *,
    encode: Encode | None = None,
    sequential: bool | None = None,
    fixed_features: Mapping[int, float] | None = None,
    inequality_constraints: list[LinearConstraint] | None = None,
    equality_constraints: list[LinearConstraint] | None = None,
    around: Tensor | None = None,
    maxiter: int = 200,
    exclude: Tensor | Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """The best ``q`` points and the acquisition value.

    Starts are scrambled Sobol points and copies near good observed points, chosen by Boltzmann weights; each climbs by
    its own L-BFGS-B (SLSQP under linear constraints), alternating with best-neighbour moves in discrete columns.

    Args:
        acqf: Any BoTorch acquisition function of the surrogate's inputs, one-shot ones too.
        bounds: ``2 x d``, of the search coordinates; not needed with ``candidates``.
        q: Points to choose.
        num_restarts: Ascents.
        raw_samples: Points that compete to be their starts.
        generator: Randomness; moves on. Without one, a fixed seed.
        discrete_dims: Column to its allowed ordered values, in search coordinates.
        cat_dims: Column to its unordered codes, in search coordinates.
        candidates: ``N x d``: choose among these rows only, each evaluated exactly, no row twice.
        encode: Search coordinates ``... x d`` to surrogate inputs ``... x D``, differentiable; identity by default.
        sequential: One point after the other, each with the earlier ones pending (default for ``q > 1``), or all
            jointly; look-ahead in one shot is joint by default.
        fixed_features: Column to its value.
        inequality_constraints: ``(indices, coefficients, rhs)``, each ``sum X[indices] * coefficients >= rhs``.
        equality_constraints: The same with ``=``.
        around: Points ``k x d`` (search coordinates) worth starting near; by default the best observed ones where
            ``encode`` is not given.
        maxiter: Steps of each ascent.
        exclude: With ``candidates``: indices never to choose.

    Returns:
        ``X`` of shape ``q x d`` in search coordinates, and the value: 0-d for a joint batch, ``q`` values (each given
        the earlier points) when sequential with ``q > 1``.

    Raises:
        InvalidOptionError: Settings that contradict each other, or constraints that nothing satisfies.
    """
    if q < 1 or num_restarts < 1 or raw_samples < 1:
        raise InvalidOptionError(f"q={q}, num_restarts={num_restarts}, raw_samples={raw_samples}; all need to be >= 1")
    if candidates is not None:
        indices, values = optimize_over_candidates(acqf, candidates, q, exclude=exclude, encode=encode)
        return candidates[indices], values if q > 1 else values[0]
    if exclude is not None:
        raise InvalidOptionError("exclude holds indices of candidates; pass candidates too")
    if bounds is None:
        raise InvalidOptionError("pass bounds (2 x d, search coordinates) or candidates (N x d)")
    columns = Columns(bounds, discrete_dims, cat_dims)
    view = SearchView(acqf, encode)
    fixed = _check_fixed(columns, fixed_features)
    constrained = bool(inequality_constraints or equality_constraints)
    if constrained and columns.values:
        raise InvalidOptionError("linear constraints together with discrete columns are not supported; pass candidates")
    if generator is None:
        generator = torch.Generator().manual_seed(0)

    def solve(size: int) -> tuple[Tensor, Tensor]:
        # Some acquisition functions fix their base samples at the first call: that call happens in here.
        with isolated_rng(draw_seed(generator)):
            starts = starting_points(
                view,
                columns,
                size,
                num_restarts,
                raw_samples,
                generator,
                around,
                fixed,
                inequality_constraints,
                equality_constraints,
                _feasible(inequality_constraints, equality_constraints) if constrained else None,
            )
            if constrained:
                X, values = _constrained(view, starts, bounds, inequality_constraints, equality_constraints, fixed, maxiter)
            else:
                X, values = alternate(
                    view.rows, starts, columns, maxiter, fixed=frozenset(fixed), chunk_size=max(16, 512 // size)
                )
        best = values.argmax()
        return view.extract(X[best].unsqueeze(0)).squeeze(0).detach(), values[best].detach()

    one_by_one = _is_single_point(acqf)
    if sequential is None:
        sequential = one_by_one or not view.one_shot
    if q == 1 or not sequential:
        if q > 1 and one_by_one:
            raise InvalidOptionError(f"{type(acqf).__name__} takes one point at a time; pass sequential=True")
        return solve(q)
    if isinstance(acqf, AnalyticAcquisitionFunction):
        raise InvalidOptionError(
            f"{type(acqf).__name__} cannot build batches (it ignores pending points); use a q* method such as qLogNEI"
        )
    chosen: list[Tensor] = []
    gains: list[Tensor] = []
    # Telling BoTorch's noisy improvement about pending points draws base samples again.
    with isolated_rng(draw_seed(generator)), view.adding_pending() as add:
        for i in range(q):
            X, value = solve(1)
            chosen.append(X)
            gains.append(value)
            if i + 1 < q:
                add(X)
    return torch.cat(chosen), torch.stack(gains)


def _is_single_point(acqf: AcquisitionFunction) -> bool:
    return isinstance(acqf, AnalyticAcquisitionFunction | MaxValueBase | DrawEntropySearch)


def _check_fixed(columns: Columns, fixed: Mapping[int, float] | None) -> dict[int, float]:
    result = {int(k): float(v) for k, v in (fixed or {}).items()}
    d = columns.bounds.shape[-1]
    for column, value in result.items():
        if not 0 <= column < d:
            raise InvalidOptionError(f"fixed_features names column {column}; the columns are 0 to {d - 1}")
        low, high = float(columns.bounds[0, column]), float(columns.bounds[1, column])
        if not low <= value <= high:
            raise InvalidOptionError(f"fixed_features[{column}]={value} is outside its bounds [{low}, {high}]")
        if column in columns.values and not bool((columns.values[column] == value).any()):
            raise InvalidOptionError(f"fixed_features[{column}]={value} is not one of that column's values")
    return result


def _feasible(inequality: list[LinearConstraint] | None, equality: list[LinearConstraint] | None) -> Any:
    def check(X: Tensor) -> Tensor:
        return cast(
            Tensor,
            cast(Any, evaluate_feasibility)(
                X=X, inequality_constraints=inequality, equality_constraints=equality, tolerance=1e-6
            ),
        )

    return check


def _constrained(
    view: SearchView,
    starts: Tensor,
    bounds: Tensor,
    inequality: list[LinearConstraint] | None,
    equality: list[LinearConstraint] | None,
    fixed: Mapping[int, float],
    maxiter: int,
) -> tuple[Tensor, Tensor]:
    """BoTorch's SLSQP from the given starts; all end points ``b x q x d`` and values ``b``."""
    X, values = cast(Any, optimize_acqf)(
        acq_function=EncodedAcquisition(view),
        bounds=bounds,
        q=starts.shape[-2],
        num_restarts=starts.shape[0],
        batch_initial_conditions=starts,
        inequality_constraints=inequality,
        equality_constraints=equality,
        fixed_features=dict(fixed) or None,
        options={"maxiter": maxiter},
        return_best_only=False,
        retry_on_optimization_warning=False,
    )
    return X, values
