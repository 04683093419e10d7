"""The posterior over function values at a batch of inputs, and particles that move by their values there.

A step looks at a batch of data rows and at a few random inputs besides. ``d log p(f | y) / d f`` is the likelihood's score,
scaled so that the batch speaks for all data, plus the score of the function prior at these inputs; its curvature is the metric
in which particles see one another (:mod:`seqbdl.inference.repulsion`). A direction ``phi`` in function space moves the weights
along ``J^T phi``, one vector-Jacobian product (Wang et al. 2019, function space particle optimization; D'Angelo and Fortuin
2021).

With all rows in every step the target is the posterior over the values at the rows and these inputs. With batches it is that of a
batch that stands for all data: rows outside it are not seen, as in the papers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from seqbdl.inference.adam import AdamSettings, adam
from seqbdl.inference.function_prior import FunctionPrior
from seqbdl.likelihoods import Likelihood
from seqbdl.networks import Network

Direction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""``(particles x: S x D, score: S x D, metric times particles: S x D, dimension of the posterior) -> S x D``."""


@dataclass(frozen=True)
class FunctionPosterior:
    """Attributes:
    network: Over whitened weights.
    likelihood: Of an observation.
    prior: Over functions.
    X: ``N x d`` in the unit cube.
    Y: ``N x t``.
    noise: ``N x m`` noise variances.
    row_weights: ``N``, how many rows each row speaks for.
    """

    network: Network
    likelihood: Likelihood
    prior: FunctionPrior
    X: Tensor
    Y: Tensor
    noise: Tensor
    row_weights: Tensor

    def at(self, f: Tensor, inputs: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The score at the values and the values times the metric, ``S x l x B`` both, and the posterior's dimension.

        The metric is the precision of the Gaussian approximation around the mean of the particles: that of the prior, plus the
        diagonal of the likelihood's Fisher information. The dimension is that in which such a Gaussian varies.

        Args:
            f: ``S x l x B`` values.
            inputs: ``B x d``: the rows ``index`` of the data, and others.
            index: ``b`` row indices.
        """
        b, factor = index.shape[0], self.X.shape[0] / max(1, index.shape[0])
        score, moments = self.prior.at(inputs, f)
        weights = factor * self.row_weights[index]  # b
        at_rows, noise = f[..., :b].transpose(1, 2), self.noise[index]  # S x b x l
        likelihood = self.likelihood.score(at_rows, self.Y[index], noise).transpose(1, 2)
        centre = at_rows.mean(0, keepdim=True)
        root = self.likelihood.root(centre, noise)[0]
        information = root.square() if root.dim() == 2 else root.square().sum(-1)  # b x l
        pad = (0, inputs.shape[0] - b)
        score = score + torch.nn.functional.pad(weights * likelihood, pad)
        curvature = torch.nn.functional.pad((weights[:, None] * information).T, pad)  # l x B
        times = (f.unsqueeze(-2) @ moments.precision).squeeze(-2) + curvature * f
        return score, times, moments.posterior_dimension(curvature).sum()


def move_functions(
    posterior: FunctionPosterior,
    z: Tensor,
    direction: Direction,
    settings: AdamSettings,
    num_inputs: int,
    generator: torch.Generator,
) -> Tensor:
    """Particles after steps along a direction in function space, ``S x P``.

    Args:
        posterior: Over functions.
        z: ``S x P`` where to begin.
        direction: From values, scores, the metric and the dimension to a direction; the values of a batch, of all latent
            functions, are one vector.
        settings: Steps, rate, rows per step.
        num_inputs: Random inputs beside the rows, uniform in the unit cube.
        generator: Of inputs and batches.
    """
    network, X = posterior.network, posterior.X
    everything = torch.arange(X.shape[0], device=X.device)

    def gradient(z: Tensor, index: Tensor | None) -> Tensor:
        rows = everything if index is None else index.to(X.device)
        others = torch.rand(num_inputs, X.shape[1], generator=generator, dtype=torch.float64).to(X)
        inputs = torch.cat([X[rows], others])
        values, back = network.pullback(z, inputs)
        f = values.transpose(1, 2)  # S x l x B
        score, times, dimension = posterior.at(f, inputs, rows)
        phi = direction(f.flatten(1), score.flatten(1), times.flatten(1), dimension).unflatten(1, f.shape[1:])
        return -back(phi.transpose(1, 2))

    return adam(gradient, z, X.shape[0], settings, generator)
