"""Deep Wishart processes: Bayes over the Gram matrices of a deep Gaussian process (Aitchison et al. 2021; Ober and Aitchison
2021).

Layers of ``nu_l`` Gaussian-process features have Gram matrices ``G_l | G_{l-1} ~ Wishart(K(G_{l-1}) / nu_l, nu_l)``. The
posterior over them at inducing inputs is a generalized singular Wishart (:mod:`seqbdl.inference.wishart`) of scale ``L ((1 - p)
I + p V V^T) L^T``, ``L = chol(K / nu)``: whitened, since what an unwhitened ``V V^T`` adds where ``K`` has hardly any variance
costs more nats than a start can afford. Other rows follow by their conditional prior; the top is a Gaussian process whose
posterior is that of pseudo-targets at the inducing inputs with a learned precision. Everything follows the evidence lower
bound::

    E[log p(Y | F)] - KL(top) + sum_l E[log P(G_l | G_{l-1}) - log Q(G_l)]
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from seqbdl.inference.gram import product, square
from seqbdl.inference.infinite_width import WidthScales
from seqbdl.inference.kernel_machine import log_hyper_prior
from seqbdl.inference.wishart import Bartlett, draw, log_posterior, log_wishart, prior_bartlett
from seqbdl.networks.activations import centred
from seqbdl.posteriors.joint_gaussian import jittered_cholesky, safe_cholesky

_TIGHT = 4.0  # shapes and rates at the start, in units of the prior's: the same means, half the spread
_LOG_SD = -1.0
_MEAN = 0.1  # breaks the symmetry of the columns
Parameters = dict[str, Tensor]


@dataclass(frozen=True)
class WishartSettings:
    """Attributes:
    steps: Of Adam.
    learning_rate: Of Adam.
    samples: Of the Gram matrices, per step.
    batch_size: Rows per step.
    """

    steps: int = 200
    learning_rate: float = 0.05
    samples: int = 2
    batch_size: int = 256


@dataclass(frozen=True)
class DeepWishart:
    """The model: what is not learned through the bound.

    Attributes:
        nus: Degrees of freedom of the hidden layers; the scales' depth is one more.
        activation: Of the kernels (see :mod:`seqbdl.inference.gram`).
        Z: ``P x d`` inducing inputs.
    """

    nus: tuple[int, ...]
    activation: str
    Z: Tensor


@dataclass(frozen=True)
class LayerSample:
    """A hidden layer at the inducing inputs under ``S`` samples.

    Attributes:
        factor: ``S x P x P``, ``chol(K / nu)``.
        image: ``F``, ``S x P x r`` with ``r = min(P, nu)``: ``G = F F^T``.
        log_ratio: ``S``, ``log P - log Q``.
    """

    factor: Tensor
    image: Tensor
    log_ratio: Tensor


def start_parameters(
    model: DeepWishart, scales: WidthScales, noise: Tensor, targets: Tensor, rows_each: float, generator: torch.Generator
) -> Parameters:
    """Almost the prior over Gram matrices, and a top that has seen the targets at the inducing inputs.

    Args:
        model: The model.
        scales: Of the kernels.
        noise: ``m``.
        targets: ``P x m``.
        rows_each: Rows per inducing input: as much as each pseudo-target is worth.
        generator: Of the small random starts.
    """
    P, Z = model.Z.shape[0], model.Z
    parameters = {name: getattr(scales, name).log() for name in ("inputs", "weights", "biases")}
    parameters["noise"] = noise.log()
    for layer, nu in enumerate(model.nus):
        q = prior_bartlett(P, nu, Z)
        white = torch.randn(P, P + q.rank, generator=generator, dtype=torch.float64).to(Z)
        parameters[f"mix{layer}"] = Z.new_tensor(-4.0)
        parameters[f"V{layer}"] = torch.eye(P).to(Z) + 0.01 * white[:, :P]
        parameters[f"shape{layer}"], parameters[f"rate{layer}"] = (_TIGHT * q.shape).log(), (_TIGHT * q.rate).log()
        parameters[f"mean{layer}"] = _MEAN * white[:, P:].tril(-1) / math.sqrt(q.rank)
        parameters[f"sd{layer}"] = torch.full((P, q.rank), _LOG_SD).to(Z)
    level = 0.5 * (rows_each / noise.mean()).log()
    parameters["precision"] = torch.diag_embed(level.expand(P))
    parameters["target"] = targets.clone()
    return parameters


def scales_of(parameters: Parameters) -> WidthScales:
    """The kernels' scales."""
    parts = {name: parameters[name].exp() for name in ("inputs", "weights", "biases", "noise")}
    return WidthScales(**parts)


