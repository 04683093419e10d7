"""What BoTorch expects of a model beside its posterior: outputs, likelihood, conditioning, fantasies and views."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Self

import torch
from botorch.sampling.base import MCSampler
from gpytorch.distributions import MultivariateNormal
from gpytorch.likelihoods import GaussianLikelihood
from torch import Tensor

from seqbdl._checks import check_inputs, check_tensor
from seqbdl.errors import InvalidOptionError, ShapeError
from seqbdl.likelihoods import Likelihood
from seqbdl.surrogates.state import SurrogateState


class BoTorchModel(SurrogateState):
    """BoTorch's conventions, in terms of :meth:`posterior`, the noise and :meth:`_condition`."""

    num_targets: int
    seed: int
    _lik: Likelihood

    @property
    @abstractmethod
    def noise_variance(self) -> Tensor:
        """Variance of the observation noise per output, ``m``, in squared units of ``Y``."""

    @abstractmethod
    def _condition(self, X: Tensor, Y: Tensor, noise: Tensor | None) -> Self:
        """A conditioned copy; ``X: b x n' x d``, ``Y: nf x b x n' x t``, Gaussian ``noise`` broadcastable to ``Y``;
        ``None``: by the likelihood."""

    def forward(self, X: Tensor) -> MultivariateNormal:
        """The latent posterior at ``X`` as a GPyTorch distribution (of a mixture: the Gaussian with its moments)."""
        posterior: Any = self.posterior(X)
        distribution: MultivariateNormal = posterior.distribution
        return distribution

    @property
    def num_outputs(self) -> int:
        return self.output_dim if self._output_indices is None else len(self._output_indices)

    @property
    def batch_shape(self) -> torch.Size:
        return torch.Size([])

    @property
    def likelihood(self) -> GaussianLikelihood:
        """A GPyTorch likelihood with the learned noise variance, for code that reads it (it is Gaussian: of other
        likelihoods GPyTorch's counterpart would not be what was fitted)."""
        likelihood = GaussianLikelihood().to(self._scaling.y_std)
        likelihood.noise = self.noise_variance.mean().clamp_min(1e-4)
        return likelihood

    def condition_on_observations(self, X: Tensor, Y: Tensor, noise: Tensor | None = None, **kwargs: Any) -> Self:
        """A new, batched, cheap surrogate that also knows ``(X, Y)``; this one does not change.

        Args:
            X: ``b x n' x d``.
            Y: ``nf x b x n' x m`` (any batch that ``b`` broadcasts to), in the user's units.
            noise: Noise variances, broadcastable to ``Y``, in squared units of ``Y``; the learned ones by default.
            kwargs: Ignored; BoTorch passes options for Gaussian processes.

        Returns:
            A surrogate with ``batch_shape = nf x b``.
        """
        X = check_inputs("X", X, self.input_dim)
        Y = check_tensor("Y", Y)
        columns = self.num_outputs if self._lik.has_noise or self.num_targets == self.output_dim else self.num_targets
        if Y.shape[-2:] != (X.shape[-2], columns):
            raise ShapeError(f"Y has shape {tuple(Y.shape)}; it needs batch x {X.shape[-2]} x {columns}, the rows of X")
        if X.shape[-2] == 0:
            return self._conditioned_copy()
        if self._lik.name != "gaussian" and noise is None:
            if self._output_indices is not None:
                raise InvalidOptionError("a view of some outputs cannot be conditioned; use the surrogate it came from")
            self._lik.check_targets(Y.flatten(0, -2), self.output_dim)
            return self._condition(self._scaling.inputs(X), self._scaling.outcomes(Y), None)
        variance = self.noise_variance.expand(1, -1) if noise is None else check_tensor("noise", noise)
        if self._output_indices is not None:
            Y, variance = self._in_all_outputs(Y, variance.to(Y))
        return self._condition(self._scaling.inputs(X), self._scaling.outcomes(Y), self._scaling.variances(variance.to(Y.device)))

    def _in_all_outputs(self, Y: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Outcomes and noise of a view, with the outputs out of view added under noise that drowns them."""
        shape = (*torch.broadcast_shapes(Y.shape, variance.shape)[:-1], self.output_dim)
        scaling = self._scaling
        full_Y = scaling.y_mean.to(Y).expand(shape).clone()
        full_variance = (1e8 * scaling.y_std.square()).to(Y).expand(shape).clone()
        full_Y[..., self._output_indices] = Y
        full_variance[..., self._output_indices] = variance
        return full_Y, full_variance

    def fantasize(self, X: Tensor, sampler: MCSampler, observation_noise: Tensor | None = None, **kwargs: Any) -> Self:
        """Condition on outcomes sampled from the posterior at ``X``.

        Args:
            X: ``b x n' x d``.
            sampler: Draws ``nf x b x n' x m`` outcomes.
            observation_noise: Noise variances instead of the learned ones, broadcastable to ``b x n' x m``.
        """
        if X.shape[-2] == 0:
            return self._conditioned_copy()
        if not self._lik.has_noise:
            latents = sampler(self.posterior(X)).detach()
            labels = self._lik.sample(latents, latents.new_ones(1), torch.Generator().manual_seed(self.seed))
            return self.condition_on_observations(X, labels)
        posterior = self.posterior(X, observation_noise=True if observation_noise is None else observation_noise)
        return self.condition_on_observations(X, sampler(posterior), noise=observation_noise)

    def subset_output(self, idcs: list[int]) -> Self:
        """The same posterior, seen through some of its outputs only; fantasies of a view inform all outputs."""
        chosen = self._resolve_outputs(list(idcs))
        view = self._conditioned_copy()
        view._output_indices = chosen
        return view

    def _resolve_outputs(self, output_indices: list[int] | None) -> list[int] | None:
        own = self._output_indices
        if output_indices is None:
            return own
        if any(not -self.num_outputs <= i < self.num_outputs for i in output_indices):
            raise ShapeError(f"output_indices {output_indices} are out of range for {self.num_outputs} outputs")
        chosen = [i % self.num_outputs for i in output_indices]
        return chosen if own is None else [own[i] for i in chosen]
