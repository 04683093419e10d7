"""Variational continual learning on linear networks, where every step has a closed form; coresets that are counted once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from seqbdl.errors import InvalidOptionError, UnknownNameError
from seqbdl.inference.adam import AdamSettings
from seqbdl.inference.laplace import Rows
from seqbdl.inference.vcl import VCL, fortified_kl
from seqbdl.likelihoods import get_likelihood
from seqbdl.posteriors.mean_field import MeanField

DESCENT = AdamSettings(steps=1200, learning_rate=0.1, batch_size=None)


def step(p, rows: Tensor, mean: Tensor, precision: Tensor, beta: float = 1.0, strength: float = 1.0):  # type: ignore[no-untyped-def]
    """The optimum of ``E_q[log p] - b KL_c``: ``1/v = 1/v_0 + g / b``, and the mean that ``b (1 + c (1/v_0 - 1))`` holds."""
    J, noise = p.J[rows], p.variance[rows, 0]
    G, held = J.T @ (J / noise[:, None]), beta * torch.diag(1 + strength * (precision - 1))
    return torch.linalg.solve(held + G, held @ mean + J.T @ (p.Y[rows, 0] / noise)), precision + G.diagonal() / beta


@pytest.mark.parametrize("settings", [{}, {"start": "random"}, {"beta": 0.4, "strength": 6.0}])
def test_the_recursion_of_mean_fields(linear, settings: dict[str, object]) -> None:  # type: ignore[no-untyped-def]
    p = linear.problem(n=12)
    method, generator = VCL(DESCENT, num_samples=8, **settings), torch.Generator().manual_seed(0)
    data = Rows(get_likelihood("gaussian"), p.X, p.Y, p.variance)
    memory = method.begin(p.network, generator, p.X)
    for rows in (torch.arange(6), torch.arange(6, 12)):
        mean, precision = step(p, rows, memory.prior.mean, memory.prior.precision.diagonal, method.beta, method.strength)
        memory = method.learn(p.network, data.pick(rows), memory, generator)
        sd = precision.rsqrt()
        assert float(((memory.z - mean) / sd).abs().max()) < 0.02  # gradients of means are exact: draws come in pairs
        torch.testing.assert_close(memory.spread.diagonal.rsqrt(), sd, rtol=0.05, atol=0)
    assert torch.equal(memory.prior.mean, memory.z)


def test_what_answers_has_learned_the_coreset_and_what_is_carried_has_not(linear) -> None:  # type: ignore[no-untyped-def]
    p = linear.problem(n=12)
    method = VCL(DESCENT, num_samples=8, coreset=4, coreset_kind="k-centre", coreset_steps=1200)
    generator = torch.Generator().manual_seed(0)
    data = Rows(get_likelihood("gaussian"), p.X, p.Y, p.variance)
    memory = method.learn(p.network, data, method.begin(p.network, generator, p.X), generator)
    kept = torch.tensor([int((x == p.X).all(-1).nonzero()) for x in memory.held[0].X])
    assert kept.tolist()[0] == 0
    rest = torch.tensor([i for i in range(12) if i not in kept])
    mean, precision = step(p, rest, torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64))
    assert float(((memory.prior.mean - mean) * precision.sqrt()).abs().max()) < 0.02
    torch.testing.assert_close(memory.prior.precision.diagonal, precision, rtol=0.1, atol=0)
    mean, precision = step(p, kept, memory.prior.mean, memory.prior.precision.diagonal)
    assert float(((memory.z - mean) * precision.sqrt()).abs().max()) < 0.02
    torch.testing.assert_close(memory.spread.diagonal, precision, rtol=0.1, atol=0)


def test_the_divergence() -> None:
    generator = torch.Generator().manual_seed(0)
    m, s, m0, s0 = torch.rand(4, 2, 5, generator=generator, dtype=torch.float64)
    q, prior = MeanField(m, s + 0.1), MeanField(m0, 0.9 * s0 + 0.05)
    torch.testing.assert_close(fortified_kl(q, prior, 1.0), q.kl(prior))
    held = 1 + 3 * (prior.sd.pow(-2) - 1)
    expected = q.kl(prior) + 0.5 * ((held - prior.sd.pow(-2)) * (q.mean - prior.mean).square()).sum(-1)
    torch.testing.assert_close(fortified_kl(q, prior, 3.0), expected)


def test_options() -> None:
    for wrong in ({"start": "zero"}, {"beta": 0.0}, {"coreset": -1}, {"coreset_steps": 0}):
        with pytest.raises(InvalidOptionError):
            VCL(**wrong)
    with pytest.raises(UnknownNameError):
        VCL(coreset_kind="first")
