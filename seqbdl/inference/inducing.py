"""Variational Gaussian processes on inducing inputs, for any likelihood and in mini-batches.

``f(x) = A(x)^T v + rest`` with ``A = L^{-1} K_zx``, ``L = chol K_zz`` (see :mod:`seqbdl.posteriors.inducing`), and ``q(v)``
Gaussian. Rows act on ``q`` as Gaussian sites whose strength is the expected curvature of their log-likelihood and whose
value follows from the expected score (Opper and Archambeau 2009): natural-gradient steps (Khan and Lin 2017; Adam et al.
2021), in one step exact for Gaussian noise. The kernel's own parameters follow the gradient of the bound by Adam, ``q``
standing still in whitened coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from seqbdl.inference.expected_log_likelihood import expected, expected_log_prob
from seqbdl.inference.held_out import mixture_log_density
from seqbdl.likelihoods import Likelihood
from seqbdl.posteriors.inducing import InducingSums, project
from seqbdl.posteriors.joint_gaussian import jittered_cholesky, safe_cholesky

Parameters = dict[str, Tensor]
Blocks = Callable[[Parameters, Tensor], tuple[Tensor, Tensor, Tensor]]
"""Parameters and rows ``n x d`` to the kernel among inducing inputs ``P x P``, with the rows ``P x n``, and at each row
``n``."""

_TRAINED_JITTER = 1e-5  # while parameters move
_HALVINGS = 10
_CLEAR_RISE = 1e-6
_LATENT_SAMPLES = 64


@dataclass(frozen=True)
class BoundSettings:
    """Attributes:
    steps: Of Adam.
    learning_rate: Of Adam.
    batch_size: Rows per step.
    settle: Steps of ``q`` alone before.
    check_every: Steps between looks at the held-out rows.
    patience: Looks without improvement before stopping.
    """

    steps: int = 200
    learning_rate: float = 0.01
    batch_size: int = 512
    settle: int = 5
    check_every: int = 20
    patience: int = 5


@dataclass(frozen=True)
class BoundFit:
    """Attributes:
    parameters: The best by held-out rows.
    steps: How many steps they took.
    base: Held-out log density per row where training began.
    score: The same at the best.
    densities: Held-out log densities at the best, ``n_held``.
    """

    parameters: Parameters
    steps: int
    base: float
    score: float
    densities: Tensor


def moments(A: Tensor, diagonal: Tensor, mean: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """Means and variances of the latent functions under ``q``, ``n x l`` both.

    Args:
        A: ``P x n``.
        diagonal: ``n``.
        mean: ``l x P``, of ``v``.
        factor: ``l x P x P``, of the precision of ``v``.
    """
    white = torch.linalg.solve_triangular(factor, A.expand(factor.shape[0], -1, -1), upper=False)
    rest = (diagonal - A.square().sum(0)).clamp_min(0.0)
    return A.T @ mean.T, rest.unsqueeze(-1) + white.square().sum(1).T


def absorb_rows(
    sums: InducingSums,
    rows: Callable[[Tensor], tuple[Tensor, Tensor]],
    X: Tensor,
    Y: Tensor,
    likelihood: Likelihood,
    noise: Tensor,
    chunk: int = 4096,
    max_steps: int = 40,
) -> InducingSums:
    """The variational posterior given rows of any likelihood, with the sums so far as its prior.

    Natural-gradient steps on the sites of the new rows, shortened where the bound would fall. The ``constant`` of the result
    makes its ``bound`` the evidence lower bound of these rows.

    Args:
        sums: What was seen before: the prior.
        rows: Rows to ``A: P x n`` and prior variances ``n``.
        X: ``n x d``.
        Y: ``n x t``.
        likelihood: Of an observation.
        noise: ``n x m``.
        chunk: Rows at once: bounds the memory.
        max_steps: Steps at most.
    """
    eye = torch.eye(sums.phi.shape[-1]).to(sums.phi)
    before = safe_cholesky(sums.phi + eye)
    prior_mean = sums.mean(before)

    def look(phi: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The bound at these sites, and the sites that the rows ask for there."""
        now = replace(sums, phi=sums.phi + phi, b=sums.b + b)
        factor = now.precision_factor
        mean = now.mean(factor)
        value = -_divergence(mean, factor, prior_mean, before)
        new_phi, new_b = torch.zeros_like(phi), torch.zeros_like(b)
        for start in range(0, X.shape[0], chunk):
            part = slice(start, start + chunk)
            A, diagonal = rows(X[part])
            f, variance = moments(A, diagonal, mean, factor)
            e = expected(likelihood, f, variance, Y[part], noise[part])
            value = value + e.value.sum()
            strength = e.precision.T.unsqueeze(-2)  # l x 1 x n
            new_phi = new_phi + (A * strength) @ A.T
            new_b = new_b + (e.gradient + e.precision * f).T @ A.T
        return value, new_phi, new_b

    phi, b = torch.zeros_like(sums.phi), torch.zeros_like(sums.b)
    value, new_phi, new_b = look(phi, b)
    fraction = 1.0
    for _ in range(max_steps):
        for _ in range(_HALVINGS):
            there = (phi + fraction * (new_phi - phi), b + fraction * (new_b - b))
            seen = look(*there)
            if bool(seen[0] >= value - 1e-9 * value.abs()):
                break
            fraction *= 0.5
        else:
            break
        rise = float(seen[0] - value)
        (phi, b), (value, new_phi, new_b) = there, seen
        fraction = min(1.0, 2 * fraction)
        if rise < _CLEAR_RISE * (1 + abs(float(value))):
            break
    result = replace(sums, phi=sums.phi + phi, b=sums.b + b, constant=torch.zeros_like(sums.constant))
    return replace(result, constant=(value / sums.b.shape[0]) - result.bound)


