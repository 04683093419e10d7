"""Multilayer perceptrons, many at once, with forward and backward passes written out.

Members lie on one leading axis and every layer is one batched matrix product; the tangent kernel ``J J^T`` is summed
over layers from Gram matrices of activations and of backward signals, so that the ``N x P`` Jacobian is never formed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from seqbdl.errors import InvalidOptionError
from seqbdl.networks.activations import activate, activation_slope, centred
from seqbdl.networks.jacobian_rows import JacobianRows, OuterRows
from seqbdl.networks.network import Network, Tangents, WeightBlock

_CACHE_BYTES = 2**19
"""Of one layer's activations that a gradient works on: half of a usual second-level cache."""

_CACHED = 2**19
"""Hidden units times rows that are evaluated at once where nothing needs a gradient: more leave the processor's cache, and a
million candidates would not fit into memory."""


_MANY_WEIGHTS = 2**16
"""From here on the Jacobian of one row is kept as outer products, layer by layer: fewer weights are faster in one matrix."""


class MLP(Network):
    """Fully connected layers over whitened weights.

    ``pre_1 = W_1^T (sqrt(s) x) + sqrt(v_0) b_1``, ``pre_{l+1} = sqrt(u_l / H_l) W_{l+1}^T phi(pre_l) + sqrt(v_l)
    b_{l+1}``, ``f = pre_{L+1}``, with every entry of ``W`` and ``b`` standard normal under the prior: as the widths
    grow the function prior becomes the Gaussian process of :mod:`seqbdl.inference.infinite_width` with the same
    variances.

    Args:
        widths: ``H_1 ... H_L``.
        input_variances: ``d``, ``s``.
        weight_variances: ``L``, ``u``.
        bias_variances: ``L + 1``, ``v``.
        num_outputs: ``m``.
        activation: ``"erf"``, ``"relu"`` or ``"leaky_relu"``.
        branches: ``K`` networks side by side, ``f = sum_k f_k / sqrt(K)``: as near to the infinitely wide network as ``K``
            times the width, at ``K`` times (not ``K^2`` times) the cost, and as near to its linearization.
    """

    matrix_free = True

    def __init__(
        self,
        widths: Sequence[int],
        input_variances: Tensor,
        weight_variances: Tensor,
        bias_variances: Tensor,
        num_outputs: int = 1,
        activation: str = "erf",
        branches: int = 1,
    ) -> None:
        if not widths or min(widths) < 1:
            raise InvalidOptionError(f"network={tuple(widths)}: widths are positive integers, at least one")
        self.widths = tuple(int(w) for w in widths)
        self.activation = activation
        self.input_dim = input_variances.shape[-1]
        self.num_outputs = num_outputs
        self.sizes = (self.input_dim, *self.widths, num_outputs)
        self.branches = branches
        self.num_params = branches * sum((a + 1) * b for a, b in zip(self.sizes[:-1], self.sizes[1:], strict=True))
        self._input_scale = input_variances.sqrt()
        fan_in = torch.tensor([float(w) for w in self.widths]).to(weight_variances)
        self._weight_scale = torch.cat([torch.ones(1).to(weight_variances), (weight_variances / fan_in).sqrt()])
        self._bias_scale = bias_variances.sqrt()

    def layers(self, z: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Scaled weights ``S x K x in x out`` and biases ``S x K x 1 x out`` of every layer."""
        layers, offset = [], 0
        z = z.unflatten(-1, (self.branches, -1))
        for layer, (fan_in, out) in enumerate(zip(self.sizes[:-1], self.sizes[1:], strict=True)):
            w = z[..., offset : offset + fan_in * out].unflatten(-1, (fan_in, out))
            offset += fan_in * out
            b = z[..., offset : offset + out].unsqueeze(-2)
            offset += out
            layers.append((self._weight_scale[layer] * w, self._bias_scale[layer] * b))
        return layers

    def scaled_inputs(self, X: Tensor) -> Tensor:
        """Scaled inputs, ``1 x 1 x N x d``."""
        return (centred(X.reshape(-1, self.input_dim)) * self._input_scale.to(X))[None, None]

    def read_outputs(self, X: Tensor) -> Tensor | None:
        """Indices of the last layer's units that are the outputs at each row, ``N x m``; ``None``: all are, at every row."""
        return None

    def selected(self, values: Tensor, X: Tensor) -> Tensor:
        """What is read of the last layer's values ``S x N x (all)`` at rows ``X: N x d``, ``S x N x m``."""
        index = self.read_outputs(X)
        return values if index is None else values.gather(-1, index.expand(values.shape[0], -1, -1))

    def forward(self, z: Tensor, X: Tensor) -> Tensor:
        layers = self.layers(z)
        if torch.is_grad_enabled() and (z.requires_grad or X.requires_grad):
            values = self._forward(layers, self.scaled_inputs(X))
        else:
            rows = max(32, _CACHED // (z.shape[0] * self.branches * max(self.sizes)))
            values = torch.cat([self._forward(layers, chunk) for chunk in self.scaled_inputs(X).split(rows, -2)], 1)
        return self.selected(values, X).unflatten(1, X.shape[:-1])

    def _forward(self, layers: list[tuple[Tensor, Tensor]], h: Tensor) -> Tensor:
        """Values of the last layer, ``S x N x (all)``, from scaled inputs ``1 x 1 x N x d``."""
        for w, b in layers[:-1]:
            h = activate(h @ w + b, self.activation)
        w, b = layers[-1]
        return (h @ w + b).sum(1) / self.branches**0.5

    def pullback(self, z: Tensor, X: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        S, K = z.shape[0], self.branches
        layers = [(w.flatten(0, 1), b.flatten(0, 1)) for w, b in self.layers(z)]  # (S K) x in x out
        acts, pres = [self.scaled_inputs(X)[0].expand(S * K, -1, -1)], []
        for w, b in layers[:-1]:
            pres.append(torch.baddbmm(b, acts[-1], w))
            acts.append(activate(pres[-1], self.activation))
        w, b = layers[-1]
        values = torch.baddbmm(b, acts[-1], w).unflatten(0, (S, K)).sum(1) / K**0.5
        ones = acts[0].new_ones(1, 1, X.shape[0]).expand(S * K, -1, -1)
        index = self.read_outputs(X)

        def back(cotangent: Tensor) -> Tensor:
            if index is not None:
                cotangent = torch.zeros_like(values).scatter(-1, index.expand(S, -1, -1), cotangent)
            signal = (cotangent / K**0.5).unsqueeze(1).expand(-1, K, -1, -1).flatten(0, 1)  # (S K) x N x out
            pieces: list[Tensor] = []
            for layer in range(len(layers) - 1, -1, -1):
                weights = torch.bmm(acts[layer].transpose(1, 2), signal).mul_(self._weight_scale[layer])
                biases = torch.bmm(ones, signal).mul_(self._bias_scale[layer])  # a product is faster than a strided sum
                pieces = [weights.flatten(1), biases.flatten(1), *pieces]
                if layer > 0:
                    slope = activation_slope(pres[layer - 1], self.activation)
                    signal = torch.bmm(signal, layers[layer][0].transpose(1, 2)).mul_(slope)
            return torch.cat(pieces, -1).unflatten(0, (S, K)).flatten(1)

        return self.selected(values, X), back

    def members_at_once(self, X: Tensor) -> int | None:
        if X.device.type != "cpu":
            return None
        bytes_each = X.shape[0] * self.branches * max(self.widths) * X.element_size()
        return max(1, _CACHE_BYTES // bytes_each)

    @property
    def num_units(self) -> int:
        return self.branches * sum(self.widths)

    def input_masks(self, keep: Tensor) -> Tensor:
        S = keep.shape[0]
        keep = keep.unflatten(-1, (self.branches, -1))
        first = keep.new_ones(S, self.branches, (self.sizes[0] + 1) * self.widths[0])
        pieces, offset = [first], 0
        for fan_in, out in zip(self.sizes[1:-1], self.sizes[2:], strict=True):
            rows = keep[..., offset : offset + fan_in].unsqueeze(-1).expand(-1, -1, -1, out).flatten(-2)
            pieces += [rows, keep.new_ones(S, self.branches, out)]
            offset += fan_in
        return torch.cat(pieces, -1).flatten(1)

    def hidden(self, z: Tensor, X: Tensor) -> Tensor:
        h = self.scaled_inputs(X)
        for w, b in self.layers(z)[:-1]:
            h = activate(h @ w + b, self.activation)
        h = torch.cat([self._weight_scale[-1] * h, self._bias_scale[-1].expand(*h.shape[:-1], 1)], -1)
        h = h.movedim(1, 2).flatten(2) / self.branches**0.5  # S x N x (K F)
        return h.unflatten(1, X.shape[:-1])

    def tangents(self, z: Tensor, X: Tensor) -> Tangents:
        layers = self.layers(z)
        acts, pres = [self.scaled_inputs(X)], []
        for w, b in layers[:-1]:
            pres.append(acts[-1] @ w + b)
            acts.append(activate(pres[-1], self.activation))
        w, b = layers[-1]
        outputs = acts[-1] @ w + b  # S x K x N x (all)
        S, K, N, units = outputs.shape
        eye = torch.eye(units, dtype=outputs.dtype, device=outputs.device) / K**0.5
        index = self.read_outputs(X)
        delta = (eye if index is None else eye[index]).expand(S, K, N, -1, -1)  # S x K x N x m x (all)
        m = delta.shape[-2]
        deltas = [delta]
        for layer in range(len(layers) - 1, 0, -1):
            back = delta.reshape(S, K, N * m, -1) @ layers[layer][0].transpose(-1, -2)
            slope = activation_slope(pres[layer - 1], self.activation)
            delta = back.reshape(S, K, N, m, -1) * slope.unsqueeze(-2)
            deltas.insert(0, delta)
        return Tangents(self.selected(outputs.sum(1) / K**0.5, X), (acts, deltas))

    def tangent_kernel(self, first: Tangents, second: Tangents) -> Tensor:
        return self._kernel(first.parts, second.parts)

    def tangent_gram(self, tangents: Tangents, batch: torch.Size, q: int) -> Tensor:
        acts = [a.unflatten(2, (-1, q)) for a in tangents.parts[0]]  # S x K x batch x q x H
        deltas = [d.unflatten(2, (-1, q)) for d in tangents.parts[1]]
        gram = self._kernel((acts, deltas), (acts, deltas))
        return gram.unflatten(1, batch) if batch else gram.squeeze(1)

    def _kernel(self, first: tuple[list[Tensor], list[Tensor]], second: tuple[list[Tensor], list[Tensor]]) -> Tensor:
        """Sum over layers and branches of input products times signal products, ``S x ... x (N m) x (N' m)``."""
        total: Tensor | None = None
        for inputs, signals in self._layer_products(first, second):
            if total is None or self.branches > 1:
                part = (inputs * signals).sum(1) if self.branches > 1 else (inputs * signals).squeeze(1)
                total = part if total is None else total.add_(part)
            else:  # in place: at a thousand rows most of the time is spent moving these matrices
                total = total.addcmul_(inputs.squeeze(1), signals.squeeze(1))
        assert total is not None
        return total

    def _layer_products(
        self, first: tuple[list[Tensor], list[Tensor]], second: tuple[list[Tensor], list[Tensor]]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Of every layer the products of inputs, constant included, and those of backward signals, ``S x K x ...``."""
        m = self.num_outputs
        for layer, (a1, a2, d1, d2) in enumerate(zip(first[0], second[0], first[1], second[1], strict=True)):
            inputs = self._with_constant(a1, layer) @ self._with_constant(a2, layer).transpose(-1, -2)
            if m > 1:
                inputs = inputs.repeat_interleave(m, -1).repeat_interleave(m, -2)
            yield inputs, d1.flatten(-3, -2) @ d2.flatten(-3, -2).transpose(-1, -2)

    def _with_constant(self, a: Tensor, layer: int) -> Tensor:
        """A layer's inputs as its whitened weights see them, ``... x (in + 1)``."""
        return torch.cat([self._weight_scale[layer] * a, self._bias_scale[layer].to(a).expand(*a.shape[:-1], 1)], -1)

    @property
    def blocks(self) -> tuple[WeightBlock, ...]:
        layers = [WeightBlock(a + 1, b, i) for i, (a, b) in enumerate(zip(self.sizes[:-1], self.sizes[1:], strict=True))]
        return tuple(layers) * self.branches

    def group_kernels(self, tangents: Tangents) -> Tensor:
        products = self._layer_products(tangents.parts, tangents.parts)
        return torch.stack([(inputs * signals).sum(1)[0] for inputs, signals in products])

    def kronecker_factors(self, tangents: Tangents, root: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """``A = sum a a^T`` of the layer's inputs, ``B = sum g g^T`` of the backward signals of whitened outputs, ``c = N``
        (Martens and Grosse 2015)."""
        layers = []
        for layer, (a, d) in enumerate(zip(*tangents.parts, strict=True)):
            signals = root[:, :, None] * d[0] if root.dim() == 2 else root.transpose(-1, -2) @ d[0]  # K x N x m x out
            inputs = self._with_constant(a[0], layer).expand(self.branches, -1, -1)
            signals = signals.flatten(1, 2)
            layers.append((inputs.transpose(-1, -2) @ inputs, signals.transpose(-1, -2) @ signals))
        count = root.new_tensor(float(root.shape[0]))
        return [(A[k], B[k], count) for k in range(self.branches) for A, B in layers]

    def row_squares(self, tangents: Tangents, root: Tensor) -> Tensor:
        pieces = []
        for layer, (a, d) in enumerate(zip(*tangents.parts, strict=True)):
            signals = root[:, :, None] * d[0] if root.dim() == 2 else root.transpose(-1, -2) @ d[0]
            squares = signals.square().sum(-2)  # K x N x out
            inputs = self._with_constant(a[0], layer).square()
            pieces.append((inputs.transpose(-1, -2) @ squares).flatten(1))
        return torch.cat(pieces, -1).flatten()

    def linear_variance(self, tangents: Tangents, variance: Tensor) -> Tensor:
        v = variance.unflatten(-1, (self.branches, -1))
        total: Tensor | None = None
        for layer, (a, d) in enumerate(zip(*tangents.parts, strict=True)):
            inputs = self._with_constant(a, layer).square()
            weights, v = v[..., : inputs.shape[-1] * d.shape[-1]], v[..., inputs.shape[-1] * d.shape[-1] :]
            spread = inputs @ weights.unflatten(-1, (inputs.shape[-1], d.shape[-1]))  # S x K x N x out
            part = (d.square() @ spread.unsqueeze(-1)).squeeze(-1).sum(1)
            total = part if total is None else total + part
        assert total is not None
        return total

    @property
    def tangent_size(self) -> int:
        return self.branches * sum(self.sizes) * (self.num_outputs + 1)

    def rescaled(self, factors: Tensor) -> MLP:
        twin = copy.copy(self)
        twin._weight_scale, twin._bias_scale = self._weight_scale * factors, self._bias_scale * factors
        return twin

    def jvp(self, tangents: Tangents, v: Tensor) -> Tensor:
        total: Tensor | None = None
        for a, d, (w, b) in zip(*tangents.parts, self.layers(v), strict=True):
            change = (a @ w + b).unsqueeze(-2)  # S' x K x N x 1 x out
            part = (change * d).sum(-1).sum(1)
            total = part if total is None else total + part
        assert total is not None
        return total

    def jacobian(self, tangents: Tangents) -> Tensor:
        pieces = []
        for layer, (a, d) in enumerate(zip(*tangents.parts, strict=True)):
            w = self._weight_scale[layer] * a[..., None, :, None] * d.unsqueeze(-2)  # S x K x N x m x in x out
            pieces += [w.flatten(-2), self._bias_scale[layer] * d]
        return torch.cat(pieces, -1).movedim(1, -2).flatten(-2)

    def rows(self, tangents: Tangents) -> JacobianRows:
        if self.num_params < _MANY_WEIGHTS or tangents.values.shape[:2] != (1, 1):
            return super().rows(tangents)
        layers = []
        for branch in range(self.branches):
            for layer, (a, d) in enumerate(zip(*tangents.parts, strict=True)):
                inputs = a[0, branch if a.shape[1] > 1 else 0, 0]  # branches share the first layer's inputs
                signals = d[0, branch, 0]
                layers.append((self._weight_scale[layer] * inputs, signals))
                layers.append((self._bias_scale[layer].reshape(1).to(signals), signals))
        return OuterRows(tuple(layers))

    def vjp(self, tangents: Tangents, alpha: Tensor) -> Tensor:
        pieces = []
        for layer, (a, d) in enumerate(zip(*tangents.parts, strict=True)):
            signal = (alpha[:, None, :, :, None] * d).sum(-2)  # S x K x N x out
            w = self._weight_scale[layer] * (a.transpose(-1, -2) @ signal)
            b = self._bias_scale[layer] * signal.sum(-2)
            pieces += [w.flatten(-2), b]
        return torch.cat(pieces, -1).flatten(1)
