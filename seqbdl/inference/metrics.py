"""Mass matrices of chains, which precondition gradients and shape momenta: diagonal, and the Gauss-Newton matrix.

Any constant positive definite ``M`` leaves the target of a sampler as it is; what it changes is how fast the chains move.
The Gauss-Newton matrix ``M = I + J^T L J`` of the network linearized where a chain starts makes all directions alike, those
that the data determine to four digits and those that only the prior knows. Products with it go through ``N x N`` algebra.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from seqbdl.inference.log_joint import LogJoint
from seqbdl.likelihoods import apply_root, apply_root_transposed, whiten_both
from seqbdl.networks import Network, Tangents
from seqbdl.posteriors.joint_gaussian import safe_cholesky

MAX_METRIC_ROWS = 1000
"""Rows times latents that a Gauss-Newton matrix sees; a random sample beyond, scaled up."""


class Metric(Protocol):
    """A symmetric positive definite ``M`` for every chain."""

    @property
    def typical(self) -> float:
        """The mass of most weights over their prior precision, squared periods of what only the prior determines."""

    def solve(self, g: Tensor) -> Tensor:
        """``M^{-1} g``, ``S x P``."""

    def square(self, v: Tensor) -> Tensor:
        """``v^T M v``, ``S``."""

    def draw(self, like: Tensor, generator: torch.Generator) -> Tensor:
        """``v ~ N(0, M^{-1})`` of the shape of ``like: S x P``."""


@dataclass(frozen=True)
class DiagonalMetric:
    """Attributes:
    mass: ``P`` or ``S x P``, the diagonal of ``M``.
    precision: Of the prior, ``S x P``; ``None``: one.
    additive: Whether the mass is a prior precision of one plus what the data add.
    """

    mass: Tensor
    precision: Tensor | None = None
    additive: bool = False

    @property
    def typical(self) -> float:
        return float((self.mass if self.precision is None else self.mass / self.precision).median())

    def solve(self, g: Tensor) -> Tensor:
        return g / self.mass

    def square(self, v: Tensor) -> Tensor:
        return (self.mass * v.square()).sum(-1)

    def draw(self, like: Tensor, generator: torch.Generator) -> Tensor:
        return normals(like.shape, generator, like) * self.mass.rsqrt()


@dataclass(frozen=True)
class GaussNewtonMetric:
    """``M = I + J^T R R^T J`` and the mean of the Gaussian that has it as precision: the posterior of the linearized network.

    Attributes:
        network: The network.
        tangents: Its linearization at ``S`` weight vectors and ``r`` rows.
        root: ``S x r x l`` or ``S x r x l x l``, ``R``.
        factor: ``S x (r l) x (r l)``, Cholesky factor of ``R^T J J^T R + I``.
        centre: ``S x P``, the minimizer of ``1/2 |R^T J (z' - z) - u|^2 + 1/2 |z'|^2``.
    typical: One: data determine a few directions only.
    """

    network: Network
    tangents: Tangents
    root: Tensor
    factor: Tensor
    centre: Tensor
    typical: float = 1.0

    def solve(self, g: Tensor) -> Tensor:
        return g - self._back(self._dual(self._rows(g)))

    def square(self, v: Tensor) -> Tensor:
        return v.square().sum(-1) + self._rows(v).square().sum((-1, -2))

    def draw(self, like: Tensor, generator: torch.Generator) -> Tensor:
        """Prior draws conditioned on noise at the rows (Matheron's rule)."""
        prior = normals(like.shape, generator, like)
        return prior - self._back(self._dual(self._rows(prior) + normals(self.tangents.values.shape, generator, like)))

    def _rows(self, v: Tensor) -> Tensor:
        """``R^T J v``, ``S x r x l``."""
        return apply_root_transposed(self.root, self.network.jvp(self.tangents, v))

    def _back(self, alpha: Tensor) -> Tensor:
        """``J^T R alpha``, ``S x P``."""
        return self.network.vjp(self.tangents, apply_root(self.root, alpha))

    def _dual(self, rows: Tensor) -> Tensor:
        """``(R^T J J^T R + I)^{-1}`` times ``rows: S x r x l``."""
        return torch.cholesky_solve(rows.flatten(1).unsqueeze(-1), self.factor).reshape(rows.shape)


def gauss_newton_metric(joint: LogJoint, z: Tensor, generator: torch.Generator) -> GaussNewtonMetric:
    """The Gauss-Newton matrix at every chain's ``z: S x P``, under the standard normal prior whatever the prior of the joint.

    Args:
        joint: Network, likelihood and data.
        z: ``S x P``.
        generator: Picks rows where there are too many.
    """
    network, lik = joint.network, joint.likelihood
    n, latents = joint.num_rows, network.num_outputs
    keep = None
    if n * latents > MAX_METRIC_ROWS:
        keep = torch.randperm(n, generator=generator)[: max(1, MAX_METRIC_ROWS // latents)].to(z.device)
    X, Y, noise, factor = joint.rows(keep)
    X, Y, noise = X.to(z), Y.to(z), noise.to(z)
    weights = X.new_full((X.shape[0],), factor)
    if joint.row_weights is not None:
        weights = weights * joint.row_weights.to(z)[slice(None) if keep is None else keep]
    tangents = network.tangents(z, X)
    f = tangents.values
    scale = weights.sqrt()[:, None]
    root = lik.root(f, noise)
    root = root * (scale if root.dim() == f.dim() else scale.unsqueeze(-1))
    B = whiten_both(root, network.tangent_kernel(tangents, tangents), latents)
    B.diagonal(dim1=-2, dim2=-1).add_(1.0)
    factored = safe_cholesky(B)
    residual = lik.whitened_score(f, Y, noise) * scale + apply_root_transposed(root, network.jvp(tangents, z))
    alpha = torch.cholesky_solve(residual.flatten(1).unsqueeze(-1), factored).reshape(residual.shape)
    return GaussNewtonMetric(network, tangents, root, factored, network.vjp(tangents, apply_root(root, alpha)))


def diagonal_metric(joint: LogJoint, z: Tensor, generator: torch.Generator, probes: int = 8) -> DiagonalMetric:
    """The diagonal of the Gauss-Newton matrix, one for all chains: squares of ``J^T R w`` for random signs ``w``, averaged
    over chains and probes (Bekas et al. 2007). Needs gradients only, so it takes any network and any number of rows.

    Args:
        joint: Network, likelihood and data.
        z: ``S x P``.
        generator: Source of randomness.
        probes: Per chain.
    """
    index = None
    if joint.num_rows > MAX_METRIC_ROWS:
        index = torch.randperm(joint.num_rows, generator=generator)[:MAX_METRIC_ROWS].to(z.device)
    X, _, noise, factor = joint.rows(index)
    with torch.no_grad():
        f, back = joint.network.pullback(z.to(X.dtype), X)
        root = joint.likelihood.root(f, noise)
        weights = f.new_full((X.shape[0], 1), factor)
        if joint.row_weights is not None:
            weights = weights * joint.row_weights[slice(None) if index is None else index].unsqueeze(-1)
        total = torch.zeros_like(z[0])
        for _ in range(probes):
            signs = normals(f.shape, generator, f).sign() * weights.sqrt()
            total = total + back(apply_root(root, signs)).to(z).square().mean(0)
    return DiagonalMetric(1.0 + total / probes, additive=True)


def normals(shape: torch.Size | tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    """Standard normals drawn in float64 on the CPU, in the type and on the device of ``like``."""
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(like)
