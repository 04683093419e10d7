"""Functional regularization: Bayes' rule where kept rows say all, gradients against autograd, memorable rows by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from seqbdl.errors import InvalidOptionError
from seqbdl.inference import fromp
from seqbdl.inference.adam import AdamSettings
from seqbdl.inference.coresets import choose_rows, k_centre, most_uncertain
from seqbdl.inference.fromp import FROMP, PastTask
from seqbdl.inference.laplace import Rows
from seqbdl.inference.tasks import TaskMemory
from seqbdl.likelihoods import get_likelihood
from seqbdl.networks import ModuleNetwork
from seqbdl.posteriors.gaussian_weights import GaussianWeights
from seqbdl.posteriors.operators import Diagonal

NOISE = 0.4


def test_kept_rows_that_say_all() -> None:
    """Every row sees one weight and all weights are seen: the process on kept rows IS the posterior on weights (whose first prior
    is counted again, as the penalty on ``|z|^2`` stays beside it)."""
    network = ModuleNetwork(nn.Linear(3, 1, bias=False), 3)
    X = 0.5 + 0.5 * torch.eye(3, dtype=torch.float64).repeat(2, 1)
    Y = torch.randn(6, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rows = Rows(get_likelihood("gaussian"), X, Y, torch.full_like(Y, NOISE))
    method = FROMP(AdamSettings(3000, 0.02, None), coreset=3, coreset_kind="k-centre", jitter=1e-12)
    generator = torch.Generator().manual_seed(0)
    first = method.learn(network, rows.pick(torch.arange(3)), method.begin(network, generator, X), generator)
    share = 1 / (3 * NOISE)  # of a row, on its weight
    precision = torch.full((3,), 1 + share, dtype=torch.float64)
    mean = Y[:3, 0] / (3**0.5 * NOISE) / precision
    torch.testing.assert_close(first.z, mean, rtol=0, atol=1e-10)
    torch.testing.assert_close(first.prior.precision.diagonal, precision)
    second = method.learn(network, rows.pick(torch.arange(3, 6)), first, generator)
    held = precision + 1
    expected = (precision * mean + Y[3:, 0] / (3**0.5 * NOISE)) / (held + share)
    torch.testing.assert_close(second.z, expected, rtol=0, atol=1e-4)  # Adam's


@pytest.mark.parametrize("entries", [1, 2**24])
def test_the_gradient_is_that_of_the_quadratic_in_probabilities(entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fromp, "_ENTRIES", entries)  # one row at a time, or all
    network = ModuleNetwork(nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3)), 2, 3)
    generator = torch.Generator().manual_seed(0)
    then, now = torch.randn(2, network.num_params, generator=generator, dtype=torch.float64)
    X = torch.rand(5, 2, generator=generator, dtype=torch.float64)
    rows = Rows(get_likelihood("categorical"), X, torch.tensor([[0.0], [1], [2], [0], [1]]).double(), torch.ones(5, 3).double())
    precision = 1 + torch.rand(network.num_params, generator=generator, dtype=torch.float64)
    memory = TaskMemory(then, None, GaussianWeights(then, Diagonal(precision)))
    past = PastTask.at(network, memory, rows, 1e-6)

    def probs(z: torch.Tensor) -> torch.Tensor:
        return network.forward(z.unsqueeze(0), X)[0].softmax(-1)

    J = torch.autograd.functional.jacobian(probs, then)  # n x l x P
    K = torch.einsum("nkp,p,mkp->knm", J, 1 / precision, J)
    K = K + 1e-6 * K.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None] * torch.eye(5)
    leaf = now.clone().requires_grad_()
    moved = (probs(leaf) - probs(then).detach()).T.unsqueeze(-1)
    half = 0.5 * (moved * torch.linalg.solve(K, moved)).sum()
    expected = torch.autograd.grad(half, leaf)[0]
    torch.testing.assert_close(past.gradient(network, now.unsqueeze(0))[0], expected, rtol=1e-6, atol=1e-8)


def test_which_rows_are_kept() -> None:
    X = torch.tensor([[0.0], [0.1], [1.0], [0.5], [0.9]], dtype=torch.float64)
    assert k_centre(X, 3).tolist() == [0, 2, 3]
    network = ModuleNetwork(nn.Linear(1, 2), 1, 2)
    z = torch.tensor([3.0, -3.0, 0.0, 0.0], dtype=torch.float64)  # sure at the ends, unsure at 1/2
    labels = torch.tensor([[1.0], [1], [0], [0], [0]], dtype=torch.float64)
    rows = Rows(get_likelihood("categorical"), X, labels, torch.ones(5, 2, dtype=torch.float64))
    assert most_uncertain(network, z, rows, 4).tolist() == [3, 1, 4, 0]  # by turns, of both classes
    generator = torch.Generator().manual_seed(0)
    assert len(set(choose_rows("random", 9, network, z, rows, generator).tolist())) == 5


def test_options() -> None:
    for wrong in ({"strength": 0.0}, {"jitter": 0.0}, {"coreset": -1}):
        with pytest.raises(InvalidOptionError):
            FROMP(**wrong)
