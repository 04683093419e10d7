"""A deep Wishart process as a mixture of Gaussian processes: samples of its hidden layers, frozen as functions.

A sample holds, for every hidden layer, the features ``F_l`` at the inducing inputs and one draw of the function that goes
through them: random features of the layer's kernel, corrected with the exact kernel (Matheron's rule; Wilson et al. 2020).
Its hidden layers are then a deterministic, differentiable map of the inputs, the same for any points together, and the top
layer is a Gaussian process on it, conditioned exactly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from seqbdl.inference.deep_wishart import (
    DeepWishart,
    Parameters,
    layer_kernel,
    layer_variance,
    linear_gram,
    sample_layer,
    scales_of,
)
from seqbdl.inference.gram import SQUARED_EXPONENTIAL
from seqbdl.inference.infinite_width import WidthScales
from seqbdl.networks.activations import activate, centred
from seqbdl.posteriors.joint_gaussian import KERNEL_JITTER, jittered_cholesky


@dataclass(frozen=True)
class Features:
    """Random features of a layer's kernel on the features before it.

    Attributes:
        weights: ``... x F x M``.
        phases: ``... x 1 x M``, of the squared-exponential kernel.
    """

    weights: Tensor
    phases: Tensor

    def __call__(self, scales: WidthScales, layer: int, activation: str, phi: Tensor) -> Tensor:
        """``... x N x F`` to ``... x N x (M + 1)``; inner products have the kernel as mean."""
        a = phi @ self.weights
        h = math.sqrt(2.0) * torch.cos(a + self.phases) if activation == SQUARED_EXPONENTIAL else activate(a, activation)
        bias = scales.biases[0, layer + 1].sqrt().expand(*h.shape[:-1], 1)
        return torch.cat([h * (scales.weights[0, layer] / a.shape[-1]).sqrt(), bias], -1)


@dataclass(frozen=True)
class FrozenLayers:
    """``S`` samples of all hidden layers.

    Attributes:
        scales: Of the kernels.
        activation: Of the kernels.
        nus: Degrees of freedom.
        Z: ``P x d``.
        images: Per layer ``S x P x nu``, features at the inducing inputs.
        features: Per layer, of the function drawn.
        heads: Per layer ``S x (M + 1) x nu``.
        coefficients: Per layer ``S x P x nu``, on the kernel with the inducing inputs.
    """

    scales: WidthScales
    activation: str
    nus: tuple[int, ...]
    Z: Tensor
    images: list[Tensor] = field(default_factory=list)
    features: list[Features] = field(default_factory=list)
    heads: list[Tensor] = field(default_factory=list)
    coefficients: list[Tensor] = field(default_factory=list)

    def first(self, X: Tensor) -> Tensor:
        """``phi_0``, whose inner products are ``G_0``: ``N x (d + 1)``."""
        bias = self.scales.biases[0, 0].sqrt().expand(*X.shape[:-1], 1)
        return torch.cat([centred(X) * self.scales.inputs[0].sqrt(), bias], -1)

    def kernel(self, layer: int, phi1: Tensor, phi2: Tensor) -> Tensor:
        """The kernel of a layer between features ``S x N1 x F`` and ``S x N2 x F``."""
        G = phi1 @ phi2.transpose(-1, -2)
        return layer_kernel(self.scales, layer, self.activation, G, phi1.square().sum(-1), phi2.square().sum(-1))

    def variance(self, layer: int, phi: Tensor) -> Tensor:
        """The same at coincident points, ``S x N``."""
        return layer_variance(self.scales, layer, self.activation, phi.square().sum(-1))

    def hidden(self, X: Tensor) -> Tensor:
        """Features of the last hidden layer, ``N x d`` to ``S x N x nu``."""
        phi = self.first(X).unsqueeze(0)
        at_Z = self.first(self.Z).unsqueeze(0)
        for layer, nu in enumerate(self.nus):
            prior = self.features[layer](self.scales, layer, self.activation, phi) @ self.heads[layer]
            phi = (prior + self.kernel(layer, phi, at_Z) @ self.coefficients[layer]) / math.sqrt(nu)
            at_Z = self.images[layer]
        return phi

    def tree(self) -> dict[str, Any]:
        """For saving."""
        return {
            "scales": self.scales.tree(),
            "Z": self.Z,
            "images": list(self.images),
            "weights": [f.weights for f in self.features],
            "phases": [f.phases for f in self.features],
            "heads": list(self.heads),
            "coefficients": list(self.coefficients),
        }

    @classmethod
    def of(cls, tree: Mapping[str, Any], activation: str, nus: tuple[int, ...]) -> FrozenLayers:
        """Of :meth:`tree`."""
        features = [Features(w, p) for w, p in zip(tree["weights"], tree["phases"], strict=True)]
        scales = WidthScales(**tree["scales"])
        parts = (list(tree[name]) for name in ("heads", "coefficients"))
        return cls(scales, activation, nus, tree["Z"], list(tree["images"]), features, *parts)


def random_features(batch: tuple[int, ...], dim: int, width: int, generator: torch.Generator, like: Tensor) -> Features:
    """Standard normal weights and uniform phases, of ``batch`` independent sets."""
    weights = torch.randn(*batch, dim, width, generator=generator, dtype=torch.float64).to(like)
    phases = 2 * math.pi * torch.rand(*batch, 1, width, generator=generator, dtype=torch.float64).to(like)
    return Features(weights, phases)


def freeze(model: DeepWishart, parameters: Parameters, samples: int, width: int, generator: torch.Generator) -> FrozenLayers:
    """Draw the hidden layers.

    Args:
        model: The model.
        parameters: Of its posterior.
        samples: ``S``.
        width: ``M``, random features per layer.
        generator: Source of randomness.
    """
    frozen = FrozenLayers(scales_of(parameters), model.activation, model.nus, model.Z)
    at_Z = frozen.first(model.Z).expand(samples, -1, -1)
    G = linear_gram(frozen.scales, model.Z, model.Z).expand(samples, -1, -1)
    P = model.Z.shape[0]
    for layer, nu in enumerate(model.nus):
        image = sample_layer(model, parameters, layer, G, samples, generator).image
        image = torch.nn.functional.pad(image, (0, nu - image.shape[-1]))
        # A rotation of the columns changes no Gram matrix; without it the first features would be unlike the others.
        turn = torch.linalg.qr(torch.randn(samples, nu, nu, generator=generator, dtype=torch.float64).to(G)).Q
        image = image @ turn
        features = random_features((samples,), at_Z.shape[-1], width, generator, G)
        head = torch.randn(samples, width + 1, nu, generator=generator, dtype=torch.float64).to(G)
        factor = jittered_cholesky(frozen.kernel(layer, at_Z, at_Z))
        prior = features(frozen.scales, layer, model.activation, at_Z) @ head
        slack = KERNEL_JITTER**0.5 * torch.randn(samples, P, nu, generator=generator, dtype=torch.float64).to(G)
        coefficients = torch.cholesky_solve(math.sqrt(nu) * image - prior - slack, factor)
        frozen.images.append(image)
        frozen.features.append(features)
        frozen.heads.append(head)
        frozen.coefficients.append(coefficients)
        at_Z, G = image, image @ image.transpose(-1, -2)
    return frozen
