"""``svgd``: Stein variational gradient descent."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seqbdl.errors import InvalidOptionError
from seqbdl.inference.anchored import anchored_ensemble
from seqbdl.inference.log_joint import LogJoint
from seqbdl.inference.members import Held
from seqbdl.inference.svgd import svgd_functions, svgd_weights
from seqbdl.likelihoods import whiten_rows
from seqbdl.networks import LinearHead
from seqbdl.surrogates.interacting import InteractingSurrogate

_METRIC_ROWS = 512  # that the kernel's metric of the last layer is made of; beyond, an even sample


class SVGDSurrogate(InteractingSurrogate):
    """``S`` networks along the smoothed gradient of the Kullback-Leibler divergence to the posterior (Liu and Wang 2016).

    With as many weights as networks have the particles' spread collapses: of a standard normal in 50 dimensions 20 particles
    keep a twentieth of the variance, in thousands nothing (Ba et al. 2022). Hence function space by default, with a kernel in
    the metric of the posterior and a repulsion scaled to keep its spread; ``space="weight"`` is there to compare.

    Args:
        space: ``"function"``, ``"last-layer"`` (features of one network, whose last layer the particles are; needs
            ``network=`` as widths) or ``"weight"``.
    """

    name = "svgd"
    spaces = ("function", "last-layer", "weight")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.space == "last-layer" and (self._builder.widths is None or self._builder.heads > 1):
            raise InvalidOptionError(
                'space="last-layer" needs network= as hidden widths with one head: which weights are the last layer is unknown; '
                'use space="function"'
            )

    def _infer(self, X: Tensor, Y: Tensor, variance: Tensor, warm: bool) -> tuple[Tensor, Tensor]:
        if self.space != "last-layer":
            return super()._infer(X, Y, variance, warm)
        starts = self._starts.to(X.device)
        body = anchored_ensemble(
            self._network, X, Y, variance, self._lik, starts[:1], starts[:1], self.generator, self.settings, False
        )
        anchors = torch.cat([body[:, : -self._head_size].expand(starts.shape[0], -1), starts[:, -self._head_size :]], 1)
        z = self._fit_heads(X, Y, variance, anchors, None)
        return self._move(X, Y, variance, z), X.new_zeros(self.num_members)

    def _absorb(self, X: Tensor, Y: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        if self.space != "last-layer":
            return super()._absorb(X, Y, variance)
        z = self._fit_heads(X, Y, variance, self._z, self._held(self._z))
        return self._move(*self._with_memory(X, Y, variance), z), self._log_weights

    def _move(self, X: Tensor, Y: Tensor, variance: Tensor, z: Tensor) -> Tensor:
        if self.space == "function":
            posterior = self._function_posterior(X, Y, variance)
            return svgd_functions(posterior, z, self.generator, self.moves, self.num_inputs, self.normalize)
        if self.space == "weight":
            return svgd_weights(self._log_joint(X, Y, variance), z, self.generator, self.moves)
        joint = LogJoint(self._head(z), self._lik, self._weight_prior, X, Y, variance, self._row_weights(variance))
        heads = z[:, -self._head_size :]
        metric = self._head_precision(joint, heads)
        moved = svgd_weights(joint, heads, self.generator, self.moves, precision=metric, normalize=self.normalize)
        return torch.cat([z[:, : -self._head_size], moved], 1)

    # ------------------------------------------------------------------ the last layer

    @property
    def _head_size(self) -> int:
        """Weights of the last layer, which come last."""
        assert self._builder.widths is not None
        return (self._builder.widths[-1] + 1) * self.num_latents

    def _head(self, z: Tensor) -> LinearHead:
        """The last layer on the features that all particles share, as a network."""

        def features(X: Tensor) -> Tensor:
            return self._network.hidden(z[:1].to(X), X)[0]

        return LinearHead(features, self.input_dim, self._head_size // self.num_latents, self.num_latents)

    def _fit_heads(self, X: Tensor, Y: Tensor, variance: Tensor, anchors: Tensor, held: Held | None) -> Tensor:
        """Randomize-then-optimize of the last layers alone, ``S x P``."""
        start = anchors[:, -self._head_size :]
        heads = anchored_ensemble(
            self._head(anchors),
            X,
            Y,
            variance,
            self._lik,
            start,
            start,
            self.generator,
            self.settings,
            self.randomize_targets,
            held=held,
        )
        return torch.cat([anchors[:, : -self._head_size], heads], 1)

    def _head_precision(self, joint: LogJoint, heads: Tensor) -> Tensor:
        """Of the Gaussian approximation around the mean of the last layers, ``k x k``: prior plus Fisher information."""
        n = joint.num_rows
        count = min(n, max(1, _METRIC_ROWS // self.num_latents))
        some = torch.linspace(0, n - 1, count, device=joint.X.device).round().long()
        tangents = joint.network.tangents(heads.mean(0, keepdim=True), joint.X[some])
        root = self._lik.root(tangents.values, joint.noise[some])
        if joint.row_weights is not None:
            root = root * joint.row_weights[some].sqrt().reshape(1, -1, *([1] * (root.dim() - 2)))
        rows = whiten_rows(root, joint.network.jacobian(tangents).flatten(1, 2), self.num_latents)[0]
        precision: Tensor = (n / count) * (rows.T @ rows)
        precision.diagonal().add_(1.0)
        return precision
