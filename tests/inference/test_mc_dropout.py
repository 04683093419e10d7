"""Dropout's free energy against an enumeration of all masks."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from seqbdl.errors import InvalidOptionError
from seqbdl.inference.gauss_newton import GaussNewtonSettings, minimize
from seqbdl.inference.log_joint import LogJoint
from seqbdl.inference.mc_dropout import DropoutSettings, decay, draw_keep, mc_dropout
from seqbdl.inference.observations import Labels
from seqbdl.likelihoods import LIKELIHOODS, get_likelihood
from seqbdl.networks import MLP, ModuleNetwork
from seqbdl.networks.dropout import weight_factors
from seqbdl.priors import get_prior

RATE = 0.3


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small_joint(likelihood: str = "gaussian") -> LogJoint:
    lik = get_likelihood(likelihood)
    m = 3 if likelihood == "categorical" else 1
    latents = lik.num_latents(m)
    network = ModuleNetwork(nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, latents)), 1, latents)
    X = torch.rand(12, 1, generator=generator(), dtype=torch.float64)
    noise = torch.full((12, m), 0.2, dtype=torch.float64)
    f = torch.sin(5 * X) * torch.linspace(1, -1, 3).double()[:latents]
    return LogJoint(network, lik, get_prior("gaussian"), X, lik.sample(f, noise, generator(1)), noise)


def weights_that_leave_units(joint: LogJoint) -> Tensor:
    off = torch.zeros(1, joint.network.num_units, dtype=torch.float64)
    return weight_factors(joint.network, off)[0] == 0


def free_energy(joint: LogJoint, z: Tensor, rate: float) -> Tensor:
    """``S``, with the expectation over masks as a sum over all of them."""
    leaving = weights_that_leave_units(joint)
    total = 0.5 * (z.square() * torch.where(leaving, 1 / (1 - rate), 1.0)).sum(-1)
    for mask in itertools.product([0.0, 1.0], repeat=joint.network.num_units):
        on = torch.tensor([mask], dtype=torch.float64)
        probability = float((rate ** (1 - on) * (1 - rate) ** on).prod())
        total = total - probability * joint.log_likelihood(z * weight_factors(joint.network, on / (1 - rate)))
    return total


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_training_finds_a_minimum_of_the_enumerated_free_energy(likelihood: str, linear: SimpleNamespace) -> None:
    joint = small_joint(likelihood)
    start = linear.normals(6, joint.network.num_params)
    settings = DropoutSettings(steps=500, learning_rate=0.05, batch_size=12)
    trained = mc_dropout(joint, start, torch.full((6,), RATE).double(), settings, generator())
    z = trained.clone()
    for _ in range(50):  # the exact gradient goes on from there
        leaf = z.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(free_energy(joint, leaf, RATE).sum(), leaf)
        z = (leaf - 0.02 * gradient).detach()
    before, after, at_start = (free_energy(joint, w.detach(), RATE) for w in (trained, z, start))
    # Noise of the last steps leaves training above the minimum nearby, by little of what it went down.
    assert bool((before - after < 0.05 * (at_start - after)).all())


def test_the_decay_is_that_of_the_prior() -> None:
    joint = small_joint()
    rates = torch.tensor([0.1, 0.5], dtype=torch.float64)
    c = decay(joint.network, rates, 0.0)
    leaving = weights_that_leave_units(joint)
    assert int(leaving.sum()) == 3
    torch.testing.assert_close(c[:, leaving], (1 / (1 - rates)).unsqueeze(-1).expand(-1, 3))
    assert bool((c[:, ~leaving] == 1).all())
    keep = draw_keep((200_000,), rates[:1], generator())  # c is the second moment of the factor: E (z m)^2 = c z^2
    assert abs(float(keep.square().mean()) - 1 / 0.9) < 4 * float(keep.square().std()) / 200_000**0.5
    with_inputs = decay(joint.network, rates, 0.2)
    torch.testing.assert_close(with_inputs[:, :3], torch.full((2, 3), 1.25).double())  # the first weight tensor, 3 x 1


def test_masks_are_drawn_with_their_rates() -> None:
    rates = torch.tensor([[0.05], [0.4]], dtype=torch.float64)
    keep = draw_keep((2, 20_000), rates, generator())
    off = (keep == 0).double().mean(1)
    assert bool(((off - rates[:, 0]).abs() < 4 * (rates[:, 0] * (1 - rates[:, 0]) / 20_000).sqrt()).all())
    torch.testing.assert_close(keep.max(1).values, 1 / (1 - rates[:, 0]))


def test_without_dropout_the_descent_stays_at_the_mode(linear: SimpleNamespace) -> None:
    """Rates too small to strike: the free energy is the negative log joint."""
    ones = torch.ones(2, dtype=torch.float64)
    network, lik = MLP((6,), ones, ones[:1], ones), get_likelihood("gaussian")
    X = torch.rand(15, 2, generator=generator(), dtype=torch.float64)
    Y, noise = torch.sin(4 * X[:, :1]), torch.full((15, 1), 0.05, dtype=torch.float64)
    zero, start = torch.zeros(1, network.num_params).double(), linear.normals(1, network.num_params)
    mode = minimize(network, X, Labels(lik, Y, noise), zero, start, GaussNewtonSettings(100, 1e-12)).z
    joint = LogJoint(network, lik, get_prior("gaussian"), X, Y, noise)
    found = mc_dropout(joint, mode, torch.full((1,), 1e-12).double(), DropoutSettings(steps=300, batch_size=100), generator())
    torch.testing.assert_close(joint(found), joint(mode), rtol=0, atol=1e-3)


def test_rows_without_weight_are_not_seen(linear: SimpleNamespace) -> None:
    joint = small_joint()
    weights = torch.ones(2, 12, dtype=torch.float64)
    weights[:, 8:] = 0.0
    rates, start = torch.full((2,), 0.2).double(), linear.normals(2, joint.network.num_params)
    spoiled = LogJoint(joint.network, joint.likelihood, joint.prior, joint.X, joint.Y.clone(), joint.noise)
    spoiled.Y[8:] = 100.0
    settings = DropoutSettings(steps=20, batch_size=5)
    a, b = (mc_dropout(j, start, rates, settings, generator(2), weights) for j in (joint, spoiled))
    torch.testing.assert_close(a, b)


def test_bad_settings_are_refused() -> None:
    for bad in ({"steps": 0}, {"batch_size": 0}, {"learning_rate": -1.0}, {"input_rate": 1.0}):
        with pytest.raises(InvalidOptionError, match=next(iter(bad))):
            DropoutSettings(**bad)  # type: ignore[arg-type]
