"""The log joint density of weights and data, for many weight vectors at once: what samplers and optimizers see.

``log p(z, D) = sum_n log p(y_n | f(x_n; z)) + log p(z)``: sums over the data, never means. On a mini-batch ``B`` the sum
is estimated without bias by ``N / |B|`` times that over the batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from seqbdl.likelihoods import Likelihood
from seqbdl.networks import Network
from seqbdl.priors import Prior


@dataclass(frozen=True)
class LogJoint:
    """Networks are evaluated in the floating-point type of ``X`` (single precision is about twice as fast); sums over rows,
    weights and their gradients are in double precision.

    Attributes:
        network: Over whitened weights.
        likelihood: Of an observation.
        prior: Of the whitened weights.
        X: ``N x d`` in the unit cube.
        Y: ``N x t``, or ``S x N x t``: every member its own targets.
        noise: ``N x m`` noise variances, or ``S x N x m``.
        row_weights: ``N``, how many rows each row speaks for; ``None``: itself.
    """

    network: Network
    likelihood: Likelihood
    prior: Prior
    X: Tensor
    Y: Tensor
    noise: Tensor
    row_weights: Tensor | None = None

    @property
    def num_rows(self) -> int:
        return self.X.shape[0]

    def to(self, dtype: torch.dtype) -> LogJoint:
        """The same density, with networks evaluated in that floating-point type."""
        weights = None if self.row_weights is None else self.row_weights.to(dtype)
        return replace(self, X=self.X.to(dtype), Y=self.Y.to(dtype), noise=self.noise.to(dtype), row_weights=weights)

    def rows(self, index: Tensor | None) -> tuple[Tensor, Tensor, Tensor, float]:
        """Inputs, targets, noise of some rows (all for ``None``), and the factor that makes their sum an estimate of
        all."""
        if index is None:
            return self.X, self.Y, self.noise, 1.0
        return self.X[index], self.Y[..., index, :], self.noise[..., index, :], self.num_rows / max(1, index.shape[0])

    def _weights(self, index: Tensor | None) -> Tensor | None:
        return self.row_weights if self.row_weights is None or index is None else self.row_weights[index]

    def log_likelihood(self, z: Tensor, index: Tensor | None = None) -> Tensor:
        """``S``, differentiable; an unbiased estimate on the rows ``index``."""
        X, Y, noise, factor = self.rows(index)
        f = self.network.forward(z.to(X.dtype), X)
        return factor * _sum(self.likelihood.log_prob(f, Y, noise), self._weights(index))

    def __call__(self, z: Tensor, index: Tensor | None = None) -> Tensor:
        """``log p(z, D)``, ``S``, differentiable."""
        return self.log_likelihood(z, index) + self.prior.log_prob(z)

    def value_and_gradient(self, z: Tensor, index: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``log p(z, D)``, ``S``, and its gradient ``S x P``, by one forward and one backward pass."""
        value, gradient = self.likelihood_value_and_gradient(z, index)
        return value + self.prior.log_prob(z), gradient + self.prior.score(z)

    def likelihood_value_and_gradient(self, z: Tensor, index: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The log-likelihood, ``S``, and its gradient in the weights, ``S x P``."""
        X, Y, noise, factor = self.rows(index)
        weights = self._weights(index)
        size = self.network.members_at_once(X) or z.shape[0]
        values, gradients = [], []
        with torch.no_grad():
            for first in range(0, z.shape[0], size):  # blocks of members whose activations stay in cache
                part = slice(first, first + size)
                targets = Y[part] if Y.dim() > 2 and Y.shape[0] > 1 else Y
                variances = noise[part] if noise.dim() > 2 and noise.shape[0] > 1 else noise
                f, back = self.network.pullback(z[part].to(X.dtype), X)
                score = self.likelihood.score(f, targets, variances).expand_as(f)
                values.append(_sum(self.likelihood.log_prob(f, targets, variances), weights))
                gradients.append(back(score if weights is None else score * weights.unsqueeze(-1)).to(z.dtype))
        return factor * torch.cat(values), factor * torch.cat(gradients)


def _sum(log_probs: Tensor, weights: Tensor | None) -> Tensor:
    """``S x N`` to ``S``, in double precision."""
    weighted = log_probs if weights is None else log_probs * weights
    return weighted.sum(-1, dtype=torch.float64)


def minibatches(num_rows: int, batch_size: int | None, steps: int, generator: torch.Generator) -> list[Tensor | None]:
    """Row indices for ``steps`` steps: epochs without replacement, or ``None`` (all rows) where a batch would hold
    them."""
    if batch_size is None or batch_size >= num_rows:
        return [None] * steps
    per_epoch = num_rows // batch_size
    batches: list[Tensor | None] = []
    while len(batches) < steps:
        order = torch.randperm(num_rows, generator=generator)
        batches += [order[i * batch_size : (i + 1) * batch_size] for i in range(per_epoch)]
    return batches[:steps]
