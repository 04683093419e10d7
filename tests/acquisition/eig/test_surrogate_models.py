"""Surrogates as models of experiments: BALD, goals, emulators and discrepancies against what they must equal."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import seqbdl
from seqbdl.acquisition import gaussian_scores, pool_scores
from seqbdl.acquisition.eig import (
    DiscrepancyModel,
    EmulatorModel,
    FunctionModel,
    exact_information,
    expected_information_gain,
)
from seqbdl.envs.design_models import LinearGaussian
from seqbdl.errors import InvalidOptionError, ShapeError

DESIGNS = torch.tensor([[0.1], [0.5], [0.9]], dtype=torch.float64)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def regression() -> Any:
    X = torch.tensor([[0.3], [0.4], [0.5], [0.6], [0.7]], dtype=torch.float64)
    return seqbdl.make_surrogate("gp", input_dim=1, noise=0.01).fit(X, torch.sin(6 * X))


@pytest.fixture(scope="module")
def classifier() -> Any:
    X = torch.rand(12, 2, generator=rng(), dtype=torch.float64)
    Y = (3 * X[:, :1]).floor()
    options: dict[str, Any] = {"network": (8,), "num_members": 4}
    return seqbdl.make_surrogate("ensemble", input_dim=2, output_dim=3, likelihood="categorical", **options).fit(X, Y)


def test_information_about_a_classifier_is_bald(classifier: Any) -> None:
    """To 1e-8 and better: both enumerate the outcomes under the same draws."""
    pool = torch.rand(30, 2, generator=rng(1), dtype=torch.float64)
    model = FunctionModel(classifier, 40, num_classes=3, generator=rng(2))
    bounds = expected_information_gain(model, pool)
    scores = pool_scores.bald(classifier.log_probs(pool, 40, rng(2)))
    assert bounds.lower is not None
    torch.testing.assert_close(bounds.lower, scores, rtol=0, atol=1e-10)
    assert float(bounds.standard_error.max()) == 0.0
    assert float(scores.max()) > 0.01  # members of an ensemble repeat, but they differ


def test_information_about_a_function_is_bald(regression: Any) -> None:
    """Which of the drawn functions: the mixture's BALD; of more and more of them: half a log ratio of variances."""
    model = FunctionModel(regression, 512, generator=rng(2))
    bounds = expected_information_gain(model, DESIGNS, num_outer=4096, num_inner=1024, num_batches=16, generator=rng())
    draws = regression.sample_functions(512, rng(2))(DESIGNS).squeeze(-1)
    mixture = gaussian_scores.mixture_bald(draws, torch.full_like(draws, model.noise**2))
    assert bounds.lower is not None
    assert bounds.upper is not None
    assert bool((bounds.lower <= mixture + 4 * bounds.standard_error).all())
    assert bool((bounds.upper >= mixture - 4 * bounds.standard_error).all())
    assert bool((bounds.upper - bounds.lower < 0.05).all())
    posterior = regression.posterior(DESIGNS.unsqueeze(-2))
    limit = gaussian_scores.gaussian_bald(posterior.variance.reshape(-1), model.noise**2)
    # The variance of 512 draws errs by sqrt(2/511), half of that in the logarithm, and the mixture lies below the normal.
    assert bool(((mixture - limit).abs() < 4 * 0.5 * math.sqrt(2 / 511) + 0.02).all())


