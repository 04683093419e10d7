"""Forward passes through uncertain weights with noise per datum, for TRAINING mean-field Gaussians on weights.

Gradients of an expected log-likelihood vary less when the rows of a batch do not share one draw of the weights. Such a pass
is no function of its inputs: predictions draw the weights once, and evaluate the network.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqbdl.networks.activations import activate
from seqbdl.networks.mlp import MLP


def local_reparameterization(network: MLP, mean: Tensor, sd: Tensor, X: Tensor, generator: torch.Generator) -> Tensor:
    """One draw of every pre-activation of every row from its Gaussian (Kingma, Salimans and Welling 2015).

    ``pre = h W_m + b_m + sqrt(h^2 W_s^2 + b_s^2) e``, ``e ~ N(0, 1)`` fresh for every row and unit: the marginals per row
    are those of weight draws.

    Args:
        network: Over whitened weights.
        mean: ``S x P``.
        sd: ``S x P``.
        X: ``N x d``.
        generator: Of the noise.

    Returns:
        ``S x N x m``, differentiable in ``mean`` and ``sd``.
    """
    h = network.scaled_inputs(X)
    means, spreads = network.layers(mean), network.layers(sd)
    for layer, ((w, b), (w_sd, b_sd)) in enumerate(zip(means, spreads, strict=True)):
        variance = h.square() @ w_sd.square() + b_sd.square()
        # A unit that nothing reaches has no variance, where the square root has no slope.
        pre = h @ w + b + variance.clamp_min(1e-30).sqrt() * _normal(variance.shape, generator, X)
        h = activate(pre, network.activation) if layer + 1 < len(means) else pre
    return network.selected(h.sum(1) / network.branches**0.5, X)


def flipout(network: MLP, mean: Tensor, sd: Tensor, X: Tensor, generator: torch.Generator) -> Tensor:
    """One weight draw for all rows, with signs per row that decorrelate them (Wen et al. 2018).

    ``pre = h W_m + b_m + ((h o S) (W_s o E) + b_s o e) o R`` with random signs ``S``, ``R`` of every row.

    Args:
        network: Over whitened weights.
        mean: ``S x P``.
        sd: ``S x P``.
        X: ``N x d``.
        generator: Of the noise.

    Returns:
        ``S x N x m``, differentiable in ``mean`` and ``sd``.
    """
    h = network.scaled_inputs(X)
    means = network.layers(mean)
    noise = network.layers(sd * _normal(sd.shape, generator, sd))
    for layer, ((w, b), (w_noise, b_noise)) in enumerate(zip(means, noise, strict=True)):
        base = h @ w + b
        entering = h * _signs(torch.Size([*w.shape[:2], *h.shape[-2:]]), generator, X)
        pre = base + (entering @ w_noise + b_noise) * _signs(base.shape, generator, X)
        h = activate(pre, network.activation) if layer + 1 < len(means) else pre
    return network.selected(h.sum(1) / network.branches**0.5, X)


def _normal(shape: torch.Size, generator: torch.Generator, like: Tensor) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(like)


def _signs(shape: torch.Size, generator: torch.Generator, like: Tensor) -> Tensor:
    return torch.randint(0, 2, shape, generator=generator).to(like).mul_(2.0).sub_(1.0)
