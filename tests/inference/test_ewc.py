"""Elastic weight consolidation and synaptic intelligence on a separable loss, anchors as one, fading; controls without a hold."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from seqbdl.errors import InvalidOptionError
from seqbdl.inference.adam import AdamSettings
from seqbdl.inference.ewc import EWC
from seqbdl.inference.laplace import Rows
from seqbdl.inference.refits import FineTune, Refit
from seqbdl.inference.synaptic_intelligence import SynapticIntelligence
from seqbdl.inference.tasks import TaskMethod
from seqbdl.likelihoods import get_likelihood
from seqbdl.networks import ModuleNetwork

GAUSSIAN = get_likelihood("gaussian")
NOISE = 0.3
NETWORK = ModuleNetwork(nn.Linear(3, 1, bias=False), 3)
J = torch.eye(3, dtype=torch.float64)[[0, 1, 2, 0, 0, 1]] / 3**0.5  # one weight a row


def orthogonal() -> Rows:
    """Rows that see one weight each: the posterior has no correlations. Inputs of 1/2 are zeros."""
    X = 0.5 + 0.5 * torch.eye(3, dtype=torch.float64)[[0, 1, 2, 0, 0, 1]]
    Y = torch.randn(6, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return Rows(GAUSSIAN, X, Y, torch.full((6, 1), NOISE, dtype=torch.float64))


def information(chunk: list[int]) -> torch.Tensor:
    """The diagonal of the Fisher information; there is no more to it."""
    return J[chunk].square().sum(0) / NOISE


def pull(rows: Rows, chunk: list[int]) -> torch.Tensor:
    return (J[chunk].T @ rows.Y[chunk])[:, 0] / NOISE


def in_turn(method: TaskMethod, rows: Rows, *chunks: list[int]):  # type: ignore[no-untyped-def]
    generator = torch.Generator().manual_seed(0)
    memory, out = method.begin(NETWORK, generator, rows.X), []
    for chunk in chunks:
        memory = method.learn(NETWORK, rows.pick(torch.tensor(chunk)), memory, generator)
        out.append(memory)
    return out


@pytest.mark.parametrize("strength", [0.0, 1.0, 30.0])
def test_every_minimum_is_that_of_the_definition(strength: float) -> None:
    rows, chunks = orthogonal(), ([0, 1, 2], [3, 4], [5])
    memories = in_turn(EWC(strength=strength), rows, *chunks)
    weight, target = torch.ones(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for chunk, memory in zip(chunks, memories, strict=True):
        z = (target + pull(rows, chunk)) / (weight + information(chunk))
        torch.testing.assert_close(memory.z, z, rtol=0, atol=1e-10)
        weight, target = weight + strength * information(chunk), target + strength * information(chunk) * z


def test_anchors_of_all_tasks_are_one() -> None:
    rows = orthogonal()
    memories = in_turn(EWC(strength=5.0), rows, [0, 1, 2], [3, 4, 5])
    F = [information(chunk) for chunk in ([0, 1, 2], [3, 4, 5])]
    z = torch.randn(3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    slope = sum(f * (z - memory.z) for f, memory in zip(F, memories, strict=True))
    prior = memories[-1].prior
    torch.testing.assert_close(prior.precision.diagonal * (z - prior.mean), slope, rtol=0, atol=1e-10)


def test_old_importances_fade() -> None:
    rows = orthogonal()
    first, second = in_turn(EWC(decay=0.25), rows, [0, 1, 2], [3, 4, 5])
    fading = 0.25 * first.prior.precision.diagonal
    torch.testing.assert_close(second.prior.precision.diagonal, fading + information([3, 4, 5]))
    assert torch.equal(second.prior.mean, second.z)


def test_synaptic_intelligence() -> None:
    """On a separable loss a weight's path integral is what its own part of the loss lost; the next task is held by it."""
    rows, strength = orthogonal(), 2.0
    method = SynapticIntelligence(AdamSettings(4000, 0.01, None), strength)
    generator = torch.Generator().manual_seed(0)
    start = method.begin(NETWORK, generator, rows.X)
    first = method.learn(NETWORK, rows.pick(torch.arange(3)), start, generator)
    parts = [((rows.Y[:3, 0] - J[:3] @ m.z).square() / (2 * NOISE)) for m in (start, first)]
    lowered = (parts[0] - parts[1]).clamp_min(0.0)
    expected = lowered / ((first.z - start.z).square() + 0.1)
    torch.testing.assert_close(first.prior.precision.diagonal, expected, rtol=0.02, atol=1e-3)  # of steps of at most 0.01
    second = method.learn(NETWORK, rows.pick(torch.arange(3, 6)), first, generator)
    held = 2 * strength * first.prior.precision.diagonal
    mean = (held * first.z + pull(rows, [3, 4, 5])) / (1 + held + information([3, 4, 5]))
    torch.testing.assert_close(second.z, mean, rtol=0, atol=1e-4)


def test_controls() -> None:
    rows = orthogonal()
    everything = list(range(6))
    mean = pull(rows, everything) / (1 + information(everything))
    refitted = in_turn(Refit(), rows, [0, 1, 2], [3, 4, 5])[-1]
    torch.testing.assert_close(refitted.z, mean, rtol=0, atol=1e-10)
    shrunk = in_turn(Refit(shrink=0.5, noise=0.1), rows, [0, 1, 2], [3, 4, 5])[-1]
    torch.testing.assert_close(shrunk.z, mean, rtol=0, atol=1e-10)  # the loss has one minimum, wherever one starts
    only_new = pull(rows, [3, 4, 5]) / (1 + information([3, 4, 5]))
    naive = in_turn(FineTune(), rows, [0, 1, 2], [3, 4, 5])[-1]
    torch.testing.assert_close(naive.z, only_new, rtol=0, atol=1e-10)
    with pytest.raises(InvalidOptionError, match="carries no posterior"):
        FineTune().tempered(naive, 0.5)


def test_options() -> None:
    for cls, wrong in (
        (EWC, {"strength": -1.0}),
        (EWC, {"fisher": "mean"}),
        (EWC, {"decay": 1.5}),
        (SynapticIntelligence, {"xi": 0.0}),
        (Refit, {"shrink": 2.0}),
    ):
        with pytest.raises(InvalidOptionError):
            cls(**wrong)
