"""Scores of real-valued predictions against closed forms, determinants and numerical integration."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seqbdl.acquisition import gaussian_scores as scores
from seqbdl.errors import InvalidDataError, ShapeError


def covariance(size: int, seed: int) -> Tensor:
    root = torch.randn(size, size + 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return root @ root.T


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_bald_is_half_a_log_ratio_and_half_a_log_determinant() -> None:
    K = covariance(4, 0)
    variance = K.diagonal()
    assert torch.allclose(scores.gaussian_bald(variance, 0.3), 0.5 * (1 + variance / 0.3).log())
    for i in range(4):
        assert float(scores.joint_gaussian_bald(K[i : i + 1, i : i + 1], 0.3)) == pytest.approx(
            float(scores.gaussian_bald(variance, 0.3)[i]), abs=1e-14
        )
    noise = torch.tensor([0.1, 0.2, 0.3, 0.4])
    expected = 0.5 * (torch.logdet(K + torch.diag(noise.double())) - noise.double().log().sum())
    assert float(scores.joint_gaussian_bald(K, noise)) == pytest.approx(float(expected), abs=1e-12)


def test_tiny_variances_keep_their_ratio() -> None:
    # log(1 + v) would round to zero.
    assert float(scores.gaussian_bald(torch.tensor([1e-20], dtype=torch.float64), 1.0)) == pytest.approx(0.5e-20, rel=1e-12)


def test_entropy_is_that_of_a_normal() -> None:
    variance = torch.tensor([0.5, 2.0], dtype=torch.float64)
    expected = torch.distributions.Normal(0.0, (variance + 0.1).sqrt()).entropy()
    assert torch.allclose(scores.gaussian_entropy(variance, 0.1), expected)
    assert torch.allclose(scores.predictive_variance(variance, 0.1), variance + 0.1)


@settings(deadline=None, derandomize=True, max_examples=25)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 10_000))
def test_epig_is_a_difference_of_log_determinants_between_zero_and_bald(N: int, M: int, seed: int) -> None:
    K = covariance(N + M, seed)
    v, c = K.diagonal()[:N], K[:N, N:]
    epig = scores.gaussian_epig(v, K.diagonal()[N:], c, 0.2, 0.5)
    noisy = K + torch.diag(torch.tensor([0.2] * N + [0.5] * M, dtype=torch.float64))
    for x in range(N):
        terms = []
        for t in range(N, N + M):
            pair = noisy[[x, t]][:, [x, t]]
            terms.append(0.5 * (noisy[x, x].log() + noisy[t, t].log() - torch.logdet(pair)))
        assert float(epig[x]) == pytest.approx(float(torch.stack(terms).mean()), abs=1e-11)
    assert bool((epig >= 0).all())
    assert bool((epig <= scores.gaussian_bald(v, 0.2) + 1e-12).all())


def test_epig_weights_are_repeated_targets() -> None:
    K = covariance(7, 3)
    v, there, c = K.diagonal()[:4], K.diagonal()[4:], K[:4, 4:]
    repeated = scores.gaussian_epig(v, there[[0, 2, 2]], c[:, [0, 2, 2]], 0.1, 0.1)
    assert torch.allclose(scores.gaussian_epig(v, there, c, 0.1, 0.1, torch.tensor([1.0, 0.0, 2.0])), repeated)


def test_variance_reduction_is_that_of_conditioning() -> None:
    K = covariance(6, 1)
    v, c = K.diagonal()[:3], K[:3, 3:]
    for x, score in enumerate(scores.integrated_variance_reduction(v, c, 0.4)):
        after = K[3:, 3:] - K[3:, x : x + 1] @ K[x : x + 1, 3:] / (K[x, x] + 0.4)
        assert float(score) == pytest.approx(float((K[3:, 3:] - after).diagonal().mean()), abs=1e-12)


def test_mixture_information_against_integration_on_a_grid() -> None:
    means, noise = normal(3, 5, seed=0) * 2, 0.1 + normal(3, 5, seed=1).square()
    y = torch.linspace(-30, 30, 60_001, dtype=torch.float64)
    for i in range(5):
        components = torch.distributions.Normal(means[:, i], noise[:, i].sqrt())
        density = components.log_prob(y.unsqueeze(-1)).exp().mean(-1)
        entropy = torch.trapezoid(torch.special.entr(density), y)
        expected = float(entropy - components.entropy().mean())
        # 667 nodes over 18 standard deviations of each component: h^2 / 12 is 6e-5.
        assert float(scores.mixture_bald(means, noise)[i]) == pytest.approx(expected, abs=1e-4)


def test_mixture_information_at_its_ends() -> None:
    apart = torch.tensor([[0.0, 1.0], [100.0, 1.0], [200.0, 1.0]], dtype=torch.float64)
    found = scores.mixture_bald(apart, torch.ones(1, 1, dtype=torch.float64))
    assert torch.allclose(found, torch.tensor([math.log(3), 0.0], dtype=torch.float64), atol=1e-4)
    # A probability density underflows a thousand standard deviations away; its logarithm does not.
    far = torch.tensor([[0.0], [1e4]], dtype=torch.float64)
    assert float(scores.mixture_bald(far, torch.ones(1, 1, dtype=torch.float64))) == pytest.approx(math.log(2), abs=1e-4)


def test_the_moment_matched_bound_lies_above_the_mixture() -> None:
    means, noise = normal(6, 20, seed=2), 0.1 + normal(6, 20, seed=3).square()
    assert bool((scores.heteroscedastic_bald(means, noise) >= scores.mixture_bald(means, noise) - 1e-4).all())
    constant = torch.full((6, 20), 0.3, dtype=torch.float64)
    expected = scores.gaussian_bald(means.var(0, correction=0), 0.3)
    assert torch.allclose(scores.heteroscedastic_bald(means, constant), expected)


def test_epig_of_draws_is_that_of_their_moments() -> None:
    draws = normal(50, 6, seed=0) @ covariance(6, 1)
    C = draws.T.cov(correction=0)
    expected = scores.gaussian_epig(C.diagonal()[:4], C.diagonal()[4:], C[:4, 4:], 0.1, 0.2)
    assert torch.allclose(scores.draws_epig(draws[:, :4], draws[:, 4:], 0.1, 0.2), expected, atol=1e-12)


def test_epig_of_draws_of_independent_functions_is_the_bias() -> None:
    n, N = 40, 4000
    found = scores.draws_epig(normal(n, N, seed=0), normal(n, 20, seed=1), 1e-9, 1e-9)
    bound = scores.draws_epig_bias(n)
    assert bound == 1 / 78
    # Exactly: rho^2 is Beta(1/2, (n - 2)/2) distributed; the expectation of -log(1 - rho^2) / 2 is a difference of digammas.
    half = torch.tensor([(n - 1) / 2, (n - 2) / 2], dtype=torch.float64).digamma()
    exact = 0.5 * float(half[0] - half[1])
    error = 4 * float(found.std()) / math.sqrt(N)  # rho^2 has this law whatever the targets, so points are independent
    assert abs(float(found.mean()) - exact) < error
    assert exact == pytest.approx(bound, rel=2 / n)


def test_bad_moments_are_refused() -> None:
    v = torch.ones(3, dtype=torch.float64)
    with pytest.raises(InvalidDataError, match="variance is negative at point 1"):
        scores.gaussian_bald(torch.tensor([1.0, -1.0]), 0.1)
    with pytest.raises(InvalidDataError, match="noise is zero or negative at point 0"):
        scores.gaussian_bald(v, 0.0)
    with pytest.raises(ShapeError, match="2 entries"):
        scores.gaussian_bald(v, torch.ones(2))
    with pytest.raises(InvalidDataError, match="zero at point 2"):
        scores.gaussian_entropy(torch.tensor([1.0, 1.0, 0.0]))
    with pytest.raises(InvalidDataError, match=r"cross_covariance\[0, 1\].*one joint posterior"):
        scores.gaussian_epig(v, v[:2], torch.tensor([[0.0, 2.0], [0.0, 0.0], [0.0, 0.0]]), 0.1, 0.1)
    with pytest.raises(ShapeError, match="3 x 2"):
        scores.gaussian_epig(v, v[:2], torch.zeros(2, 3), 0.1, 0.1)
    with pytest.raises(ShapeError, match="the same functions"):
        scores.draws_epig(normal(4, 2, seed=0), normal(5, 2, seed=0), 0.1, 0.1)
    with pytest.raises(ShapeError, match="two or more"):
        scores.centred_draws(normal(1, 2, seed=0))
    with pytest.raises(InvalidDataError, match="point 1 of draw 0"):
        scores.mixture_bald(normal(2, 2, seed=0), torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
    with pytest.raises(InvalidDataError, match="NaN"):
        scores.predictive_variance(torch.tensor([torch.nan]), 0.1)
