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
from seqbdl.envs.design_epidemic import Epidemic, TwoLookDeathProcess, epidemic_paths
from seqbdl.envs.design_models import DeathProcess, HyperbolicDiscounting, LinearGaussian, LocationFinding
from seqbdl.envs.design_science import Pharmacokinetic, Preference, PreyPopulation

DESIGNS: dict[str, list[float]] = {
    "LinearGaussian": [0.3, -0.8],
    "LocationFinding": [0.5, -1.0],
    "HyperbolicDiscounting": [40.0, 60.0],
    "DeathProcess": [0.8],
    "TwoLookDeathProcess": [0.5, 1.0],
    "Preference": [3.0, 50.0, 2.0, 20.0, 21.0, 22.0],
    "Pharmacokinetic": [5.0],
    "PreyPopulation": [40.0],
}


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _name(model: Any) -> str:
    return type(model).__name__


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
    assert y.shape == (5, gymnasium.make(f"seqbdl/{_name(model)}-v0").unwrapped.num_outcomes)
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
        draws = model.simulate(one.expand(n, -1), design, rng(3))
        support = getattr(model, "support", None)
        if draws.shape[-1] > 1:  # of several numbers their sum
            probs = model.log_prob(support, one, design).exp()
            assert float(probs.sum()) == pytest.approx(1.0, abs=1e-9)
            draws, sums = draws.sum(-1), support.sum(-1)
            edge = draws.median()
            expected = float(probs[sums <= edge].sum())
            counted = float((draws <= edge).double().mean())
            assert counted == pytest.approx(expected, abs=4 * math.sqrt(0.25 / n))
            continue
        draws = draws.squeeze(-1)
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


def test_two_looks_are_two_binomials() -> None:
    model = TwoLookDeathProcess()
    assert model.support.shape == (66, 2)
    y, theta, waits = torch.tensor([3.0, 2.0]).double(), torch.tensor([0.7]).double(), torch.tensor([0.5, 1.5]).double()
    expected = stats.binom.logpmf(3, 10, 1 - math.exp(-0.35)) + stats.binom.logpmf(2, 7, 1 - math.exp(-1.05))
    assert float(model.log_prob(y, theta, waits)) == pytest.approx(expected)
    assert float(model.log_prob(torch.tensor([6.0, 5.0]).double(), theta, waits)) == -math.inf
    assert float(model.log_prior(theta)) == pytest.approx(stats.lognorm.logpdf(0.7, 1.0))
    assert float(model.log_prior(-theta)) == -math.inf


def test_an_epidemic_without_noise_follows_its_differential_equation() -> None:
    rates = torch.tensor([[0.5, 0.1], [0.2, 0.3]], dtype=torch.float64)
    paths = epidemic_paths(rates, 500.0, 2.0, None)
    assert paths.shape == (2, 1001)
    for (b, g), path in zip(rates.tolist(), paths, strict=True):

        def slope(_: float, state: Any, b: float = b, g: float = g) -> Any:
            flow = b * state[0] * state[1] / 500
            return -flow, flow - g * state[1]

        days = np.linspace(0, 100, 1001)
        solved = integrate.solve_ivp(slope, (0, 100), [498.0, 2.0], t_eval=days, rtol=1e-9, atol=1e-9).y[1]
        np.testing.assert_allclose(path.numpy(), solved, rtol=0.02, atol=0.02)  # Euler's error at a hundredth of a day


def test_noise_of_an_epidemic_has_its_variance() -> None:
    """After the first stored step, a tenth of a day: the variance of I is (b S/N + g) I t to first order."""
    n = 1000
    rates = torch.tensor([[0.5, 0.1]], dtype=torch.float64).expand(n, 2)
    moved = epidemic_paths(rates, 500.0, 200.0, rng())[:, 1] - 200.0
    variance = (0.5 * 300 / 500 + 0.1) * 200 * 0.1
    assert float(moved.mean()) == pytest.approx((0.5 * 300 / 500 - 0.1) * 200 * 0.1, abs=4 * math.sqrt(variance / n) + 0.1)
    assert float(moved.var()) == pytest.approx(variance, rel=4 * math.sqrt(2 / n) + 0.03)


def test_epidemics_are_looked_up_and_differentiable() -> None:
    model = Epidemic()
    theta = model.sample(4000, rng())
    assert theta.shape == (4000, 3)
    assert model.goal(theta).shape == (4000, 2)
    centre = torch.tensor([0.5, 0.1], dtype=torch.float64).log()
    assert bool(((theta[:, :2].mean(0) - centre).abs() < 0.1).all())  # those that die out at once are missing
    start = model.simulate(theta[:5], torch.full((1,), 0.01, dtype=torch.float64))
    assert bool(((start - 2.0).abs() < 1.0).all())
    again = model.simulate(theta[:5], torch.full((1,), 30.0, dtype=torch.float64))
    assert torch.equal(again, model.simulate(theta[:5], torch.full((1,), 30.0, dtype=torch.float64), rng(9)))
    day = torch.tensor([30.02], dtype=torch.float64, requires_grad=True)
    model.simulate(theta[:1], day).sum().backward()
    assert day.grad is not None
    near = torch.tensor([[30.01], [30.09]], dtype=torch.float64)
    step = model.simulate(theta[:1], near).diff(dim=0)
    assert float(day.grad) == pytest.approx(float(step) / 0.08)
    with pytest.raises(ValueError, match="two epidemics"):
        Epidemic(1)


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
