"""Surrogates whose posterior over functions is Gaussian: exact conditioning, batched fantasies, Matheron draws."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Self

import torch
from botorch.posteriors import GPyTorchPosterior
from torch import Tensor

from seqbdl.posteriors.joint_gaussian import JointGaussian, group_rows
from seqbdl.surrogates.base import Evaluate, Surrogate


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

    @abstractmethod
    def _joint(self, X: Tensor) -> JointGaussian:
        """The base posterior of the latent function at inner ``X: batch x q x d``."""

    @abstractmethod
    def _draw_base(self, n: int, generator: torch.Generator) -> Evaluate:
        """``n`` inner functions of the base posterior: ``batch x q x d -> n x batch x q x m``."""

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
        X_extra, Y_extra, noise = self._extra
        return self._joint(_stack_points(X, X_extra)).condition(Y_extra, noise)

    def _posterior(self, X: Tensor, outputs: list[int] | None, noise: Tensor | None) -> GPyTorchPosterior:
        scaling = self._scaling
        joint = self._latent(scaling.inputs(X)).scaled(scaling.y_mean, scaling.y_std)
        if noise is not None:
            joint = _with_noise(joint, noise.to(torch.float64), outputs)
        if outputs is not None:
            joint = joint.select(outputs)
        return joint.to_posterior(X.dtype)

    def _condition(self, X: Tensor, Y: Tensor, noise: Tensor) -> Self:
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

    def _draw(self, n: int, generator: torch.Generator) -> Evaluate:
        base = self._draw_base(n, generator)
        if self._extra is None:
            return base
        X_extra, Y_extra, noise = self._extra
        shape = (n, *torch.broadcast_shapes(Y_extra.shape, noise.shape))
        white = torch.randn(shape, generator=generator, dtype=torch.float64).to(Y_extra)
        misfit = Y_extra + noise.sqrt() * white - _align(base(X_extra), len(shape))  # n x nf x b x n' x m

        def conditioned(X: Tensor) -> Tensor:
            # Matheron's rule on top of the base posterior: f(x) + C(x, X') (C(X', X') + noise)^{-1} (y + eps - f(X')).
            joint = self._joint(_stack_points(X, X_extra))
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
