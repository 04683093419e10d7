"""Trained variational Gaussian processes of GPyTorch, taking up new rows without an optimizer.

A trained variational posterior ``q`` is a Gaussian process like any other, and becomes the prior of what comes next: new rows
with Gaussian noise condition the joint ``q(f_*, f_new)`` exactly. Correct rows then only ever help, on average; GPyTorch's own
``get_fantasy_model`` instead conditions an exact process on pseudo-observations at the inducing inputs (online variational
conditioning, Maddox et al. 2021), whose predictions differ from ``q`` before any new row has come.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from botorch.acquisition.objective import PosteriorTransform
from botorch.models.model import FantasizeMixin, Model
from botorch.posteriors import GPyTorchPosterior, Posterior
from gpytorch.distributions import MultivariateNormal
from gpytorch.likelihoods import GaussianLikelihood
from gpytorch.models import ApproximateGP
from torch import Tensor

from seqbdl.errors import InvalidDataError, InvalidOptionError, ShapeError
from seqbdl.posteriors.joint_gaussian import safe_cholesky


class VariationalModel(Model, FantasizeMixin):
    """A BoTorch model of one outcome, with fantasies, from a trained ``ApproximateGP``.

    It works on a copy of the model. Rows that were taken up are kept: a prediction costs the cube of their number, so
    that after some hundred of them it is time to train again.

    Args:
        model: Trained, of one outcome.
        likelihood: Its Gaussian likelihood.
    """

    num_outputs = 1

    def __init__(self, model: ApproximateGP, likelihood: GaussianLikelihood) -> None:
        super().__init__()
        if not isinstance(likelihood, GaussianLikelihood):
            raise InvalidOptionError(f"likelihood is a {type(likelihood).__name__}; rows condition a Gaussian likelihood exactly")
        self.model, self.likelihood = (copy.deepcopy(part).eval() for part in (model, likelihood))
        self._rows: Tensor | None = None  # batch x n x (d + 2): inputs, outcome and noise variance

    @property
    def batch_shape(self) -> torch.Size:
        """Of the rows that were taken up: fantasies run in front."""
        return torch.Size([]) if self._rows is None else self._rows.shape[:-2]

    def posterior(  # type: ignore[override]  # BoTorch's two base classes disagree about the arguments
        self,
        X: Tensor,
        output_indices: list[int] | None = None,
        observation_noise: bool | Tensor = False,
        posterior_transform: PosteriorTransform | None = None,
    ) -> Posterior:
        """The joint posterior over the ``q`` points of ``X: batch x q x d``."""
        if output_indices not in (None, [0]):
            raise InvalidOptionError(f"output_indices={output_indices}: there is one outcome")
        points = X if self._rows is None else _stacked(X, self._rows[..., :-2])
        prior = self.model(points)
        mean, covariance = prior.mean, prior.covariance_matrix
        if self._rows is not None:
            mean, covariance = self._conditioned(mean, covariance, self._rows)
        if observation_noise is not False:
            noise = self.likelihood.noise if observation_noise is True else observation_noise.squeeze(-1)
            covariance = covariance + torch.diag_embed(noise.expand_as(mean))
        found = GPyTorchPosterior(MultivariateNormal(mean, covariance))
        return found if posterior_transform is None else posterior_transform(found)

    def _conditioned(self, mean: Tensor, covariance: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Moments at the first points, given the outcomes of the last ones, which are the rows."""
        q, Y, noise = mean.shape[-1] - rows.shape[-2], rows[..., -2], rows[..., -1]
        factor = safe_cholesky(covariance[..., q:, q:] + torch.diag_embed(noise))
        cross = torch.linalg.solve_triangular(factor, covariance[..., q:, :q], upper=False)
        surprise = torch.linalg.solve_triangular(factor, (Y - mean[..., q:]).unsqueeze(-1), upper=False)
        shift = (cross.transpose(-1, -2) @ surprise).squeeze(-1)
        return mean[..., :q] + shift, covariance[..., :q, :q] - cross.transpose(-1, -2) @ cross

    def condition_on_observations(self, X: Tensor, Y: Tensor, noise: Tensor | None = None, **kwargs: Any) -> VariationalModel:
        """A new model that also knows these rows; the old one does not change.

        Args:
            X: ``batch x n x d``.
            Y: ``batch' x n x 1``, whose batch the one of ``X`` broadcasts to.
            noise: Known variances, of the shape of ``Y``; by default the likelihood's.
            kwargs: Not used.

        Raises:
            ShapeError: Sizes do not fit.
            InvalidDataError: A value is not finite, or a variance is negative.
        """
        if Y.shape[-1] != 1 or X.shape[-2] != Y.shape[-2]:
            raise ShapeError(f"X {tuple(X.shape)}, Y {tuple(Y.shape)}: give X as batch x n x d, and Y as batch x n x 1")
        variances = self.likelihood.noise.expand_as(Y) if noise is None else noise.expand_as(Y)
        batch = torch.broadcast_shapes(X.shape[:-2], Y.shape[:-2])
        new = torch.cat([part.expand(*batch, -1, -1) for part in (X, Y, variances)], -1)
        bad = ~new.isfinite().all(-1) | (new[..., -1] < 0)
        if bool(bad.any()):
            row = int(bad.nonzero()[0, -1])
            raise InvalidDataError(f"row {row} of X, Y or noise is not finite, or has a variance below 0; leave it out")
        twin = copy.copy(self)
        twin._rows = new if self._rows is None else _stacked(self._rows, new)
        return twin


def _stacked(first: Tensor, second: Tensor) -> Tensor:
    """Rows ``batch x n x k`` below rows, batches broadcast."""
    batch = torch.broadcast_shapes(first.shape[:-2], second.shape[:-2])
    return torch.cat([first.expand(*batch, -1, -1), second.expand(*batch, -1, -1)], -2)
