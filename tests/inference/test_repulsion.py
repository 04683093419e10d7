"""Kernels between particles, estimates of the score of a density, and Stein's identity."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seqbdl.errors import UnknownNameError
from seqbdl.inference.repulsion import (
    ESTIMATORS,
    median_kernel,
    minus_score,
    spectral_score,
    stein_multiple,
    svgd_multiple,
)


def normals(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_kernel_and_its_gradient_are_those_of_the_formula() -> None:
    x, root = normals(6, 3), normals(3, 3, seed=1)
    A = root @ root.T + torch.eye(3).double()
    kernel = median_kernel(x, x @ A)
    differences = x[:, None] - x
    squares = ((differences @ A) * differences).sum(-1)
    pairs = torch.triu_indices(6, 6, 1)
    h = squares[pairs[0], pairs[1]].median() / torch.tensor(7.0).double().log()
    torch.testing.assert_close(kernel.matrix, torch.exp(-squares / h))

    def smoothed(y: Tensor) -> Tensor:  # sum_ij k(y_j, x_i): its gradient in y_j is the sum over i of d k_ji / d y_j
        d = y[None] - x[:, None]
        return torch.exp(-((d @ A) * d).sum(-1) / h)

    for i in range(6):
        gradient = torch.autograd.functional.jacobian(lambda y, i=i: smoothed(y)[i].sum(), x)  # j x D
        torch.testing.assert_close(kernel.repulsion[i], gradient.sum(0))


@given(st.integers(2, 12), st.integers(1, 30), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_repulsion_pushes_apart_and_moves_no_centre(n: int, d: int, seed: int) -> None:
    x = normals(n, d, seed)
    kernel = median_kernel(x, x)
    assert float((kernel.repulsion * (x - x.mean(0))).sum()) > 0
    assert float(kernel.repulsion.sum(0).abs().max()) < 1e-9 * float(kernel.repulsion.abs().max())
    shifted = median_kernel(x + 3.0, x + 3.0)
    torch.testing.assert_close(shifted.repulsion, kernel.repulsion, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_particles_that_coincide_feel_nothing(estimator: str) -> None:
    x = normals(1, 4).expand(5, -1)
    minus = minus_score(median_kernel(x, x), estimator)
    assert bool((minus.abs() < 1e-9).all())
    assert float(stein_multiple(minus * 0, x, 4)) == 1.0


def test_the_density_estimate_has_the_score_of_the_smoothed_gaussian() -> None:
    """A kernel ``exp(-d^2 / h)`` adds the variance ``h / 2``, a few per cent here. Errors within two deviations."""
    n = 2000
    x = 2.0 * normals(n, 1) + 1.0
    h = torch.pdist(x).square().median() / torch.tensor(n + 1.0).double().log()
    near = ((x - 1.0).abs() < 4.0).squeeze()
    minus, smoothed = minus_score(median_kernel(x, x), "kde")[near], (x[near] - 1.0) / (4.0 + h / 2)
    assert float((minus - smoothed).square().mean().sqrt() / smoothed.square().mean().sqrt()) < 0.2


@pytest.mark.parametrize(("estimator", "bias"), [("kde", 0.2), ("sge", 0.02), ("ssge", 0.2)])
def test_estimates_of_the_score_of_a_gaussian(estimator: str, bias: float) -> None:
    """Their product with the draws is one dimension up to the estimator's bias, and errors fall as draws grow."""
    errors = []
    for n in (250, 1000):
        total = 0.0
        for seed in range(2):
            x = 2.0 * normals(n, 1, seed) + 1.0
            minus = minus_score(median_kernel(x, x), estimator)
            assert abs(float((minus * (x - x.mean(0))).sum()) / (n - 1) - 1.0) < bias
            total += float((minus - (x - 1.0) / 4.0).square().mean())
        errors.append(total)
    assert errors[1] < 0.7 * errors[0]


def test_the_spectral_score_at_other_points() -> None:
    samples = 2.0 * normals(500, 2) + 1.0
    points = 2.0 * normals(60, 2, seed=1) + 1.0
    exact = -(points - 1.0) / 4.0
    error = spectral_score(points, samples) - exact
    assert float(error.square().mean().sqrt() / exact.square().mean().sqrt()) < 0.35


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_steins_identity_holds_after_scaling(estimator: str) -> None:
    """In many dimensions every estimate falls short of it, and the factor makes up for that."""
    x = normals(10, 40)
    minus = minus_score(median_kernel(x, x), estimator)
    before = float((minus * (x - x.mean(0))).sum()) / (9 * 40)
    assert before < 0.8
    factor = stein_multiple(minus, x, 40)
    torch.testing.assert_close((factor * minus * (x - x.mean(0))).sum(), torch.tensor(9.0 * 40).double())


@pytest.mark.parametrize("width", [0.5, 1.0, 2.0])
def test_the_factor_of_svgd_balances_particles_as_wide_as_the_target(width: float) -> None:
    """Narrow particles are pushed outwards, wide ones drawn inwards."""
    x = normals(12, 30)
    x = x - x.mean(0)
    x = width * x * (11 * 30 / x.square().sum()).sqrt()  # total spread: width squared
    kernel = median_kernel(x, x)
    phi = kernel.matrix @ -x + svgd_multiple(kernel, x, x, 30) * kernel.repulsion
    outwards = float((phi * x).sum() / (kernel.repulsion * x).sum())
    assert (outwards > 0) == (width < 1) or abs(outwards) < 1e-9
    assert (abs(outwards) < 1e-9) == (width == 1.0)


def test_unknown_estimators_are_named() -> None:
    x = normals(4, 2)
    with pytest.raises(UnknownNameError, match="estimator"):
        minus_score(median_kernel(x, x), "kernel")
