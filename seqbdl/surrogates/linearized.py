"""Surrogates by a Laplace approximation of a linearized network: what they share, whatever the network and the structure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from seqbdl._checks import check_inputs
from seqbdl.errors import InvalidOptionError
from seqbdl.inference import laplace
from seqbdl.inference.curvature import precision_of
from seqbdl.inference.gauss_newton import GaussNewtonSettings
from seqbdl.inference.laplace import LaplacePosterior, Rows
from seqbdl.likelihoods import LIKELIHOODS
from seqbdl.networks import Network
from seqbdl.posteriors import FunctionDraws, GaussianWeights
from seqbdl.posteriors.joint_gaussian import JointGaussian
from seqbdl.surrogates.base import Evaluate
from seqbdl.surrogates.gaussian import GaussianSurrogate
from seqbdl.surrogates.network_prior import NetworkPrior

_BLOCK = 1024
"""Rows of an update that are absorbed at once: the search for the new mode costs the cube of rows."""


class LinearizedSurrogate(GaussianSurrogate):
    """A Gaussian posterior over the weights of a network and, linearized at the mode, over functions.

    Subclasses fit ``_network``, over whitened weights, and ``_laplace``, the posterior over them; updates, predictions,
    draws and the evidence follow.

    Args:
        structure: Of the curvature: ``"full"``, ``"kron"`` or ``"diag"``.
        max_iterations: Gauss-Newton steps per search.
    """

    likelihoods: ClassVar[tuple[str, ...]] = LIKELIHOODS
    _network: Network
    _laplace: LaplacePosterior
    _prior: NetworkPrior
    memory: int | None = None
    """Rows whose curvature ``update`` keeps exactly while it is held by rows (see :mod:`seqbdl.inference.curvature`); ``None``:
    all, until a matrix of all weights is smaller."""

    def __init__(self, *args: Any, structure: str = "full", max_iterations: int = 60, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if structure not in laplace.STRUCTURES:
            raise InvalidOptionError(f"structure={structure!r} must be one of {', '.join(laplace.STRUCTURES)}")
        if max_iterations < 1:
            raise InvalidOptionError(f"max_iterations={max_iterations} must be at least 1")
        self.structure = structure
        self.settings = GaussNewtonSettings(max_iterations=max_iterations)

    def _rows(self, X: Tensor, Y: Tensor, noise: Tensor | None) -> Rows:
        variance = (self._prior.noise if noise is None else noise).expand(Y.shape[0], self.output_dim)
        return Rows(self._lik, X, Y, variance.clamp_min(1e-7))

    def _update(self, X: Tensor, Y: Tensor, noise: Tensor | None) -> None:
        shared = self.structure, self.settings, self.memory, self.generator
        with torch.no_grad():
            found, rows = self._laplace, self._rows(X, Y, noise)
            for index in torch.arange(X.shape[0], device=X.device).split(_BLOCK):
                found = laplace.update_laplace(self._network, found, rows.pick(index), *shared)
            self._laplace = found

    def _joint(self, X: Tensor) -> JointGaussian:
        return laplace.joint(self._network, self._laplace, X)

    def _draw_base(self, n: int, generator: torch.Generator) -> Evaluate:
        network, z = self._network, self._laplace.z
        with torch.no_grad():
            deltas = self._laplace.curvature.sample(network, n, generator, z)

        def evaluate(X: Tensor) -> Tensor:
            here = network.tangents(z, X)
            return (here.values + network.jvp(here, deltas)).unflatten(1, X.shape[:-1])

        return evaluate

    def sample_networks(self, n: int, generator: torch.Generator | None = None) -> FunctionDraws:
        """Functions of the network itself at ``n`` weights drawn from the posterior, without linearization.

        No method of this class uses them: with a Gauss-Newton covariance they underfit badly, the farther from the mode the
        worse (Immer et al. 2021).

        Args:
            n: How many.
            generator: Where randomness comes from; the surrogate's own generator by default.

        Returns:
            A callable ``X: batch x q x d -> n x batch x q x m``, in the units of ``Y``.
        """
        network, scaling, m = self._network, self._scaling, self.output_dim
        with torch.no_grad():
            own = self.generator if generator is None else generator
            z = self._laplace.z + self._laplace.curvature.sample(network, n, own, self._laplace.z)

        def evaluate(X: Tensor) -> Tensor:
            X = check_inputs("X", X, self.input_dim)
            return (scaling.y_mean + scaling.y_std * network.forward(z, scaling.inputs(X))[..., :m]).to(X.dtype)

        return FunctionDraws(evaluate, n, m)

    def weight_posterior(self) -> GaussianWeights:
        """The posterior over the whitened weights (of ``last-layer-laplace`` the head's, of ``subnetwork-laplace`` the uncertain
        ones); ``as_prior()`` of it is a prior."""
        with torch.no_grad():
            precision = precision_of(self._network, self._laplace.z, self._laplace.curvature)
        return GaussianWeights(self._laplace.z[0], precision)

    def features(self, X: Tensor) -> Tensor:
        """Rows of the Jacobian at the mode, the posterior's linear feature map: ``X: batch x q x d -> batch x (q l) x
        P``."""
        here = self._network.tangents(self._laplace.z, self._scaling.inputs(X))
        rows = self._network.jacobian(here)[0]  # N x l x P
        return rows.reshape(*X.shape[:-2], X.shape[-2] * rows.shape[1], -1).to(X.dtype)

    def _noise(self) -> Tensor:
        return self._prior.noise

    def _log_evidence(self) -> Tensor | None:
        return self._laplace.log_evidence

    def _load_posterior(self, tree: Mapping[str, Any]) -> None:
        with torch.no_grad():
            self._laplace = LaplacePosterior.from_tree(self._network, tree)
