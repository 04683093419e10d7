"""Infinitely wide networks: their kernel, their evidence, and the prior scales that it chooses for finite networks.

A network with layers ``h_1 = phi(W_1 x + b_1)``, ..., ``f = w . h_L + b`` and independent Gaussian weights becomes, as
its width grows, a Gaussian process (Neal 1996; Lee et al. 2018; Matthews et al. 2018)::

    K_0(x, x') = v_0 + sum_d s_d x_d x'_d,     K_l = v_l + u_l F(K_{l-1}(x, x'), K_{l-1}(x, x), K_{l-1}(x', x')),     k
    = K_L

with one variance ``s_d`` per input dimension, bias variances ``v_l`` and weight variances ``u_l``. The evidence of
this process is cheap and sound, so it sets the scales of the prior of finite networks too.

Activations: ``erf`` stands for ``erf(sqrt(pi)/2 z)``, which is tanh to within 0.04; ``relu``; ``leaky_relu`` with
slope 0.01. ``F``: Williams 1997 (erf), Cho and Saul 2009 (relu), in the arctan2 form, which needs no clamp of a cosine.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from seqbdl.errors import NotPositiveDefiniteError, UnknownNameError
from seqbdl.likelihoods import Likelihood
from seqbdl.networks.activations import ACTIVATIONS, LEAK, activate, centred
from seqbdl.posteriors.joint_gaussian import safe_cholesky

_NOISE_FLOOR = 1e-7


@dataclass(frozen=True)
class WidthScales:
    """Variances of an infinitely wide network; ``g`` independent groups of outputs.

    Attributes:
        inputs: ``g x d``, the first layer's weight variance per input dimension (inputs in [-1, 1]).
        weights: ``g x L``, the weight variances of the later layers, times the width.
        biases: ``g x (L + 1)``, the bias variances, first layer first.
        noise: ``g``, the observation-noise variance.
    """

    inputs: Tensor
    weights: Tensor
    biases: Tensor
    noise: Tensor

    @property
    def depth(self) -> int:
        return self.weights.shape[-1]

    def tree(self) -> dict[str, Tensor]:
        return dict(self.__dict__)

    def to(self, like: Tensor) -> WidthScales:
        return WidthScales(**{f.name: getattr(self, f.name).to(like) for f in fields(self)})


def default_scales(input_dim: int, depth: int, groups: int) -> WidthScales:
    """The centres of the hyper-priors: what a network assumes before any data."""
    like = torch.ones(groups, 1, dtype=torch.float64)
    return WidthScales(
        inputs=like.expand(-1, input_dim) * 4.0 * math.sqrt(6.0 / input_dim),
        weights=like.expand(-1, depth).clone(),
        biases=like.expand(-1, depth + 1).clone(),
        noise=like[:, 0] * math.exp(-4.0),
    )


def expected_product(k: Tensor, k1: Tensor, k2: Tensor, activation: str) -> Tensor:
    """``F = E[phi(a) phi(b)]`` for ``(a, b)`` Gaussian with variances ``k1``, ``k2`` and covariance ``k``; all
    broadcast."""
    if activation == "erf":
        c = 0.5 * math.pi
        k = c * k
        rest = (1 + c * k1) * (1 + c * k2) - k.square()
        return (2 / math.pi) * torch.atan2(k, rest.clamp_min(1e-300).sqrt())
    rest = (k1 * k2 - k.square()).clamp_min(0.0)
    # The square root's slope is infinite at 0, the product with it is not: keep the gradient finite there.
    root = torch.where(rest > 0, rest, torch.ones_like(rest)).sqrt() * (rest > 0)
    angle = torch.atan2(root, k)
    a = 0.0 if activation == "relu" else LEAK
    return (1 - a) ** 2 * root / (2 * math.pi) + (0.5 * (1 + a * a) - (1 - a) ** 2 * angle / (2 * math.pi)) * k


def expected_slopes(k: Tensor, k1: Tensor, k2: Tensor, activation: str) -> Tensor:
    """``E[phi'(a) phi'(b)]`` for ``(a, b)`` Gaussian as in :func:`expected_product`."""
    if activation == "erf":
        c = 0.5 * math.pi
        return ((1 + c * k1) * (1 + c * k2) - (c * k).square()).clamp_min(1e-300).rsqrt()
    rest = (k1 * k2 - k.square()).clamp_min(0.0)
    root = torch.where(rest > 0, rest, torch.ones_like(rest)).sqrt() * (rest > 0)
    a = 0.0 if activation == "relu" else LEAK
    return 0.5 * (1 + a * a) - (1 - a) ** 2 * torch.atan2(root, k) / (2 * math.pi)


def expected_square(k: Tensor, activation: str) -> Tensor:
    """``F`` at coincident inputs, ``E[phi(a)^2]`` for ``a`` of variance ``k``."""
    if activation == "erf":
        c = 0.5 * math.pi
        return (2 / math.pi) * torch.atan2(c * k, (1 + 2 * c * k).sqrt())
    return 0.5 * k * (1.0 if activation == "relu" else 1 + LEAK**2)


def kernel(scales: WidthScales, X1: Tensor, X2: Tensor, activation: str = "erf", tangent: bool = False) -> Tensor:
    """The kernel, ``batch x g x q1 x q2``.

    The tangent kernel is the prior covariance of the linearized network, ``Theta_0 = K_0``, ``Theta_l = K_l + u_l
    F'(K_{l-1}) Theta_{l-1}`` (Jacot et al. 2018) with ``F'`` of :func:`expected_slopes`.

    Args:
        scales: Of ``g`` groups.
        X1: ``batch x q1 x d`` in the unit cube.
        X2: ``batch x q2 x d``.
        activation: One of :data:`ACTIVATIONS`.
        tangent: The tangent kernel instead.
    """
    root = scales.inputs.sqrt().unsqueeze(-2)  # g x 1 x d
    a, b = centred(X1).unsqueeze(-3) * root, centred(X2).unsqueeze(-3) * root
    bias = scales.biases[..., 0, None, None]
    k = bias + a @ b.transpose(-1, -2)
    k1 = bias + a.square().sum(-1, keepdim=True)
    k2 = (bias.squeeze(-1) + b.square().sum(-1)).unsqueeze(-2)
    theta = k
    for layer in range(scales.depth):
        w, v = scales.weights[..., layer, None, None], scales.biases[..., layer + 1, None, None]
        if tangent:
            theta = w * expected_slopes(k, k1, k2, activation) * theta
        k = v + w * expected_product(k, k1, k2, activation)
        theta = theta + k
        if layer + 1 < scales.depth:
            k1, k2 = v + w * expected_square(k1, activation), v + w * expected_square(k2, activation)
    return theta if tangent else k


def learn_scales(
    X: Tensor,
    Y: Tensor,
    noise: Tensor | None = None,
    *,
    depth: int = 2,
    activation: str = "erf",
    shared: bool = False,
    tangent: bool = False,
    start: WidthScales | None = None,
    max_iterations: int = 60,
) -> tuple[WidthScales, float]:
    """Maximize log evidence plus log hyper-prior by L-BFGS.

    Hyper-priors (log-normal): input variances around ``4 sqrt(6/d)`` (log sd 1.7), noise variance around ``e^-4`` (log
    sd 1), the others around 1 (log sd 1.5).

    Args:
        X: ``n x d`` in the unit cube.
        Y: ``n x m`` standardized outcomes.
        noise: ``n x m`` or ``1 x m`` known noise variances; learned when ``None``.
        depth: Hidden layers.
        activation: One of :data:`ACTIVATIONS`.
        shared: One kernel for all outputs (``g = 1``) instead of one each (``g = m``).
        tangent: Use the tangent kernel: the evidence of the linearized network instead of the network's.
        start: Where to begin when it is better than the centre of the hyper-priors (warm start).
        max_iterations: Of L-BFGS.

    Returns:
        The scales and the objective (log evidence plus log prior of the hyperparameters).
    """
    if activation not in ACTIVATIONS:
        raise UnknownNameError("activation", activation, list(ACTIVATIONS))
    groups = 1 if shared else Y.shape[1]
    centre = default_scales(X.shape[1], depth, groups).to(X)
    log_centre = _pack(centre)
    sds = _pack(
        WidthScales(
            torch.full_like(centre.inputs, math.exp(1.7)),
            torch.full_like(centre.weights, math.exp(1.5)),
            torch.full_like(centre.biases, math.exp(1.5)),
            torch.full_like(centre.noise, math.exp(1.0)),
        )
    )
    known = None if noise is None else noise.expand_as(Y).T  # m x n
    if shared and (known is None or bool((known == known[:1]).all())):
        targets = Y.unsqueeze(0)  # 1 x n x m: one factor serves all outputs
        known = None if known is None else known[:1]
    else:
        targets = Y.T.unsqueeze(-1)  # m x n x 1
    lower = math.log(_NOISE_FLOOR)

    def objective(theta: Tensor) -> Tensor:
        scales = _unpack(theta, centre)
        log_prior = -0.5 * ((theta - log_centre) / sds).square().sum()
        variance = scales.noise.unsqueeze(-1).expand(-1, X.shape[0]) if known is None else known
        K = kernel(scales, X, X, activation, tangent) + torch.diag_embed(variance + _NOISE_FLOOR)
        factor = safe_cholesky(K)
        white = torch.linalg.solve_triangular(factor, targets, upper=False)
        log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum() * targets.shape[-1]
        return -0.5 * white.square().sum() - log_det + log_prior

    def value_and_gradient(x: np.ndarray) -> tuple[float, np.ndarray]:
        theta = torch.from_numpy(x).to(X).requires_grad_(True)
        try:
            value = objective(theta)
        except NotPositiveDefiniteError:  # a step too far: the line search comes back
            return 1e30, np.zeros_like(x)
        (gradient,) = torch.autograd.grad(value, theta)
        return -float(value.detach()), -gradient.detach().cpu().numpy().astype(np.float64)

    x0 = log_centre
    if start is not None:
        warm = _pack(start.to(X))
        with torch.no_grad():
            x0 = warm if objective(warm) > objective(log_centre) else log_centre
    bounds = [(lower, 12.0)] * x0.numel()
    result = minimize(
        value_and_gradient,
        x0.clamp(lower + 1e-3, 11.9).cpu().numpy(),
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"maxiter": max_iterations},
    )
    scales = _unpack(torch.from_numpy(result.x).to(X), centre)
    constant = -0.5 * math.log(2 * math.pi) * Y.numel()
    if known is not None:
        scales = replace(scales, noise=known.mean().expand(groups).clone() if shared else known.mean(-1))
    return scales, constant - float(result.fun)


def learn_scales_of_latents(
    X: Tensor,
    Y: Tensor,
    likelihood: Likelihood,
    num_latents: int,
    *,
    depth: int = 2,
    activation: str = "erf",
    tangent: bool = False,
    start: WidthScales | None = None,
    rounds: int = 3,
) -> WidthScales:
    """Scales for a likelihood that is not Gaussian, by :func:`alternate_with_sites`.

    Args:
        X: ``n x d`` in the unit cube.
        Y: ``n x t`` targets.
        likelihood: Of an observation.
        num_latents: ``l``.
        depth: Hidden layers.
        activation: One of :data:`ACTIVATIONS`.
        tangent: Use the tangent kernel.
        start: Where to begin (warm start).
        rounds: Alternations.
    """

    def prior(scales: WidthScales) -> Tensor:
        return kernel(scales, X, X, activation, tangent)[0]

    def learn(scales: WidthScales, pseudo: Tensor, variance: Tensor) -> WidthScales:
        return learn_scales(
            X, pseudo, variance, depth=depth, activation=activation, shared=True, tangent=tangent, start=scales, max_iterations=15
        )[0]

    first = default_scales(X.shape[1], depth, 1).to(X) if start is None else start.to(X)
    scales = alternate_with_sites(prior, learn, first, Y, likelihood, num_latents, rounds)
    return replace(scales, noise=default_scales(X.shape[1], depth, 1).to(X).noise)


Hyper = TypeVar("Hyper")


def alternate_with_sites(
    prior: Callable[[Hyper], Tensor],
    learn: Callable[[Hyper, Tensor, Tensor], Hyper],
    start: Hyper,
    Y: Tensor,
    likelihood: Likelihood,
    num_latents: int,
    rounds: int = 3,
) -> Hyper:
    """Hyperparameters of a process for a likelihood that is not Gaussian, by its Laplace approximation.

    Around the mode of the latent process every row is worth a Gaussian observation ``f + g / L`` of variance ``1 / L``
    (``g`` and ``L``: gradient and curvature of the log-likelihood; couplings between the outputs of a row are left out, as
    in one-against-the-rest classification). The evidence of these observations sets the hyperparameters, which move the mode,
    and so on (Rasmussen and Williams 2006, section 3.4).

    Args:
        prior: Hyperparameters to the covariance of the rows, ``n x n``, shared by the latents.
        learn: Hyperparameters to begin with, observations and their variances, ``n x l`` both, to better ones.
        start: Where to begin.
        Y: ``n x t`` targets.
        likelihood: Of an observation.
        num_latents: ``l``.
        rounds: Alternations.
    """
    none = Y.new_ones(1, num_latents)
    f = Y.new_zeros(Y.shape[0], num_latents)
    for _ in range(rounds):
        with torch.no_grad():
            K = prior(start)
            for _ in range(8):  # Newton, the outputs apart from each other
                pseudo, variance = _site(f, Y, likelihood, none)
                factor = safe_cholesky(K + torch.diag_embed(variance.T))  # l x n x n
                new = (K @ torch.cholesky_solve(pseudo.T.unsqueeze(-1), factor)).squeeze(-1).T
                change, f = (new - f).abs().max(), f + (new - f).clamp(-4.0, 4.0)
                if change < 1e-3:
                    break
            pseudo, variance = _site(f, Y, likelihood, none)
        start = learn(start, pseudo, variance)
    return start


def _site(f: Tensor, Y: Tensor, likelihood: Likelihood, none: Tensor) -> tuple[Tensor, Tensor]:
    """The Gaussian observation that a row is worth around ``f``, and its variance, ``n x l`` both."""
    root = likelihood.root(f, none)
    curvature = root.square() if root.dim() == f.dim() else root.square().sum(-1)  # the diagonal of R R^T
    curvature = curvature.clamp_min(1e-6)  # saturated labels say nothing; their pseudo-observations stay finite
    return f + likelihood.score(f, Y, none) / curvature, 1.0 / curvature


def _pack(scales: WidthScales) -> Tensor:
    return torch.cat([getattr(scales, f.name).reshape(-1) for f in fields(scales)]).log()


def _unpack(theta: Tensor, like: WidthScales) -> WidthScales:
    parts, offset = {}, 0
    values = theta.exp()
    for f in fields(like):
        shape = getattr(like, f.name).shape
        parts[f.name] = values[offset : offset + shape.numel()].reshape(shape)
        offset += shape.numel()
    return WidthScales(**parts)


def prior_draw(
    scales: WidthScales, n: int, width: int, activation: str, generator: torch.Generator
) -> Callable[[Tensor], Tensor]:
    """Draws from the prior by finite random networks, each draw and each group its own.

    The covariance of the draws is the kernel's up to ``O(1 / width)``: the last layer's exactly given the layers
    before.

    Args:
        scales: Of ``g`` groups.
        n: Number of draws.
        width: Units per hidden layer.
        activation: One of :data:`ACTIVATIONS`.
        generator: Source of randomness.

    Returns:
        ``batch x q x d -> n x batch x q x g``, for inputs in the unit cube.
    """
    groups, d = scales.inputs.shape

    def normal(*shape: int) -> Tensor:
        return torch.randn(n, groups, *shape, generator=generator, dtype=torch.float64).to(scales.inputs)

    weights = [normal(d, width) * scales.inputs.sqrt().unsqueeze(-1)]
    biases = [normal(1, width) * scales.biases[:, 0, None, None].sqrt()]
    for layer in range(scales.depth):
        out = width if layer + 1 < scales.depth else 1
        weights.append(normal(width, out) * (scales.weights[:, layer, None, None] / width).sqrt())
        biases.append(normal(1, out) * scales.biases[:, layer + 1, None, None].sqrt())

    def evaluate(X: Tensor) -> Tensor:
        h = centred(X.reshape(-1, d))
        for layer, (w, b) in enumerate(zip(weights, biases, strict=True)):
            h = h @ w + b  # n x g x points x units
            if layer < scales.depth:
                h = activate(h, activation)
        return h.squeeze(-1).transpose(-1, -2).reshape(n, *X.shape[:-1], groups)

    return evaluate
