"""Random features: finite-dimensional function draws whose covariance is the kernel's, exactly in expectation."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def fourier_draw(
    lengthscale: Tensor, n: int, num_features: int, generator: torch.Generator, scale: Tensor | None = None
) -> Callable[[Tensor], Tensor]:
    """Draws from a Gaussian process with a squared-exponential kernel (Rahimi and Recht 2007).

    Every draw owns its frequencies, so that the covariance of the draws is the kernel's without a shared bias.

    Args:
        lengthscale: ``m x d``.
        n: Number of draws.
        num_features: Frequencies per draw.
        generator: Source of randomness.
        scale: ``m`` standard deviations; 1 by default.

    Returns:
        ``batch x q x d -> n x batch x q x m``.
    """
    m, d = lengthscale.shape
    frequencies = torch.randn(n, m, num_features, d, generator=generator, dtype=torch.float64).to(lengthscale)
    frequencies = frequencies / lengthscale.unsqueeze(-2)
    cosine = torch.randn(n, m, num_features, generator=generator, dtype=torch.float64).to(lengthscale)
    sine = torch.randn(n, m, num_features, generator=generator, dtype=torch.float64).to(lengthscale)
    amplitude = 1.0 / math.sqrt(num_features)
    sd = torch.ones(m).to(lengthscale) if scale is None else scale

    def evaluate(X: Tensor) -> Tensor:
        flat = X.reshape(-1, d)
        angles = torch.einsum("nmfd,pd->nmpf", frequencies, flat)
        values = amplitude * (
            torch.einsum("nmpf,nmf->npm", angles.cos(), cosine) + torch.einsum("nmpf,nmf->npm", angles.sin(), sine)
        )
        return (sd * values).reshape(n, *X.shape[:-1], m)

    return evaluate
