"""Deep kernel learning that stops before it overfits.

The kernel is squared-exponential in features ``u(x)``. Its evidence alone cannot be trusted: with a flexible extractor
it rises while held-out predictions get worse (Ober et al. 2021). So the extractor is trained on the evidence plus a
prior on its weights, the number of steps is the one that predicts held-out folds best, and the plain Gaussian process
stays unless it is beaten there. Training begins with lengthscales longer than the plain process's, to leave the
extractor something to explain. The folds and the full data train side by side on one leading axis: a row held out has
infinite noise there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from seqbdl.inference.features import squared_exponential
from seqbdl.posteriors.joint_gaussian import safe_cholesky

_HELD_OUT = 1e8  # noise variance of a row that is not to be seen, standardized outcomes
_NOISE_SD = 2.0  # of the prior on the log noise around its value in the Gaussian process


@dataclass(frozen=True)
class DeepKernelSettings:
    """Attributes:
    max_steps: Of Adam.
    learning_rate: Of Adam.
    check_every: Steps between looks at the held-out rows.
    patience: Looks without improvement before stopping.
    folds: Of the cross-validation.
    relax: Lengthscales at the start, in units of the plain process's.
    margin: Held-out nats per row by which the plain process must be beaten.
    """

    max_steps: int = 200
    learning_rate: float = 0.02
    check_every: int = 10
    patience: int = 4
    folds: int = 4
    relax: float = 3.0
    margin: float = 0.01


@dataclass(frozen=True)
class DeepKernelFit:
    """Attributes:
    weights: ``P`` extractor weights.
    lengthscale: ``m x d``.
    mean: ``m``.
    noise: ``m`` noise variances.
    steps: How many steps were kept; 0 is the plain Gaussian process.
    gain: Held-out log density gained over the plain Gaussian process, nats per row and output.
    """

    weights: Tensor
    lengthscale: Tensor
    mean: Tensor
    noise: Tensor
    steps: int
    gain: float


def train_deep_kernel(
    features: Callable[[Tensor, Tensor, Tensor], Tensor],
    plain: Callable[[Tensor, Tensor, Tensor], Tensor],
    weights: Tensor,
    X: Tensor,
    Y: Tensor,
    lengthscale: Tensor,
    mean: Tensor,
    noise: Tensor,
    noise_known: bool,
    generator: torch.Generator,
    settings: DeepKernelSettings = DeepKernelSettings(),
) -> DeepKernelFit:
    """Train the extractor beside the Gaussian process's solution.

    Args:
        features: ``(weights S x P, lengthscale S x m x d, X n x d) -> S x m x n x F``.
        plain: The same for the plain Gaussian process.
        weights: ``P`` whitened weights to begin with.
        X: ``n x d`` in the unit cube.
        Y: ``n x m`` standardized.
        lengthscale: ``m x d``.
        mean: ``m``.
        noise: ``n x m`` noise variances; one value per output unless known.
        noise_known: Whether to leave the noise alone.
        generator: Deals rows to folds.
        settings: Of the training.
    """
    n, m = Y.shape
    folds = min(settings.folds, n)
    S = folds + 1  # the last one sees everything
    fold = (torch.randperm(n, generator=generator) % folds).to(X.device)
    held = torch.nn.functional.one_hot(fold, folds).T.bool()  # folds x n
    hidden = torch.cat([held, torch.zeros_like(held[:1])])  # S x n
    parameters = [
        weights.expand(S, -1).clone().requires_grad_(True),
        (settings.relax * lengthscale).log().expand(S, -1, -1).clone().requires_grad_(True),
        mean.expand(S, -1).clone().requires_grad_(True),
        torch.zeros(S, m).to(X).requires_grad_(True),  # log factor on the noise
    ]
    w, log_scale, constant, log_noise = parameters
    start_scale = log_scale.detach().clone()
    optimizer = torch.optim.Adam(parameters if not noise_known else parameters[:3], lr=settings.learning_rate)

    def factorize(U: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        K = squared_exponential(U, U)  # S x m x n x n
        variance = noise.T * log_noise.exp().unsqueeze(-1)  # S x m x n
        seen = torch.where(hidden.unsqueeze(1), torch.full_like(variance, _HELD_OUT), variance)
        return K, variance, safe_cholesky(K + torch.diag_embed(seen))

    def held_out(K: Tensor, variance: Tensor, factor: Tensor) -> float:
        residual = (Y - constant.unsqueeze(1)).transpose(-1, -2).unsqueeze(-1)  # S x m x n x 1
        predicted = (K @ torch.cholesky_solve(residual, factor)).squeeze(-1)
        white = torch.linalg.solve_triangular(factor, K, upper=False)
        spread = (K.diagonal(dim1=-2, dim2=-1) - white.square().sum(-2)).clamp_min(1e-12) + variance
        error = residual.squeeze(-1) - predicted
        density = -0.5 * (error.square() / spread + spread.log() + math.log(2 * math.pi))
        return float(density[:folds][held.unsqueeze(1).expand(-1, m, -1)].sum())

    def snapshot() -> tuple[Tensor, ...]:
        return tuple(p.detach()[-1].clone() for p in parameters)

    with torch.no_grad():
        base = held_out(*factorize(plain(w, lengthscale.expand(S, -1, -1), X)))
    best: tuple[float, int, tuple[Tensor, ...]] = (-math.inf, 0, snapshot())
    misses = 0
    for step in range(settings.max_steps + 1):
        optimizer.zero_grad()
        with torch.enable_grad():
            K, variance, factor = factorize(features(w, log_scale.exp(), X))
            residual = (Y - constant.unsqueeze(1)).transpose(-1, -2).unsqueeze(-1)
            # Rows that are hidden add a constant: their residuals are shrunk by the huge noise.
            white = torch.linalg.solve_triangular(factor, residual, upper=False)
            evidence = -0.5 * white.square().sum() - factor.diagonal(dim1=-2, dim2=-1).log().sum()
            prior = -0.5 * (w - weights).square().sum() - 0.5 * (log_noise / _NOISE_SD).square().sum()
            prior = prior - 0.5 * (log_scale - start_scale).square().sum()
            loss = -(evidence + prior)
        if step % settings.check_every == 0:
            with torch.no_grad():
                score = held_out(K, variance, factor)
            if score > best[0]:
                best, misses = (score, step, snapshot()), 0
            else:
                misses += 1
                if misses > settings.patience:
                    break
        if step == settings.max_steps:
            break
        loss.backward()
        optimizer.step()
    score, steps, (kept, kept_scale, kept_mean, kept_noise) = best
    gain = (score - base) / (n * m)
    if gain < settings.margin:
        return DeepKernelFit(weights, lengthscale, mean, noise.mean(0), 0, 0.0)
    return DeepKernelFit(kept, kept_scale.exp(), kept_mean, noise.mean(0) * kept_noise.exp(), steps, gain)
