"""The normal-inverse-gamma posterior of a linear head: batch, recursive, and in closed form."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_t
from torch import Tensor

from seqbdl.inference.last_layer import absorb, prior_last_layer, tune_precision

A0, ALPHA = 2.0, 0.7
B0 = torch.tensor([0.5, 1.5], dtype=torch.float64)


def problem(linear: SimpleNamespace, n: int = 12, F: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    features, Y = linear.normals(n, F), linear.normals(n, 2, seed=1) + torch.tensor([0.0, 3.0]).double()
    relative = 0.5 + torch.rand(n, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return features, Y, relative


def test_batch_in_closed_form(linear: SimpleNamespace) -> None:
    features, Y, relative = problem(linear)
    state = absorb(prior_last_layer(4, ALPHA, A0, B0), features, Y, relative)
    weighted = features / relative[:, None]
    A = ALPHA * torch.eye(4).double() + features.T @ weighted
    mean = torch.linalg.solve(A, weighted.T @ Y)
    torch.testing.assert_close(state.mean, mean, rtol=0, atol=1e-10)
    torch.testing.assert_close(state.factor @ state.factor.T, A, rtol=0, atol=1e-10)
    # b = b0 + (y^T R^-1 y - m^T A m) / 2, the textbook form
    b = B0 + 0.5 * ((Y.square() / relative[:, None]).sum(0) - (mean * (A @ mean)).sum(0))
    torch.testing.assert_close(state.b, b, rtol=0, atol=1e-9)
    assert float(state.a) == A0 + 6
    torch.testing.assert_close(state.noise, state.b / (state.a - 1))


def test_evidence_is_the_multivariate_t_density(linear: SimpleNamespace) -> None:
    features, Y, relative = problem(linear)
    state = absorb(prior_last_layer(4, ALPHA, A0, B0), features, Y, relative)
    for i in range(2):
        scale = (torch.diag(relative) + features @ features.T / ALPHA) * B0[i] / A0
        expected = multivariate_t(np.zeros(12), scale.numpy(), df=2 * A0).logpdf(Y[:, i].numpy())
        assert abs(float(state.log_evidence[i]) - float(expected)) < 1e-8


def test_two_thousand_updates_equal_one_batch(linear: SimpleNamespace) -> None:
    features, Y, relative = problem(linear, n=2000, F=6)
    prior = prior_last_layer(6, ALPHA, A0, B0)
    batch = absorb(prior, features, Y, relative)
    state = prior
    for i in range(2000):
        state = absorb(state, features[i : i + 1], Y[i : i + 1], relative[i : i + 1])
    torch.testing.assert_close(state.mean, batch.mean, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(state.factor, batch.factor, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(state.b, batch.b, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(state.log_evidence, batch.log_evidence, rtol=1e-8, atol=1e-8)


def test_no_cancellation_with_large_targets(linear: SimpleNamespace) -> None:
    """Targets around 1e6 explained by a constant feature: the textbook b loses all digits, ours does not."""
    features = torch.cat([torch.ones(30, 1).double(), linear.normals(30, 2)], 1)
    small = 0.01 * linear.normals(30, 1, seed=3)
    flat = prior_last_layer(3, 1e-12, A0, torch.full((1,), 1e-6).double())
    one = torch.ones(30).double()
    torch.testing.assert_close(
        absorb(flat, features, small + 1e6, one).b - absorb(flat, features, small, one).b,
        torch.full((1,), 0.5 * 1e-12 * 1e12).double(),  # alpha |w|^2 / 2 of the constant
        rtol=1e-3,
        atol=0,
    )


@pytest.mark.parametrize("scale", [0.03, 1.0, 30.0])
def test_tuned_precision_maximizes_the_evidence(scale: float, linear: SimpleNamespace) -> None:
    features, _, relative = problem(linear, n=40)
    Y = features @ (scale * linear.normals(4, 2, seed=7)) + 0.3 * linear.normals(40, 2, seed=8)
    tuned = tune_precision(features, Y, relative, A0, B0)

    def score(alpha: float) -> float:
        state = absorb(prior_last_layer(4, alpha, A0, B0), features, Y, relative)
        return float(state.log_evidence.sum()) - 0.5 * (math.log(alpha) / 6) ** 2

    scan = torch.linspace(math.log(1e-8), math.log(1e4), 300).exp().tolist()
    assert score(tuned) > max(score(a) for a in scan) - 1e-3


def test_more_features_than_rows(linear: SimpleNamespace) -> None:
    features, Y, relative = problem(linear, n=5, F=40)
    assert tune_precision(features, Y, relative, A0, B0) > 0
    state = absorb(prior_last_layer(40, 1e-3, A0, B0), features, Y, relative)
    assert bool(state.mean.isfinite().all())


def test_one_row_by_the_textbook_recursion(linear: SimpleNamespace) -> None:
    """``v = A^-1 x``, ``e = y - x^T m``, ``q = 1 + x^T v``: ``m += v e / q``, ``a += 1/2``, ``b += e^2 / (2 q)``, never less."""
    features, Y, _ = problem(linear)
    state, one = prior_last_layer(4, ALPHA, A0, B0), torch.ones(1).double()
    for x, y in zip(features, Y, strict=True):
        new = absorb(state, x[None], y[None], one)
        v = torch.linalg.solve(state.factor @ state.factor.T, x)
        e, q = y - x @ state.mean, 1 + x @ v
        torch.testing.assert_close(new.mean, state.mean + v[:, None] * e / q, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(new.b, state.b + e.square() / (2 * q), rtol=1e-12, atol=1e-12)
        assert bool((new.b >= state.b).all())
        assert float(new.a) == float(state.a) + 0.5
        state = new


def test_predictions_are_student_t(linear: SimpleNamespace) -> None:
    """The factor by which a new row changes the evidence is the density of Student's t with ``2 a`` degrees of freedom and
    squared scale ``(b / a) (1 + x^T A^-1 x)``."""
    features, Y, relative = problem(linear)
    state = absorb(prior_last_layer(4, ALPHA, A0, B0), features, Y, relative)
    x, y, one = linear.normals(1, 4, seed=9), linear.normals(1, 2, seed=10), torch.ones(1).double()
    factor = absorb(state, x, y, one).log_evidence - state.log_evidence
    spread = 1 + (x @ torch.linalg.solve(state.factor @ state.factor.T, x.T)).squeeze()
    scale = (state.b / state.a * spread).sqrt()
    expected = torch.distributions.StudentT(2 * state.a, (x @ state.mean)[0], scale).log_prob(y[0])
    torch.testing.assert_close(factor, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("alpha", "beta"), [(0.05, 400.0), (0.27, 17.1), (3.0, 0.5)])
def test_evidence_under_known_precisions(alpha: float, beta: float, linear: SimpleNamespace) -> None:
    """A noise that is all but known: the evidence of regression with precisions ``alpha`` and ``beta`` (Bishop 2006, 3.86), whose
    residual enters squared and whose determinant is that of ``A`` alone."""
    features, shape = problem(linear)[0], 1e8
    Y = features @ linear.normals(4, 2, seed=4) / alpha**0.5 + linear.normals(12, 2, seed=5) / beta**0.5
    prior = prior_last_layer(4, alpha / beta, shape, torch.full((2,), shape / beta).double())
    state = absorb(prior, features, Y, torch.ones(12).double())
    A = alpha * torch.eye(4).double() + beta * features.T @ features
    mean = beta * torch.linalg.solve(A, features.T @ Y)
    square = beta * (Y - features @ mean).square().sum(0) + alpha * mean.square().sum(0)
    constant = 2 * math.log(alpha) + 6 * math.log(beta / (2 * math.pi)) - 0.5 * float(torch.logdet(A))
    marginal = torch.distributions.MultivariateNormal(
        torch.zeros(12).double(), torch.eye(12).double() / beta + features @ features.T / alpha
    )
    torch.testing.assert_close(constant - 0.5 * square, marginal.log_prob(Y.T), rtol=1e-9, atol=1e-8)
    # lgamma(1e8) is 2e9: digits cancel; what the noise still varies adds square^2 / 4e8.
    torch.testing.assert_close(state.log_evidence, constant - 0.5 * square, rtol=0, atol=1e-4)
    torch.testing.assert_close(state.mean, mean, rtol=1e-9, atol=1e-9)
