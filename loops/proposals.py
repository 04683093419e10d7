"""From a fitted surrogate to the points to ask next."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import torch
from botorch.acquisition.acquisition import AcquisitionFunction, OneShotAcquisitionFunction
from torch import Tensor

from seqbdl.acquisition import (
    AcquisitionContext,
    list_acquisitions,
    make_acquisition,
    optimize_acquisition,
    optimize_over_candidates,
    thompson_candidates,
    thompson_continuous,
)
from seqbdl.errors import InvalidOptionError, SeqbdlError, UnknownNameError
from seqbdl.loops.conditioning import moments
from seqbdl.loops.parameters import Value
from seqbdl.loops.space import Point, Space
from seqbdl.surrogates import Surrogate

AcquisitionFactory: TypeAlias = Callable[[Surrogate, AcquisitionContext], AcquisitionFunction]
DESIGNS = ("random", "sobol")
"""Names that need no surrogate."""
THOMPSON = "thompson"
MANY = 20
"""Batches beyond this go to Thompson sampling under ``acquisition="auto"``: their cost grows only linearly."""
# These look at one point at a time: pending and failed points mean nothing to them.
_WITHOUT_PENDING = frozenset({"LogEI", "UCB", "PosteriorMean", "PosteriorStandardDeviation", "qPES", "DrawEntropySearch"})
# These smooth over fixed widths that BoTorch chose for outcomes of about unit variance.
_SMOOTHED = frozenset({"qLogEI", "qLogNEI", "qLogEHVI", "qLogNEHVI"})
# Around a failed point nothing is proposed again, in search coordinates.
_FAILED_RADIUS = 1e-3


class SpaceExhaustedError(SeqbdlError):
    """Every point of a finite space has been asked."""


def check_acquisition(acquisition: str | AcquisitionFactory) -> None:
    """Refuse names that do not exist.

    Raises:
        UnknownNameError: With the list of known names.
    """
    if callable(acquisition):
        return
    known = ["auto", THOMPSON, *DESIGNS, *list_acquisitions()]
    if acquisition not in known:
        raise UnknownNameError("acquisition function", acquisition, known)


def choose_acquisition(
    acquisition: str | AcquisitionFactory, num_outcomes: int, n: int, feasible: bool = True
) -> str | AcquisitionFactory:
    """What ``"auto"`` means.

    ``qLogNEI``; ``qLogNEHVI`` for several outcomes; the probability of feasibility ``qLogPF`` until a feasible point is
    known; Thompson sampling for big batches.
    """
    if acquisition != "auto":
        return acquisition
    if n > MANY:
        return THOMPSON
    if not feasible:
        return "qLogPF"
    return "qLogNEI" if num_outcomes == 1 else "qLogNEHVI"


def constraint_output(samples: Tensor, output: int, scale: float = 1.0) -> Tensor:
    """One output of the surrogate as a constraint: ``... x q x m`` to ``... x q``, feasible when at most 0."""
    return samples[..., output] / scale


def scaled_outcomes(samples: Tensor, X: Tensor | None = None, *, shift: Tensor, scale: Tensor) -> Tensor:
    """The first outputs, shifted and scaled: ``... x q x m``, or ``... x q`` for a single one."""
    values = (samples[..., : len(shift)] - shift) / scale
    return values.squeeze(-1) if len(shift) == 1 else values


@dataclass(frozen=True)
class Request:
    """What to propose points from.

    Attributes:
        space: The search space.
        surrogate: Fitted; all outputs maximized: ``num_outcomes`` outcomes, then the constraints.
        acquisition: A name or a factory.
        num_outcomes: ``m``.
        num_constraints: ``k``.
        pending: Points asked for, and not yet told.
        failed: Points that failed.
        taken: Keys of points not to propose.
        fixed: Parameters held at a value.
        ref_point: Of the hypervolume, maximization.
        generator: Randomness.
        options: For the acquisition function.
        optimizer_options: For its optimization.
    """

    space: Space
    surrogate: Surrogate
    acquisition: str | AcquisitionFactory
    num_outcomes: int
    num_constraints: int
    pending: Sequence[Point]
    failed: Sequence[Point]
    taken: Collection[tuple[Any, ...]]
    fixed: Mapping[str, Value]
    ref_point: Tensor | None
    generator: torch.Generator
    options: Mapping[str, Any] = field(default_factory=dict)
    optimizer_options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def constraints(self) -> list[Callable[[Tensor], Tensor]] | None:
        """Callables on samples; negative is feasible."""
        outputs = range(self.num_outcomes, self.num_outcomes + self.num_constraints)
        scales = self._spread()[1].tolist() if self.num_constraints else []
        return [partial(constraint_output, output=output, scale=scales[output]) for output in outputs] or None

    def _spread(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the observed outputs, one each."""
        targets = self.surrogate.train_targets
        if targets is None or len(targets) < 2:
            outputs = self.num_outcomes + self.num_constraints
            return torch.zeros(outputs, dtype=torch.double), torch.ones(outputs, dtype=torch.double)
        sd = targets.std(dim=0)
        # rounding of a constant column is no spread
        return targets.mean(dim=0), torch.where(sd > 1e-12 * targets.abs().amax(dim=0), sd, 1.0)

    def _unit_scale(self) -> dict[str, Any]:
        """Objective and reference point in units of the outcomes' spread, for methods that smooth over fixed widths."""
        own = {"best_f", "objective", "ref_point"} & set(self.options)
        if own or not (isinstance(self.acquisition, str) and self.acquisition in _SMOOTHED):
            return {"objective": self.objective, "ref_point": self.ref_point}
        shift, scale = (values[: self.num_outcomes] for values in self._spread())
        reference = None if self.ref_point is None else (self.ref_point - shift) / scale
        return {"objective": partial(scaled_outcomes, shift=shift, scale=scale), "ref_point": reference}

    @property
    def objective(self) -> int | list[int] | None:
        """Which outputs to maximize; ``None`` when it is the only one."""
        if self.num_outcomes > 1:
            return list(range(self.num_outcomes))
        return 0 if self.num_constraints else None

    @property
    def fixed_features(self) -> dict[int, float]:
        """The fixed parameters as search coordinates."""
        parameters = enumerate(self.space.parameters)
        return {i: p.to_search(self.fixed[p.name]) for i, p in parameters if p.name in self.fixed}

    def seed(self) -> int:
        """A fresh seed."""
        return int(torch.randint(2**31 - 1, (1,), generator=self.generator))

    def build(self, candidates: Tensor | None = None) -> AcquisitionFunction:
        """The acquisition function."""
        waiting = list(self.pending)
        if not (isinstance(self.acquisition, str) and self.acquisition in _WITHOUT_PENDING):
            # a failed point counts as if its outcome were still to come: it is not worth asking again
            waiting += list(self.failed)
        shared: dict[str, Any] = {
            "bounds": self.space.bounds,
            "X_pending": self.space.encode(waiting) if waiting else None,
            "constraints": self.constraints,
            **self._unit_scale(),
            "candidates": candidates,
            "seed": self.seed(),
        }
        if isinstance(self.acquisition, str):
            return make_acquisition(self.acquisition, self.surrogate, **{**shared, **self.options})
        return self.acquisition(self.surrogate, AcquisitionContext(self.surrogate, **{**shared, **self.options}))


