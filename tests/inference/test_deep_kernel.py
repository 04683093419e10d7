"""Training of deep kernels: the held-out score against plain cross-validation, and when training is refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from seqbdl.inference.deep_kernel import DeepKernelFit, DeepKernelSettings, train_deep_kernel
from seqbdl.inference.features import squared_exponential

N, RELAX = 24, 3.0
LENGTHSCALE = torch.tensor([[0.3, 0.8]], dtype=torch.float64)
MEAN, NOISE = torch.tensor([0.2], dtype=torch.float64), torch.full((N, 1), 0.05, dtype=torch.float64)


def plain(weights: Tensor, lengthscale: Tensor, X: Tensor) -> Tensor:
    return X / lengthscale.unsqueeze(-2)


def warped(weights: Tensor, lengthscale: Tensor, X: Tensor) -> Tensor:
    """A step in the first input, of learned height."""
    bump = weights[:, :1] * torch.tanh(30 * (X[:, 0] - 0.5))  # S x N
    first = plain(weights, lengthscale, X)
    return torch.cat([first, bump[:, None, :, None].expand(*first.shape[:-1], 1)], -1)


def problem(step: bool) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    X = torch.rand(N, 2, generator=generator, dtype=torch.float64)
    Y = torch.sign(X[:, :1] - 0.5) if step else torch.sin(3 * X[:, :1]) - 0.7
    return X, Y + 0.2 * torch.randn(N, 1, generator=generator, dtype=torch.float64)


def train(step: bool, learn: bool = True, **changes: float) -> DeepKernelFit:
    settings = DeepKernelSettings(**{"relax": RELAX, **changes})  # type: ignore[arg-type]
    return train_deep_kernel(
        warped if learn else plain,
        plain,
        torch.full((1,), 0.1, dtype=torch.float64),  # at 0 the slope vanishes
        *problem(step),
        LENGTHSCALE,
        MEAN,
        NOISE,
        True,
        torch.Generator().manual_seed(1),
        settings,
    )


def cross_validated(lengthscale: Tensor, folds: int = 4) -> float:
    """Held-out log density with the rows really removed."""
    X, Y = problem(True)
    fold = torch.randperm(N, generator=torch.Generator().manual_seed(1)) % folds
    total = 0.0
    for f in range(folds):
        train_rows, test = fold != f, fold == f
        U = X / lengthscale
        C = squared_exponential(U[train_rows], U[train_rows]) + torch.diag(NOISE[train_rows, 0])
        cross = squared_exponential(U[test], U[train_rows])
        mean = MEAN + cross @ torch.linalg.solve(C, Y[train_rows, 0] - MEAN)
        variance = 1 - (cross * torch.linalg.solve(C, cross.T).T).sum(-1) + NOISE[test, 0]
        total += float(torch.distributions.Normal(mean, variance.sqrt()).log_prob(Y[test, 0]).sum())
    return total


def test_gain_is_that_of_real_cross_validation() -> None:
    """Without a step of training, the gain compares the relaxed lengthscales with the plain ones."""
    fit = train(True, learn=False, max_steps=0, margin=-math.inf)
    expected = (cross_validated(RELAX * LENGTHSCALE) - cross_validated(LENGTHSCALE)) / N
    assert abs(fit.gain - expected) < 1e-4  # a hidden row has noise 1e8 rather than infinite noise
    torch.testing.assert_close(fit.lengthscale, RELAX * LENGTHSCALE)


def test_steps_are_learned() -> None:
    fit = train(True)
    assert fit.steps > 0
    assert fit.gain > 0.1
    assert float(fit.weights) > 0.2  # away from where it began, 0.1


@pytest.mark.parametrize("margin", [0.01, 10.0])
def test_the_plain_process_returns_untouched_unless_it_is_beaten(margin: float) -> None:
    fit = train(False, learn=False, margin=margin, max_steps=40, relax=1.0, learning_rate=1e-9)
    assert fit.steps == 0
    assert fit.gain == 0.0
    assert torch.equal(fit.lengthscale, LENGTHSCALE)
    assert torch.equal(fit.mean, MEAN)
    assert torch.equal(fit.noise, NOISE.mean(0))


def test_known_noise_is_left_alone() -> None:
    torch.testing.assert_close(train(True).noise, NOISE.mean(0))
