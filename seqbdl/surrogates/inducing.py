"""Gaussian processes of any likelihood on inducing inputs: what deep kernels with many rows, or with labels, end in."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from seqbdl.inference.inducing import absorb_rows
from seqbdl.likelihoods import LIKELIHOODS
from seqbdl.posteriors.inducing import InducingSums, add_gaussian, no_rows, project, with_inputs
from seqbdl.posteriors.joint_gaussian import jittered_cholesky
from seqbdl.surrogates.base import Evaluate
from seqbdl.surrogates.kernel import KernelSurrogate
from seqbdl.surrogates.network_prior import standard_normal

_JITTER = 1e-8  # relative to the mean diagonal, of the basis that a fit chose; rows that join it later need none
_CHUNK = 4096  # rows at once: memory does not grow with the rows
_APART = 1e-10  # share of its prior variance that a new row must have left to join the basis: far above rounding


class InducingSurrogate(KernelSurrogate):
    """Exact for up to ``max_rows`` rows with Gaussian noise; else sums over data on a basis of inducing inputs.

    New rows join the basis, one by one, while it is smaller than ``max_rows`` and explains all but ``1e-10`` of their variance,
    and each enters the sums as the basis of that moment sees it. So rows of Gaussian noise give the same posterior in
    whatever calls they come. While the basis grows it is the exact one given the last fit's, but for parts of rows with a
    standard deviation below ``1e-5`` of the prior's; once the basis is full it is that of all rows together on this basis.

    Other likelihoods enter the same sums by the Gaussian observations that their rows are worth (online variational
    conditioning), which does depend on the calls: the worth of old rows is not reconsidered.
    """

    likelihoods = LIKELIHOODS

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._sums: InducingSums | None = None
        self._bounded = False

    def _is_exact(self, num_rows: int) -> bool:
        """Whether so many rows get an exact posterior."""
        return self._lik.name == "gaussian" and num_rows <= self.max_rows

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
            sums, seen = self._grown(self._sums, X)
            sums = self._add(sums, X, Y, variance, seen)
            self._bounded = self._bounded and self._lik.name == "gaussian"
            self._sums, self._conditioning = sums, sums.conditioning()

    def _add(self, sums: InducingSums, X: Tensor, Y: Tensor, variance: Tensor, seen: Tensor | None = None) -> InducingSums:
        """Absorb rows; of Gaussian noise each through the first ``seen: n`` inducing inputs only (all by default)."""
        factor = sums.factor[0]

        def rows(points: Tensor) -> tuple[Tensor, Tensor]:
            return project(factor, self._kernel(self._basis, points)[0]), self._prior_variance(points)

        if self._lik.name != "gaussian":
            return absorb_rows(sums, rows, X, Y, self._lik, variance, _CHUNK)
        for part in torch.arange(X.shape[0], device=X.device).split(_CHUNK):
            A, diagonal = rows(X[part])
            if seen is not None:
                A = A * (torch.arange(A.shape[0], device=A.device).unsqueeze(-1) < seen[part])
            residual = Y[part] - self._prior_mean(X[part])
            sums = add_gaussian(sums, A.unsqueeze(0), diagonal.unsqueeze(0), residual.T, variance[part].T)
        return sums

    def _grown(self, sums: InducingSums, X: Tensor) -> tuple[InducingSums, Tensor]:
        """The sums on a basis that took in new rows, and of how many inputs it was when each had had its turn, ``n``."""
        seen = torch.full((X.shape[0],), self.max_rows, device=X.device)
        for i, row in enumerate(X.split(1)):
            if self._basis.shape[0] >= self.max_rows:
                break
            A = project(sums.factor[0], self._kernel(self._basis, row)[0])  # P x 1
            prior = self._prior_variance(row)
            left = prior - A.square().sum()
            if float(left) >= _APART * float(prior):
                sums = with_inputs(sums, A.unsqueeze(0), left.sqrt().reshape(1, 1, 1))
                self._basis = torch.cat([self._basis, row])
            seen[i] = self._basis.shape[0]
        return sums, seen

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
