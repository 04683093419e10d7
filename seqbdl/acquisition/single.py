"""Acquisition functions of one objective: improvement, confidence bounds, simple regret, plain uncertainty."""

from __future__ import annotations

from botorch.acquisition.acquisition import AcquisitionFunction
from botorch.acquisition.analytic import LogExpectedImprovement, PosteriorMean, PosteriorStandardDeviation
from botorch.acquisition.analytic import UpperConfidenceBound as AnalyticUpperConfidenceBound
from botorch.acquisition.logei import (
    qLogExpectedImprovement,
    qLogNoisyExpectedImprovement,
    qLogProbabilityOfFeasibility,
)
from botorch.acquisition.monte_carlo import qSimpleRegret, qUpperConfidenceBound

from seqbdl.acquisition.context import AcquisitionContext


def _no_pending(context: AcquisitionContext, instead: str) -> None:
    if context.X_pending is not None and context.X_pending.shape[0] > 0:
        raise context.error(f"cannot take X_pending into account; use {instead}")


def log_ei(context: AcquisitionContext) -> AcquisitionFunction:
    """Analytic log expected improvement (Ament et al. 2023), one point at a time."""
    _no_pending(context, "qLogEI")
    scalar = context.scalar()
    return LogExpectedImprovement(scalar.surrogate, best_f=scalar.incumbent())


def ucb(context: AcquisitionContext) -> AcquisitionFunction:
    """Mean + sqrt(beta) standard deviations, one point at a time."""
    _no_pending(context, "qUCB")
    return AnalyticUpperConfidenceBound(context.scalar().surrogate, beta=_beta(context))


def posterior_mean(context: AcquisitionContext) -> AcquisitionFunction:
    """The posterior mean itself: what to recommend, not what to explore."""
    _no_pending(context, "qSR")
    return PosteriorMean(context.scalar().surrogate)


def posterior_standard_deviation(context: AcquisitionContext) -> AcquisitionFunction:
    """The posterior standard deviation of the function: pure exploration."""
    _no_pending(context, "qNIPV")
    return PosteriorStandardDeviation(context.scalar().surrogate)


def q_log_ei(
    context: AcquisitionContext, *, eta: float = 1e-3, fat: bool = True, tau_max: float = 1e-2, tau_relu: float = 1e-6
) -> AcquisitionFunction:
    """Log expected improvement of a batch over the incumbent (Ament et al. 2023)."""
    return qLogExpectedImprovement(
        context.surrogate,
        best_f=context.incumbent(),
        sampler=context.sampler(),
        objective=context.mc_objective(),
        X_pending=context.X_pending,
        constraints=list(context.constraints) if context.constraints else None,
        eta=eta,
        fat=fat,
        tau_max=tau_max,
        tau_relu=tau_relu,
    )


def q_log_nei(
    context: AcquisitionContext,
    *,
    eta: float = 1e-3,
    fat: bool = True,
    prune_baseline: bool = True,
    cache_root: bool | None = None,
    tau_max: float = 1e-2,
    tau_relu: float = 1e-6,
) -> AcquisitionFunction:
    """Log expected improvement over the unknown best observed point: the choice for noisy outcomes."""
    return qLogNoisyExpectedImprovement(
        context.surrogate,
        X_baseline=context.need_baseline(),
        sampler=context.sampler(),
        objective=context.mc_objective(),
        X_pending=context.X_pending,
        constraints=list(context.constraints) if context.constraints else None,
        eta=eta,
        fat=fat,
        prune_baseline=prune_baseline,
        cache_root=cache_root,
        tau_max=tau_max,
        tau_relu=tau_relu,
    )


def q_log_pf(context: AcquisitionContext, *, eta: float = 1e-3) -> AcquisitionFunction:
    """Log probability that a point is feasible: where to look while nothing feasible is known."""
    if not context.constraints:
        raise context.error("needs constraints; pass callables on samples that are negative where feasible")
    return qLogProbabilityOfFeasibility(
        context.surrogate,
        constraints=list(context.constraints),
        sampler=context.sampler(),
        X_pending=context.X_pending,
        eta=eta,
    )


def q_ucb(context: AcquisitionContext) -> AcquisitionFunction:
    """Upper confidence bound of a batch (Wilson et al. 2017)."""
    beta = _beta(context)
    context = context.scalar_if_possible()
    return qUpperConfidenceBound(
        context.surrogate,
        beta=beta,
        sampler=context.sampler(),
        objective=context.constrained_objective(),
        X_pending=context.X_pending,
    )


def q_sr(context: AcquisitionContext) -> AcquisitionFunction:
    """Simple regret: the expected best of a batch, without exploration."""
    context = context.scalar_if_possible()
    return qSimpleRegret(
        context.surrogate,
        sampler=context.sampler(),
        objective=context.constrained_objective(),
        X_pending=context.X_pending,
    )


def _beta(context: AcquisitionContext) -> float:
    if not context.beta >= 0:
        raise context.error(f"beta={context.beta}; it needs to be 0 or more")
    return context.beta