def bartlett_of(parameters: Parameters, layer: int) -> Bartlett:
    """The posterior of a layer's Bartlett factor."""
    names = ("shape", "rate", "sd")
    shape, rate, sd = (parameters[f"{name}{layer}"].exp() for name in names)
    return Bartlett(shape, rate, parameters[f"mean{layer}"], sd)


def layer_kernel(scales: WidthScales, layer: int, activation: str, G: Tensor, d1: Tensor, d2: Tensor) -> Tensor:
    """``v + u F(G)``, ``... x q1 x q2``, with diagonals ``... x q1`` and ``... x q2``."""
    F = product(G, d1.unsqueeze(-1), d2.unsqueeze(-2), activation)
    return scales.biases[0, layer + 1] + scales.weights[0, layer] * F


def layer_variance(scales: WidthScales, layer: int, activation: str, d: Tensor) -> Tensor:
    """The same at coincident points."""
    return scales.biases[0, layer + 1] + scales.weights[0, layer] * square(d, activation)


def linear_gram(scales: WidthScales, X1: Tensor, X2: Tensor) -> Tensor:
    """``G_0``."""
    root = scales.inputs[0].sqrt()
    return scales.biases[0, 0] + (centred(X1) * root) @ (centred(X2) * root).transpose(-1, -2)


def sample_layer(
    model: DeepWishart, parameters: Parameters, layer: int, G: Tensor, samples: int, generator: torch.Generator
) -> LayerSample:
    """One layer given the Gram matrices before it, ``S x P x P``."""
    scales, nu = scales_of(parameters), model.nus[layer]
    diagonal = G.diagonal(dim1=-2, dim2=-1)
    K = layer_kernel(scales, layer, model.activation, G, diagonal, diagonal) / nu
    factor = jittered_cholesky(K)
    share, V = torch.sigmoid(parameters[f"mix{layer}"]), parameters[f"V{layer}"]
    lower = factor @ safe_cholesky((1 - share) * torch.eye(V.shape[0]).to(V) + share * (V @ V.T))
    q = bartlett_of(parameters, layer)
    A = draw(q, samples, generator)
    image = lower @ A
    log_Q = log_posterior(A, lower.diagonal(dim1=-2, dim2=-1).log(), q)
    return LayerSample(factor, image, log_wishart(image, nu, factor) - log_Q)


