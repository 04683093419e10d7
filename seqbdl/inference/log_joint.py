"""The log joint density of weights and data, for many weight vectors at once: what samplers and optimizers see.

``log p(z, D) = sum_n log p(y_n | f(x_n; z)) + log p(z)``: sums over the data, never means. On a mini-batch ``B`` the sum
is estimated without bias by ``N / |B|`` times that over the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from seqbdl.likelihoods import Likelihood
from seqbdl.networks import Network
from seqbdl.priors import Prior


@dataclass(frozen=True)
class LogJoint:
    """Attributes:
    network: Over whitened weights.
    likelihood: Of an observation.
    prior: Of the whitened weights.
    X: ``N x d`` in the unit cube.
    Y: ``N x t``, or ``S x N x t``: every member its own targets.
    noise: ``N x m`` noise variances.
    """

    network: Network
    likelihood: Likelihood
    prior: Prior
    X: Tensor
    Y: Tensor
    noise: Tensor

    @property
    def num_rows(self) -> int:
        return self.X.shape[0]

    def rows(self, index: Tensor | None) -> tuple[Tensor, Tensor, Tensor, float]:
        """Inputs, targets, noise of some rows (all for ``None``), and the factor that makes their sum an estimate of
        all."""
        if index is None:
            return self.X, self.Y, self.noise, 1.0
        return self.X[index], self.Y[..., index, :], self.noise[index], self.num_rows / index.shape[0]

    def log_likelihood(self, z: Tensor, index: Tensor | None = None) -> Tensor:
        """``S``, differentiable; an unbiased estimate on the rows ``index``."""
        X, Y, noise, factor = self.rows(index)
        return factor * self.likelihood.log_prob(self.network.forward(z, X), Y, noise).sum(-1)

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
        with torch.no_grad():
            f, back = self.network.pullback(z, X)
            value = self.likelihood.log_prob(f, Y, noise).sum(-1)
            gradient = back(self.likelihood.score(f, Y, noise).expand_as(f))
        return factor * value, factor * gradient


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
