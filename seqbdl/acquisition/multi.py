"""Acquisition functions of several objectives."""

from __future__ import annotations

from typing import Any, cast

import torch
from botorch.acquisition.acquisition import AcquisitionFunction
from botorch.acquisition.multi_objective.hypervolume_knowledge_gradient import qHypervolumeKnowledgeGradient
from botorch.acquisition.multi_objective.logei import (
    qLogExpectedHypervolumeImprovement,
    qLogNoisyExpectedHypervolumeImprovement,
)
from botorch.acquisition.multi_objective.parego import qLogNParEGO
from botorch.models.model import ModelList
from botorch.sampling.list_sampler import ListSampler
from botorch.sampling.normal import SobolQMCNormalSampler
from botorch.utils.multi_objective.box_decompositions.non_dominated import FastNondominatedPartitioning
from torch import Tensor

from seqbdl.acquisition.context import AcquisitionContext, select_outputs
from seqbdl.acquisition.scores import check_output_index


def q_log_ehvi(context: AcquisitionContext, *, eta: float = 1e-3, fat: bool = True) -> AcquisitionFunction:
    """Log expected hypervolume improvement over the front of the baseline's posterior means."""
    ref_point = context.reference_point()
    return qLogExpectedHypervolumeImprovement(
        context.surrogate,
        ref_point=ref_point,
        # BoTorch annotates the slow partitioning; all its examples pass the fast one.
        partitioning=cast(Any, FastNondominatedPartitioning)(ref_point=ref_point, Y=context.objective_means()),
        sampler=context.sampler(),
        objective=context.multi_objective(),
        constraints=list(context.constraints) if context.constraints else None,
        X_pending=context.X_pending,
        eta=eta,
        fat=fat,
    )


def q_log_nehvi(
    context: AcquisitionContext,
    *,
    eta: float = 1e-3,
    fat: bool = True,
    prune_baseline: bool = True,
    cache_root: bool | None = None,
    alpha: float = 0.0,
) -> AcquisitionFunction:
    """Log noisy expected hypervolume improvement: the choice for several objectives."""
    return qLogNoisyExpectedHypervolumeImprovement(
        context.surrogate,
        ref_point=context.reference_point(),
        X_baseline=context.need_baseline(),
        sampler=context.sampler(),
        objective=context.multi_objective(),
        constraints=list(context.constraints) if context.constraints else None,
        X_pending=context.X_pending,
        eta=eta,
        fat=fat,
        prune_baseline=prune_baseline,
        cache_root=cache_root,
        alpha=alpha,
    )


def q_log_nparego(
    context: AcquisitionContext,
    *,
    scalarization_weights: Tensor | None = None,
    eta: float = 1e-3,
    prune_baseline: bool = True,
    cache_root: bool | None = None,
) -> AcquisitionFunction:
    """qLogNEI of a random Chebyshev scalarization (drawn with the seed): cheap with many objectives."""
    return qLogNParEGO(
        context.surrogate,
        X_baseline=context.need_baseline(),
        scalarization_weights=scalarization_weights,
        sampler=context.sampler(),
        objective=context.multi_objective(),
        constraints=list(context.constraints) if context.constraints else None,
        X_pending=context.X_pending,
        eta=eta,
        prune_baseline=prune_baseline,
        cache_root=cache_root,
    )


def q_hvkg(context: AcquisitionContext, *, num_pareto: int = 5) -> AcquisitionFunction:
    """Hypervolume knowledge gradient (Daulton et al. 2023), one-shot, all objectives observed together."""
    if context.constraints:
        raise context.error("does not take outcome constraints; use qLogNEHVI")
    ref_point = context.reference_point()
    indices = context.objective if isinstance(context.objective, (list, tuple)) else range(context.surrogate.num_outputs)
    if context.objective is not None and not isinstance(context.objective, (list, tuple)):
        raise context.error("takes objective=[output indices] only")
    model = context.surrogate
    # Views fantasize all outputs jointly: the same base samples give each of them the same fantasies.
    joint = hasattr(model, "sample_functions")
    if not isinstance(model, ModelList):
        chosen = [check_output_index(int(i), model.num_outputs) for i in indices]
        model = ModelList(*[select_outputs(model, [i]) for i in chosen])
    fantasies = 8 if context.num_fantasies is None else context.num_fantasies
    samplers = [
        SobolQMCNormalSampler(sample_shape=torch.Size([fantasies]), seed=context.seed + (0 if joint else i))
        for i in range(model.num_outputs)
    ]
    return qHypervolumeKnowledgeGradient(
        model,
        ref_point=ref_point,
        num_fantasies=fantasies,
        num_pareto=num_pareto,
        sampler=ListSampler(*samplers),
        X_pending=context.X_pending,
    )
