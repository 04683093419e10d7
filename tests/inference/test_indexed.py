"""Indices, signals, targets and prior functions."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from seqbdl.inference.indexed import PriorFunctions, PriorNetwork, draw_indices, draw_mixing, draw_signals, targets
from seqbdl.inference.observations import Labels, Squares
from seqbdl.likelihoods import get_likelihood
from seqbdl.networks import MLP

LIKE = torch.zeros(1).double()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mlp(m: int = 2) -> MLP:
    ones = torch.ones(3).double()
    return MLP((5, 4), 3 * ones[:2], ones[:2], ones, m)


def test_many_indices_have_exact_moments(linear: SimpleNamespace) -> None:
    z = draw_indices(20, 6, generator(), LIKE)
    torch.testing.assert_close(z.mean(0), torch.zeros(6).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(z.T @ z / 20, torch.eye(6).double(), rtol=0, atol=1e-12)
    linear.assert_samples(draw_indices(20_000, 3, generator(1), LIKE), torch.zeros(3).double(), torch.eye(3).double())
    plain = torch.randn(5, 6, generator=generator(), dtype=torch.float64)
    assert torch.equal(draw_indices(5, 6, generator(), LIKE), plain)


def test_signals_are_unit_vectors() -> None:
    c = draw_signals(50, 2, 8, generator(), LIKE)
    torch.testing.assert_close(c.square().sum(-1), torch.ones(50, 2).double())


def test_targets_vary_with_the_index_as_the_noise_does(linear: SimpleNamespace) -> None:
    """Over indices, the mean of a target is the outcome and its variance the noise, for every row and output."""
    Y, variance = linear.normals(7, 2), 0.1 + linear.normals(7, 2, seed=1).square()
    z, c = draw_indices(40, 5, generator(), LIKE), draw_signals(7, 2, 5, generator(1), LIKE)
    seen = targets(get_likelihood("gaussian"), Y, variance, z, c)
    assert isinstance(seen, Squares)
    torch.testing.assert_close(seen.targets.mean(0), Y)
    torch.testing.assert_close(seen.targets.var(0, unbiased=False), variance)
    same = targets(get_likelihood("gaussian"), Y, variance, z, None)
    assert isinstance(same, Squares)
    assert same.targets.shape == (1, 7, 2)
    assert isinstance(targets(get_likelihood("poisson"), Y.square().round(), variance, z, c), Labels)


def test_prior_functions_mix_networks(linear: SimpleNamespace) -> None:
    """Their covariance over indices is that of the ``D`` functions, between points and between outputs."""
    network, X = mlp(), torch.rand(2, 3, 2, generator=generator(), dtype=torch.float64)
    weights, z = linear.normals(6, network.num_params), draw_indices(30, 6, generator(), LIKE)
    values = PriorFunctions(network, weights, 0.7)(X, z)
    assert values.shape == (30, 2, 3, 2)
    functions = network.forward(weights, X).flatten(1)
    torch.testing.assert_close(values.flatten(1).mean(0), torch.zeros(12).double(), rtol=0, atol=1e-12)
    flat = values.flatten(1)
    torch.testing.assert_close(flat.T @ flat / 30, 0.49 * functions.T @ functions / 6)


@pytest.mark.parametrize("dim", [2, 3, 7])
def test_mixing_reads_one_slice_of_the_index_per_layer(dim: int) -> None:
    network = mlp()
    B = draw_mixing(network, dim, generator(), LIKE)
    torch.testing.assert_close(B.square().sum(-1), torch.ones(network.num_params).double())
    group = network.group_of_weights(B)
    used = [(B[group == g] != 0).any(0) for g in range(3)]
    if dim >= 3:
        assert bool((torch.stack(used).sum(0) == 1).all())
    sizes = [int(u.sum()) for u in used]
    assert min(sizes) >= 1


def test_a_prior_network_is_the_network_at_mixed_weights() -> None:
    network = mlp()
    B, z = draw_mixing(network, 6, generator(), LIKE), draw_indices(4, 6, generator(1), LIKE)
    X = torch.rand(5, 2, generator=generator(), dtype=torch.float64)
    values = PriorNetwork(network, B, 2.0)(X, z)
    torch.testing.assert_close(values[1], 2.0 * network.forward((B @ z[1]).unsqueeze(0), X)[0])