def _divergence(mean: Tensor, factor: Tensor, prior_mean: Tensor, prior: Tensor) -> Tensor:
    """``sum KL(N(mean, (F F^T)^{-1}) || N(prior_mean, (G G^T)^{-1}))`` over ``l`` outputs."""
    spread = torch.linalg.solve_triangular(factor, prior, upper=False).square().sum((-2, -1))
    shift = (prior.transpose(-1, -2) @ (mean - prior_mean).unsqueeze(-1)).square().sum((-2, -1))
    log_ratio = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1) - prior.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return (0.5 * (spread + shift - mean.shape[-1]) + log_ratio).sum()


def train_bound(
    blocks: Blocks,
    penalty: Callable[[Parameters], Tensor],
    start: Parameters,
    X: Tensor,
    Y: Tensor,
    likelihood: Likelihood,
    noise: Tensor | None,
    held: Tensor,
    generator: torch.Generator,
    settings: BoundSettings,
) -> BoundFit:
    """Kernel parameters by the gradient of the evidence lower bound, in mini-batches.

    Args:
        blocks: The kernel.
        penalty: What is subtracted from the bound: minus log priors, divergences.
        start: Parameters; ``"noise"`` holds the logarithms of ``m`` noise variances.
        X: ``n x d``.
        Y: ``n x t``.
        likelihood: Of an observation.
        noise: Known variances ``n x m``; ``None``: learned where the likelihood has noise.
        held: Rows, as indices, that choose the number of steps; none: all steps are taken.
        generator: Deals the batches.
        settings: Of the training.
    """
    mask = torch.ones(X.shape[0], dtype=torch.bool, device=X.device)
    mask[held] = False
    seen = mask.nonzero().squeeze(-1)
    n = seen.shape[0]
    parameters = {key: value.detach().clone().requires_grad_(True) for key, value in start.items()}
    free = [value for key, value in parameters.items() if key != "noise" or (noise is None and likelihood.has_noise)]
    optimizer = torch.optim.Adam(free, lr=settings.learning_rate)
    full = n <= settings.batch_size
    rate = (1.0 if likelihood.name == "gaussian" else 0.4) if full else 0.1
    sites: tuple[Tensor, Tensor] | None = None

    def noise_at(rows: Tensor) -> Tensor:
        return parameters["noise"].exp().expand(rows.shape[0], -1) if noise is None else noise[rows]

    def seen_through(rows: Tensor) -> tuple[Tensor, Tensor]:
        K, cross, diagonal = blocks(parameters, X[rows])
        return project(jittered_cholesky(K, _TRAINED_JITTER), cross), diagonal

    def batch() -> Tensor:
        if full:
            return seen
        return seen[torch.randint(n, (settings.batch_size,), generator=generator).to(X.device)]

    def posterior() -> tuple[Tensor, Tensor]:
        assert sites is not None
        factor = safe_cholesky(sites[0] + torch.eye(sites[0].shape[-1]).to(X))
        return torch.cholesky_solve(sites[1].unsqueeze(-1), factor).squeeze(-1), factor

    def move(A: Tensor, diagonal: Tensor, rows: Tensor) -> None:
        """One natural-gradient step of ``q``."""
        nonlocal sites
        A, diagonal = A.detach(), diagonal.detach()
        latents = likelihood.num_latents(parameters["noise"].shape[0])
        first = sites is None
        if sites is None:
            P = A.shape[0]
            sites = (X.new_zeros(latents, P, P), X.new_zeros(latents, P))
        f, variance = moments(A, diagonal, *posterior())
        e = expected(likelihood, f, variance, Y[rows], noise_at(rows).detach())
        weight, share = n / rows.shape[0], 1.0 if first and rate == 1.0 else max(rate, 0.4 if first else 0.0)
        phi = weight * (A * e.precision.T.unsqueeze(-2)) @ A.T
        b = weight * (e.gradient + e.precision * f).T @ A.T
        sites = (sites[0] + share * (phi - sites[0]), sites[1] + share * (b - sites[1]))

    def held_densities() -> Tensor:
        with torch.no_grad():
            parts = []
            for rows in held.split(2048):
                f, variance = moments(*seen_through(rows), *posterior())
                parts.append(log_predictive_density(likelihood, f, variance, Y[rows], noise_at(rows)))
            return torch.cat(parts)

    for _ in range(settings.settle if not full or rate < 1.0 else 1):
        with torch.no_grad():
            rows = batch()
            move(*seen_through(rows), rows)
    densities = held_densities() if held.numel() else X.new_zeros(0)
    base = float(densities.mean()) if held.numel() else 0.0
    kept = {key: value.detach().clone() for key, value in parameters.items()}
    best, best_steps, misses = base, 0, 0
    for step in range(1, settings.steps + 1):
        optimizer.zero_grad()
        rows = batch()
        with torch.enable_grad():
            A, diagonal = seen_through(rows)
            with torch.no_grad():
                move(A, diagonal, rows)
            mean, factor = posterior()
            f, variance = moments(A, diagonal, mean, factor)
            fit = n / rows.shape[0] * expected_log_prob(likelihood, f, variance, Y[rows], noise_at(rows)).sum()
            loss = penalty(parameters) - fit
        loss.backward()
        if all(p.grad is None or bool(p.grad.isfinite().all()) for p in free):
            optimizer.step()
        if held.numel() and (step % settings.check_every == 0 or step == settings.steps):
            now = held_densities()
            score = float(now.mean())
            if score > best:
                best, best_steps, misses, densities = score, step, 0, now
                kept = {key: value.detach().clone() for key, value in parameters.items()}
            else:
                misses += 1
                if misses >= settings.patience:
                    break
    if not held.numel():
        kept, best_steps = {key: value.detach().clone() for key, value in parameters.items()}, settings.steps
    return BoundFit(kept, best_steps, base, best, densities)


