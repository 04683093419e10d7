"""Batches under a joint Gaussian: the most information about the function, about predictions, or the least variance left.

All three grow greedily and condition the Gaussian on each pick; outcomes need not be known for that. With ``B`` picks of
``N`` points and ``M`` targets this costs ``O(N B (B + M))`` beside ``B`` columns of the covariance.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from seqbdl.acquisition._pool_inputs import check_generator, check_matrix, check_variances, check_vector, check_weights
from seqbdl.acquisition.batches.batch import Batch, Indices, Picking, PoolRules, pool_rules
from seqbdl.acquisition.batches.kernels import PoolKernel, as_kernel
from seqbdl.errors import InvalidDataError, InvalidOptionError, ShapeError

_NOTHING = 1e-12  # of the largest variance: what is left below this is rounding


class Conditioned:
    """The variances of a pool, its covariances with targets and the targets' variances as picks are observed.

    Args:
        kernel: Covariance of the function at ``N`` points.
        noise: ``N`` noise variances.
        cross: ``N x M`` covariances with targets.
        target_variance: ``M``.
    """

    def __init__(self, kernel: PoolKernel, noise: Tensor, cross: Tensor, target_variance: Tensor) -> None:
        self._kernel, self.noise = kernel, noise
        self.variance = kernel.diagonal.clone()
        self.cross, self.target_variance = cross, target_variance
        self._factors = self.variance.new_zeros(self.variance.shape[0], 0)  # N x picks, a partial Cholesky factor
        self._floor = _NOTHING * float(self.variance.max())

    def nothing_left(self, points: Tensor) -> bool:
        """Whether the variance of all these points is rounding."""
        return not bool((self.variance[points] > self._floor).any())

    def observe(self, index: int) -> None:
        """Condition on an outcome at one point."""
        total = self.variance[index] + self.noise[index]
        if not float(total) > self._floor:
            return
        column = self._kernel.columns(torch.tensor([index], device=self.variance.device)).squeeze(-1)
        factor = (column - self._factors @ self._factors[index]) / total.sqrt()
        towards = self.cross[index] / total.sqrt()
        self.variance = (self.variance - factor.square()).clamp_min(0.0)
        self.cross = self.cross - factor.unsqueeze(-1) * towards
        self.target_variance = (self.target_variance - towards.square()).clamp_min(0.0)
        self._factors = torch.cat([self._factors, factor.unsqueeze(-1)], -1)


def max_det(
    kernel: PoolKernel | Tensor,
    batch_size: int,
    noise: float | Tensor,
    generator: torch.Generator,
    *,
    pending: Indices = None,
    exclude: Indices = None,
    cost: Tensor | None = None,
) -> Batch:
    """BatchBALD of a Gaussian: the batch with the largest ``log det(I + K / noise) / 2``, greedily.

    Scores are the joint information of the picks and the function in nats. With ``noise=0`` the largest determinant of ``K``
    itself is sought, as by Holzmüller et al. (JMLR 2023): a Cholesky factorization with pivots, its scores ``log det(K) / 2``.

    Args:
        kernel: Posterior covariance of the function, or features ``N x D`` with that as inner products.
        batch_size: ``q``.
        noise: One variance, or ``N``; all positive, or all zero.
        generator: For picks at random where no variance is left.
        pending: Indices asked for; conditioned on first.
        exclude: Indices never to choose, or a mask.
        cost: ``N`` positive costs; points are ranked by information for a unit of cost. Needs ``noise > 0``.
    """
    kernel, rules, noise = _inputs(kernel, batch_size, noise, pending, exclude, cost)
    noiseless = not bool((noise > 0).any())
    if noiseless and cost is not None:
        raise InvalidOptionError("cost needs noise > 0: without noise an outcome tells infinitely much, at any cost")
    if not noiseless and not bool((noise > 0).all()):
        raise InvalidDataError(f"noise is zero at point {int((noise == 0).nonzero()[0])} and not everywhere; give all or none")
    state = Conditioned(kernel, noise, noise.new_zeros(rules.size, 0), noise.new_zeros(0))
    if noiseless:
        return _greedy(state, rules, generator, lambda s: 0.5 * s.variance.log())
    return _greedy(state, rules, generator, lambda s: 0.5 * (s.variance / s.noise).log1p())


def gaussian_epig_batch(
    kernel: PoolKernel | Tensor,
    cross_covariance: Tensor,
    target_variance: Tensor,
    batch_size: int,
    noise: float | Tensor,
    target_noise: float | Tensor,
    generator: torch.Generator,
    *,
    target_weights: Tensor | None = None,
    pending: Indices = None,
    exclude: Indices = None,
    cost: Tensor | None = None,
) -> Batch:
    """The batch whose outcomes tell most about outcomes at the targets, greedily: ``mean over targets of I(y_B; y*)``.

    Bickford Smith et al., AISTATS 2023, in closed form; scores are joint informations in nats.

    Args:
        kernel: Posterior covariance of the function, or features ``N x D``.
        cross_covariance: ``N x M`` between points and targets.
        target_variance: ``M``, of the function.
        batch_size: ``q``.
        noise: Of the points, one variance or ``N``; positive.
        target_noise: Of the targets, one variance or ``M``; positive.
        generator: For picks at random where no variance is left.
        target_weights: ``M`` non-negative weights; equal by default.
        pending: Indices asked for; conditioned on first.
        exclude: Indices never to choose, or a mask.
        cost: ``N`` positive costs.
    """
    kernel, rules, noise = _inputs(kernel, batch_size, noise, pending, exclude, cost, positive=True)
    there = check_vector("target_variance", target_variance)
    cross = check_matrix("cross_covariance", cross_covariance, rules.size, there.shape[0])
    target_noise = check_variances("target_noise", target_noise, there.shape[0], there)
    weights = check_weights(target_weights, there.shape[0], there)

    def gains(state: Conditioned) -> Tensor:
        total = (state.variance + state.noise).unsqueeze(-1) * (state.target_variance + target_noise)
        squared = state.cross.square() / total
        if bool((squared >= 1.0).any()):
            row, target = (int(i) for i in (squared >= 1.0).nonzero()[0])
            raise InvalidDataError(
                f"cross_covariance[{row}, {target}] exceeds the two standard deviations; take all moments from one posterior"
            )
        return -0.5 * torch.log1p(-squared) @ weights

    return _greedy(Conditioned(kernel, noise, cross, there), rules, generator, gains)


def variance_reduction_batch(
    kernel: PoolKernel | Tensor,
    cross_covariance: Tensor,
    batch_size: int,
    noise: float | Tensor,
    generator: torch.Generator,
    *,
    target_weights: Tensor | None = None,
    pending: Indices = None,
    exclude: Indices = None,
    cost: Tensor | None = None,
) -> Batch:
    """The batch that lowers the mean variance of the function at the targets most, greedily (qNIPV, active learning Cohn).

    Args:
        kernel: Posterior covariance of the function, or features ``N x D``.
        cross_covariance: ``N x M`` between points and targets.
        batch_size: ``q``.
        noise: One variance or ``N``; positive.
        generator: For picks at random where no variance is left.
        target_weights: ``M`` non-negative weights; equal by default.
        pending: Indices asked for; conditioned on first.
        exclude: Indices never to choose, or a mask.
        cost: ``N`` positive costs.
    """
    kernel, rules, noise = _inputs(kernel, batch_size, noise, pending, exclude, cost, positive=True)
    cross = check_matrix("cross_covariance", cross_covariance, rows=rules.size)
    weights = check_weights(target_weights, cross.shape[1], cross)
    state = Conditioned(kernel, noise, cross, cross.new_zeros(cross.shape[1]))
    return _greedy(state, rules, generator, lambda s: s.cross.square() @ weights / (s.variance + s.noise))


def _inputs(
    kernel: PoolKernel | Tensor,
    batch_size: int,
    noise: float | Tensor,
    pending: Indices,
    exclude: Indices,
    cost: Tensor | None,
    positive: bool = False,
) -> tuple[PoolKernel, PoolRules, Tensor]:
    checked = as_kernel(kernel)
    if checked.diagonal.numel() == 0 or checked.diagonal.dim() != 1:
        raise ShapeError(f"kernel has a diagonal of shape {tuple(checked.diagonal.shape)}; it needs one variance for each point")
    rules = pool_rules(checked.size, batch_size, pending, exclude, cost, checked.diagonal.device)
    return checked, rules, check_variances("noise", noise, checked.size, checked.diagonal, allow_zero=not positive)


def _greedy(state: Conditioned, rules: PoolRules, generator: torch.Generator, gains: Callable[[Conditioned], Tensor]) -> Batch:
    picking = Picking(rules, check_generator(generator, "a choice between points without variance"))
    for index in rules.pending.tolist():
        state.observe(index)
    while not picking.done:
        values = gains(state)
        index = picking.at_random() if state.nothing_left(picking.open) else picking.best(values)
        picking.take(index, float(values[index]))
        if not picking.done:
            state.observe(index)
    return picking.batch(joint=True)
