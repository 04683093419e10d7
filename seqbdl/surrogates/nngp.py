"""``nngp``: an infinitely wide Bayesian network, exactly."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from seqbdl.errors import InvalidOptionError, UnknownNameError
from seqbdl.inference import infinite_width
from seqbdl.inference.infinite_width import WidthScales
from seqbdl.networks.activations import ACTIVATIONS
from seqbdl.surrogates.base import Evaluate
from seqbdl.surrogates.kernel import KernelSurrogate


class NNGPSurrogate(KernelSurrogate):
    """The neural-network Gaussian process with one input variance per dimension; every scale and the noise by evidence.

    Args:
        depth: Hidden layers.
        activation: ``"erf"`` (tanh to within 0.04), ``"relu"`` or ``"leaky_relu"``.
        max_iterations: L-BFGS iterations per fit; later fits start from the last solution.
        draw_width: Width of the random networks that function draws are made of, one network per draw.
    """

    name = "nngp"

    def __init__(
        self,
        *args: Any,
        depth: int = 2,
        activation: str = "erf",
        max_iterations: int = 60,
        draw_width: int = 256,
        **kwargs: Any,
    ) -> None:
        if activation not in ACTIVATIONS:
            raise UnknownNameError("activation", activation, list(ACTIVATIONS))
        if depth < 1:
            raise InvalidOptionError(f"depth={depth}; a network has at least one hidden layer")
        self.depth = depth
        self.activation = activation
        self.max_iterations = max_iterations
        self.draw_width = draw_width
        super().__init__(*args, **kwargs)

    def _initial_hyperparameters(self) -> dict[str, Tensor]:
        return infinite_width.default_scales(self.input_dim, self.depth, self.output_dim).tree()

    @property
    def scales(self) -> WidthScales:
        """The learned variances of the network's weights and of the noise, inner coordinates."""
        return WidthScales(**self._hyper)

    def _learn(self, X: Tensor, Y: Tensor, noise: Tensor | None) -> tuple[dict[str, Tensor], Tensor]:
        scales, _ = infinite_width.learn_scales(
            X,
            Y,
            noise,
            depth=self.depth,
            activation=self.activation,
            start=self.scales if self._conditioning.num_rows else None,
            max_iterations=self.max_iterations,
        )
        return scales.tree(), scales.noise.unsqueeze(0) if noise is None else noise

    def _kernel(self, X1: Tensor, X2: Tensor) -> Tensor:
        return infinite_width.kernel(self.scales, X1, X2, self.activation)

    def _prior_draw(self, n: int, generator: Any) -> Evaluate:
        return infinite_width.prior_draw(self.scales, n, self.draw_width, self.activation, generator)
