"""Functional regularization of the memorable past: a Gaussian process on what the network said of kept rows (Pan et al. 2020).

``z_t = argmin -sum_n log p(y_n | z) + 1/2 |z|^2 + c / 2 sum_{s < t} sum_k |m_k(z) - m_k(z_{t-1})|^2_{K_k}`` over the kept rows of
every earlier task, outputs ``k`` one by one, where ``|v|^2_K = v^T K^{-1} v``, ``m`` are mean observations (probabilities of
classes) and ``K = J_m S J_m^T + e I`` with the Jacobian of ``m`` at ``z_{t-1}``. ``S`` is the inverse of ``I + sum_s diag(G_s)``,
the diagonals of the Gauss-Newton matrices of all rows so far. With losses averaged over ``N`` rows and the published ``tau``,
``c = tau N``; ``c = 1`` is Bayes' rule, where functions at the kept rows say all.

Likelihoods are canonical: ``d m / d f`` is in proportion to the Fisher information, and differences of ``m`` are differences of
scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from seqbdl.errors import InvalidOptionError
from seqbdl.inference.coresets import check_coreset, choose_rows
from seqbdl.inference.curvature import gauss_newton_diagonal
from seqbdl.inference.laplace import Rows
from seqbdl.inference.tasks import HeldRows, TaskMemory, TaskMethod, first_prior, penalized_mode
from seqbdl.likelihoods import apply_root, apply_root_transposed
from seqbdl.networks import Network
from seqbdl.posteriors.gaussian_weights import GaussianWeights
from seqbdl.posteriors.joint_gaussian import safe_cholesky
from seqbdl.posteriors.operators import Diagonal

_ENTRIES = 2**24  # of a Jacobian that is in memory at once, beside the one that the kernel is made of


@dataclass(frozen=True)
class FROMP(TaskMethod):
    """Attributes:
    strength: ``c``.
    coreset: Rows that are kept per task.
    coreset_kind: How they are chosen; the paper's are ``"uncertain"``.
    jitter: ``e``, as a share of the mean of the diagonal of ``K``.
    """

    strength: float = 1.0
    coreset: int = 40
    coreset_kind: str = "uncertain"
    jitter: float = 1e-5

    rate: ClassVar[float] = 0.005  # a leap to where the network is sure and wrong has no slope that leads back

    def __post_init__(self) -> None:
        check_coreset(self.coreset_kind, self.coreset)
        for name in ("strength", "jitter"):
            if not getattr(self, name) > 0:
                raise InvalidOptionError(f"{name}={getattr(self, name)} must be positive")

    def begin(self, network: Network, generator: torch.Generator, like: Tensor) -> TaskMemory:
        z = super().begin(network, generator, like).z
        return TaskMemory(z, None, first_prior(z))

    def learn(self, network: Network, rows: Rows, memory: TaskMemory, generator: torch.Generator) -> TaskMemory:
        if rows.likelihood.name == "heteroscedastic":
            raise InvalidOptionError("FROMP needs a likelihood with one mean per latent value; heteroscedastic has none")
        past = [PastTask.at(network, memory, Rows(rows.likelihood, h.X, h.Y, h.noise), self.jitter) for h in memory.held]

        def pull(z: Tensor, index: Tensor | None) -> Tensor:
            return self.strength * torch.stack([task.gradient(network, z) for task in past]).sum(0)

        seen = network.active_weights(torch.cat([rows.X, *(held.X for held in memory.held)]))
        first = first_prior(memory.z)
        z = penalized_mode(network, rows, memory.z, first, self.descent, generator, pull if past else None, seen)
        at = z.unsqueeze(0)
        learned = gauss_newton_diagonal(network, at, rows.X, rows.root(network.forward(at, rows.X)[0]))
        kept = choose_rows(self.coreset_kind, self.coreset, network, z, rows, generator)
        prior = GaussianWeights(z, Diagonal(memory.prior.precision.diagonal + learned))
        return TaskMemory(z, None, prior, (*memory.held, HeldRows.of(rows, kept)) if kept.numel() else memory.held)


@dataclass(frozen=True)
class PastTask:
    """What the network said of a task's kept rows, and how sure.

    Attributes:
        rows: Kept.
        score: ``n x l``, of their outcomes then.
        factor: ``l x n x n``, Cholesky factors of ``K``.
    """

    rows: Rows
    score: Tensor
    factor: Tensor

    @classmethod
    def at(cls, network: Network, memory: TaskMemory, rows: Rows, jitter: float) -> PastTask:
        """At the weights and the precision of a memory."""
        at, scale = memory.z.unsqueeze(0), memory.prior.precision.diagonal.rsqrt()
        f = network.forward(at, rows.X)[0]
        root = rows.root(f)
        sides = f.new_empty(f.shape[1], f.shape[0], scale.shape[0])  # l x n x P
        for part in torch.arange(f.shape[0], device=f.device).split(max(1, _ENTRIES // (f.shape[1] * scale.shape[0]))):
            J, R = network.jacobian(network.tangents(at, rows.X[part]))[0], root[part]  # n x l x P
            J = R.square().unsqueeze(-1) * J if R.dim() == 2 else R @ (R.transpose(-1, -2) @ J)  # of m
            sides[:, part] = J.mul_(scale).transpose(0, 1)
        K = sides @ sides.transpose(-1, -2)
        size = K.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(torch.finfo(K.dtype).tiny)
        eye = torch.eye(K.shape[-1]).to(K)
        return cls(rows, rows.likelihood.score(f, rows.Y, rows.noise), safe_cholesky(K + jitter * size[:, None, None] * eye))

    def gradient(self, network: Network, z: Tensor) -> Tensor:
        """Of half the quadratic, at ``z: 1 x P``, ``1 x P``."""
        rows = self.rows
        f, back = network.pullback(z, rows.X)
        moved = self.score - rows.likelihood.score(f[0], rows.Y, rows.noise)  # m(z) - m(z_then), n x l
        pulled = torch.cholesky_solve(moved.T.unsqueeze(-1), self.factor).squeeze(-1).T
        root = rows.root(f[0])
        slope = apply_root(root, apply_root_transposed(root, pulled))
        return back(slope.unsqueeze(0))
