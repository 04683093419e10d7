"""Which rows set the prior's scales and the noise."""

from __future__ import annotations

import torch

from seqbdl.likelihoods import get_likelihood
from seqbdl.surrogates.network_prior import NetworkBuilder, evidence_rows


def test_all_rows_or_an_ordered_sample() -> None:
    assert evidence_rows(5, seed=0, max_rows=5).tolist() == [0, 1, 2, 3, 4]
    few = evidence_rows(10_000, seed=0, max_rows=100)
    assert len(few.unique()) == 100
    assert bool((few.diff() > 0).all())
    assert few[0] < 1000 < 9000 < few[-1]
    assert torch.equal(few, evidence_rows(10_000, seed=0, max_rows=100))
    assert not torch.equal(few, evidence_rows(10_000, seed=1, max_rows=100))


def test_scales_are_those_of_the_sample_and_known_noise_that_of_all_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    X = torch.rand(300, 2, generator=generator, dtype=torch.float64)
    Y = torch.sin(6 * X[:, :1]) + 0.1 * torch.randn(300, 1, generator=generator, dtype=torch.float64)
    noise = 0.01 + 0.01 * torch.rand(300, 1, generator=generator, dtype=torch.float64)
    builder = NetworkBuilder((8, 8), 2, 1, "erf")
    some = evidence_rows(300, seed=3, max_rows=50)
    learned = builder.learn(X, Y, noise, None, seed=3, max_rows=50)
    torch.testing.assert_close(learned.scales.inputs, builder.learn(X[some], Y[some], noise[some], None).scales.inputs)
    torch.testing.assert_close(learned.noise, noise.mean(0))


def test_labels_in_order_are_no_trap() -> None:
    """The first rows of sorted labels know one class only: they say nothing about the inputs that matter."""
    generator = torch.Generator().manual_seed(0)
    X = torch.rand(800, 2, generator=generator, dtype=torch.float64)
    Y = (torch.rand(800, 1, generator=generator, dtype=torch.float64) < torch.sigmoid(8 * torch.sin(6 * X[:, :1]))).double()
    order = Y[:, 0].argsort(stable=True)
    learned = NetworkBuilder((8, 8), 2, 1, "erf").learn(X[order], Y[order], None, None, likelihood=get_likelihood("bernoulli"))
    assert learned.scales.inputs[0, 0] > 3 * learned.scales.inputs[0, 1]