def propose(request: Request, n: int) -> list[Point]:
    """``n`` points to ask.

    Raises:
        SpaceExhaustedError: A finite space has fewer points left.
    """
    if request.space.enumerable:
        return _from_table(request, n)
    space = request.space
    common: dict[str, Any] = {"discrete_dims": space.discrete_dims, "cat_dims": space.cat_dims}
    acqf = None
    if request.acquisition == THOMPSON:
        X = torch.cat([_thompson(request, size, objective, common) for size, objective in _thompson_objectives(request, n)])
    else:
        acqf = request.build()
        options = {"around": _good_points(request), **request.optimizer_options}
        X, _ = optimize_acquisition(
            acqf,
            space.search_bounds,
            q=n,
            generator=request.generator,
            encode=space.search_to_model,
            fixed_features=request.fixed_features or None,
            **common,
            **options,
        )
    return _without_duplicates(request, space.from_search(X), acqf)


def _good_points(request: Request) -> Tensor | None:
    """Search coordinates of the best points by posterior mean: worth starting near."""
    inputs = request.surrogate.train_inputs
    if inputs is None:
        return None
    means = moments(request.surrogate, inputs[0])[0][:, : request.num_outcomes].sum(-1)
    best = means.topk(min(5, len(means))).indices
    return request.space.to_search(request.space.decode(inputs[0][best]))


def _thompson_objectives(request: Request, n: int) -> list[tuple[int, Any]]:
    """How many points go to which objective: several outcomes are weighted anew for every point."""
    if request.num_outcomes == 1:
        return [(n, request.objective)]
    inputs = request.surrogate.train_inputs
    assert inputs is not None
    means = moments(request.surrogate, inputs[0])[0][:, : request.num_outcomes]
    low, span = means.amin(0), (means.amax(0) - means.amin(0)).clamp_min(1e-9)
    draws = torch.rand(n, request.num_outcomes, generator=request.generator, dtype=torch.double).log().neg()
    weights = draws / draws.sum(-1, keepdim=True)
    return [(1, partial(_chebyshev, weights=w, low=low, span=span)) for w in weights]


