"""Surrogates whose posterior over functions is Gaussian: exact conditioning, batched fantasies, Matheron draws."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Self

import torch
from botorch.posteriors import GPyTorchPosterior
from torch import Tensor

from seqbdl.errors import InvalidOptionError
from seqbdl.likelihoods import LOG_RATIO_SCALE, apply_root_transposed
from seqbdl.posteriors.joint_gaussian import JointGaussian, group_rows, safe_cholesky
from seqbdl.posteriors.mode import mode_given
from seqbdl.surrogates.base import Evaluate, Surrogate

_SAMPLES = 256  # latent samples behind predictions of labels and counts
_FEW = 64  # points whose joint covariance costs less than a function draw


class GaussianSurrogate(Surrogate):
    """Needs ``_joint`` and ``_draw_base`` from its subclasses; gives fantasies and conditioned draws to all of them.

    Conditioning on ``X_new`` evaluates the base posterior jointly at ``[X, X_new]`` and conditions the resulting
    Gaussian on its last rows: exact under frozen hyperparameters, differentiable in both, and the same code for
    kernels, linearized networks and Bayesian last layers.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Inner coordinates: inputs b x n' x d, outcomes nf x b x n' x m, noise variances broadcastable to them.
        self._extra: tuple[Tensor, Tensor, Tensor] | None = None
        # Of other likelihoods, outcomes are those of R^T f under unit noise; R: nf x b x n' x l x l.
        self._extra_root: Tensor | None = None

    @abstractmethod
    def _joint(self, X: Tensor) -> JointGaussian:
        """The base posterior of the latent function at inner ``X: batch x q x d``."""

    @abstractmethod
    def _draw_base(self, n: int, generator: torch.Generator) -> Evaluate:
        """``n`` inner functions of the base posterior: ``batch x q x d -> n x batch x q x l``."""

    @property
    def has_fantasies(self) -> bool:
        return self._extra is not None

    @property
    def batch_shape(self) -> torch.Size:
        return torch.Size([]) if self._extra is None else self._extra[1].shape[:-2]

    def _latent(self, X: Tensor) -> JointGaussian:
        """The posterior at inner ``X``, fantasies included."""
        if self._extra is None:
            return self._joint(X)
        _, Y_extra, noise = self._extra
        return self._joint_with_extra(X).condition(Y_extra, noise)

    def _joint_with_extra(self, X: Tensor) -> JointGaussian:
        """The base posterior at ``X`` and at the fantasies' inputs, seen there as they were observed."""
        assert self._extra is not None
        joint = self._joint(_stack_points(X, self._extra[0]))
        return joint if self._extra_root is None else joint.observed_through(self._extra_root)

    def _posterior(self, X: Tensor, outputs: list[int] | None, noise: Tensor | None, varying: bool = False) -> GPyTorchPosterior:
        scaling, m = self._scaling, self.output_dim
        latent = self._latent(scaling.inputs(X))
        if varying:
            # E[exp(s f)] of the Gaussian log-ratio: the noise that is expected.
            log_ratio = LOG_RATIO_SCALE * latent.mean[..., m:] + 0.5 * LOG_RATIO_SCALE**2 * latent.variance[..., m:]
            noise = self._noise() * log_ratio.exp() * scaling.y_std.square()
        if self.num_latents != m:
            latent = latent.select(list(range(m)))
        joint = latent.scaled(scaling.y_mean, scaling.y_std)
        if noise is not None:
            joint = _with_noise(joint, noise.to(torch.float64), outputs)
        if outputs is not None:
            joint = joint.select(outputs)
        return joint.to_posterior(X.dtype)

    def _latent_samples(self, X: Tensor) -> tuple[Tensor, Tensor]:
        if self._extra is None:  # every point by itself: no covariance between points
            alone = self._latent(X.unsqueeze(-2))
            mean, covariance = alone.mean.squeeze(-2), alone.covariance_of_points.squeeze(-3)
        else:
            joint = self._latent(X)
            mean, covariance = joint.mean, joint.covariance_of_points
        shape = torch.broadcast_shapes(mean.shape, covariance.shape[:-1])
        mean, factor = mean.expand(shape), safe_cholesky(covariance).expand(*shape, -1)  # batch x q x l x l
        # Quasi-random normals, the same for all points: answers do not depend on what else is asked.
        uniform = torch.quasirandom.SobolEngine(self.num_latents, scramble=True, seed=self.seed).draw(_SAMPLES, dtype=X.dtype)
        white = torch.special.ndtri(uniform.clamp(1e-9, 1 - 1e-9)).to(X.device)  # T x l
        steps = (factor @ white.reshape(_SAMPLES, *([1] * (factor.dim() - 2)), -1, 1)).squeeze(-1)
        return mean + steps, X.new_full((_SAMPLES,), 1.0 / _SAMPLES)

    def _condition(self, X: Tensor, Y: Tensor, noise: Tensor | None) -> Self:
        if noise is None:
            return self._condition_by_likelihood(X, Y)
        if self._extra_root is not None or self.num_latents != self.output_dim:
            raise InvalidOptionError("noise: observations under this likelihood have their own; leave it out")
        twin = self._conditioned_copy()
        noise = noise.expand(*torch.broadcast_shapes(noise.shape[:-2], Y.shape[:-2]), *Y.shape[-2:])
        if self._extra is not None:
            X_old, Y_old, noise_old = self._extra
            X = _stack_points(X_old, X)
            batch = torch.broadcast_shapes(Y_old.shape[:-2], Y.shape[:-2])
            Y = torch.cat([Y_old.expand(*batch, -1, -1), Y.expand(*batch, -1, -1)], -2)
            batch = torch.broadcast_shapes(noise_old.shape[:-2], noise.shape[:-2])
            noise = torch.cat([noise_old.expand(*batch, -1, -1), noise.expand(*batch, -1, -1)], -2)
        twin._extra = (X, Y, noise)
        return twin

    def _condition_by_likelihood(self, X: Tensor, Y: Tensor) -> Self:
        """Gaussian conditioning on what the labels are worth at the mode that they make (the Laplace approximation, an iterated
        extended Kalman filter): ``R^T f + u`` seen with unit noise."""
        f = mode_given(self._latent(X), Y, self._lik, self._noise())
        batch = f.shape[:-2]
        Y = Y.expand(*batch, -1, -1)
        root = self._lik.root(f, self._noise())
        seen = apply_root_transposed(root, f) + self._lik.whitened_score(f, Y, self._noise())
        full = torch.diag_embed(root) if root.dim() == f.dim() else root
        twin = self._conditioned_copy()
        ones = torch.ones_like(seen)
        if self._extra is not None and self._extra_root is not None:
            X_old, seen_old, ones_old = self._extra
            outer = torch.broadcast_shapes(seen_old.shape[:-2], batch)
            X = _stack_points(X_old, X)
            seen = torch.cat([seen_old.expand(*outer, -1, -1), seen.expand(*outer, -1, -1)], -2)
            ones = torch.cat([ones_old.expand(*outer, -1, -1), ones.expand(*outer, -1, -1)], -2)
            full = torch.cat([self._extra_root.expand(*outer, -1, -1, -1), full.expand(*outer, -1, -1, -1)], -3)
        twin._extra, twin._extra_root = (X, seen, ones), full
        return twin

    def _draw_at(self, X: Tensor, n: int, generator: torch.Generator) -> Tensor:
        if self._extra is not None or X.shape[-2] > _FEW:
            return self._draw(n, generator)(X)
        return self._joint(X).sample(n, generator)

    def _draw(self, n: int, generator: torch.Generator) -> Evaluate:
        base = self._draw_base(n, generator)
        if self._extra is None:
            return base
        X_extra, Y_extra, noise = self._extra
        shape = (n, *torch.broadcast_shapes(Y_extra.shape, noise.shape))
        white = torch.randn(shape, generator=generator, dtype=torch.float64).to(Y_extra)
        at_extra = _align(base(X_extra), len(shape))
        if self._extra_root is not None:
            root = self._extra_root
            at_extra = (root.transpose(-1, -2) @ at_extra.unsqueeze(-1)).squeeze(-1)
        misfit = Y_extra + noise.sqrt() * white - at_extra  # n x nf x b x n' x m

        def conditioned(X: Tensor) -> Tensor:
            # Matheron's rule on top of the base posterior: f(x) + C(x, X') (C(X', X') + noise)^{-1} (y + eps - f(X')).
            joint = self._joint_with_extra(X)
            gain = joint.gain(X_extra.shape[-2], noise)  # batch x g x r x r_new
            rows = group_rows(misfit, joint.covariance).unsqueeze(-1)  # n x nf x b x g x r_new x 1
            rows = _align(rows, gain.dim() + 1)
            shift = joint._ungroup((gain @ rows).squeeze(-1), X.shape[-2])
            return _align(base(X), shift.dim()) + shift

        return conditioned


def _align(draws: Tensor, dims: int) -> Tensor:
    """``n x batch x ...`` with ones after ``n``, so that the batches of several draws broadcast from the right."""
    return draws.reshape(draws.shape[0], *([1] * (dims - draws.dim())), *draws.shape[1:])


def _stack_points(X: Tensor, X_extra: Tensor) -> Tensor:
    """``batch x (q + n') x d``, batches broadcast."""
    batch = torch.broadcast_shapes(X.shape[:-2], X_extra.shape[:-2])
    return torch.cat([X.expand(*batch, -1, -1), X_extra.expand(*batch, -1, -1)], -2)


def _with_noise(joint: JointGaussian, noise: Tensor, outputs: list[int] | None) -> JointGaussian:
    m = joint.num_outputs
    if outputs is not None and noise.shape[-1] == len(outputs) and noise.shape[-1] != m:
        full = noise.new_zeros(*noise.shape[:-1], m)
        full[..., outputs] = noise
        noise = full
    return joint.plus_noise(noise if noise.dim() > 1 else noise.reshape(1, -1))
