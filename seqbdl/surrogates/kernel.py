"""Gaussian-process surrogates over any kernel: exact up to ``max_rows``, then sums over a basis that stays."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from seqbdl.errors import InvalidOptionError
from seqbdl.posteriors import kernel_conditioning as conditioning
from seqbdl.posteriors.joint_gaussian import JointGaussian, remaining, safe_cholesky
from seqbdl.surrogates.base import Evaluate
from seqbdl.surrogates.gaussian import GaussianSurrogate


class KernelSurrogate(GaussianSurrogate):
    """A Gaussian process with independent outputs; subclasses learn the kernel and evaluate it.

    Args:
        max_rows: While the rows are at most this many, ``update`` is exact; beyond, the rows so far become a basis and
            new data enter sums over it (the collapsed sparse posterior), so that time and memory stay bounded.
    """

    carries = "the Gaussian process: rows up to max_rows, then exact sums over that basis"

    def __init__(self, *args: Any, max_rows: int = 1024, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if max_rows < 1:
            raise InvalidOptionError(f"max_rows={max_rows} must be at least 1")
        self.max_rows = max_rows
        like = torch.zeros(1, dtype=torch.float64)
        self._basis = like.new_zeros(0, self.input_dim)
        self._conditioning = conditioning.empty(self.num_latents, like)
        self._noise_inner = like.new_full((self.output_dim,), 1e-2)
        self._hyper: dict[str, Tensor] = self._initial_hyperparameters()

    # ------------------------------------------------------------------ what a kernel surrogate must say

    @abstractmethod
    def _initial_hyperparameters(self) -> dict[str, Tensor]:
        """Before any data."""

    @abstractmethod
    def _learn(self, X: Tensor, Y: Tensor, noise: Tensor | None) -> tuple[dict[str, Tensor], Tensor]:
        """Hyperparameters and the noise variances (``n x m`` or ``1 x m``) from the data, in inner coordinates."""

    @abstractmethod
    def _kernel(self, X1: Tensor, X2: Tensor) -> Tensor:
        """Prior covariance, ``batch x m x q1 x q2`` for ``X1: batch x q1 x d`` and ``X2: batch x q2 x d``."""

    @abstractmethod
    def _prior_draw(self, n: int, generator: torch.Generator) -> Evaluate:
        """``n`` functions of the zero-mean prior: ``batch x q x d -> n x batch x q x m``."""

    def _prior_mean(self, X: Tensor) -> Tensor:
        """``batch x q x m`` (or broadcastable to it)."""
        return self._hyper["mean"] if "mean" in self._hyper else X.new_zeros(self.num_latents)

    # ------------------------------------------------------------------ the posterior

    def _fit(self, X: Tensor, Y: Tensor, noise: Tensor | None) -> None:
        hyper, variance = self._learn(X, Y, noise)
        self._hyper = {key: value.detach() for key, value in hyper.items()}
        variance = variance.detach().clamp_min(1e-9)
        self._noise_inner = variance.mean(0).clone()
        self._basis = X
        residual = (Y - self._prior_mean(X)).T
        with torch.no_grad():
            self._conditioning = conditioning.condition_exact(self._kernel(X, X), residual, variance.expand_as(Y).T)

    def _update(self, X: Tensor, Y: Tensor, noise: Tensor | None) -> None:
        variance = (self._noise_inner.expand_as(Y) if noise is None else noise.expand_as(Y)).clamp_min(1e-9)
        # The basis is filled up to max_rows however the rows are split into calls.
        room = max(0, self.max_rows - self._basis.shape[0]) if self._conditioning.phi is None else 0
        with torch.no_grad():
            for rows in (slice(0, room), slice(room, None)):
                if X[rows].shape[0]:
                    self._absorb(X[rows], Y[rows], variance[rows], exact=rows.start == 0 and room > 0)

    def _absorb(self, X: Tensor, Y: Tensor, variance: Tensor, exact: bool) -> None:
        residual, noise = (Y - self._prior_mean(X)).T, variance.T
        state = self._conditioning
        cross, new = self._kernel(X, self._basis), self._kernel(X, X)
        if exact:
            self._conditioning = conditioning.append_exact(state, new, cross, residual, noise)
            self._basis = torch.cat([self._basis, X])
        else:
            basis = self._kernel(self._basis, self._basis)
            self._conditioning = conditioning.absorb_sparse(state, basis, new, cross, residual, noise)

    def _joint(self, X: Tensor) -> JointGaussian:
        state = self._conditioning
        prior = self._kernel(X, X)  # batch x m x q x q
        mean = self._prior_mean(X).expand(*X.shape[:-1], self.num_latents)
        if state.num_rows == 0:
            return JointGaussian(mean, prior)
        cross = self._cross(X)  # batch x m x q x r
        mean = mean + (cross @ state.weights.unsqueeze(-1)).squeeze(-1).transpose(-1, -2)
        projected = cross @ state.whitener.transpose(-1, -2)
        return JointGaussian(mean, remaining(prior, projected @ projected.transpose(-1, -2)))

    def _cross(self, X: Tensor) -> Tensor:
        """``k(X, basis)``, all points in one matrix product: ``batch x m x q x r``."""
        flat = self._kernel(X.reshape(-1, X.shape[-1]), self._basis)  # m x (batch q) x r
        return flat.unflatten(-2, X.shape[:-1]).movedim(0, -3)

    def _draw_base(self, n: int, generator: torch.Generator) -> Evaluate:
        prior = self._prior_draw(n, generator)
        state = self._conditioning
        if state.num_rows == 0:
            return lambda X: prior(X) + self._prior_mean(X)
        with torch.no_grad():
            at_basis = prior(self._basis).transpose(-1, -2)  # n x m x r
            white = torch.randn(at_basis.shape, generator=generator, dtype=torch.float64).to(at_basis)
            if state.phi is None:
                misfit = state.residual - at_basis - state.noise.sqrt() * white  # n x m x r
                coefficients = _apply_inverse(state.whitener, misfit)
            else:
                coefficients = self._sparse_coefficients(state, at_basis, white)

        def evaluate(X: Tensor) -> Tensor:
            shift = self._cross(X) @ coefficients.reshape(n, *([1] * (X.dim() - 2)), *coefficients.shape[1:]).unsqueeze(-1)
            return prior(X) + self._prior_mean(X) + shift.squeeze(-1).transpose(-1, -2)

        return evaluate

    def _sparse_coefficients(self, state: conditioning.KernelConditioning, at_basis: Tensor, white: Tensor) -> Tensor:
        """``K^{-1} (u - prior(Z))`` with ``u`` drawn from the posterior at the basis."""
        K = self._kernel(self._basis, self._basis)
        spread = K - K @ (state.whitener.transpose(-1, -2) @ (state.whitener @ K))
        mean = (K @ state.weights.unsqueeze(-1)).squeeze(-1)
        u = mean + (safe_cholesky(spread) @ white.unsqueeze(-1)).squeeze(-1)
        return torch.cholesky_solve((u - at_basis).unsqueeze(-1), safe_cholesky(K)).squeeze(-1)

    def _noise(self) -> Tensor:
        return self._noise_inner

    def _log_evidence(self) -> Tensor | None:
        return self._conditioning.log_evidence.sum()

    # ------------------------------------------------------------------ state

    def _get_state(self) -> dict[str, Any]:
        return {
            "basis": self._basis,
            "noise": self._noise_inner,
            "hyper": dict(self._hyper),
            "conditioning": self._conditioning.tree(),
        }

    def _set_state(self, state: Mapping[str, Any]) -> None:
        self._basis, self._noise_inner = state["basis"], state["noise"]
        self._hyper = dict(state["hyper"])
        self._conditioning = conditioning.KernelConditioning(**state["conditioning"])


def _apply_inverse(whitener: Tensor, rows: Tensor) -> Tensor:
    """``W^T W v`` for ``v: n x m x r``."""
    white = whitener @ rows.unsqueeze(-1)
    return (whitener.transpose(-1, -2) @ white).squeeze(-1)
