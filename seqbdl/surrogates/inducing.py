"""Gaussian processes of any likelihood on inducing inputs: what deep kernels with many rows, or with labels, end in."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from seqbdl.inference.inducing import absorb_rows
from seqbdl.likelihoods import LIKELIHOODS
from seqbdl.posteriors.inducing import InducingSums, add_gaussian, no_rows, project
from seqbdl.posteriors.joint_gaussian import jittered_cholesky
from seqbdl.surrogates.base import Evaluate
from seqbdl.surrogates.kernel import KernelSurrogate
from seqbdl.surrogates.network_prior import standard_normal

_JITTER = 1e-8  # relative to the mean diagonal of the basis
_CHUNK = 4096  # rows at once: memory does not grow with the rows
_APART = 1e-6  # share of its prior variance that a new row must have left to join the basis


class InducingSurrogate(KernelSurrogate):
    """Exact where :meth:`_is_exact` says so; else sums over data on a basis of inducing inputs.

    New rows join the basis while it is smaller than ``max_rows``: until then ``update`` loses nothing. Other likelihoods
    enter the same sums by the Gaussian observations that their rows are worth (online variational conditioning).
    """

    likelihoods = LIKELIHOODS

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._sums: InducingSums | None = None
        self._bounded = False

    @abstractmethod
    def _is_exact(self, num_rows: int) -> bool:
        """Whether so many rows get an exact posterior."""

    @abstractmethod
    def _inducing_inputs(self) -> Tensor:
        """``P x d``, after :meth:`_learn`."""

    @abstractmethod
    def _prior_variance(self, X: Tensor) -> Tensor:
        """``k(x, x)`` at every row of ``X: n x d``."""

    def _fit(self, X: Tensor, Y: Tensor, noise: Tensor | None) -> None:
        if self._is_exact(X.shape[0]):
            self._sums = None
            super()._fit(X, Y, noise)
            return
        hyper, variance = self._learn(X, Y, noise)
        self._hyper = {key: value.detach() for key, value in hyper.items()}
        variance = variance.detach().clamp_min(1e-9)
        self._noise_inner = variance.mean(0).clone()
        self._basis = self._inducing_inputs()
        with torch.no_grad():
            K = self._kernel(self._basis, self._basis)[:1]
            sums = no_rows(jittered_cholesky(K, _JITTER), self.num_latents)
            self._sums = self._add(sums, X, Y, variance.expand(X.shape[0], self.output_dim))
            self._conditioning = self._sums.conditioning()
        self._bounded = True

    def _update(self, X: Tensor, Y: Tensor, noise: Tensor | None) -> None:
        if self._sums is None:
            super()._update(X, Y, noise)
            return
        variance = (self._noise_inner if noise is None else noise).expand(X.shape[0], self.output_dim).clamp_min(1e-9)
        with torch.no_grad():
            sums = self._add(self._grown(self._sums, X), X, Y, variance)
            self._bounded = self._bounded and self._lik.name == "gaussian"
            self._sums, self._conditioning = sums, sums.conditioning()

    def _add(self, sums: InducingSums, X: Tensor, Y: Tensor, variance: Tensor) -> InducingSums:
        factor = sums.factor[0]

        def rows(points: Tensor) -> tuple[Tensor, Tensor]:
            return project(factor, self._kernel(self._basis, points)[0]), self._prior_variance(points)

        if self._lik.name != "gaussian":
            return absorb_rows(sums, rows, X, Y, self._lik, variance, _CHUNK)
        for part in torch.arange(X.shape[0], device=X.device).split(_CHUNK):
            A, diagonal = rows(X[part])
            residual = Y[part] - self._prior_mean(X[part])
            sums = add_gaussian(sums, A.unsqueeze(0), diagonal.unsqueeze(0), residual.T, variance[part].T)
        return sums

    def _grown(self, sums: InducingSums, X: Tensor) -> InducingSums:
        """The sums on a basis that took in new rows. In whitened coordinates old sums stay as they are, beside zeros."""
        for i in range(min(X.shape[0], self.max_rows - self._basis.shape[0])):
            row = X[i : i + 1]
            factor = sums.factor[0]
            A = project(factor, self._kernel(self._basis, row)[0])  # P x 1
            prior = self._prior_variance(row)
            left = float(prior - A.square().sum())
            if left < _APART * float(prior):
                continue
            corner = A.new_full((1, 1), (left + _JITTER * float(prior)) ** 0.5)
            top = torch.cat([factor, torch.zeros_like(A)], 1)
            pad = torch.nn.functional.pad
            grown = torch.cat([top, torch.cat([A.T, corner], 1)]).unsqueeze(0)
            sums = InducingSums(grown, pad(sums.phi, (0, 1, 0, 1)), pad(sums.b, (0, 1)), sums.constant)
            self._basis = torch.cat([self._basis, row])
        return sums

    def _draw_base(self, n: int, generator: torch.Generator) -> Evaluate:
        sums = self._sums
        if sums is None:
            return super()._draw_base(n, generator)
        prior = self._prior_draw(n, generator)
        with torch.no_grad():
            at_basis = prior(self._basis).transpose(-1, -2)  # n x l x P
            v = sums.draw(standard_normal(*at_basis.shape, generator=generator, like=at_basis))
            own = torch.linalg.solve_triangular(sums.factor, at_basis.unsqueeze(-1), upper=False)
            rest = v.unsqueeze(-1) - own
            coefficients = torch.linalg.solve_triangular(sums.factor.transpose(-1, -2), rest, upper=True).squeeze(-1)

        def evaluate(X: Tensor) -> Tensor:
            cross = self._cross(X)  # batch x l x q x P
            shift = cross @ coefficients.reshape(n, *([1] * (X.dim() - 2)), *coefficients.shape[1:]).unsqueeze(-1)
            return prior(X) + self._prior_mean(X) + shift.squeeze(-1).transpose(-1, -2)

        return evaluate

    def _log_evidence(self) -> Tensor | None:
        if self._sums is not None and not self._bounded:
            return None
        return super()._log_evidence()

    def _get_state(self) -> dict[str, Any]:
        sums = None if self._sums is None else self._sums.tree()
        return {**super()._get_state(), "sums": sums, "bounded": self._bounded}

    def _set_state(self, state: Mapping[str, Any]) -> None:
        super()._set_state(state)
        self._sums = None if state["sums"] is None else InducingSums(**state["sums"])
        self._bounded = state["bounded"]
