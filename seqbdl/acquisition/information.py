"""Entropy searches: how much an observation tells about the optimum.

The samples of the optimum come from maximized function draws, for every surrogate alike: they are joint over the whole
space, where a Gumbel fit to marginals on a grid pretends that points are independent and overshoots the maximum.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from botorch.acquisition.acquisition import AcquisitionFunction
from botorch.acquisition.joint_entropy_search import qJointEntropySearch
from botorch.acquisition.max_value_entropy_search import qLowerBoundMaxValueEntropy, qMaxValueEntropy
from botorch.acquisition.predictive_entropy_search import qPredictiveEntropySearch
from botorch.models.model import Model
from torch import Tensor

from seqbdl.acquisition._models import posterior_of
from seqbdl.acquisition._random import sobol_points
from seqbdl.acquisition.context import AcquisitionContext
from seqbdl.acquisition.draw_entropy import DrawEntropySearch
from seqbdl.acquisition.draws import Draws, function_draws


class MaxValueEntropy(qMaxValueEntropy):
    """Max-value entropy search (Wang and Jegelka 2017) with given samples of the maximum.

    Args:
        model: Single-output model.
        max_values: ``s`` samples of the function's maximum.
        options: Those of BoTorch's ``qMaxValueEntropy``.
    """

    def __init__(self, model: Model, max_values: Tensor, like: Tensor, **options: Any) -> None:
        self._given = max_values.reshape(-1, 1)
        # The candidate set only serves BoTorch's own sampling of maxima, which is replaced below.
        super().__init__(model, candidate_set=like, train_inputs=like[:0], **options)

    def _sample_max_values(self, num_samples: int, X_pending: Tensor | None = None) -> None:
        self.posterior_max_values = self._given


class Gibbon(qLowerBoundMaxValueEntropy):
    """GIBBON (Moss et al. 2021) with given samples of the maximum.

    The repulsion from pending points is computed from ``posterior``, so that any surrogate works, and in the outcomes'
    own units, so that surrogates which standardize inside get the right correlation.
    """

    def __init__(self, model: Model, max_values: Tensor, like: Tensor, **options: Any) -> None:
        self._given = max_values.reshape(-1, 1)
        super().__init__(model, candidate_set=like, train_inputs=like[:0], **options)

    def _sample_max_values(self, num_samples: int, X_pending: Tensor | None = None) -> None:
        self.posterior_max_values = self._given

    def _compute_information_gain(  # type: ignore[override]  # BoTorch's own subclasses widen the signature so
        self, X: Tensor, mean_M: Tensor, variance_M: Tensor, covar_mM: Tensor
    ) -> Tensor:
        pending: Any = self.X_pending
        self.X_pending: Any = None
        try:
            gain: Tensor = super()._compute_information_gain(X, mean_M, variance_M, covar_mM)
        finally:
            self.X_pending = pending
        if pending is None or pending.shape[0] == 0:
            return gain
        joint = torch.cat([X, pending.expand(*X.shape[:-2], *pending.shape)], dim=-2)
        posterior = posterior_of(self.model, joint, observation_noise=True)
        covariance = posterior.distribution.covariance_matrix
        variance = covariance[..., 0, 0].clamp_min(1e-12)
        cross = covariance[..., :1, 1:]
        block = covariance[..., 1:, 1:]
        jitter = 1e-8 * block.diagonal(dim1=-2, dim2=-1).mean(dim=-1, keepdim=True).unsqueeze(-1)
        block = block + jitter * torch.eye(block.shape[-1], dtype=block.dtype, device=block.device)
        explained = (cross @ torch.linalg.solve(block, cross.transpose(-1, -2)))[..., 0, 0]
        share = (explained / variance).clamp(max=1.0 - 1e-10)
        return gain + 0.5 * torch.log1p(-share).unsqueeze(0)


def q_mes(
    context: AcquisitionContext, *, num_optima: int = 16, num_y_samples: int = 128, method: str = "auto"
) -> AcquisitionFunction:
    """Max-value entropy search, Monte Carlo; pending points by fantasies.

    ``method="gaussian"`` is BoTorch's; ``"draws"`` is :class:`DrawEntropySearch`, right for particles, whose
    information a Gaussian with the same moments misses; ``"auto"`` takes the second for particles.
    """
    scalar = context.scalar()
    if _from_draws(scalar, method):
        return draw_entropy_search(context, about="value", num_groups=16)
    return MaxValueEntropy(
        scalar.surrogate,
        scalar.optima(num_optima).values,
        scalar.some_point(),
        num_fantasies=16 if context.num_fantasies is None else context.num_fantasies,
        num_mv_samples=num_optima,
        num_y_samples=num_y_samples,
        X_pending=context.X_pending,
    )


def gibbon(context: AcquisitionContext, *, num_optima: int = 16) -> AcquisitionFunction:
    """A cheap lower bound of max-value entropy search (Moss et al. 2021); batches by repulsion."""
    scalar = context.scalar()
    return Gibbon(
        scalar.surrogate,
        scalar.optima(num_optima).values,
        scalar.some_point(),
        num_mv_samples=num_optima,
        X_pending=context.X_pending,
    )


def q_jes(
    context: AcquisitionContext,
    *,
    num_optima: int = 16,
    estimation_type: str = "LB",
    condition_noiseless: bool = True,
    method: str = "auto",
) -> AcquisitionFunction:
    """Joint entropy search (Hvarfner et al. 2022; Tu et al. 2022): about the optimum's place and value together.

    ``method`` as for :func:`q_mes`.
    """
    if estimation_type not in ("LB", "MC"):
        raise context.error(f'estimation_type={estimation_type!r}; it is "LB" or "MC"')
    scalar = context.scalar()
    if _from_draws(scalar, method):
        return draw_entropy_search(context, about="both", num_groups=16)
    optima = scalar.optima(num_optima)
    return qJointEntropySearch(
        scalar.surrogate,
        optimal_inputs=optima.inputs,
        optimal_outputs=optima.outcomes,
        condition_noiseless=condition_noiseless,
        estimation_type=estimation_type,
        num_samples=context.mc_samples,
        X_pending=context.X_pending,
    )


def q_pes(
    context: AcquisitionContext, *, num_optima: int = 16, max_ep_iterations: int = 250, ep_jitter: float = 1e-4
) -> AcquisitionFunction:
    """Predictive entropy search by expectation propagation (Hernández-Lobato et al. 2014)."""
    scalar = context.scalar()
    scalar.need_baseline()
    return qPredictiveEntropySearch(
        scalar.surrogate,
        optimal_inputs=scalar.optima(num_optima).inputs,
        max_ep_iterations=max_ep_iterations,
        ep_jitter=ep_jitter,
        X_pending=context.X_pending,
    )


def draw_entropy_search(
    context: AcquisitionContext,
    *,
    num_draws: int = 256,
    num_groups: int = 8,
    about: str = "value",
    raw_samples: int = 512,
) -> AcquisitionFunction:
    """Entropy search straight from function draws: right for posteriors that are far from Gaussian.

    ``about`` says what to learn: the maximum's ``"value"``, its ``"place"``, or ``"both"``.
    """
    if about not in ("value", "place", "both"):
        raise context.error(f'about={about!r}; it is "value" (of the maximum), "place" or "both"')
    scalar = context.scalar()
    draws = function_draws(scalar.surrogate, num_draws, torch.Generator().manual_seed(context.seed))
    points = scalar.spread_points(raw_samples)
    if scalar.baseline is not None and context.candidates is None:
        points = torch.cat([points, scalar.baseline.to(points)])
    inputs, values = _roughly_maximize(draws, points, None if context.candidates is not None else scalar.need_bounds())
    with torch.no_grad():
        some = scalar.some_point()
        noisy = posterior_of(scalar.surrogate, some, observation_noise=True).variance
        noise = (noisy - posterior_of(scalar.surrogate, some).variance).clamp_min(1e-12).mean()
    key = {"value": values, "place": inputs, "both": torch.cat([inputs, values.unsqueeze(-1)], dim=-1)}[about]
    return DrawEntropySearch(
        scalar.surrogate,
        draws,
        key,
        noise,
        num_groups=num_groups,
        num_fantasies=16 if context.num_fantasies is None else context.num_fantasies,
        X_pending=context.X_pending,
        seed=context.seed,
    )


def _from_draws(context: AcquisitionContext, method: str) -> bool:
    """Whether to estimate from function draws: where the posterior is a set of weighted functions, unless told."""
    if method not in ("auto", "gaussian", "draws"):
        raise context.error(f'method={method!r}; it is "auto", "gaussian" or "draws"')
    if method != "auto":
        return method == "draws"
    with torch.no_grad():
        return hasattr(posterior_of(context.surrogate, context.some_point()), "num_particles")


def _roughly_maximize(draws: Draws, points: Tensor, bounds: Tensor | None, rounds: int = 3) -> tuple[Tensor, Tensor]:
    """Maximizers ``n x d`` and maxima ``n`` of many draws, good enough to group them: all draws share all trial points.

    Args:
        draws: ``n`` functions with one output.
        points: ``N x d`` first trial points.
        bounds: ``2 x d``; given, later rounds try points nearer and nearer to the maximizers found so far.
        rounds: Of nearer points.
    """
    with torch.no_grad():
        values, index = draws(points)[..., 0].max(dim=-1)
        inputs = points[index]
        for i in range(0 if bounds is None else rounds):
            box = cast(Tensor, bounds)
            step = sobol_points(box, inputs.shape[0], seed=i).squeeze(-2) - box.mean(dim=0)
            near = torch.minimum(torch.maximum(inputs + step * 0.3 ** (i + 1), box[0]), box[1])
            found, index = draws(near)[..., 0].max(dim=-1)
            better = found > values
            values = torch.where(better, found, values)
            inputs = torch.where(better.unsqueeze(-1), near[index], inputs)
    return inputs, values
