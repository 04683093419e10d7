"""From ``network=`` and data to a network with sound prior scales, shared by every finite-network surrogate."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from seqbdl.errors import InvalidOptionError, UnknownNameError
from seqbdl.inference import infinite_width
from seqbdl.inference.infinite_width import WidthScales
from seqbdl.likelihoods import Likelihood, get_likelihood
from seqbdl.networks import MLP, HeadedNetwork, ModuleNetwork, MultiHeadMLP, Network
from seqbdl.networks.activations import ACTIVATIONS

_GAUSSIAN = get_likelihood("gaussian")
EVIDENCE_ROWS = 512  # at most, a random sample, that set scales and noise
ONE_MODE_ROWS = 1000  # the same where one mode is all that is fitted
LABEL_ROWS = 300  # the same where outcomes are not Gaussian
ScaleSpec = Mapping[str, float | Sequence[float]]
NetworkSpec = Sequence[int] | Mapping[str, Any] | nn.Module | Callable[[], nn.Module]
"""Hidden widths; or ``{"widths": (256, 256), "heads": 5}``, a head for each of five tasks; or a module, or a function that makes
one."""


@dataclass(frozen=True)
class NetworkPrior:
    """The prior over functions that a finite network stands for.

    Attributes:
        scales: Variances chosen by the evidence of the infinite-width limit, one group shared by all outputs.
        noise: ``m`` inner noise variances.
    """

    scales: WidthScales
    noise: Tensor

    def tree(self) -> dict[str, Any]:
        return {"scales": self.scales.tree(), "noise": self.noise}

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> NetworkPrior:
        return cls(WidthScales(**tree["scales"]), tree["noise"])


class NetworkBuilder:
    """Checks ``network=`` once and builds networks from it.

    Args:
        spec: Hidden widths such as ``(64, 64)``; ``{"widths": (64, 64), "heads": T}``, with one head per task, the last input
            being the task (see :class:`seqbdl.networks.MultiHeadMLP`); a ``torch.nn.Module``, or a function that returns one.
            Never changed.
        input_dim: ``d``.
        output_dim: ``m``.
        activation: Of the widths form: ``"erf"`` (tanh to within 0.04), ``"relu"`` or ``"leaky_relu"``.
        headed: A module is an extractor, ``N x d`` to ``N x F``, and gets a linear head.
        num_latents: ``l``, outputs of the network; ``None``: ``m``.
        scales: Variances that are known instead of chosen by the evidence: ``"inputs"`` (of first-layer weights, per unit of
            inputs in [-1, 1]; one number or ``d``), ``"weights"`` (of the later layers, times the width; one number or
            ``L``), ``"biases"`` (one number or ``L + 1``). What is not named stays at the centre of its hyper-prior.

    Raises:
        InvalidOptionError: ``spec`` is no network, or a scale has an unknown name, a wrong length or is negative.
    """

    def __init__(
        self,
        spec: NetworkSpec,
        input_dim: int,
        output_dim: int,
        activation: str,
        headed: bool = False,
        num_latents: int | None = None,
        scales: ScaleSpec | None = None,
    ) -> None:
        if activation not in ACTIVATIONS:
            raise UnknownNameError("activation", activation, list(ACTIVATIONS))
        self.input_dim, self.output_dim, self.activation = input_dim, output_dim, activation
        self.num_latents = output_dim if num_latents is None else num_latents
        self.widths: tuple[int, ...] | None = None
        self.heads = 1
        self._module: ModuleNetwork | None = None
        if isinstance(spec, Mapping):
            spec, self.heads = _widths_and_heads(spec, input_dim)
        wrap: type[ModuleNetwork] = HeadedNetwork if headed else ModuleNetwork
        if isinstance(spec, nn.Module):
            self._module = wrap(spec, input_dim, self.num_latents)
        elif callable(spec):
            made = spec()
            if not isinstance(made, nn.Module):
                raise InvalidOptionError(f"network= returned a {type(made).__name__}; a factory returns a torch.nn.Module")
            self._module = wrap(made, input_dim, self.num_latents)
        elif isinstance(spec, Sequence) and not isinstance(spec, str) and all(isinstance(w, int) and w > 0 for w in spec):
            if not spec:
                raise InvalidOptionError("network=() has no hidden layer; give widths such as (64, 64)")
            self.widths = tuple(spec)
        else:
            raise InvalidOptionError(f"network={spec!r}: give hidden widths, a torch.nn.Module, or a function that makes one")

        self._scales = None if scales is None else self._known_scales(scales)
        self._held: NetworkPrior | None = None

    def holding(self, prior: NetworkPrior) -> NetworkBuilder:
        """A builder of the same networks that has nothing to learn: scales and noise stay as they are."""
        twin = copy.copy(self)
        twin._held = prior
        return twin

    def _known_scales(self, given: ScaleSpec) -> WidthScales:
        defaults = infinite_width.default_scales(self.input_dim, self.depth, 1)
        parts = {}
        for name, value in given.items():
            if name not in ("inputs", "weights", "biases"):
                raise UnknownNameError("scale", name, ["inputs", "weights", "biases"])
            like = getattr(defaults, name)
            values = torch.as_tensor(value, dtype=torch.float64).reshape(1, -1)
            if values.shape[1] not in (1, like.shape[1]) or not bool((values >= 0).all()):
                raise InvalidOptionError(f"scales={{{name!r}: {value}}}: give one variance or {like.shape[1]}, none negative")
            parts[name] = values.expand_as(like).clone()
        return replace(defaults, **parts)

    @property
    def depth(self) -> int:
        """Hidden layers of the infinite-width network that sets the scales."""
        return 2 if self.widths is None else len(self.widths)

    def initial(self) -> NetworkPrior:
        """Before any data."""
        scales = self._scales or infinite_width.default_scales(self.input_dim, self.depth, 1)
        return NetworkPrior(scales, scales.noise.expand(self.output_dim).clone())

    def learn(
        self,
        X: Tensor,
        Y: Tensor,
        noise: Tensor | None,
        start: NetworkPrior | None,
        tangent: bool = False,
        likelihood: Likelihood = _GAUSSIAN,
        seed: int = 0,
        max_rows: int = EVIDENCE_ROWS,
    ) -> NetworkPrior:
        """Scales and noise by the infinite-width evidence.

        Args:
            X: ``n x d`` in the unit cube.
            Y: ``n x t``: standardized, or labels.
            noise: Known inner variances or ``None``.
            start: The last prior, for a warm start.
            tangent: Whether the network will be used linearized.
            likelihood: Of an observation.
            seed: Of the sample of rows.
            max_rows: Rows to look at, :func:`evidence_rows`: the evidence is cubic in them. Labels: 300 at most.
        """
        if self._held is not None:
            return self._held
        if self._scales is not None and (noise is not None or not likelihood.has_noise):
            known = self._scales.to(X)
            variance = known.noise.new_ones(self.output_dim) if noise is None else noise.expand(X.shape[0], -1).mean(0)
            return NetworkPrior(known, variance.clamp_min(1e-7).clone())
        limit = max_rows if likelihood.has_noise else min(max_rows, LABEL_ROWS)
        some = evidence_rows(X.shape[0], seed, limit).to(X.device)
        sampled = noise if noise is None or noise.shape[0] == 1 else noise[some]
        if not likelihood.has_noise:
            scales = infinite_width.learn_scales_of_latents(
                X[some],
                Y[some],
                likelihood,
                self.num_latents,
                depth=self.depth,
                activation=self.activation,
                tangent=tangent,
                start=None if start is None else start.scales,
            )
            return NetworkPrior(scales, scales.noise.new_ones(self.output_dim))
        scales, _ = infinite_width.learn_scales(
            X[some],
            Y[some],
            sampled,
            depth=self.depth,
            activation=self.activation,
            shared=True,
            tangent=tangent,
            start=None if start is None else start.scales,
        )
        variance = scales.noise.expand(self.output_dim) if noise is None else noise.expand_as(Y).mean(0)
        if self._scales is not None:
            scales = self._scales.to(X)
        return NetworkPrior(scales, variance.clamp_min(1e-7).clone())

    def build(self, prior: NetworkPrior, branches: int = 1) -> Network:
        """The network with the prior's scales inside (a module keeps its own fan-in scales, and has one branch)."""
        if self._module is not None:
            return self._module
        assert self.widths is not None
        s = prior.scales
        parts = (self.widths, s.inputs[0], s.weights[0], s.biases[0], self.num_latents, self.activation, branches)
        return MLP(*parts) if self.heads == 1 else MultiHeadMLP(*parts, self.heads)


def _widths_and_heads(spec: Mapping[str, Any], input_dim: int) -> tuple[Sequence[int], int]:
    for name in spec:
        if name not in ("widths", "heads"):
            raise UnknownNameError("part of network", name, ["widths", "heads"])
    widths, heads = spec.get("widths", ()), spec.get("heads", 1)
    if not isinstance(heads, int) or heads < 1 or (heads > 1 and input_dim < 2):
        raise InvalidOptionError(f"heads={heads!r} with input_dim={input_dim}: a number of tasks, the last input being the task")
    return widths, heads


def evidence_rows(num_rows: int, seed: int, max_rows: int = EVIDENCE_ROWS) -> Tensor:
    """Rows that set scales and noise, in order: all, or a random few where the evidence of all would cost more than the fit."""
    if num_rows <= max_rows:
        return torch.arange(num_rows)
    return torch.randperm(num_rows, generator=torch.Generator().manual_seed(seed))[:max_rows].sort().values


def standard_normal(*shape: int, generator: torch.Generator, like: Tensor) -> Tensor:
    """Float64 standard normals from a CPU generator, on the device of ``like``."""
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(like.device)
