"""Hamiltonian Monte Carlo for networks, all chains on one axis, preconditioned by the Gauss-Newton matrix.

Target: ``U(z) = 1/2 sum (y - f(z))^2 / s2 + 1/2 |z|^2`` over whitened weights, with the noise variance ``s2`` of each
output and chain under an inverse-gamma prior, drawn by its exact conditional between trajectories (Gibbs).

Every chain has the constant mass matrix ``M = I + J^T D^{-1} J`` of the network linearized where the chain starts; all
products with it go through ``N x N`` algebra. The Hamiltonian is split (Shahbaba et al. 2014; Beskos et al. 2011) into
the Gaussian ``1/2 (z - c)^T M (z - c) + 1/2 v^T M v``, whose exact flow is a rotation of ``(z - c, v)``, and the
remainder, which kicks ``v``. So the step size is limited by the nonlinearity of the network alone, neither by the
number of weights nor by the smallness of the noise; on a linear network every trajectory of a quarter turn is an
independent exact draw.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from seqbdl.networks import Network, Tangents
from seqbdl.posteriors.joint_gaussian import safe_cholesky

MAX_METRIC_ROWS = 1000
"""Rows times outputs that the mass matrix sees; an even sample beyond. Any mass matrix leaves the target as it is."""


@dataclass(frozen=True)
class HMCSettings:
    """Attributes:
    warmup: Trajectories that adapt the step size and are thrown away.
    samples: Trajectories after that.
    trajectory: Mean length, in radians of the Gaussian rotation; a quarter turn forgets the start fastest.
    target_acceptance: What dual averaging aims at (Hoffman and Gelman 2014).
    initial_step: First step size, radians.
    max_steps: Steps per trajectory at most.
    """

    warmup: int = 12
    samples: int = 8
    trajectory: float = 0.5 * math.pi
    target_acceptance: float = 0.8
    initial_step: float = 0.4
    max_steps: int = 24


@dataclass(frozen=True)
class HMCResult:
    """Attributes:
    z: ``samples x S x P``.
    noise: ``samples x S x m`` noise variances.
    acceptance: ``S`` mean acceptance probability after warm-up.
    step_size: ``S``.
    divergences: Trajectories, over all chains, whose energy error was above 1000 or not finite.
    """

    z: Tensor
    noise: Tensor
    acceptance: Tensor
    step_size: Tensor
    divergences: int


@dataclass(frozen=True)
class _Metric:
    tangents: Tangents
    factor: Tensor  # S x r x r, Cholesky of J J^T + D
    rows: Tensor  # r, noise variances D
    centre: Tensor  # S x P

    def solve(self, network: Network, g: Tensor) -> Tensor:
        """``M^{-1} g``."""
        projected = network.jvp(self.tangents, g)
        solved = torch.cholesky_solve(projected.flatten(1).unsqueeze(-1), self.factor).squeeze(-1)
        return g - network.vjp(self.tangents, solved.reshape(projected.shape))

    def square(self, network: Network, v: Tensor) -> Tensor:
        """``v^T M v``, ``S``."""
        projected = network.jvp(self.tangents, v).flatten(1)
        return v.square().sum(-1) + (projected.square() / self.rows).sum(-1)

    def draw(self, network: Network, prior: Tensor, noise: Tensor) -> Tensor:
        """``v ~ N(0, M^{-1})``: prior draws conditioned on noise at the rows (Matheron)."""
        projected = network.jvp(self.tangents, prior)
        perturbed = projected.flatten(1) + self.rows.sqrt() * noise
        solved = torch.cholesky_solve(perturbed.unsqueeze(-1), self.factor).squeeze(-1)
        return prior - network.vjp(self.tangents, solved.reshape(projected.shape))


def _metric(network: Network, z: Tensor, X: Tensor, Y: Tensor, variance: Tensor, keep: Tensor) -> _Metric:
    X, Y = X[keep], Y[keep]
    rows = (variance[keep] * (keep.shape[0] / variance.shape[0])).flatten()
    tangents = network.tangents(z, X)
    K = network.tangent_kernel(tangents, tangents)
    factor = safe_cholesky(K + torch.diag(rows))
    residual = (Y - tangents.values + network.jvp(tangents, z)).flatten(1)
    alpha = torch.cholesky_solve(residual.unsqueeze(-1), factor).squeeze(-1)
    centre = network.vjp(tangents, alpha.reshape(tangents.values.shape))
    return _Metric(tangents, factor, rows, centre)


def hmc(
    network: Network,
    X: Tensor,
    Y: Tensor,
    variance: Tensor,
    start: Tensor,
    generator: torch.Generator,
    settings: HMCSettings = HMCSettings(),
    noise_prior: tuple[float, Tensor] | None = None,
) -> HMCResult:
    """Sample the weights, and the noise if it has a prior.

    Args:
        network: Over whitened weights.
        X: ``n x d`` in the unit cube.
        Y: ``n x m``.
        variance: ``n x m`` noise variances; with ``noise_prior``, their value at the start.
        start: ``S x P``.
        generator: Source of randomness.
        settings: Lengths and adaptation.
        noise_prior: ``(shape, scale: m)`` of the inverse-gamma prior on a multiple of ``variance`` per output;
            ``None``: fixed noise.
    """
    S, P = start.shape
    n, m = Y.shape

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(start)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64).to(start)

    if n * m > MAX_METRIC_ROWS:
        keep = torch.randperm(n, generator=generator)[: max(1, MAX_METRIC_ROWS // m)].to(X.device)
    else:
        keep = torch.arange(n, device=X.device)
    metric = _metric(network, start, X, Y, variance, keep)
    scale = start.new_ones(S, m)  # of the noise, per chain and output

    def evaluate(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Potential energy ``S``, kick ``M^{-1} grad U - (z - c)``, residual sums ``S x m``."""
        tangents = network.tangents(z, X)
        error = tangents.values - Y
        squares = error.square() / variance
        noise = variance * scale.unsqueeze(-2)
        gradient = z + network.vjp(tangents, error / noise)
        potential = 0.5 * (squares.sum(-2) / scale).sum(-1) + 0.5 * z.square().sum(-1)
        return potential, metric.solve(network, gradient) - (z - metric.centre), squares.sum(-2)

    z = start
    log_step = torch.full((S,), math.log(settings.initial_step), dtype=torch.float64).to(start)
    mu, smooth, h_bar = log_step + math.log(2.0), log_step.clone(), torch.zeros_like(log_step)
    potential, kick, squares = evaluate(z)
    kept_z, kept_noise = [], []
    acceptance, divergences = torch.zeros_like(log_step), 0
    for iteration in range(settings.warmup + settings.samples):
        warm = iteration < settings.warmup
        step = (log_step if warm else smooth).exp()
        jitter = 0.6 + 0.4 * float(uniform(1))
        count = max(1, min(settings.max_steps, round(jitter * settings.trajectory / float(step.median()))))
        v = metric.draw(network, normal(S, P), normal(S, metric.rows.shape[0]))
        energy = potential + 0.5 * metric.square(network, v)
        cos, sin, half = step.cos()[:, None], step.sin()[:, None], 0.5 * step[:, None]
        new_z, new_potential, new_kick, new_squares = z, potential, kick, squares
        for _ in range(count):
            v = v - half * new_kick
            offset = new_z - metric.centre
            new_z, v = metric.centre + cos * offset + sin * v, cos * v - sin * offset
            new_potential, new_kick, new_squares = evaluate(new_z)
            v = v - half * new_kick
        error = new_potential + 0.5 * metric.square(network, v) - energy
        error = torch.where(error.isfinite(), error, torch.full_like(error, torch.inf))
        divergences += int((error > 1000.0).sum())
        probability = (-error).clamp_max(0.0).exp()
        accept = uniform(S) < probability
        z = torch.where(accept[:, None], new_z, z)
        potential = torch.where(accept, new_potential, potential)
        kick = torch.where(accept[:, None], new_kick, kick)
        squares = torch.where(accept[:, None], new_squares, squares)
        if warm:
            weight = 1.0 / (iteration + 1 + 10.0)
            h_bar = (1 - weight) * h_bar + weight * (settings.target_acceptance - probability)
            log_step = (mu - math.sqrt(iteration + 1.0) / 0.05 * h_bar).clamp_max(math.log(0.5 * math.pi))
            share = (iteration + 1.0) ** -0.75
            smooth = share * log_step + (1 - share) * smooth
        else:
            acceptance = acceptance + probability / settings.samples
            kept_z.append(z)
        if noise_prior is not None:
            shape, prior_scale = noise_prior
            gamma = torch._standard_gamma(torch.full((S, m), shape + 0.5 * n, dtype=torch.float64), generator=generator)
            scale = (prior_scale + 0.5 * squares) / gamma.to(squares)
            potential, kick, squares = evaluate(z)
        if not warm:
            kept_noise.append(scale)
    base = variance.mean(0)
    return HMCResult(torch.stack(kept_z), torch.stack(kept_noise) * base, acceptance, smooth.exp(), divergences)
