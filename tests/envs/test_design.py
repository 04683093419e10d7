"""Experiments to be designed: their likelihoods are distributions of what they simulate, and known values are met."""

from __future__ import annotations

import math
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor

import seqbdl.envs  # noqa: F401 (registers the problems)
from seqbdl.envs.design_models import DeathProcess, HyperbolicDiscounting, LinearGaussian, LocationFinding
from seqbdl.envs.design_science import Pharmacokinetic, Preference, PreyPopulation

DESIGNS: dict[str, list[float]] = {
    "LinearGaussian": [0.3, -0.8],
    "LocationFinding": [0.5, -1.0],
    "HyperbolicDiscounting": [40.0, 60.0],
    "DeathProcess": [0.8],
    "Preference": [3.0, 50.0, 2.0, 20.0, 21.0, 22.0],
    "Pharmacokinetic": [5.0],
    "PreyPopulation": [40.0],
}


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=DESIGNS)
def problem(request: pytest.FixtureRequest) -> tuple[Any, Tensor]:
    env: Any = gymnasium.make(f"seqbdl/{request.param}-v0").unwrapped
    return env.model, torch.tensor(DESIGNS[request.param], dtype=torch.float64)


def test_leading_dimensions_broadcast(problem: tuple[Any, Tensor]) -> None:
    model, design = problem
    theta = model.sample(5, rng())
    assert theta.shape == (5, len(model.parameter_names))
    assert bool(model.log_prior(theta).isfinite().all())
    y = model.simulate(theta, design, rng(1))
    assert y.shape == (5, 1)
    table = model.log_prob(y.unsqueeze(1), theta, design.expand(3, 1, 1, -1))
    assert table.shape == (3, 5, 5)
    assert not bool(table.isnan().any())
    for i in range(5):
        for j in range(5):
            assert float(table[0, i, j]) == pytest.approx(float(model.log_prob(y[i], theta[j], design)), rel=1e-12)


def test_the_likelihood_is_the_distribution_of_simulations(problem: tuple[Any, Tensor]) -> None:
    """The distribution function of simulated outcomes at their median, by the likelihood and by counting."""
    model, design = problem
    n = 20_000
    theta = model.sample(3, rng(2))
    for one in theta:
        draws = model.simulate(one.expand(n, -1), design, rng(3)).squeeze(-1)
        support = getattr(model, "support", None)
        if support is not None:
            probs = model.log_prob(support, one, design).exp()
            assert float(probs.sum()) == pytest.approx(1.0, abs=1e-9)
            edge = draws.median()
            expected = float(probs[support.squeeze(-1) <= edge].sum())
        else:
            edge = draws.median()
            if hasattr(model, "END") and abs(float(edge)) >= model.END:  # an atom: its probability
                expected = float(model.log_prob(edge.reshape(1), one, design).exp())
                counted = float((draws == edge).double().mean())
                assert counted == pytest.approx(expected, abs=4 * math.sqrt(max(expected * (1 - expected), 1e-4) / n))
                continue
            low = -model.END if hasattr(model, "END") else float(draws.min()) - 20 * float(draws.std())
            grid = torch.linspace(low, float(edge), 200_001, dtype=torch.float64)
            density = model.log_prob(grid.unsqueeze(-1), one, design).exp()
            atom = float(density[0]) if hasattr(model, "END") else 0.0
            expected = float(torch.trapezoid(density[1:], grid[1:])) + atom
        counted = float((draws <= edge).double().mean())
        assert counted == pytest.approx(expected, abs=4 * math.sqrt(0.25 / n) + 1e-4)


def test_reparametrized_simulations_have_gradients(problem: tuple[Any, Tensor]) -> None:
    model, design = problem
    if not getattr(model, "reparametrized", False):
        assert hasattr(model, "support")  # gradients come from enumeration
        return
    theta = model.sample(4, rng())
    x = design.clone().requires_grad_()
    y = model.simulate(theta, x, rng(1))
    y.sum().backward()
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())


def test_a_linear_experiment_in_closed_form() -> None:
    model = LinearGaussian(dim=2, scale=2.0, noise=0.5)
    designs = torch.tensor([[1.0, 0.0], [0.0, 0.5]], dtype=torch.float64)
    assert float(model.information(designs)) == pytest.approx(0.5 * math.log(17.0) + 0.5 * math.log(5.0), abs=1e-12)
    mean, covariance = model.posterior(designs, torch.tensor([[1.0], [1.0]], dtype=torch.float64))
    assert mean.tolist() == pytest.approx([16 / 17, 2 * 4 / 5])
    assert covariance.diagonal().tolist() == pytest.approx([4 / 17, 4 / 5])


