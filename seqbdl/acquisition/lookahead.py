"""Look-ahead: what is the best we expect to know after the next observation?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from botorch import settings
from botorch.acquisition.acquisition import AcquisitionFunction
from botorch.acquisition.knowledge_gradient import qKnowledgeGradient
from botorch.acquisition.multi_step_lookahead import qMultiStepLookahead
from botorch.models.model import Model
from botorch.sampling.base import MCSampler
from botorch.sampling.normal import SobolQMCNormalSampler
from torch import Tensor

from seqbdl.acquisition._models import concatenate_pending_points, posterior_of, t_batch_mode_transform
from seqbdl.acquisition.context import AcquisitionContext


class DiscreteKnowledgeGradient(AcquisitionFunction):
    """Knowledge gradient where the optimum is sought among given points (Frazier et al. 2009), by fantasies.

    The queried points themselves always belong to the points among which the optimum is sought.

    Args:
        model: Single-output model that fantasizes.
        inner_points: ``K x d``.
        sampler: Draws the fantasies.
        X_pending: ``k x d``.
    """

    def __init__(self, model: Model, inner_points: Tensor, sampler: MCSampler, X_pending: Tensor | None = None) -> None:
        super().__init__(model=model)
        self.sampler = sampler
        self.register_buffer("inner_points", inner_points)
        self.set_X_pending(X_pending)

    @concatenate_pending_points
    @t_batch_mode_transform()
    def forward(self, X: Tensor) -> Tensor:
        """Expected gain of the largest posterior mean, ``b`` for ``X`` ``b x q x d``."""
        inner = cast(Tensor, self.inner_points)
        points = torch.cat([inner.expand(*X.shape[:-2], *inner.shape), X], dim=-2)
        now = posterior_of(self.model, points).mean.squeeze(-1).amax(dim=-1)
        fantasy = cast(Any, self.model).fantasize(X=X, sampler=self.sampler)
        with settings.propagate_grads(True):
            means = posterior_of(fantasy, points).mean.squeeze(-1)  # num_fantasies x b x (K + q)
        return means.amax(dim=-1).mean(dim=0) - now


class NegIntegratedPosteriorVariance(AcquisitionFunction):
    """Minus the variance that is left, on average over the space, after observing ``X`` (Seo et al. 2000).

    Unlike BoTorch's, it averages over several fantasies, which matters where the variance left depends on what is
    observed (every posterior that is not Gaussian).

    Args:
        model: Single-output model that fantasizes.
        mc_points: ``N x d`` points that stand for the space.
        sampler: Draws the fantasies.
        X_pending: ``k x d``.
    """

    def __init__(self, model: Model, mc_points: Tensor, sampler: MCSampler, X_pending: Tensor | None = None) -> None:
        super().__init__(model=model)
        self.sampler = sampler
        self.register_buffer("mc_points", mc_points)
        self.set_X_pending(X_pending)

    @concatenate_pending_points
    @t_batch_mode_transform()
    def forward(self, X: Tensor) -> Tensor:
        """Minus the mean variance over ``mc_points``, ``b`` for ``X`` ``b x q x d``."""
        fantasy = cast(Any, self.model).fantasize(X=X, sampler=self.sampler)
        points = cast(Tensor, self.mc_points)
        points = points.reshape(*([1] * (X.dim() - 2)), *points.shape)
        with settings.propagate_grads(True):
            variance = posterior_of(fantasy, points).variance  # num_fantasies x b x N x 1
        return -variance.mean(dim=(-1, -2)).mean(dim=0)


def q_kg(context: AcquisitionContext, *, max_inner_points: int = 256) -> AcquisitionFunction:
    """Knowledge gradient: one-shot in a box, exact enumeration of the inner maximum where candidates are given."""
    context = context.scalar_if_possible()
    fantasies = 16 if context.num_fantasies is None else context.num_fantasies
    sampler = context.sampler(fantasies, observation_noise=True)
    if context.candidates is not None:
        scalar = context.scalar()
        return DiscreteKnowledgeGradient(
            scalar.surrogate, _promising(scalar, max_inner_points), sampler, X_pending=context.X_pending
        )
    objective = context.constrained_objective()
    return qKnowledgeGradient(
        context.surrogate,
        num_fantasies=fantasies,
        sampler=sampler,
        objective=objective,
        inner_sampler=None if objective is None else context.sampler(min(context.mc_samples, 64), seed_offset=1),
        X_pending=context.X_pending,
    )


def q_multi_step(
    context: AcquisitionContext, *, batch_sizes: Sequence[int] = (1, 1), step_fantasies: Sequence[int] = (4, 2)
) -> AcquisitionFunction:
    """Several steps of look-ahead in one shot (Jiang et al. 2020), ending with the best posterior mean."""
    if len(batch_sizes) != len(step_fantasies):
        raise context.error("batch_sizes and step_fantasies need one entry for each step of look-ahead")
    scalar = context.scalar()
    samplers: list[MCSampler] = [
        SobolQMCNormalSampler(sample_shape=torch.Size([count]), seed=context.seed + i) for i, count in enumerate(step_fantasies)
    ]
    return qMultiStepLookahead(scalar.surrogate, batch_sizes=list(batch_sizes), samplers=samplers, X_pending=context.X_pending)


def q_nipv(context: AcquisitionContext, *, num_points: int = 128) -> AcquisitionFunction:
    """Integrated variance: the query after which the function is best known everywhere."""
    scalar = context.scalar()
    fantasies = context.num_fantasies
    if fantasies is None:
        fantasies = 8 if _variance_depends_on_outcomes(scalar) else 1
    return NegIntegratedPosteriorVariance(
        scalar.surrogate,
        mc_points=scalar.spread_points(num_points),
        sampler=scalar.sampler(fantasies, observation_noise=True),
        X_pending=context.X_pending,
    )


def _promising(context: AcquisitionContext, limit: int) -> Tensor:
    """The candidates that may be best after one more observation: largest mean + 2 sd."""
    candidates = cast(Tensor, context.candidates)
    if candidates.shape[0] <= limit:
        return candidates
    with torch.no_grad():
        parts = [posterior_of(context.surrogate, part.unsqueeze(-2)) for part in candidates.split(1024)]
        mean = torch.cat([p.mean.flatten() for p in parts])
        sd = torch.cat([p.variance.flatten() for p in parts]).clamp_min(0).sqrt()
    best_mean = mean.topk(limit // 2).indices
    best_bound = (mean + 2 * sd).topk(limit - limit // 2).indices
    return candidates[torch.cat([best_mean, best_bound]).unique()]


def _variance_depends_on_outcomes(context: AcquisitionContext) -> bool:
    points = context.spread_points(4)
    with torch.no_grad():
        model = cast(Any, context.surrogate)
        fantasy = model.fantasize(X=points[:1], sampler=context.sampler(2, observation_noise=True))
        variance = posterior_of(fantasy, points).variance
    return not torch.allclose(variance[0], variance[1], rtol=1e-4)
