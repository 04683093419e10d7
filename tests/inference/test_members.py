"""Members that learn new rows and keep what they knew: the ways to the minimum agree, and rows of equal inputs are one."""

from __future__ import annotations

import pytest
import torch

from seqbdl.inference.adam import AdamSettings
from seqbdl.inference.gauss_newton import GaussNewtonSettings, minimize
from seqbdl.inference.members import FitSettings, Held, chosen_method, fit_members
from seqbdl.inference.observations import Joined, Labels, Randomized, Remembered
from seqbdl.likelihoods import get_likelihood
from seqbdl.networks import MLP

DOUBLE = torch.float64
PRECISE = GaussNewtonSettings(max_iterations=100, tolerance=1e-12)


def network(outputs: int = 1) -> MLP:
    ones = torch.ones(2, dtype=DOUBLE)
    return MLP((12,), torch.full((2,), 1.5, dtype=DOUBLE), ones[:1], ones, num_outputs=outputs)


def replicates(generator: torch.Generator, outputs: int = 1, distinct: int = 7, rows: int = 40) -> torch.Tensor:
    """Rows at a few inputs, each several times, in any order."""
    places = torch.rand(distinct, 2, generator=generator, dtype=DOUBLE)
    return places[torch.randint(distinct, (rows,), generator=generator)]


@pytest.mark.parametrize("name", ["gaussian", "bernoulli", "categorical", "heteroscedastic"])
def test_rows_of_equal_inputs_are_one_row(name: str) -> None:
    generator, likelihood = torch.Generator().manual_seed(0), get_likelihood(name)
    outputs = {"categorical": 3, "heteroscedastic": 2}.get(name, 1)
    net, X = network(outputs), replicates(generator)
    z = torch.randn(4, net.num_params, generator=generator, dtype=DOUBLE)
    values = net.forward(z, X)
    variance = 0.1 + torch.rand(X.shape[0], 1, generator=generator, dtype=DOUBLE)
    held = Remembered(values, likelihood.root(values, variance))
    inputs, merged = held.distinct(X)
    assert inputs.shape[0] == X.unique(dim=0).shape[0] < X.shape[0]
    other = torch.randn(4, net.num_params, generator=generator, dtype=DOUBLE)
    torch.testing.assert_close(merged.misfit(net.forward(other, inputs)), held.misfit(net.forward(other, X)))
    new = torch.rand(3, 2, generator=generator, dtype=DOUBLE)
    Y = (torch.rand(3, 1, generator=generator) < 0.5).to(DOUBLE)
    news = Labels(likelihood, Y, variance[:3])
    solutions = []
    for rows, knowledge in ((X, held), (inputs, merged)):
        joined = Joined(knowledge, news, rows.shape[0])
        solutions.append(minimize(net, torch.cat([rows, new]), joined, z, z, PRECISE).z)
    torch.testing.assert_close(net.forward(solutions[0], X), net.forward(solutions[1], X), rtol=1e-5, atol=1e-6)


def test_rows_of_different_inputs_stay_as_they_are() -> None:
    X = torch.rand(5, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    held = Remembered(torch.zeros(2, 5, 1, dtype=DOUBLE), torch.ones(2, 5, 1, dtype=DOUBLE))
    inputs, same = held.distinct(X)
    assert inputs is X
    assert same is held


def test_a_sample_speaks_for_all() -> None:
    generator = torch.Generator().manual_seed(0)
    X = torch.rand(4000, 2, dtype=DOUBLE, generator=generator)
    held = Remembered(torch.randn(1, 4000, 1, generator=generator, dtype=DOUBLE), torch.ones(1, 4000, 1, dtype=DOUBLE))
    few, sample = held.sample(X, 1000, generator)
    assert few.shape == (1000, 2)
    zero = torch.zeros(1, 1, 1, dtype=DOUBLE)
    misfits = held.misfit(zero.expand(1, 4000, 1)), sample.misfit(zero.expand(1, 1000, 1))
    # 2 chi-squares of 4000 and of 1000: the sample's relative error is sqrt(2 / 1000) = 0.045
    assert abs(float(misfits[1] / misfits[0]) - 1) < 4 * 0.045
    assert held.sample(X, 4000, generator)[1] is held


def test_adam_by_parts_of_what_is_held_ends_where_gauss_newton_ends() -> None:
    generator = torch.Generator().manual_seed(0)
    net, likelihood = network(), get_likelihood("gaussian")
    X = torch.rand(200, 2, generator=generator, dtype=DOUBLE)
    z = torch.randn(3, net.num_params, generator=generator, dtype=DOUBLE)
    variance = torch.full((200, 1), 0.05, dtype=DOUBLE)
    values = net.forward(z, X)
    held = Held(X, Remembered(values, likelihood.root(values, variance)))
    new = torch.rand(20, 2, generator=generator, dtype=DOUBLE)
    news = Randomized(likelihood, net.forward(z, new) + 0.5, variance[:20])

    def loss(weights: torch.Tensor) -> torch.Tensor:
        terms = held.values.misfit(net.forward(weights, X)) + news.misfit(net.forward(weights, new))
        return terms + 0.5 * (weights - z).square().sum(-1)

    losses = {}
    for method in ("gauss-newton", "adam"):
        settings = FitSettings(method, PRECISE, AdamSettings(steps=3000, learning_rate=0.02, batch_size=50))
        losses[method] = loss(fit_members(net, new, news, z, z, generator, settings, held=held))
    gains = (loss(z) - losses["adam"]) / (loss(z) - losses["gauss-newton"])
    assert bool((gains > 0.98).all()), gains


@pytest.mark.parametrize("method", ["gauss-newton", "adam"])
def test_nothing_held_is_a_fit(method: str) -> None:
    generator, likelihood = torch.Generator().manual_seed(0), get_likelihood("gaussian")
    net, X = network(), torch.rand(6, 2, generator=generator, dtype=DOUBLE)
    z = torch.randn(2, net.num_params, generator=generator, dtype=DOUBLE)
    news = Randomized(likelihood, torch.ones(6, 1, dtype=DOUBLE), torch.full((6, 1), 0.1, dtype=DOUBLE))
    nothing = Remembered(torch.zeros(2, 0, 1, dtype=DOUBLE), torch.zeros(2, 0, 1, dtype=DOUBLE))
    assert nothing.distinct(X[:0])[1] is nothing
    settings = FitSettings(method, PRECISE, AdamSettings(steps=20))
    without, empty = (
        fit_members(net, X, news, z, z, torch.Generator().manual_seed(1), settings, held=held)
        for held in (None, Held(X[:0], nothing))
    )
    torch.testing.assert_close(without, empty)


def test_an_update_is_by_gauss_newton_for_more_rows_than_a_fit() -> None:
    net, settings = network(), FitSettings(max_rows=400)
    assert [chosen_method(net, 4, n, settings) for n in (400, 401)] == ["gauss-newton", "adam"]
    assert [chosen_method(net, 4, n, settings, warm=True) for n in (600, 601)] == ["gauss-newton", "adam"]
