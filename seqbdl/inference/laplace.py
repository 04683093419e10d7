"""The linearized Laplace posterior of a network, for every likelihood.

At the mode ``z*`` of ``log p(D | f(z)) - 1/2 |z - c|^2`` the posterior of the weights is ``N(z*, (I + G)^{-1})`` with the
generalized Gauss-Newton matrix ``G``, and that of the function is Gaussian too: the network linearized there, with mean ``f(x;
z*)`` and covariance ``J(x) (I + G)^{-1} J(x')^T`` (MacKay 1992; Khan et al. 2019; Immer et al. 2021). Linear networks under
Gaussian noise are exact. Weights are whitened, and prior precisions other than 1 are scales of the network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from seqbdl.inference.curvature import STRUCTURES as STRUCTURES
from seqbdl.inference.curvature import (
    Curvature,
    FunctionSpace,
    WeightSpace,
    add_curvature,
    curvature_at,
    curvature_from_tree,
    no_curvature,
)
from seqbdl.inference.evidence import NoiseTerms, evidence_at, maximize
from seqbdl.inference.gauss_newton import GaussNewtonSettings, minimize
from seqbdl.inference.observations import Joined, Labels, Observations, Remembered, Squares
from seqbdl.inference.replicates import distinct_rows
from seqbdl.likelihoods import Likelihood, whiten_both
from seqbdl.networks import AffineNetwork, Network
from seqbdl.posteriors.joint_gaussian import JointGaussian, safe_cholesky

_ENTRIES = 4_000_000  # of a block of Jacobian rows: 32 MB


@dataclass(frozen=True)
class Rows:
    """Data of one likelihood.

    Attributes:
        likelihood: Of an observation.
        X: ``n x d`` in the unit cube.
        Y: ``n x t``.
        noise: ``n x m`` noise variances.
    """

    likelihood: Likelihood
    X: Tensor
    Y: Tensor
    noise: Tensor

    @property
    def observations(self) -> Observations:
        """What a fit minimizes."""
        if self.likelihood.name == "gaussian":
            return Squares(self.Y.unsqueeze(0), self.noise)
        return Labels(self.likelihood, self.Y, self.noise)

    def pick(self, index: Tensor) -> Rows:
        """Some of the rows."""
        return Rows(self.likelihood, self.X[index], self.Y[index], self.noise[index])

    def log_prob(self, f: Tensor) -> Tensor:
        """Of all rows, for latent values ``n x l``; a scalar."""
        return self.likelihood.log_prob(f, self.Y, self.noise).sum()

    def root(self, f: Tensor) -> Tensor:
        """Fisher roots, ``n x l`` or ``n x l x l``."""
        return self.likelihood.root(f, self.noise)


@dataclass(frozen=True)
class LaplacePosterior:
    """Attributes:
    z: ``1 x P`` whitened weights at the mode.
    curvature: The precision ``I + G`` there.
    log_evidence: Scalar; after updates, the evidence of every batch of rows given those before it, summed.
    """

    z: Tensor
    curvature: Curvature
    log_evidence: Tensor

    def tree(self) -> dict[str, Any]:
        """Tensors, for saving."""
        return {"z": self.z, "curvature": self.curvature.tree(), "log_evidence": self.log_evidence}

    @classmethod
    def from_tree(cls, network: Network, tree: Mapping[str, Any]) -> LaplacePosterior:
        """Restore :meth:`tree` for the same network."""
        return cls(tree["z"], curvature_from_tree(network, tree["z"], tree["curvature"]), tree["log_evidence"])


@dataclass(frozen=True)
class Tuning:
    """Which hyperparameters maximize the Laplace evidence, alternating with the search for the mode.

    Attributes:
        precision: ``"none"``, ``"one"`` for all weights, or ``"layers"``: one each.
        noise: Whether a factor on the noise variances is tuned too (Gaussian likelihood).
        rounds: Alternations at most.
    """

    precision: str = "none"
    noise: bool = False
    rounds: int = 4

    @property
    def any(self) -> bool:
        return self.precision != "none" or self.noise


@dataclass(frozen=True)
class LaplaceFit:
    """Attributes:
    network: The network with its tuned scales.
    posterior: Over its whitened weights.
    log_precisions: Changes of the log prior precisions per group, ``G``: already in the network's scales.
    noise_factor: What tuning multiplied the noise variances by.
    """

    network: Network
    posterior: LaplacePosterior
    log_precisions: Tensor
    noise_factor: Tensor


def prior_laplace(network: Network, z: Tensor) -> LaplacePosterior:
    """Before any data: the network linearized at ``z: 1 x P``."""
    return LaplacePosterior(z, no_curvature(network, z), z.new_zeros(()))


def fit_laplace(
    network: Network,
    data: Rows,
    centre: Tensor,
    start: Tensor,
    structure: str,
    settings: GaussNewtonSettings,
    tuning: Tuning,
) -> LaplaceFit:
    """Find the mode and the curvature there; with tuning, the hyperparameters too.

    Args:
        network: Over whitened weights.
        data: Rows and their likelihood.
        centre: ``1 x P`` prior mean of the weights.
        start: ``1 x P`` where the search begins.
        structure: Of the curvature, one of :data:`seqbdl.inference.curvature.STRUCTURES`.
        settings: Of the search.
        tuning: Which hyperparameters to tune.
    """
    log_precisions, log_noise = start.new_zeros(network.num_groups), start.new_zeros(())
    rows = data
    z = minimize(network, rows.X, rows.observations, centre, start, settings).z
    for _ in range(tuning.rounds if tuning.any else 0):
        change, factor = _tune(network, rows, z, centre, structure, tuning, log_precisions)
        gains = (-0.5 * change).exp()
        network, per_weight = network.rescaled(gains), gains[network.group_of_weights(z)]
        z, centre = z / per_weight, centre / per_weight
        log_precisions, log_noise = log_precisions + change, log_noise + factor
        rows = replace(data, noise=data.noise * log_noise.exp())
        z = minimize(network, rows.X, rows.observations, centre, z, settings).z
        if float(torch.cat([change, factor.reshape(1)]).abs().max()) < 0.1:
            break
    return LaplaceFit(network, laplace_at(network, rows, z, centre, structure), log_precisions, log_noise.exp())


def _tune(
    network: Network, rows: Rows, z: Tensor, centre: Tensor, structure: str, tuning: Tuning, start: Tensor
) -> tuple[Tensor, Tensor]:
    """Changes of the log precisions, ``G``, and of the log noise that maximize the evidence at ``z``."""
    f = network.forward(z, rows.X)[0]
    terms = None
    if tuning.noise and rows.likelihood.name == "gaussian":
        terms = NoiseTerms(rows.Y.numel(), ((rows.Y - f).square() / rows.noise).sum(), rows.noise.log().mean())
    layerwise = tuning.precision == "layers"
    evidence = evidence_at(network, z, centre, rows.X, rows.root(f), structure, layerwise, terms)
    change, factor = maximize(evidence, start if layerwise else start[:1], tuning.precision != "none")
    return change.expand(network.num_groups), factor


def laplace_at(network: Network, data: Rows, z: Tensor, centre: Tensor, structure: str) -> LaplacePosterior:
    """The posterior at a mode ``z: 1 x P``, and its evidence.

    ``log Z = log p(D | f(z*)) - 1/2 |z* - c|^2 - 1/2 log det(I + G)``.
    """
    f = network.forward(z, data.X)[0]
    curvature = curvature_at(network, z, *distinct(data.X, data.root(f), structure), structure)
    log_evidence = data.log_prob(f) - 0.5 * (z - centre).square().sum() - 0.5 * curvature.log_det
    return LaplacePosterior(z, curvature, log_evidence)


def distinct(X: Tensor, root: Tensor, structure: str) -> tuple[Tensor, Tensor]:
    """Rows of equal inputs as one, ``X: n x d`` and ``root: n x l (x l)`` (see :mod:`seqbdl.inference.replicates`); as they
    are where the curvature is an average over rows, or is never held by them."""
    if structure != "full":
        return X, root
    X, root, _ = distinct_rows(X, root.unsqueeze(0))
    return X, root.squeeze(0)


def update_laplace(
    network: Network,
    old: LaplacePosterior,
    data: Rows,
    structure: str,
    settings: GaussNewtonSettings,
    memory: int | None = None,
    generator: torch.Generator | None = None,
) -> LaplacePosterior:
    """The posterior becomes the prior of new rows: minimize their misfit plus the old quadratic, then add their curvature
    (Ritter et al. 2018).

    Exact for linear networks under Gaussian noise with the full structure, up to the memory.

    Args:
        network: Over whitened weights.
        old: The posterior so far.
        data: New rows.
        structure: Of the curvature.
        settings: Of the search for the new mode.
        memory: Rows that the function-space form keeps; beyond, an even sample with enlarged curvature.
        generator: Chooses that sample.
    """
    here = network.tangents(old.z, data.X)
    predicted = old.curvature.covariance(network, here, data.X.shape[:0], data.X.shape[0], lift=False)
    if isinstance(old.curvature, FunctionSpace):
        z, penalty = _mode_by_rows(network, old.z, old.curvature, data, settings)
    else:
        z, penalty = _mode_by_weights(network, old.z, old.curvature, data, settings)
    f = network.forward(z, data.X)[0]
    root = data.root(f)
    # log det (I + G_old + G_new) - log det (I + G_old), with the covariance that the old posterior predicted.
    surprise = whiten_both(root, predicted, network.num_outputs)
    log_det = 2 * safe_cholesky(surprise + torch.eye(surprise.shape[0]).to(surprise)).diagonal().log().sum()
    log_evidence = old.log_evidence + data.log_prob(f) - penalty - 0.5 * log_det
    curvature: Curvature
    if isinstance(old.curvature, WeightSpace):
        curvature = add_curvature(network, old.curvature, z, data.X, root, structure)
    else:
        X, root = distinct(torch.cat([old.curvature.X, data.X]), torch.cat([old.curvature.root, root]), structure)
        in_rows = structure == "full" and X.shape[0] * network.num_outputs < network.num_params
        if in_rows and memory is not None and X.shape[0] > memory:
            keep = torch.randperm(X.shape[0], generator=generator)[:memory].sort().values.to(X.device)
            X, root = X[keep], root[keep] * (X.shape[0] / memory) ** 0.5
        curvature = curvature_at(network, z, X, root, structure)
    return LaplacePosterior(z, curvature, log_evidence)


def _mode_by_rows(
    network: Network, z: Tensor, curvature: FunctionSpace, data: Rows, settings: GaussNewtonSettings
) -> tuple[Tensor, Tensor]:
    """New mode and the old quadratic there: the old rows hold the values that the old mode had, as firmly as they did."""
    held = Remembered(network.forward(z, curvature.X), curvature.root.unsqueeze(0))
    split = curvature.X.shape[0]
    rows = torch.cat([curvature.X, data.X])
    found = minimize(network, rows, Joined(held, data.observations, split), z, z, settings).z
    penalty = held.misfit(network.forward(found, curvature.X)) + 0.5 * (found - z).square().sum(-1)
    return found, penalty[0]


def _mode_by_weights(
    network: Network, z: Tensor, curvature: WeightSpace, data: Rows, settings: GaussNewtonSettings
) -> tuple[Tensor, Tensor]:
    """New mode and the old quadratic there, over weights that the old posterior whitens."""
    A = curvature.precision
    whitened = AffineNetwork(network, z, A.inverse_root, A.inverse_root_transposed, A.size)
    zero = torch.zeros_like(z)
    u = minimize(whitened, data.X, data.observations, zero, zero, settings).z
    return whitened.weights(u), 0.5 * u.square().sum()


def joint(network: Network, posterior: LaplacePosterior, X: Tensor) -> JointGaussian:
    """The linearized posterior at ``X: batch x q x d``, all points and latent outputs jointly; in blocks where Jacobians are
    formed."""
    batch, q = X.shape[:-2], X.shape[-2]
    points = X.reshape(-1, q, X.shape[-1])
    size = points.shape[0]
    if isinstance(posterior.curvature, WeightSpace):
        size = max(1, _ENTRIES // (q * network.num_outputs * network.num_params))
    means, covariances = [], []
    for block in points.split(size) if points.shape[0] else [points]:
        here = network.tangents(posterior.z, block)
        means.append(here.values[0].unflatten(0, block.shape[:-1]))
        covariances.append(posterior.curvature.covariance(network, here, block.shape[:1], q))
    mean, covariance = torch.cat(means), torch.cat(covariances)
    mean, covariance = mean.reshape(*batch, *mean.shape[1:]), covariance.reshape(*batch, *covariance.shape[1:])
    return JointGaussian(mean, covariance.unsqueeze(-3))