def _chebyshev(samples: Tensor, X: Tensor | None = None, *, weights: Tensor, low: Tensor, span: Tensor) -> Tensor:
    """Augmented Chebyshev scalarization (Knowles 2006) of outcomes scaled to their observed range."""
    scaled = (samples[..., : weights.shape[-1]] - low) / span * weights
    return scaled.amin(-1) + 0.05 * scaled.sum(-1)


def _thompson(request: Request, n: int, objective: Any, common: Mapping[str, Any]) -> Tensor:
    space, fixed = request.space, request.fixed_features

    def hold(Xs: Tensor) -> Tensor:
        if not fixed:
            return Xs
        columns = [torch.full_like(Xs[..., i], fixed[i]) if i in fixed else Xs[..., i] for i in range(Xs.shape[-1])]
        return torch.stack(columns, dim=-1)

    X = thompson_continuous(
        request.surrogate,
        space.search_bounds,
        n,
        request.generator,
        objective=objective,
        constraints=request.constraints,
        encode=lambda Xs: space.search_to_model(hold(Xs)),
        start=_good_points(request),
        **common,
        **request.optimizer_options,
    )
    return hold(X)


def _from_table(request: Request, n: int) -> list[Point]:
    space = request.space
    table = space.table()
    closed = space.table_rows(request.taken)
    if request.fixed:
        closed = sorted({*closed, *(row for row in range(len(table)) if not _holds(space.table_point(row), request.fixed))})
    if len(table) - len(closed) < n:
        raise SpaceExhaustedError(
            f"{n} points were asked of a space with {len(table) - len(closed)} points left; replicates=True asks points again"
        )
    if request.acquisition == THOMPSON:
        rows: list[int] = []
        for size, objective in _thompson_objectives(request, n):
            chosen = thompson_candidates(
                request.surrogate,
                table,
                size,
                request.generator,
                objective=objective,
                constraints=request.constraints,
                exclude=[*closed, *rows],
            )
            rows += chosen.tolist()
        return [space.table_point(row) for row in rows]
    acqf = request.build(table)
    if isinstance(acqf, OneShotAcquisitionFunction):
        raise InvalidOptionError(
            f"{request.acquisition!r} chooses several points in one shot and cannot search a finite space, where every "
            "point is evaluated; use qLogNEI, qUCB, qKG or thompson"
        )
    index, _ = optimize_over_candidates(acqf, table, n, exclude=closed)
    return [space.table_point(row) for row in index.tolist()]


def _holds(point: Mapping[str, Value], fixed: Mapping[str, Value]) -> bool:
    return all(point[name] == value for name, value in fixed.items())


def _without_duplicates(request: Request, points: Sequence[Point], acqf: AcquisitionFunction | None) -> list[Point]:
    """The points, those already taken replaced by good neighbours that are not."""
    taken = set(request.taken)
    failed = request.space.to_search(request.failed) if request.failed else None
    chosen: list[Point] = []
    for point in points:
        if not _free(request.space, point, taken, failed):
            point = _neighbour(request, point, acqf, taken, failed)
        taken.add(request.space.key(point))
        chosen.append(point)
    return chosen


def _free(space: Space, point: Point, taken: Collection[tuple[Any, ...]], failed: Tensor | None) -> bool:
    if space.key(point) in taken:
        return False
    return failed is None or bool(((failed - space.to_search([point])).abs().amax(-1) > _FAILED_RADIUS).all())


def _neighbour(
    request: Request,
    point: Point,
    acqf: AcquisitionFunction | None,
    taken: Collection[tuple[Any, ...]],
    failed: Tensor | None,
) -> Point:
    """The best free point that differs in one parameter, else the best of random points."""
    space = request.space
    movable = [parameter.name for parameter in space.parameters if parameter.name not in request.fixed]
    candidates: list[Point] = []
    for drawn in space.random(8 * len(space.parameters), request.generator):
        candidates += [{**point, name: drawn[name]} for name in movable]
    for _ in range(10):
        free = {space.key(p): p for p in candidates if _free(space, p, taken, failed)}
        if free:
            listed = list(free.values())
            return listed[_rank(request, listed, point, acqf)]
        candidates = [{**drawn, **request.fixed} for drawn in space.random(512, request.generator)]
    raise SpaceExhaustedError("no point is left that was not asked before; replicates=True asks points again")


def _rank(request: Request, listed: Sequence[Point], point: Point, acqf: AcquisitionFunction | None) -> int:
    X = request.space.encode(listed)
    if acqf is None or isinstance(acqf, OneShotAcquisitionFunction):
        return int((X - request.space.encode([point])).abs().sum(-1).argmin())
    with torch.no_grad():
        return int(acqf(X.unsqueeze(-2)).argmax())
