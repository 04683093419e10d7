"""What a selection reads from a surrogate: class probabilities, Gaussian moments and features, a chunk of the pool at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from seqbdl.acquisition._pool_inputs import VALUES_AT_ONCE, check_log_probs, check_variances
from seqbdl.acquisition.batches.batch import PoolRules
from seqbdl.acquisition.batches.distances import label_residuals
from seqbdl.acquisition.batches.features import evaluate_features, posterior_features, unit_scale
from seqbdl.acquisition.batches.kernels import PoolKernel
from seqbdl.acquisition.draws import function_draws
from seqbdl.acquisition.gaussian_scores import centred_draws
from seqbdl.errors import InvalidOptionError, ShapeError
from seqbdl.serialization import generator_state, restore_generator

SPACES = ("auto", "features", "draws")
_JOINT_ROWS = 128  # pool points in one joint covariance
_ROWS = 1024  # pool points in one evaluation of marginals


@dataclass(frozen=True, eq=False)
class FeatureSpace:
    """Features of a pool and of the training inputs.

    Attributes:
        pool: ``N x D``.
        train: ``n x D``, or ``None`` before any data.
        noise: Noise variance beside scaled features; ``None``: the surrogate's own is in the units of the kernel.
        posterior: Whether inner products are the posterior covariance already (else those of a prior).
        notes: For the status.
    """

    pool: Tensor
    train: Tensor | None
    noise: float | None
    posterior: bool
    notes: tuple[str, ...] = ()

    def conditioned(self) -> FeatureSpace:
        """The same with the training inputs observed."""
        if self.posterior or self.train is None or self.noise is None:
            return self
        both = posterior_features(torch.cat([self.pool, self.train]), self.train, self.noise)
        size = self.pool.shape[0]
        return FeatureSpace(both[:size], both[size:], self.noise, True, self.notes)

    @property
    def everywhere(self) -> Tensor:
        """Pool and training rows, ``(N + n) x D``."""
        return self.pool if self.train is None else torch.cat([self.pool, self.train])


@dataclass(frozen=True, eq=False)
class PoolContext:
    """A surrogate, a pool, and what the caller said about the selection.

    Attributes:
        surrogate: With ``log_probs(X, n, generator)`` for classes, ``posterior(X)`` and ``sample_functions(n, generator)`` for
            values, and where it has one ``features(X)``.
        pool: ``N x d``.
        rules: What may be chosen.
        generator: Of random choices.
        draws_generator: Of function draws; copied, never advanced, so that every call sees the same functions.
        targets: ``M x d`` inputs from where the model will be used, or ``None``.
        target_weights: ``M``, or ``None``.
        features: ``k x d`` to ``k x F``; the surrogate's own by default.
        num_draws: Function draws.
    """

    surrogate: Any
    pool: Tensor
    rules: PoolRules
    generator: torch.Generator
    draws_generator: torch.Generator
    targets: Tensor | None
    target_weights: Tensor | None
    features: Callable[[Tensor], Tensor] | None
    num_draws: int

    # -- classes -------------------------------------------------------------------------------------------------

    def log_probs(self) -> Tensor:
        """``n x N x C`` of the pool."""
        return self._log_probs(self.pool, "surrogate.log_probs(pool)")

    def target_log_probs(self) -> Tensor:
        """``n x M x C`` of the targets, under the same functions."""
        assert self.targets is not None
        return self._log_probs(self.targets, "surrogate.log_probs(targets)")

    def _log_probs(self, X: Tensor, name: str) -> Tensor:
        size = max(1, VALUES_AT_ONCE // (8 * self.num_draws))
        with torch.no_grad():
            parts = [self.surrogate.log_probs(part, self.num_draws, self._same_draws()) for part in X.split(size)]
        return check_log_probs(name, torch.cat(parts, dim=1), min_draws=2)

    # -- values --------------------------------------------------------------------------------------------------

    def variances(self) -> Tensor:
        """Of the latent function at the pool, ``N``."""
        return self._marginal(self.pool, observed=False)

    def noise(self, X: Tensor) -> Tensor:
        """Noise variances, ``k``: those that observations have beyond the latent function."""
        latent, total = self._marginal(X, observed=False), self._marginal(X, observed=True)
        return (total - latent).clamp_min(0.0)

    def _marginal(self, X: Tensor, observed: bool) -> Tensor:
        parts = []
        with torch.no_grad():
            for part in X.split(_ROWS):
                posterior = self.surrogate.posterior(part.unsqueeze(-2), observation_noise=observed)
                parts.append(posterior.variance.reshape(part.shape[0], -1).double())
        variance = torch.cat(parts)
        if variance.shape[-1] != 1:
            raise ShapeError(
                f"the surrogate has {variance.shape[-1]} outputs, a selection scores one; hand in surrogate.subset_output([i])"
            )
        return variance.squeeze(-1)

    def covariance(self, X: Tensor) -> Tensor:
        """Of the latent function between the pool and ``k`` other points, ``N x k``."""
        return torch.cat([self._block(part) for part in X.split(_JOINT_ROWS)], dim=-1)

    def _block(self, X: Tensor) -> Tensor:
        parts = []
        with torch.no_grad():
            for part in self.pool.split(_JOINT_ROWS):
                joint = self.surrogate.posterior(torch.cat([part, X])).distribution.covariance_matrix
                parts.append(joint[: part.shape[0], part.shape[0] :].double())
        return torch.cat(parts)

    def kernel(self) -> PoolKernel:
        """The posterior covariance of the pool, columns of it when they are needed."""
        return PoolKernel(self.variances(), lambda index: self.covariance(self.pool[index]))

    def target_variances(self) -> Tensor:
        """Of the latent function at the targets, ``M``."""
        assert self.targets is not None
        return self._marginal(self.targets, observed=False)

    def num_particles(self) -> int | None:
        """How many functions the posterior consists of; ``None`` where it is Gaussian."""
        with torch.no_grad():
            count: int | None = getattr(self.surrogate.posterior(self.pool[:1]), "num_particles", None)
        return count

    # -- features ------------------------------------------------------------------------------------------------

    def space(self, space: str, sketch_dim: int | None, sigma: float) -> FeatureSpace:
        """A feature space for the pool and the training inputs.

        Args:
            space: ``"features"``: those handed in, or of the surrogate, scaled to mean ``k(x, x) = 1`` on the training inputs;
                ``"draws"``: function draws, whose inner products are the posterior covariance; ``"auto"``: features if any.
            sketch_dim: Features of more dimensions are projected to so many; ``None``: never.
            sigma: Standard deviation of the noise beside scaled features.
        """
        if space not in SPACES:
            raise InvalidOptionError(f"space={space!r}; the known ones are: {', '.join(SPACES)}")
        if not sigma > 0.0:
            raise InvalidOptionError(f"sigma={sigma} is a standard deviation; it must be positive")
        function = self.feature_function()
        if function is None and space == "features":
            raise InvalidOptionError("the surrogate has no features(X); pass features=callable (k x d to k x F) or space='draws'")
        if function is None or space == "draws":
            return self._draw_space()
        pool, sketch = evaluate_features(function, self.pool, sketch_dim, self.generator)
        train_inputs = self.train_inputs()
        if train_inputs is None:
            return FeatureSpace(pool, None, sigma**2, False)
        train, _ = evaluate_features(function, train_inputs, sketch_dim, self.generator, sketch)
        scale = unit_scale(train)
        return FeatureSpace(scale * pool, scale * train, sigma**2, False)

    def _draw_space(self) -> FeatureSpace:
        draws = function_draws(self.surrogate, self.num_draws, self._same_draws())
        train_inputs = self.train_inputs()
        X = self.pool if train_inputs is None else torch.cat([self.pool, train_inputs])
        size = max(1, VALUES_AT_ONCE // (8 * self.num_draws))
        with torch.no_grad():
            values = torch.cat([draws(part) for part in X.split(size)], dim=1)  # n x N x m
        rows = torch.cat([centred_draws(values[..., i]) for i in range(values.shape[-1])], dim=-1)
        N = self.pool.shape[0]
        note = f"features are {self.num_draws} function draws"
        return FeatureSpace(rows[:N], None if train_inputs is None else rows[N:], None, True, (note,))

    def positive_noise(self, X: Tensor) -> Tensor:
        """Noise variances, ``k``; an error where there is none."""
        return check_variances("the surrogate's noise variance", self.noise(X), X.shape[0], X)

    def gradient_space(self, sketch_dim: int | None) -> tuple[Tensor, Tensor | None, tuple[str, ...]]:
        """What BADGE clusters: last-layer features ``N x F`` and residuals ``N x C``, or the full gradients ``N x P`` and none.

        Features with one row for each logit are Jacobians; their product with the residual is the gradient of all weights.
        """
        function = self.feature_function()
        if function is None:
            space = self._draw_space()
            return space.pool, label_residuals(self.log_probs()), space.notes
        with torch.no_grad():
            rows_each = function(self.pool[:1]).shape[0]
        if rows_each == 1:
            rows, _ = evaluate_features(function, self.pool, sketch_dim, self.generator)
            return rows, label_residuals(self.log_probs()), ()
        num_classes = self._log_probs(self.pool[:1], "surrogate.log_probs(pool)").shape[-1]
        if rows_each != num_classes:
            raise ShapeError(
                f"features have {rows_each} rows for each point; BADGE needs one, or one for each of {num_classes} logits"
            )
        jacobian = function

        def gradient(X: Tensor) -> Tensor:
            part = label_residuals(self._log_probs(X, "surrogate.log_probs(pool)"))
            return torch.einsum("kc,kcp->kp", part, jacobian(X).double().unflatten(0, (X.shape[0], -1)))

        return evaluate_features(gradient, self.pool, sketch_dim, self.generator)[0], None, ()

    def feature_function(self) -> Callable[[Tensor], Tensor] | None:
        """Features as handed in, else the surrogate's own, else ``None``."""
        own: Callable[[Tensor], Tensor] | None = getattr(self.surrogate, "features", None)
        return self.features if self.features is not None else own

    def train_inputs(self) -> Tensor | None:
        """``n x d``, or ``None`` before any data."""
        inputs: Any = getattr(self.surrogate, "train_inputs", None)
        if not inputs:
            return None
        first: Tensor = inputs[0]
        return first.detach().to(self.pool)

    def _same_draws(self) -> torch.Generator:
        return restore_generator(generator_state(self.draws_generator))
