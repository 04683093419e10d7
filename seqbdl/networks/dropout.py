"""Networks with units switched off: for good, as factors on weights, and row by row, for training.

A unit that is off sends nothing: every weight that leaves it is zero. The units of an :class:`MLP` are its hidden units; those of
a module are the input channels of every weight tensor but the first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqbdl.errors import InvalidOptionError
from seqbdl.networks.activations import activate
from seqbdl.networks.mlp import MLP
from seqbdl.networks.module import ModuleNetwork
from seqbdl.networks.network import Network


def weight_factors(network: Network, keep: Tensor, keep_inputs: Tensor | None = None) -> Tensor:
    """Factors on whitened weights that multiply what units send, ``S x P``.

    Args:
        network: The network.
        keep: ``S x U`` factors of the units: 0 switches off.
        keep_inputs: ``S x d`` factors of the inputs (in [-1, 1]), or ``None``.

    Raises:
        InvalidOptionError: The network has no units, or no weights that belong to single inputs.
    """
    factors = network.input_masks(keep)
    return factors if keep_inputs is None else factors * _input_factors(network, keep_inputs)


def _input_factors(network: Network, keep: Tensor) -> Tensor:
    if isinstance(network, MLP):
        size, width = network.num_params // network.branches, network.widths[0]
        rows = keep[..., : network.sizes[0]].repeat_interleave(width, -1)  # the first layer stores a row of weights per input
        branch = torch.cat([rows, keep.new_ones(keep.shape[0], size - rows.shape[1])], -1)
        return branch.repeat(1, network.branches)
    shapes = network.weight_shapes if isinstance(network, ModuleNetwork) else []
    first = next((i for i, s in enumerate(shapes) if len(s) > 1), None)
    if first is None or shapes[first][1:] != (network.input_dim,):
        raise InvalidOptionError("input_rate: the first weight tensor of network= has no column per input; leave it at 0")
    pieces = [keep.new_ones(keep.shape[0], s.numel()) for s in shapes]
    pieces[first] = keep.repeat(1, shapes[first][0])
    return torch.cat(pieces, -1)


def dropout_forward(network: Network, z: Tensor, X: Tensor, keep: Tensor, keep_inputs: Tensor | None = None) -> Tensor:
    """Values with units switched off row by row, ``S x N x m``, differentiable in the weights.

    Args:
        network: An :class:`MLP` or a :class:`ModuleNetwork`.
        z: ``S x P``.
        X: ``N x d``.
        keep: ``S x N x U`` factors of the units.
        keep_inputs: ``S x N x d`` factors of the inputs, or ``None``.

    Raises:
        InvalidOptionError: The network is of another kind.
    """
    if isinstance(network, MLP):
        return _mlp_forward(network, z, X, keep, keep_inputs)
    if isinstance(network, ModuleNetwork):
        inputs = None if keep_inputs is None else keep_inputs.flatten(0, 1)
        factors = weight_factors(network, keep.flatten(0, 1), inputs).unflatten(0, keep.shape[:2])  # S x N x P
        return network.forward_rows(z.unsqueeze(1) * factors, X)
    raise InvalidOptionError(f"dropout row by row is not written for a {type(network).__name__}")


def _mlp_forward(network: MLP, z: Tensor, X: Tensor, keep: Tensor, keep_inputs: Tensor | None) -> Tensor:
    S, K = z.shape[0], network.branches
    layers = [(w.flatten(0, 1), b.flatten(0, 1)) for w, b in network.layers(z)]  # (S K) x in x out
    branches = keep.unflatten(-1, (K, -1)).movedim(2, 1).flatten(0, 1)  # (S K) x N x U / K
    h = network.scaled_inputs(X)[0].expand(S * K, -1, -1)
    if keep_inputs is not None:
        h = h * keep_inputs[..., : h.shape[-1]].repeat_interleave(K, 0)
    for (w, b), mask in zip(layers[:-1], branches.split(list(network.widths), -1), strict=True):
        h = activate(torch.baddbmm(b, h, w), network.activation) * mask
    w, b = layers[-1]
    return network.selected(torch.baddbmm(b, h, w).unflatten(0, (S, K)).sum(1) / K**0.5, X)
