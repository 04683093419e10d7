"""The log joint: sums over data, unbiased mini-batches, gradients of its own values."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from seqbdl.inference.log_joint import LogJoint, minibatches
from seqbdl.likelihoods import get_likelihood
from seqbdl.networks import MLP, ModuleNetwork, Network
from seqbdl.priors import StudentTPrior


def networks() -> list[Network]:
    ones = torch.ones(3, dtype=torch.float64)
    mlp = MLP((5, 4), ones[:2] * 2, ones[:2], ones * 0.5, num_outputs=3, activation="erf", branches=2)
    return [mlp, ModuleNetwork(nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 3)), 2, 3)]


def log_joint(network: Network, name: str) -> LogJoint:
    generator = torch.Generator().manual_seed(0)
    X = torch.rand(12, 2, generator=generator, dtype=torch.float64)
    Y = torch.randint(0, 3, (12, 1), generator=generator).double()
    if name == "gaussian":
        Y = Y + torch.rand(12, 3, generator=generator, dtype=torch.float64)
    return LogJoint(network, get_likelihood(name), StudentTPrior(), X, Y, torch.full((12, 3), 0.3, dtype=torch.float64))


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("name", ["gaussian", "categorical"])
def test_gradient_is_that_of_the_value(which: int, name: str) -> None:
    network = networks()[which]
    joint = log_joint(network, name)
    z = torch.randn(4, network.num_params, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for rows in (None, torch.tensor([3, 1, 7])):
        value, gradient = joint.value_and_gradient(z, rows)
        leaf = z.clone().requires_grad_(True)
        expected = joint(leaf, rows)
        torch.testing.assert_close(value, expected.detach())
        torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), leaf)[0])


def test_minibatches_are_unbiased_and_cover_every_row() -> None:
    network = networks()[0]
    joint = log_joint(network, "categorical")
    z = torch.randn(2, network.num_params, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    batches = minibatches(12, 4, 3, torch.Generator().manual_seed(0))
    assert sorted(torch.cat([b for b in batches if b is not None]).tolist()) == list(range(12))
    mean = torch.stack([joint.log_likelihood(z, b) for b in batches]).mean(0)
    torch.testing.assert_close(mean, joint.log_likelihood(z))  # an epoch's batches average to the whole sum
    assert minibatches(12, None, 2, torch.Generator()) == [None, None]
    assert minibatches(12, 20, 2, torch.Generator()) == [None, None]


def test_value_is_a_sum_over_rows() -> None:
    network = networks()[0]
    joint = log_joint(network, "gaussian")
    z = torch.randn(2, network.num_params, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    doubled = LogJoint(
        network, joint.likelihood, joint.prior, joint.X.repeat(2, 1), joint.Y.repeat(2, 1), joint.noise.repeat(2, 1)
    )
    torch.testing.assert_close(doubled.log_likelihood(z), 2 * joint.log_likelihood(z))
