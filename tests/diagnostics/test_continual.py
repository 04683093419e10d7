"""Metrics of streams against numbers worked out by hand, and log scores against the evidence."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import seqbdl
from seqbdl.diagnostics import continual as metrics
from seqbdl.errors import InvalidDataError, InvalidOptionError, ShapeError

R = [[0.9, 0.4, 0.5], [0.7, 0.8, 0.6], [0.75, 0.6, 1.0]]


def test_matrix_metrics_by_hand() -> None:
    assert metrics.average_accuracy(R) == pytest.approx((0.75 + 0.6 + 1.0) / 3)
    assert metrics.backward_transfer(R) == pytest.approx(((0.75 - 0.9) + (0.6 - 0.8)) / 2)
    assert metrics.forward_transfer(R, [0.5, 0.5, 0.5]) == pytest.approx(((0.4 - 0.5) + (0.6 - 0.5)) / 2)
    assert metrics.forgetting(R) == pytest.approx(((0.9 - 0.75) + (0.8 - 0.6)) / 2)
    assert metrics.learning_accuracy(R) == pytest.approx((0.9 + 0.8 + 1.0) / 3)
    assert metrics.triangle_accuracy(R) == pytest.approx((0.9 + 0.7 + 0.8 + 0.75 + 0.6 + 1.0) / 6)


def test_series_by_hand() -> None:
    losses = [1.0, 3.0, 2.0, 6.0]
    np.testing.assert_allclose(metrics.prequential(losses), [1, 2, 2, 3])
    np.testing.assert_allclose(metrics.windowed(losses, 2), [1, 2, 2.5, 4])
    np.testing.assert_allclose(metrics.faded(losses, 0.5), [1, 3.5 / 1.5, 3.75 / 1.75, 7.875 / 1.875])
    np.testing.assert_allclose(metrics.faded(losses, 1.0), metrics.prequential(losses))
    assert metrics.loss_after_changes(losses, [1, 3], first=1) == 4.5
    steps = [1.0] * 5 + [9.0, 9.0, 1.0, 1.0, 1.0]
    assert metrics.recovery_time(steps, 5, window=2) == 4
    assert metrics.recovery_time([*steps[:5], 9.0, 9.0, 9.0], 5, window=2) is None


def test_bad_input() -> None:
    for wrong in ([[1.0, 2.0]], [[1.0]]):
        with pytest.raises(ShapeError):
            metrics.backward_transfer(wrong)
    with pytest.raises(InvalidDataError, match=r"R\[0, 1\]"):
        metrics.forgetting([[1.0, np.nan], [1.0, 1.0]])
    with pytest.raises(InvalidOptionError):
        metrics.windowed([1.0], 0)


def test_scores_before_learning_add_up_to_the_evidence() -> None:
    """Chain rule: one by one, in chunks, and at once, for a Gaussian process with fixed hyperparameters."""
    generator = torch.Generator().manual_seed(0)
    X = torch.rand(12, 1, generator=generator, dtype=torch.float64)
    Y = torch.sin(6 * X) + 0.1 * torch.randn(12, 1, generator=generator, dtype=torch.float64)
    prior = seqbdl.prior_from(seqbdl.make_surrogate("gp", 1, noise=0.01).fit(X, Y), temper=0.0)
    at_once = metrics.log_predictive(prior, X, Y)
    for size in (1, 5):
        now, total = seqbdl.prior_from(prior), torch.zeros((), dtype=torch.float64)
        for x, y in zip(X.split(size), Y.split(size), strict=True):
            total = total + metrics.log_predictive(now, x, y)
            now.update(x, y)
        # joint covariances are lifted by some 1e-9 before they are factorized, under a noise of 1e-2
        torch.testing.assert_close(total, at_once, rtol=0, atol=1e-6)


def test_particles_and_labels() -> None:
    X = torch.linspace(0, 1, 12, dtype=torch.float64).unsqueeze(-1)
    ensemble = seqbdl.make_surrogate("ensemble", 1, network=(8,), num_members=4, noise=0.04).fit(X, X)
    values = ensemble.sample_functions(4)(X[:2])  # four draws: every member once
    density = torch.distributions.Normal(values, 0.2).log_prob(X[:2]).sum((-1, -2)).logsumexp(0) - np.log(4)
    torch.testing.assert_close(metrics.log_predictive(ensemble, X[:2], X[:2]), density, rtol=1e-5, atol=1e-5)
    labels = (X > 0.5).double()
    classes = seqbdl.make_surrogate("ensemble", 1, likelihood="bernoulli", network=(8,), num_members=256).fit(X, labels)
    probs = classes.predict(X[:1]).probs
    assert probs is not None
    torch.testing.assert_close(metrics.log_predictive(classes, X[:1], labels[:1]), probs[0, 0].log())
    # 256 draws of 256 equally weighted members: every one once, as in the predicted probability.
    one = metrics.log_predictive(classes, X[:2], labels[:2])
    assert float(one) < float(metrics.log_predictive(classes, X[:1], labels[:1])) + 1e-9
