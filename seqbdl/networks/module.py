"""Any ``torch.nn.Module`` as a network over whitened weights, by ``torch.func``."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from seqbdl.errors import InvalidOptionError, UnknownNameError
from seqbdl.networks.activations import centred
from seqbdl.networks.network import Network, Tangents, WeightBlock


class ModuleNetwork(Network):
    """Wraps a copy of a module; the module handed in is never changed.

    The prior of a weight tensor is ``N(0, scale^2 / fan_in)``, of a bias or any other vector ``N(0, scale^2)``. Inputs
    reach the module in [-1, 1], as ``N x d``; it must return ``N x m``. Jacobians are formed densely, ``S x N x m x
    P``.

    Args:
        module: Any module without batch statistics (batch normalization, active dropout).
        input_dim: ``d``.
        num_outputs: ``m``.
        scale: Prior standard deviation of the pre-activations per unit input.

    Raises:
        InvalidOptionError: The module has no parameters, holds batch normalization, or its output is not ``N x m``.
    """

    def __init__(self, module: nn.Module, input_dim: int, num_outputs: int = 1, scale: float = 1.0) -> None:
        self._module = _with_plain_layer_norms(copy.deepcopy(module)).to(torch.float64).eval()
        for child in self._module.modules():
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                raise InvalidOptionError(
                    f"network= holds {type(child).__name__}, whose output depends on the whole batch; use LayerNorm or none"
                )
        parameters = dict(self._module.named_parameters())
        if not parameters:
            raise InvalidOptionError("network= has no parameters")
        self.input_dim = input_dim
        self.num_outputs = num_outputs
        self.num_params = sum(p.numel() for p in parameters.values())
        self._names = list(parameters)
        self._shapes = [p.shape for p in parameters.values()]
        scales = [
            torch.full((p.numel(),), scale / math.sqrt(max(1, p[0].numel())) if p.dim() > 1 else scale, dtype=torch.float64)
            for p in parameters.values()
        ]
        self._scale = torch.cat(scales)
        self._buffers = dict(self._module.named_buffers())
        with torch.no_grad():
            probe = self.forward(torch.zeros(1, self.num_params, dtype=torch.float64), torch.zeros(2, input_dim).double())
        if probe.shape != (1, 2, num_outputs):
            raise InvalidOptionError(
                f"network= maps 2 x {input_dim} inputs to {tuple(probe.shape[1:])}; it must map N x d to N x {num_outputs}"
            )

    def _state(self, z: Tensor) -> dict[str, Tensor]:
        """Weights and buffers by name for one weight vector ``P``."""
        flat = (self._scale.to(z) * z).split([s.numel() for s in self._shapes])
        weights = {n: p.reshape(s) for n, p, s in zip(self._names, flat, self._shapes, strict=True)}
        return {**weights, **{n: b.to(z) if b.is_floating_point() else b.to(z.device) for n, b in self._buffers.items()}}

    def _call(self, z: Tensor, X: Tensor) -> Tensor:
        """One weight vector ``P`` at points ``N x d``, ``N x m``."""
        return _run(self._module, self._state(z), X)

    def forward(self, z: Tensor, X: Tensor) -> Tensor:
        points = X.reshape(-1, self.input_dim)
        values: Tensor = vmap(self._call, in_dims=(0, None))(z, points)
        return values.unflatten(1, X.shape[:-1])

    def forward_rows(self, z: Tensor, X: Tensor) -> Tensor:
        """Every row under its own weights: ``z: S x N x P``, ``X: N x d``, ``S x N x m``."""

        def one(weights: Tensor, x: Tensor) -> Tensor:
            return self._call(weights, x.unsqueeze(0)).squeeze(0)

        values: Tensor = vmap(vmap(one), in_dims=(0, None))(z, X)
        return values

    @property
    def weight_shapes(self) -> list[torch.Size]:
        """Of the parameters, in order."""
        return self._shapes

    @property
    def num_units(self) -> int:
        return sum(s[1] for s in [s for s in self._shapes if len(s) > 1][1:])

    def input_masks(self, keep: Tensor) -> Tensor:
        """As :meth:`Network.input_masks`; the units are the input channels of every weight tensor but the first."""
        pieces, offset, seen = [], 0, 0
        for s in self._shapes:
            if len(s) > 1 and seen > 0:
                channels = keep[:, offset : offset + s[1]].reshape(-1, 1, s[1], *[1] * (len(s) - 2))
                pieces.append(channels.expand(-1, *s).flatten(1))
                offset += s[1]
            else:
                pieces.append(keep.new_ones(keep.shape[0], s.numel()))
            seen += len(s) > 1
        return torch.cat(pieces, -1)

    def tangents(self, z: Tensor, X: Tensor) -> Tangents:
        points = X.reshape(-1, self.input_dim)

        def one(weights: Tensor, x: Tensor) -> Tensor:
            return self._call(weights, x.unsqueeze(0)).squeeze(0)

        jacobian = vmap(vmap(jacrev(one), in_dims=(None, 0)), in_dims=(0, None))(z, points)
        return Tangents(self.forward(z, points), jacobian)

    def tangent_kernel(self, first: Tangents, second: Tangents) -> Tensor:
        a, b = first.parts.flatten(1, 2), second.parts.flatten(1, 2)
        kernel: Tensor = a @ b.transpose(-1, -2)
        return kernel

    def tangent_gram(self, tangents: Tangents, batch: torch.Size, q: int) -> Tensor:
        S, _, m, P = tangents.parts.shape
        rows = tangents.parts.reshape(S, *batch, q * m, P)
        gram: Tensor = rows @ rows.transpose(-1, -2)
        return gram

    def jvp(self, tangents: Tangents, v: Tensor) -> Tensor:
        product: Tensor = torch.einsum("snmp,sp->snm", tangents.parts.expand(v.shape[0], -1, -1, -1), v)
        return product

    def jacobian(self, tangents: Tangents) -> Tensor:
        dense: Tensor = tangents.parts
        return dense

    @property
    def blocks(self) -> tuple[WeightBlock, ...]:
        """Weight tensors as matrices, first dimension by the rest; vectors have one row."""
        shapes = [(s[0], s[1:].numel()) if len(s) > 1 else (1, s.numel()) for s in self._shapes]
        return tuple(WeightBlock(rows, cols, i) for i, (rows, cols) in enumerate(shapes))

    def rescaled(self, factors: Tensor) -> ModuleNetwork:
        twin = copy.copy(self)
        twin._scale = self._scale.to(factors) * factors[self.group_of_weights(factors)]
        return twin

    def mask(self, names: Sequence[str]) -> Tensor:
        """Which weights belong to the parameters of these names, or of submodules of these names, ``P`` booleans.

        Raises:
            UnknownNameError: A name fits no parameter.
        """
        for name in names:
            if not any(own == name or own.startswith(f"{name}.") for own in self._names):
                raise UnknownNameError("parameter", name, self._names)
        picked = [any(own == name or own.startswith(f"{name}.") for name in names) for own in self._names]
        return torch.tensor(picked).repeat_interleave(torch.tensor([s.numel() for s in self._shapes]))

    def vjp(self, tangents: Tangents, alpha: Tensor) -> Tensor:
        product: Tensor = torch.einsum("snmp,snm->sp", tangents.parts.expand(alpha.shape[0], -1, -1, -1), alpha)
        return product

    def jvp_at(self, z: Tensor, X: Tensor, v: Tensor) -> Tensor:
        """``J(X) v`` by forward mode, without forming the Jacobian: ``S x N x m``."""
        points = X.reshape(-1, self.input_dim)

        def one(weights: Tensor, tangent: Tensor) -> Tensor:
            result: Tensor = jvp(lambda w: self._call(w, points), (weights,), (tangent,))[1]
            return result

        result: Tensor = vmap(one)(z.expand(v.shape[0], -1), v)
        return result

    def hidden(self, z: Tensor, X: Tensor) -> Tensor:
        """Outputs of the module as features, and a constant."""
        values = self.forward(z, X)
        return torch.cat([values, torch.ones_like(values[..., :1])], -1)


class HeadedNetwork(ModuleNetwork):
    """A module that maps ``N x d`` to ``N x F`` features, with a linear head on top.

    Args:
        extractor: Any module; see :class:`ModuleNetwork`.
        input_dim: ``d``.
        num_outputs: ``m``, of the head.

    Raises:
        InvalidOptionError: The extractor's output is not ``N x F``, or it is no module for :class:`ModuleNetwork`.
    """

    def __init__(self, extractor: nn.Module, input_dim: int, num_outputs: int = 1) -> None:
        probe = copy.deepcopy(extractor).to(torch.float64).eval()
        with torch.no_grad():
            features = probe(torch.zeros(2, input_dim, dtype=torch.float64))
        if features.dim() != 2 or features.shape[0] != 2:
            raise InvalidOptionError(
                f"network= maps 2 x {input_dim} inputs to {tuple(features.shape)}; as an extractor it must map N x d to N x F"
            )
        self.num_features = features.shape[1]
        super().__init__(nn.Sequential(probe, nn.Linear(self.num_features, num_outputs)), input_dim, num_outputs)

    def _extract(self, z: Tensor, X: Tensor) -> Tensor:
        assert isinstance(self._module, nn.Sequential)
        own = {name[2:]: value for name, value in self._state(z).items() if name.startswith("0.")}
        return _run(self._module[0], own, X)

    def hidden(self, z: Tensor, X: Tensor) -> Tensor:
        """The features, scaled as the head's prior is, and a constant: ``S x batch x q x (F + 1)``."""
        values: Tensor = vmap(self._extract, in_dims=(0, None))(z, X.reshape(-1, self.input_dim))
        scaled = torch.cat([values / math.sqrt(self.num_features), torch.ones_like(values[..., :1])], -1)
        return scaled.unflatten(1, X.shape[:-1])


def _run(module: nn.Module, state: dict[str, Tensor], X: Tensor) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative, which gradients of Jacobians need
        result: Tensor = functional_call(module, state, (centred(X),))
    return result


class _PlainLayerNorm(nn.Module):
    """Layer normalization from elementary operations, with the parameters of the layer that it replaces.

    PyTorch's own (2.13) has a wrong second derivative under ``vmap``, without an error: gradients in the inputs of the
    variances of linearized networks would be off.
    """

    def __init__(self, layer: nn.LayerNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = layer.weight, layer.bias, layer.eps
        self.dims = tuple(range(-len(layer.normalized_shape), 0))

    def forward(self, x: Tensor) -> Tensor:
        centre = x - x.mean(self.dims, keepdim=True)
        out = centre * (centre.square().mean(self.dims, keepdim=True) + self.eps).rsqrt()
        if self.weight is not None:
            out = out * self.weight
        return out if self.bias is None else out + self.bias


def _with_plain_layer_norms(module: nn.Module) -> nn.Module:
    """The module, itself changed: hand in a copy."""
    if isinstance(module, nn.LayerNorm):
        return _PlainLayerNorm(module)
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.LayerNorm):
                setattr(parent, name, _PlainLayerNorm(child))
    return module
