"""Linear hypermodels: weights that are linear in an index, ``theta(z) = b + A z`` (Dwaracherla et al. 2020).

With prior functions ``p(x, z)`` and targets of :mod:`seqbdl.inference.indexed`, the parameters minimize the average over
indices of ``-sum_n log p(y_n(z) | f(x_n; b + A z) + p(x_n, z))`` plus ``1/2 |b - a|^2 + 1/2 |A|^2``, sums over the data and
whitened weights.

With all rows at hand and a fixed set of indices this is a deterministic objective, and its Gauss-Newton matrix, linearized at
the mean and averaged over indices of identity covariance, is the same ``I + J^T R R^T J`` for ``b`` and for every column of
``A``. Its inverse, by ``n x n`` algebra, preconditions L-BFGS; in a linear model with Gaussian noise the first step is exact.
For many rows, mini-batches with fresh indices at every step (Adam) do the same without ``n x n`` algebra.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from seqbdl.inference.adam import AdamSettings, adam
from seqbdl.inference.indexed import IndexedFunction, draw_indices, targets
from seqbdl.inference.lbfgs import DEFAULT, LBFGSSettings, lbfgs
from seqbdl.inference.observations import Observations
from seqbdl.likelihoods import Likelihood, apply_root, apply_root_transposed, whiten_both
from seqbdl.networks import Network, Tangents
from seqbdl.posteriors.joint_gaussian import safe_cholesky

_SINGLE = 1e5  # information of a row about the weights, in units of the prior's, up to which values in float32 serve


def generated_weights(theta: Tensor, indices: Tensor) -> Tensor:
    """``b + A z``, ``S x P``.

    Args:
        theta: ``(1 + D) x P``: ``b``, then the columns of ``A``.
        indices: ``S x D``.
    """
    return theta[0] + indices @ theta[1:]


def fit_hypermodel(
    network: Network,
    X: Tensor,
    observations: Observations,
    indices: Tensor,
    offset: Tensor,
    anchor: Tensor,
    start: Tensor,
    settings: LBFGSSettings = DEFAULT,
) -> Tensor:
    """The parameters for a fixed set of indices.

    Args:
        network: Over whitened weights.
        X: ``n x d`` in the unit cube.
        observations: Of the rows of ``X``, at the indices.
        indices: ``S x D``.
        offset: ``S x n x l``, what is added to the network: the prior functions.
        anchor: ``(1 + D) x P``, where the penalty is zero.
        start: ``(1 + D) x P``.
        settings: When to stop.

    Returns:
        ``(1 + D) x P``.
    """
    S = indices.shape[0]
    design = torch.cat([torch.ones_like(indices[:, :1]), indices], 1)  # S x (1 + D)
    curvature = mean_curvature(network, X, observations, offset, start)
    # The passes through the networks, which are nearly all of the cost, in single precision where it can tell residuals.
    single = network.matrix_free and float(curvature.kernel.diagonal().max()) < _SINGLE
    inputs = X.to(torch.float32) if single else X

    def objective(theta: Tensor) -> tuple[Tensor, Tensor]:
        values, back = network.pullback((design @ theta).to(inputs), inputs)
        f = values.to(X) + offset
        pull = apply_root(observations.root(f), observations.whitened_score(f))
        change = theta - anchor
        loss = observations.misfit(f).mean() + 0.5 * change.square().sum()
        return loss, change - design.T @ back(pull.to(inputs)).to(X) / S

    return lbfgs(objective, start, settings, curvature.inverse_times).x


@dataclass(frozen=True)
class MeanCurvature:
    """``I + J^T R R^T J`` for the mean weights.

    Attributes:
        network: Over whitened weights.
        tangents: At the mean.
        root: ``1 x n x l`` or ``1 x n x l x l``, ``R``.
        kernel: ``(n l) x (n l)``, ``R^T J J^T R``.
    """

    network: Network
    tangents: Tangents
    root: Tensor
    kernel: Tensor

    @cached_property
    def _factor(self) -> Tensor:
        return safe_cholesky(self.kernel + torch.eye(self.kernel.shape[0]).to(self.kernel))

    def inverse_times(self, v: Tensor) -> Tensor:
        """Of ``k x P`` gradients."""
        root = self.root.expand(v.shape[0], *self.root.shape[1:])
        rows = apply_root_transposed(root, self.network.jvp(self.tangents, v))  # k x n x l
        solved = torch.cholesky_solve(rows.flatten(1).T, self._factor).T.reshape(rows.shape)
        return v - self.network.vjp(self.tangents, apply_root(root, solved))


def mean_curvature(network: Network, X: Tensor, observations: Observations, offset: Tensor, theta: Tensor) -> MeanCurvature:
    """The Gauss-Newton matrix at the mean.

    Args:
        network: Over whitened weights.
        X: ``n x d``.
        observations: Of its rows.
        offset: ``S x n x l``; roots of the curvature are averaged over it.
        theta: ``(1 + D) x P``.
    """
    tangents = network.tangents(theta[:1], X)
    root = observations.root(tangents.values + offset).mean(0, keepdim=True)
    kernel = whiten_both(root, network.tangent_kernel(tangents, tangents), network.num_outputs)[0]
    return MeanCurvature(network, tangents, root, kernel)


def train_hypermodel(
    network: Network,
    X: Tensor,
    Y: Tensor,
    variance: Tensor,
    likelihood: Likelihood,
    signals: Tensor | None,
    prior: IndexedFunction,
    anchor: Tensor,
    start: Tensor,
    num_indices: int,
    generator: torch.Generator,
    settings: AdamSettings,
) -> Tensor:
    """The parameters by mini-batches of rows, and fresh indices at every step.

    Args:
        network: Over whitened weights.
        X: ``n x d`` in the unit cube.
        Y: ``n x t``.
        variance: ``n x m`` noise variances.
        likelihood: Of an observation.
        signals: ``n x m x D``, or ``None``.
        prior: What is added to the network.
        anchor: ``(1 + D) x P``, where the penalty is zero.
        start: ``(1 + D) x P``.
        num_indices: Per step.
        generator: Of rows and indices.
        settings: Steps and rates.

    Returns:
        ``(1 + D) x P``.
    """
    dim = start.shape[0] - 1

    def gradient(flat: Tensor, rows: Tensor | None) -> Tensor:
        theta, some = flat.reshape(start.shape), slice(None) if rows is None else rows
        z = draw_indices(num_indices, dim, generator, X)
        design = torch.cat([torch.ones_like(z[:, :1]), z], 1)
        x = X[some]
        seen = targets(likelihood, Y[some], variance[some], z, None if signals is None else signals[some])
        f, back = network.pullback(design @ theta, x)
        f = f + prior(x, z)
        pull = apply_root(seen.root(f), seen.whitened_score(f))
        share = X.shape[0] / (x.shape[0] * num_indices)
        return (theta - anchor - share * (design.T @ back(pull))).reshape(1, -1)

    return adam(gradient, start.reshape(1, -1), X.shape[0], settings, generator).reshape(start.shape)
