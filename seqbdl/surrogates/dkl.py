"""``dkl``: deep kernel learning that is never left to its own evidence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from seqbdl.errors import InvalidOptionError, UnknownNameError
from seqbdl.inference.deep_kernel import DeepKernelSettings, train_deep_kernel
from seqbdl.inference.features import fourier_draw, squared_exponential
from seqbdl.networks import MLP, ModuleNetwork, Network
from seqbdl.networks.activations import ACTIVATIONS
from seqbdl.surrogates.base import Evaluate
from seqbdl.surrogates.gp import fit_single_task_gp
from seqbdl.surrogates.kernel import KernelSurrogate
from seqbdl.surrogates.network_prior import NetworkSpec, standard_normal

_MIN_ROWS = 8  # fewer rows cannot be split into folds that say anything


class DKLSurrogate(KernelSurrogate):
    """A Gaussian process with a squared-exponential kernel on features that a network learns from the inputs.

    Widths: the features are ``x / lengthscale + phi_w(x)``, a learned warp of the inputs that begins at zero. A
    module: its outputs stand beside ``x / lengthscale``. Training follows the evidence with a prior on the weights and
    stops where held-out predictions are best; where the network does not help, the surrogate is the plain Gaussian
    process ``gp``. See :mod:`seqbdl.inference.deep_kernel`.

    Args:
        network: Hidden widths of the warp; or a module (or a factory) that maps ``N x d`` inputs in [-1, 1] to ``N x
            F`` features.
        activation: Of the widths form.
        num_features: ``F`` of a module.
        warp_scale: Prior standard deviation of the warp, in lengthscales.
        max_steps: Training steps at most.
        num_frequencies: Fourier features of function draws, per draw.
    """

    name = "dkl"

    def __init__(
        self,
        *args: Any,
        network: NetworkSpec = (32, 32),
        activation: str = "erf",
        num_features: int = 4,
        warp_scale: float = 3.0,
        max_steps: int = 200,
        num_frequencies: int = 512,
        **kwargs: Any,
    ) -> None:
        if activation not in ACTIVATIONS:
            raise UnknownNameError("activation", activation, list(ACTIVATIONS))
        if warp_scale <= 0 or max_steps < 0 or num_features < 1:
            raise InvalidOptionError(
                f"warp_scale={warp_scale}, max_steps={max_steps}, num_features={num_features}: give positive numbers"
            )
        self._given = (network, activation)  # in a tuple: a module must not become a part of this one
        self._num_features = num_features
        self.warp_scale = warp_scale
        self.num_frequencies = num_frequencies
        self.settings = DeepKernelSettings(max_steps=max_steps)
        super().__init__(*args, **kwargs)

    def _make_extractor(self) -> tuple[Network, bool]:
        spec, activation = self._given
        if isinstance(spec, nn.Module) or callable(spec):
            module = spec if isinstance(spec, nn.Module) else spec()
            if not isinstance(module, nn.Module):
                raise InvalidOptionError(f"network= returned a {type(module).__name__}; a factory returns a torch.nn.Module")
            return ModuleNetwork(module, self.input_dim, self._num_features), False
        one = torch.ones(1, dtype=torch.float64)
        if not isinstance(spec, Sequence) or not spec or not all(isinstance(width, int) and width > 0 for width in spec):
            raise InvalidOptionError(f"network={spec!r}: give hidden widths such as (32, 32), a module, or a factory")
        layers = len(spec)
        weights = one.repeat(layers)
        weights[-1] = self.warp_scale**2
        biases = one.repeat(layers + 1)
        biases[-1] = 1e-12  # a shift of all features changes nothing
        return MLP(tuple(spec), one.repeat(self.input_dim), weights, biases, self.input_dim, activation), True

    def _initial_hyperparameters(self) -> dict[str, Tensor]:
        self._extractor, self._warps = self._make_extractor()
        weights = standard_normal(
            1, self._extractor.num_params, generator=self.generator, like=torch.zeros(1, dtype=torch.float64)
        )[0]
        if self._warps:  # begin at the plain Gaussian process
            assert isinstance(self._extractor, MLP)
            head = (self._extractor.widths[-1] + 1) * self.input_dim
            weights = torch.cat([weights[:-head], torch.zeros_like(weights[-head:])])
        self._first_weights = weights
        lengthscale = torch.full((self.output_dim, self.input_dim), 0.5, dtype=torch.float64) * self.input_dim**0.5
        return {
            "weights": weights,
            "gate": torch.zeros((), dtype=torch.float64),
            "lengthscale": lengthscale,
            "mean": torch.zeros(self.output_dim, dtype=torch.float64),
        }

    def _stacked_features(self, weights: Tensor, lengthscale: Tensor, X: Tensor, gate: Tensor) -> Tensor:
        """``S x m x N x F`` for ``weights: S x P``, ``lengthscale: S x m x d``, ``X: N x d``."""
        scaled = X / lengthscale.unsqueeze(-2)  # S x m x N x d
        learned = self._extractor.forward(weights, X).unsqueeze(1)  # S x 1 x N x F
        if self._warps:
            return scaled + learned
        return torch.cat([scaled, gate * learned.expand(-1, scaled.shape[1], -1, -1)], -1)

    def features(self, X: Tensor) -> Tensor:
        """The learned features, ``X: batch x q x d -> batch x m x q x F``, one map per output."""
        return self._features(self._scaling.inputs(X)).to(X.dtype)

    def _features(self, X: Tensor) -> Tensor:
        hyper = self._hyper
        flat = X.reshape(-1, self.input_dim)
        stacked = self._stacked_features(hyper["weights"].unsqueeze(0), hyper["lengthscale"].unsqueeze(0), flat, hyper["gate"])[
            0
        ]  # m x N x F
        return stacked.unflatten(1, X.shape[:-1]).movedim(0, -3)

    def _learn(self, X: Tensor, Y: Tensor, noise: Tensor | None) -> tuple[dict[str, Tensor], Tensor]:
        lengthscale, mean, variance = fit_single_task_gp(X, Y, noise)
        first = self._first_weights.to(X.device)
        plain = {"weights": first, "gate": X.new_zeros(()), "lengthscale": lengthscale, "mean": mean}
        if X.shape[0] < _MIN_ROWS or self.settings.max_steps == 0:
            return plain, variance
        gate = X.new_ones(())
        shut = X.new_zeros(())
        fit = train_deep_kernel(
            lambda w, scale, points: self._stacked_features(w, scale, points, gate),
            lambda w, scale, points: self._stacked_features(w, scale, points, shut),
            first,
            X,
            Y,
            lengthscale,
            mean,
            variance.expand_as(Y),
            noise is not None,
            torch.Generator().manual_seed(self.seed),
            self.settings,
        )
        if fit.steps == 0:
            return plain, variance
        learned = {"weights": fit.weights, "gate": gate, "lengthscale": fit.lengthscale, "mean": fit.mean}
        return learned, fit.noise.unsqueeze(0) if noise is None else variance

    def _kernel(self, X1: Tensor, X2: Tensor) -> Tensor:
        return squared_exponential(self._features(X1), self._features(X2))

    def _prior_draw(self, n: int, generator: torch.Generator) -> Evaluate:
        dim = self.input_dim if self._warps else self.input_dim + self._num_features
        return fourier_draw(self._features, self.output_dim, dim, n, self.num_frequencies, generator, self._hyper["mean"])
