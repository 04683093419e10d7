"""Sequential function-space inference of one weight, where the objective's optimum is written down; function divergences."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from seqbdl.errors import InvalidOptionError
from seqbdl.inference.adam import AdamSettings
from seqbdl.inference.laplace import Rows
from seqbdl.inference.sfsvi import SFSVI, function_kl, moments, shuffled
from seqbdl.likelihoods import get_likelihood
from seqbdl.networks import LinearHead, ModuleNetwork
from seqbdl.posteriors.mean_field import MeanField

N, NOISE = 6, 0.5


@pytest.mark.parametrize(("strength", "coreset"), [(1.0 / N, 0), (0.7, 4)])
def test_one_weight(strength: float, coreset: int) -> None:
    """``f(x) = z``: with ``K`` context sets ``1/v = 1/v_0 + 1 / (K c s^2)``, and the mean is held by ``N c K / v_0``. With ``c =
    1/N`` and one set that is Bayes' rule, and sequential is batch."""
    network = LinearHead(lambda X: X, 1, 1, 1)
    Y = torch.randn(2 * N, 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    rows = Rows(get_likelihood("gaussian"), torch.ones_like(Y), Y, torch.full_like(Y, NOISE))
    descent = AdamSettings(steps=800, learning_rate=0.05, batch_size=None)
    method = SFSVI(descent, strength=strength, coreset=coreset, num_context=3, num_samples=8)
    generator = torch.Generator().manual_seed(0)
    memory = method.begin(network, generator, Y)
    for task, sets in ((0, 1), (1, 2 if coreset else 1)):
        part = torch.arange(N) + task * N
        precision = float(memory.prior.precision.diagonal)
        held = strength * sets * N * precision
        mean = (float(Y[part].sum()) / NOISE + held * float(memory.prior.mean)) / (N / NOISE + held)
        variance = 1 / (precision + 1 / (sets * strength * NOISE))
        memory = method.learn(network, rows.pick(part), memory, generator)
        assert abs(float(memory.z) - mean) < 0.01 * variance**0.5
        assert float(memory.spread.diagonal) == pytest.approx(1 / variance, rel=0.05)  # of gradients from 16 draws
    if coreset == 0:
        exact = 1 + 2 * N / NOISE
        assert float(memory.z) == pytest.approx(
            float(Y.sum()) / NOISE / exact, abs=0.05 * exact**-0.5
        )  # the first spread is known to 5 %
        assert float(memory.spread.diagonal) == pytest.approx(exact, rel=0.1)


def test_moments_and_divergences() -> None:
    network = ModuleNetwork(nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2)), 2, 2)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(1, network.num_params, generator=generator, dtype=torch.float64)
    X = torch.rand(5, 2, generator=generator, dtype=torch.float64)
    q = MeanField(z, torch.full_like(z, 0.3))
    mean, variance = moments(network, q, X)
    J = network.jacobian(network.tangents(z, X))[0]
    torch.testing.assert_close(variance[0], 0.09 * J.square().sum(-1) + 1e-6)
    other, wide = mean + 0.1, variance + 0.2
    normal, prior = (torch.distributions.Normal(m, v.sqrt()) for m, v in ((mean, variance), (other, wide)))
    expected = torch.distributions.kl_divergence(normal, prior).sum(-1)
    torch.testing.assert_close(function_kl(mean, variance, other, wide), expected)
    points = shuffled(X, 50, generator)
    assert all(bool(torch.isin(points[:, j], X[:, j]).all()) for j in range(2))


def test_options() -> None:
    for wrong in ({"strength": 0.0}, {"num_context": 0}, {"prior_variance": -1.0}):
        with pytest.raises(InvalidOptionError):
            SFSVI(**wrong)