def test_location_finding_by_hand() -> None:
    model = LocationFinding()
    theta = torch.tensor([1.0, 0.0, 0.0, 2.0], dtype=torch.float64)
    mean = float(model.mean(theta, torch.zeros(2, dtype=torch.float64)))
    assert mean == pytest.approx(math.log(0.1 + 1 / 1.0001 + 1 / 4.0001))


def test_hyperbolic_discounting_by_hand() -> None:
    model = HyperbolicDiscounting()
    theta = torch.tensor([math.log(0.01), 2.0], dtype=torch.float64)
    now = float(model.probability(theta, torch.tensor([51.0, 100.0], dtype=torch.float64)))
    assert now == pytest.approx(0.01 + 0.98 * stats.norm.cdf(math.sqrt(2) * 1.0 / 2.001))
    assert float(model.log_prior(torch.tensor([-4.0, -0.1], dtype=torch.float64))) == -math.inf


def test_the_death_process_is_binomial_with_a_truncated_prior() -> None:
    model = DeathProcess()
    rate, time = 0.7, 1.2
    value = model.log_prob(torch.tensor([17.0]), torch.tensor([rate]), torch.tensor([time]))
    assert float(value) == pytest.approx(stats.binom.logpmf(17, 50, 1 - math.exp(-rate * time)), rel=1e-5)
    rates = model.sample(20_000, rng())
    assert float(rates.min()) > 0
    assert float(rates.mean()) == pytest.approx(stats.truncnorm.mean(-1, math.inf, 1, 1), abs=4 * 0.8 / math.sqrt(20_000))
    assert float(model.log_prob(torch.tensor([0.5]), torch.tensor([rate]), torch.tensor([time]))) == -math.inf


def test_prey_follow_their_differential_equation() -> None:
    model = PreyPopulation()
    for log_attack, log_handling, start in ((-1.4, -1.4, 150.0), (0.5, -3.0, 20.0), (-5.0, 0.5, 300.0)):
        a, h = math.exp(log_attack), math.exp(log_handling)

        def slope(_: float, n: Any, a: float = a, h: float = h) -> Any:
            return -a * n**2 / (1 + a * h * n**2)

        solved = integrate.solve_ivp(slope, (0, 24), [start], method="LSODA", rtol=1e-10, atol=1e-10).y[0, -1]
        theta = torch.tensor([log_attack, log_handling], dtype=torch.float64)
        share = float(model.survivors(theta, torch.tensor([start], dtype=torch.float64)))
        assert share * start == pytest.approx(solved, rel=1e-6)


def test_concentrations_by_hand() -> None:
    mean, sd = Pharmacokinetic().moments(Pharmacokinetic().centre, torch.tensor([5.0], dtype=torch.float64))
    expected = 400 / 20 / 0.9 * (math.exp(-0.5) - math.exp(-5.0))
    assert float(mean) == pytest.approx(expected)
    assert float(sd) == pytest.approx(math.sqrt(0.01 * expected**2 + 0.1))


def test_equal_baskets_are_answered_with_even_odds() -> None:
    theta = torch.tensor([0.9, 0.2, 0.3, math.log(10.0)], dtype=torch.float64)
    mean, sd = Preference().moments(theta, torch.full((6,), 7.0, dtype=torch.float64))
    assert float(mean) == pytest.approx(0.0, abs=1e-9)
    assert float(sd) == pytest.approx(0.05)


def test_the_truth_is_drawn_at_reset_or_given() -> None:
    env: Any = gymnasium.make("seqbdl/DeathProcess-v0").unwrapped
    with pytest.raises(ValueError, match="call reset"):
        env.step(np.array([1.0]))
    env.reset(seed=1)
    first = env.truth
    env.reset(seed=1)
    assert torch.equal(env.truth, first)
    env.reset()
    assert not torch.equal(env.truth, first)
    env.reset(seed=0, options={"truth": [2.0]})
    assert env.truth.tolist() == [2.0]
    with pytest.raises(ValueError, match="rate"):
        env.reset(options={"truth": [1.0, 2.0]})