def test_information_about_the_best_place(regression: Any) -> None:
    """At which end is the function larger? By the nuisance bracket, against integration over outcomes for the same draws."""
    ends = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    model: Any = FunctionModel(regression, 64, generator=rng(3), goal=lambda f: f.argmax(-1, keepdim=True), points=ends)
    goal = model.goal(model.weighted()[0]).reshape(-1)
    assert 0 < float(goal.mean()) < 1
    bounds = expected_information_gain(model, DESIGNS, num_outer=4096, num_inner=512, num_batches=16, generator=rng())
    # p(y) and p(y|goal) on a grid: information is H[goal] - E H[goal|y].
    y = torch.linspace(-12, 12, 4001, dtype=torch.float64).reshape(-1, 1, 1)
    index = model.weighted()[0]
    truth = []
    for design in DESIGNS:
        density = model.log_prob(y, index, design).exp()  # 4001 x 64
        parts = torch.stack([density[:, goal == g].mean(-1) for g in (0.0, 1.0)])
        weights = torch.tensor([float((goal == g).double().mean()) for g in (0.0, 1.0)], dtype=torch.float64)
        mixed = weights @ parts
        terms = torch.where(parts > 0, parts * (parts.clamp_min(1e-300) / mixed.clamp_min(1e-300)).log(), 0.0)
        truth.append(weights @ torch.trapezoid(terms, y.flatten(), dim=-1))
    exact = torch.stack(truth)
    assert bounds.lower is not None
    assert bounds.upper is not None
    assert bool((bounds.lower <= exact + 4 * bounds.standard_error).all())
    assert bool((bounds.upper >= exact - 4 * bounds.standard_error).all())
    assert float(exact.max()) <= math.log(2)
    same = model.nuisances(index, 5, rng())
    assert same.shape == (5, 64, 1)
    assert bool((model.goal(same).squeeze(-1) == goal).all())


def test_a_goal_of_a_classifier(classifier: Any) -> None:
    pool = torch.rand(6, 2, generator=rng(1), dtype=torch.float64)
    model = FunctionModel(
        classifier, 40, num_classes=3, generator=rng(2), goal=lambda logp: logp[:, :1].argmax(-1), points=pool[:1]
    )
    bounds = expected_information_gain(model, pool, num_outer=1024, num_inner=128, generator=rng())
    whole = expected_information_gain(FunctionModel(classifier, 40, num_classes=3, generator=rng(2)), pool)
    assert bounds.lower is not None
    assert whole.upper is not None
    assert bool((bounds.lower <= whole.upper + 4 * bounds.standard_error).all())  # a part tells no more than all


class Prior:
    """``theta ~ N(0, 1)``."""

    parameter_names = ("slope",)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return torch.randn(n, 1, generator=generator, dtype=torch.float64)

    def log_prior(self, theta: Tensor) -> Tensor:
        return -0.5 * (theta.square() + math.log(2 * math.pi)).sum(-1)


class Linear:
    """An emulator with a known mean ``theta x`` and a known variance ``(x / 2)^2``."""

    def posterior(self, X: Tensor) -> Any:
        theta, x = X[..., :1], X[..., 1:]

        class Moments:
            mean = theta * x
            variance = (0.5 * x).square()

        return Moments


def test_an_emulator_s_uncertainty_is_noise() -> None:
    """``y ~ N(theta x, x^2/4 + noise^2)``: information ``log(1 + x^2 / (x^2/4 + noise^2)) / 2``, less than without it."""
    model = EmulatorModel(Linear(), Prior(), noise=0.1)
    x = DESIGNS.flatten()
    truth = 0.5 * (1 + x.square() / (0.25 * x.square() + 0.01)).log()
    for method in ("contrastive", "posterior"):
        bounds = expected_information_gain(model, DESIGNS, method, num_outer=2048, num_inner=512, generator=rng())
        assert bounds.lower is not None
        assert bool((bounds.lower <= truth + 4 * bounds.standard_error).all())
        assert bool((bounds.lower >= truth - 4 * bounds.standard_error - 0.02).all())
    assert model.parameter_names == ("slope",)
    assert bool((truth < LinearGaussian(dim=1, noise=0.1).information(DESIGNS.unsqueeze(1))).all())


def test_a_surrogate_emulates_a_simulator() -> None:
    """A process that saw a product at scattered points: contrastive bounds near the closed form of the true simulator."""
    rows = torch.rand(60, 2, generator=rng(4), dtype=torch.float64) * torch.tensor([6.0, 1.0]) - torch.tensor([3.0, 0.0])
    surrogate = seqbdl.make_surrogate("gp", input_dim=2, noise=1e-4).fit(rows, rows[:, :1] * rows[:, 1:])
    model = EmulatorModel(surrogate, Prior(), noise=0.3)
    bounds = expected_information_gain(model, DESIGNS, num_outer=256, num_inner=256, generator=rng())
    truth = LinearGaussian(dim=1, noise=0.3).information(DESIGNS.unsqueeze(1))
    assert bounds.lower is not None
    assert bool(((bounds.lower - truth).abs() < 4 * bounds.standard_error + 0.05).all())


