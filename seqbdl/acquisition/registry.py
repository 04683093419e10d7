"""Acquisition functions by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from botorch.acquisition.acquisition import AcquisitionFunction
from botorch.models.model import Model
from torch import Tensor

from seqbdl.acquisition import information, lookahead, multi, single
from seqbdl.acquisition._random import isolated_rng
from seqbdl.acquisition.context import AcquisitionContext
from seqbdl.acquisition.mixed import check_bounds
from seqbdl.errors import InvalidOptionError, ShapeError, UnknownNameError

#: ``factory(context, *, option=default, ...) -> AcquisitionFunction``; its keyword-only arguments are the options.
Factory = Callable[..., AcquisitionFunction]

_TABLE: dict[str, Factory] = {
    "LogEI": single.log_ei,
    "UCB": single.ucb,
    "PosteriorMean": single.posterior_mean,
    "PosteriorStandardDeviation": single.posterior_standard_deviation,
    "qLogEI": single.q_log_ei,
    "qLogNEI": single.q_log_nei,
    "qLogPF": single.q_log_pf,
    "qUCB": single.q_ucb,
    "qSR": single.q_sr,
    "qLogEHVI": multi.q_log_ehvi,
    "qLogNEHVI": multi.q_log_nehvi,
    "qLogNParEGO": multi.q_log_nparego,
    "qHVKG": multi.q_hvkg,
    "qKG": lookahead.q_kg,
    "qMultiStep": lookahead.q_multi_step,
    "qNIPV": lookahead.q_nipv,
    "qMES": information.q_mes,
    "GIBBON": information.gibbon,
    "qJES": information.q_jes,
    "qPES": information.q_pes,
    "DrawEntropySearch": information.draw_entropy_search,
}

#: Read-only view of the registered factories.
ACQUISITIONS: Mapping[str, Factory] = MappingProxyType(_TABLE)


def list_acquisitions() -> list[str]:
    """The registered names."""
    return sorted(_TABLE, key=str.lower)


def register_acquisition(name: str, factory: Factory) -> None:
    """Add an acquisition function under a new name.

    Args:
        name: Must not be taken.
        factory: ``(context, *, option=default, ...) -> AcquisitionFunction``.
    """
    if name in _TABLE:
        raise InvalidOptionError(f"an acquisition function named {name!r} exists already; choose another name")
    _TABLE[name] = factory


def make_acquisition(
    name: str,
    surrogate: Model,
    *,
    X_baseline: Tensor | None = None,
    best_f: float | str | Tensor | None = None,
    bounds: Tensor | None = None,
    X_pending: Tensor | None = None,
    constraints: Sequence[Callable[[Tensor], Tensor]] | None = None,
    objective: Any = None,
    ref_point: Tensor | Sequence[float] | None = None,
    mc_samples: int = 128,
    num_fantasies: int | None = None,
    beta: float = 4.0,
    candidates: Tensor | None = None,
    seed: int = 0,
    **options: Any,
) -> AcquisitionFunction:
    """Build a BoTorch acquisition function by name. The surrogate's outputs are to be maximized.

    The same seed gives the same acquisition function; torch's global generator is left as it was.

    Args:
        name: One of :func:`list_acquisitions`.
        surrogate: A fitted surrogate, or any BoTorch model.
        X_baseline: ``n x d`` observed points; the surrogate's training inputs by default.
        best_f: The incumbent: a number, ``"mean"`` (default: the largest posterior mean over the baseline) or
            ``"observed"`` (the largest observed value; for outcomes without noise).
        bounds: ``2 x d``, of the surrogate's inputs; needed by entropy searches and integrated variance.
        X_pending: ``k x d`` asked for and not yet observed.
        constraints: Callables on samples ``... x q x m`` to ``... x q``; negative is feasible.
        objective: Index of the output to maximize, a callable on samples, or a BoTorch objective; a list of indices for
            several objectives.
        ref_point: Of the hypervolume, maximization; inferred from the baseline by default.
        mc_samples: Monte Carlo samples, with fixed base samples.
        num_fantasies: Fantasies of look-ahead methods; each has its own default.
        beta: Of confidence bounds, mean + sqrt(beta) sd.
        candidates: ``N x d``, where only these can be chosen; then optima are sought among them too.
        seed: Of base samples, function draws and Sobol points.
        options: Further options of the named acquisition function.

    Raises:
        UnknownNameError: The name or an option does not exist; the message lists those that do.
        InvalidOptionError: Something needed is missing or out of range; the message says what to pass.
    """
    if name not in _TABLE:
        raise UnknownNameError("acquisition function", name, list_acquisitions())
    factory = _TABLE[name]
    known = [p.name for p in inspect.signature(factory).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for option in options:
        if option not in known:
            raise UnknownNameError(f"option of {name}", option, known or ["(it has none of its own)"])
    for argument, value in (("mc_samples", mc_samples), ("num_fantasies", num_fantasies)):
        if value is not None and value < 1:
            raise InvalidOptionError(f"{argument}={value}; it needs to be 1 or more")
    for argument, points in (("X_baseline", X_baseline), ("X_pending", X_pending), ("candidates", candidates)):
        if points is not None and points.dim() != 2:
            raise ShapeError(f"{argument} has shape {tuple(points.shape)}; it needs n x d")
    context = AcquisitionContext(
        surrogate=surrogate,
        name=name,
        X_baseline=X_baseline,
        best_f=best_f,
        bounds=None if bounds is None else check_bounds(bounds),
        X_pending=None if X_pending is None or X_pending.shape[0] == 0 else X_pending,
        constraints=constraints,
        objective=objective,
        ref_point=ref_point,
        mc_samples=mc_samples,
        num_fantasies=num_fantasies,
        beta=beta,
        candidates=candidates,
        seed=seed,
    )
    with isolated_rng(seed):
        return factory(context, **options)