def log_predictive_density(likelihood: Likelihood, f: Tensor, variance: Tensor, Y: Tensor, noise: Tensor) -> Tensor:
    """``log E[p(y | f)]`` of every row by itself, ``n``: exact for Gaussian noise, else by quasi-random latent values."""
    if likelihood.name == "gaussian":
        total = variance + noise
        return (-0.5 * ((Y - f).square() / total + total.log() + math.log(2 * math.pi))).sum(-1)
    uniform = torch.quasirandom.SobolEngine(f.shape[-1], scramble=True, seed=0).draw(_LATENT_SAMPLES, dtype=torch.float64)
    white = torch.special.ndtri(uniform.clamp(1e-9, 1 - 1e-9)).to(f).unsqueeze(1)
    return mixture_log_density(likelihood, f + variance.sqrt() * white, Y, noise)


def spread_rows(kernel: Tensor, count: int) -> Tensor:
    """Indices of at most ``count`` rows, each with the largest variance given those before it (pivoted Cholesky); rows that
    add nothing, such as duplicates, are left out. In ascending order.

    Args:
        kernel: ``n x n``.
        count: ``P``.
    """
    n = kernel.shape[-1]
    variance = kernel.diagonal().clone()
    floor = 1e-7 * float(variance.mean())
    columns = kernel.new_zeros(min(count, n), n)
    picks: list[int] = []
    for i in range(min(count, n)):
        pick = int(variance.argmax())
        if float(variance[pick]) <= floor:
            break
        column = kernel[:, pick] - columns[:i, pick] @ columns[:i]
        columns[i] = column / variance[pick].sqrt()
        variance = (variance - columns[i].square()).clamp_min(0.0)
        variance[pick] = 0.0
        picks.append(pick)
    return torch.tensor(sorted(picks), device=kernel.device)