def test_a_discrepancy_is_averaged_out() -> None:
    """``y = theta x + delta(x) + e`` with a process ``delta``: its variance acts as noise on one outcome."""
    discrepancy = seqbdl.make_surrogate("gp", input_dim=1)
    model = DiscrepancyModel(lambda theta, x: (theta * x).sum(-1), Prior(), discrepancy, 0.2, 512, rng(5))
    assert model.sample(7, rng()).shape == (7, 2)
    assert model.parameter_names == ("slope", "discrepancy")
    bounds = expected_information_gain(model, DESIGNS, num_outer=4096, num_inner=512, num_batches=16, generator=rng())
    draws = discrepancy.sample_functions(512, rng(5))(DESIGNS).squeeze(-1)
    variance = draws.var(0, correction=0)
    truth = 0.5 * (1 + DESIGNS.flatten().square() / (variance + 0.04)).log()
    assert bounds.lower is not None
    assert bounds.upper is not None
    slack = 4 * bounds.standard_error + 0.02  # five hundred draws are not quite normal
    assert bool((bounds.lower <= truth + slack).all())
    assert bool((bounds.upper >= truth - slack).all())


def test_neighbouring_outcomes_share_the_discrepancy() -> None:
    """The likelihood of two outcomes, averaged over the draws of delta, is not the product of its averages."""
    discrepancy = seqbdl.make_surrogate("gp", input_dim=1)
    model = DiscrepancyModel(lambda theta, x: (theta * x).sum(-1), Prior(), discrepancy, 0.05, 256, rng(5))
    theta = torch.cat([torch.zeros(256, 1), torch.arange(256).unsqueeze(-1)], dim=-1).double()
    y = torch.tensor([0.7], dtype=torch.float64)
    one, two = (model.log_prob(y, theta, torch.tensor([x], dtype=torch.float64)) for x in (0.5, 0.52))
    together = (one + two).logsumexp(0) - math.log(256)
    apart = one.logsumexp(0) + two.logsumexp(0) - 2 * math.log(256)
    assert float(together) > float(apart) + 0.5


def test_what_cannot_be_is_refused(regression: Any, classifier: Any) -> None:
    with pytest.raises(InvalidOptionError, match="at least 2"):
        FunctionModel(regression, 1)
    with pytest.raises(InvalidOptionError, match="go together"):
        FunctionModel(regression, 8, goal=lambda f: f)
    with pytest.raises(InvalidOptionError, match="classes have none"):
        FunctionModel(classifier, 8, num_classes=3, noise=0.1)
    with pytest.raises(InvalidOptionError, match="positive"):
        FunctionModel(regression, 8, noise=0.0)
    with pytest.raises(ShapeError, match="a row for each function"):
        FunctionModel(regression, 8, goal=lambda f: f.mean(), points=DESIGNS)
    with pytest.raises(InvalidOptionError, match="positive"):
        EmulatorModel(regression, Prior(), noise=-1.0)
    with pytest.raises(InvalidOptionError, match="two functions"):
        DiscrepancyModel(lambda theta, x: x[..., 0], Prior(), regression, 0.1, num_functions=1)
    two = EmulatorModel(seqbdl.make_surrogate("gp", input_dim=2, output_dim=2), Prior(), noise=0.1)
    with pytest.raises(ShapeError, match="outputs"):
        two.moments(torch.zeros(1, 1), torch.zeros(1, 1))


def test_bald_and_exact_information_are_one_number() -> None:
    log_probs = torch.randn(20, 9, 4, generator=rng(), dtype=torch.float64).log_softmax(-1)  # draws x points x classes
    value = exact_information(log_probs.transpose(0, 1), torch.full((20,), 0.05, dtype=torch.float64)).lower
    assert value is not None
    torch.testing.assert_close(value, pool_scores.bald(log_probs), rtol=0, atol=1e-12)