def log_bound(
    model: DeepWishart,
    parameters: Parameters,
    X: Tensor,
    Y: Tensor,
    noise: Tensor | None,
    weight: float,
    samples: int,
    generator: torch.Generator,
) -> Tensor:
    """An unbiased estimate of the evidence lower bound, scalar.

    Args:
        model: The model.
        parameters: Of the posterior.
        X: ``n x d`` rows.
        Y: ``n x m``.
        noise: ``n x m`` known variances; ``None``: learned.
        weight: Rows in all, per row here.
        samples: ``S``.
        generator: Source of randomness.
    """
    scales, n = scales_of(parameters), X.shape[0]
    S = samples
    G = linear_gram(scales, model.Z, model.Z).expand(S, -1, -1)
    cross = linear_gram(scales, model.Z, X).expand(S, -1, -1)
    diagonal = (scales.biases[0, 0] + (centred(X).square() * scales.inputs[0]).sum(-1)).expand(S, -1)
    total = X.new_zeros(S)
    for layer, nu in enumerate(model.nus):
        sample = sample_layer(model, parameters, layer, G, S, generator)
        K_cross = layer_kernel(scales, layer, model.activation, cross, G.diagonal(dim1=-2, dim2=-1), diagonal) / nu
        white = torch.linalg.solve_triangular(sample.factor, K_cross, upper=False)  # S x P x n
        inner = torch.linalg.solve_triangular(sample.factor, sample.image, upper=False)
        mean = white.transpose(-1, -2) @ inner  # S x n x r
        variance = layer_variance(scales, layer, model.activation, diagonal) / nu - white.square().sum(-2)
        sd = variance.clamp_min(1e-12).sqrt().unsqueeze(-1)
        rank = sample.image.shape[-1]
        noise_t = torch.randn(S, n, nu, generator=generator, dtype=torch.float64).to(X)
        F_t = torch.cat([mean + sd * noise_t[..., :rank], sd * noise_t[..., rank:]], -1)
        cross = sample.image @ F_t[..., :rank].transpose(-1, -2)
        diagonal = F_t.square().sum(-1)
        G = sample.image @ sample.image.transpose(-1, -2)
        total = total + sample.log_ratio
    last = len(model.nus)
    at_Z = G.diagonal(dim1=-2, dim2=-1)
    factor = jittered_cholesky(layer_kernel(scales, last, model.activation, G, at_Z, at_Z))
    A = torch.linalg.solve_triangular(factor, layer_kernel(scales, last, model.activation, cross, at_Z, diagonal), upper=False)
    prior_variance = layer_variance(scales, last, model.activation, diagonal)
    raw = parameters["precision"]
    root = raw.tril(-1) + torch.diag_embed(raw.diagonal().exp())
    image = factor.transpose(-1, -2) @ root  # L^T R
    own = safe_cholesky(image @ image.transpose(-1, -2) + torch.eye(raw.shape[0]).to(raw))
    force = image @ (root.T @ parameters["target"])  # S x P x m
    mean_v = torch.cholesky_solve(force, own)
    spread = torch.linalg.solve_triangular(own, A, upper=False).square().sum(-2)  # S x n
    f = A.transpose(-1, -2) @ mean_v
    variance = ((prior_variance - A.square().sum(-2)).clamp_min(0.0) + spread).unsqueeze(-1)
    levels = scales.noise if noise is None else noise
    fit = -0.5 * (((Y - f).square() + variance) / levels + levels.log() + math.log(2 * math.pi)).sum((-2, -1))
    eye = torch.eye(raw.shape[0]).to(raw)
    inverse = torch.linalg.solve_triangular(own, eye.expand_as(own), upper=False)
    m = Y.shape[1]
    per_output = 0.5 * (inverse.square().sum((-2, -1)) - raw.shape[0]) + own.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    divergence = m * per_output + 0.5 * mean_v.square().sum((-2, -1))
    return (total + weight * fit - divergence).mean()


def train_wishart(
    model: DeepWishart,
    start: Parameters,
    X: Tensor,
    Y: Tensor,
    noise: Tensor | None,
    generator: torch.Generator,
    settings: WishartSettings = WishartSettings(),
) -> Parameters:
    """Follow the bound (and the hyper-prior of the scales) by Adam; arguments as of :func:`log_bound`."""
    n = X.shape[0]
    parameters = {key: value.detach().clone().requires_grad_(True) for key, value in start.items()}
    free = [value for key, value in parameters.items() if key != "noise" or noise is None]
    optimizer = torch.optim.Adam(free, lr=settings.learning_rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, max(1, settings.steps))
    for _ in range(settings.steps):
        optimizer.zero_grad()
        rows = torch.arange(n)
        if n > settings.batch_size:
            rows = torch.randint(n, (settings.batch_size,), generator=generator)
        rows = rows.to(X.device)
        known = None if noise is None else noise[rows]
        with torch.enable_grad():
            bound = log_bound(model, parameters, X[rows], Y[rows], known, n / rows.shape[0], settings.samples, generator)
            scales = scales_of(parameters)
            loss = -bound - log_hyper_prior(replace(scales, noise=scales.noise.mean(0, keepdim=True)), None)
            if noise is None:
                loss = loss + 0.5 * (parameters["noise"] - start["noise"]).square().sum()
        loss.backward()
        if all(p.grad is None or bool(p.grad.isfinite().all()) for p in free):
            optimizer.step()
        schedule.step()
    return {key: value.detach() for key, value in parameters.items()}
