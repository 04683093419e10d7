"""Selections by name."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from seqbdl._checks import check_finite, check_tensor
from seqbdl.acquisition import pool_scores
from seqbdl.acquisition._random import draw_seed
from seqbdl.acquisition.batches import classes, values
from seqbdl.acquisition.batches.batch import Batch, Indices, pool_rules
from seqbdl.acquisition.batches.context import PoolContext
from seqbdl.errors import InvalidOptionError, ShapeError, UnknownNameError

#: ``select(context, *, option=default, ...) -> Batch``; its keyword-only arguments are the options.
Select = Callable[..., Batch]


@dataclass(frozen=True)
class BatchAcquisition:
    """A way to select points of a pool, and what it needs.

    Attributes:
        name: As the field writes it.
        for_classes: The selection where outcomes are classes, if there is one.
        for_values: Where they are real values.
        needs_targets: Whether it needs inputs from where the model will be used.
        needs_features: Whether it works in a feature space: given features, the surrogate's own, or function draws.
        needs_joint: Whether it needs joint predictions (function draws or covariances), not only marginal ones.
    """

    name: str
    for_classes: Select | None = None
    for_values: Select | None = None
    needs_targets: bool = False
    needs_features: bool = False
    needs_joint: bool = False


def _table() -> dict[str, BatchAcquisition]:
    by_score = classes.by_score
    entries = [
        BatchAcquisition("Random", values.random, values.random),
        BatchAcquisition("PredictiveEntropy", by_score(pool_scores.predictive_entropy), values.predictive_entropy),
        BatchAcquisition("Margin", by_score(classes.certainty_less)),
        BatchAcquisition("VariationRatio", by_score(pool_scores.variation_ratio)),
        BatchAcquisition("VoteVariationRatio", by_score(pool_scores.vote_variation_ratio)),
        BatchAcquisition("MeanStandardDeviation", by_score(pool_scores.mean_standard_deviation)),
        BatchAcquisition("PredictiveVariance", None, values.predictive_variance),
        BatchAcquisition("EpistemicVariance", None, values.epistemic_variance),
        BatchAcquisition("BALD", by_score(pool_scores.bald), values.bald()),
        BatchAcquisition("PowerBALD", by_score(pool_scores.bald, "power"), values.bald("power")),
        BatchAcquisition("SoftmaxBALD", by_score(pool_scores.bald, "softmax"), values.bald("softmax")),
        BatchAcquisition("SoftRankBALD", by_score(pool_scores.bald, "soft-rank"), values.bald("soft-rank")),
        BatchAcquisition("BatchBALD", classes.batch_bald, values.batch_bald, needs_joint=True),
        BatchAcquisition("EPIG", classes.epig, values.epig, needs_targets=True, needs_joint=True),
        BatchAcquisition("qNIPV", None, values.nipv, needs_targets=True, needs_joint=True),
        BatchAcquisition("BADGE", classes.badge, needs_features=True),
        BatchAcquisition("KCentre", values.k_centre, values.k_centre, needs_features=True),
        BatchAcquisition("KMeans++", values.kmeans_plus_plus, values.kmeans_plus_plus, needs_features=True),
        BatchAcquisition("LCMD", values.lcmd, values.lcmd, needs_features=True),
        BatchAcquisition("MaxDet", None, values.max_det, needs_joint=True),
        BatchAcquisition("BAIT", None, values.bait, needs_features=True),
        BatchAcquisition("FrankWolfe", None, values.frank_wolfe, needs_features=True),
    ]
    return {_key(entry.name): entry for entry in entries}


def _key(name: str) -> str:
    """Case and punctuation do not matter: ``k-centre`` is ``KCentre``."""
    return re.sub(r"[^a-z0-9+]", "", name.lower())


_TABLE = _table()

#: Read-only view of the registered selections, by their lower-case names.
BATCH_ACQUISITIONS: Mapping[str, BatchAcquisition] = MappingProxyType(_TABLE)


def list_batch_acquisitions() -> list[str]:
    """The registered names."""
    return sorted((entry.name for entry in _TABLE.values()), key=str.lower)


def get_batch_acquisition(name: str) -> BatchAcquisition:
    """What is registered under a name; case and hyphens do not matter.

    Raises:
        UnknownNameError: Nothing is; the message lists the names.
    """
    entry = _TABLE.get(_key(name)) if isinstance(name, str) else None
    if entry is None:
        raise UnknownNameError("batch acquisition", name, list_batch_acquisitions())
    return entry


def register_batch_acquisition(acquisition: BatchAcquisition) -> None:
    """Add a way to select points.

    Raises:
        InvalidOptionError: The name is taken.
    """
    if _key(acquisition.name) in _TABLE:
        raise InvalidOptionError(f"a batch acquisition named {acquisition.name!r} exists already; choose another name")
    _TABLE[_key(acquisition.name)] = acquisition


def select_batch(
    name: str,
    surrogate: Any,
    pool: Tensor,
    batch_size: int = 1,
    *,
    targets: Tensor | None = None,
    target_weights: Tensor | None = None,
    pending: Indices = None,
    exclude: Indices = None,
    cost: Tensor | None = None,
    features: Callable[[Tensor], Tensor] | None = None,
    num_draws: int = 100,
    generator: torch.Generator | None = None,
    **options: Any,
) -> Batch:
    """Choose points of a pool by a named method.

    Args:
        name: One of :func:`list_batch_acquisitions`.
        surrogate: Any surrogate, or what has its ``log_probs`` (classes), or its ``posterior`` and ``sample_functions``
            (values).
        pool: ``N x d`` inputs, labelled ones included or not.
        batch_size: ``q``.
        targets: ``M x d`` inputs from where the model will be used; needed by EPIG and qNIPV.
        target_weights: ``M`` density ratios where targets come from another distribution than that of use.
        pending: Indices asked for and not yet answered; they count as part of the batch.
        exclude: Indices never to choose, such as those labelled already; or a mask of ``N`` booleans.
        cost: ``N`` positive costs; points are ranked by what they add for a unit of cost (Random ignores them).
        features: ``k x d`` to ``k x F``, such as a network without its last layer; the surrogate's own ``features`` by default,
            function draws where it has none.
        num_draws: Function draws behind scores of classes, and behind features where there are no others.
        generator: Of draws and choices; moves on. By default the surrogate's own.
        options: Further options of the named method.

    Returns:
        The batch, in pick order.

    Raises:
        UnknownNameError: The name or an option does not exist; the message lists those that do.
        InvalidOptionError: Something needed is missing, or would be ignored.
        InvalidDataError: Bad numbers; an index that stands twice, or is both pending and excluded.
    """
    entry = get_batch_acquisition(name)
    pool = _points("pool", pool)
    of_classes = _speaks_of_classes(surrogate, pool)
    select = entry.for_classes if of_classes else entry.for_values
    if select is None:
        kind, other = ("classes", "real values") if of_classes else ("real values", "classes")
        raise InvalidOptionError(f"{entry.name} is for {other}; the surrogate's outcomes are {kind}")
    known = [p.name for p in inspect.signature(select).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for option in options:
        if option not in known:
            raise UnknownNameError(f"option of {entry.name}", option, known or ["(it has none of its own)"])
    if num_draws < 2:
        raise InvalidOptionError(f"num_draws={num_draws}; one draw has nothing to disagree with, give 2 or more")
    _check_needs(entry, targets, target_weights, features)
    rules = pool_rules(pool.shape[0], batch_size, pending, exclude, cost, pool.device)
    source = getattr(surrogate, "generator", None) if generator is None else generator
    if not isinstance(source, torch.Generator):
        raise InvalidOptionError("the surrogate holds no generator; pass generator=torch.Generator().manual_seed(...)")
    context = PoolContext(
        surrogate=surrogate,
        pool=pool,
        rules=rules,
        draws_generator=torch.Generator().manual_seed(draw_seed(source)),
        generator=torch.Generator().manual_seed(draw_seed(source)),
        targets=None if targets is None else _points("targets", targets, pool.shape[1]).to(pool.device),
        target_weights=target_weights,
        features=features,
        num_draws=num_draws,
    )
    return select(context, **options)


def _check_needs(
    entry: BatchAcquisition,
    targets: Tensor | None,
    target_weights: Tensor | None,
    features: Callable[[Tensor], Tensor] | None,
) -> None:
    if entry.needs_targets and targets is None:
        raise InvalidOptionError(f"{entry.name} needs targets (M x d): inputs, without labels, from where the model will be used")
    if not entry.needs_targets and (targets is not None or target_weights is not None):
        raise InvalidOptionError(f"{entry.name} does not look at targets; leave targets and target_weights out")
    if features is not None and not (entry.needs_features or entry.name == "MaxDet"):
        raise InvalidOptionError(f"{entry.name} does not look at features; leave features out")


def _points(name: str, value: object, columns: int | None = None) -> Tensor:
    points = check_tensor(name, value).detach().double()
    if points.dim() != 2 or points.shape[0] == 0 or columns not in (None, points.shape[1]):
        raise ShapeError(f"{name} has shape {tuple(points.shape)}; it needs {'N' if columns is None else 'M'} x {columns or 'd'}")
    check_finite(name, points)
    return points


def _speaks_of_classes(surrogate: Any, pool: Tensor) -> bool:
    """Whether outcomes are classes: what has no joint posterior speaks of classes only; else a prediction tells."""
    if not callable(getattr(surrogate, "log_probs", None)):
        return False
    if not callable(getattr(surrogate, "predict", None)):
        return True
    return surrogate.predict(pool[:1]).probs is not None
