"""The estimators that train something, linearize, or average nuisances out: against closed forms."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from seqbdl.acquisition.eig import (
    TrainingSettings,
    expected_information_gain,
    goal_of,
    infonce_bound,
    laplace_information,
    nuisance_bounds,
    nwj_bound,
    posterior_bound,
)
from seqbdl.envs.design_models import HyperbolicDiscounting, LinearGaussian
from seqbdl.envs.design_science import Pharmacokinetic
from seqbdl.errors import DivergedError, InvalidDataError, InvalidOptionError, ShapeError

DESIGNS = torch.tensor([[0.0, 0.0], [0.5, 0.0], [1.0, -1.0]], dtype=torch.float64)
LINE = LinearGaussian()
TRUTH = torch.stack([LINE.information(design.unsqueeze(0)) for design in DESIGNS])  # 0, 0.35, 1.10 nats


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class FirstOnly(LinearGaussian):
    """About the first coefficient; the second is a nuisance."""

    def goal(self, theta: Tensor) -> Tensor:
        return theta[..., :1]

    def nuisances(self, theta: Tensor, n: int, generator: torch.Generator | None = None) -> Tensor:
        other = self.sample(n * theta[..., 0].numel(), generator)[:, 1].reshape(n, *theta.shape[:-1])
        return torch.stack([theta[..., 0].expand_as(other), other], dim=-1)

    def information_about_first(self, designs: Tensor) -> Tensor:
        """``log(1 + s^2 x_1^2 / (s^2 x_2^2 + noise^2)) / 2``: the second coefficient acts as noise."""
        a, b = designs.square().unbind(-1)
        return 0.5 * (1 + self.scale**2 * a / (self.scale**2 * b + self.noise**2)).log()


class Blind:
    """A simulator: no likelihood, no prior density."""

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return LINE.sample(n, generator)

    def simulate(self, theta: Tensor, design: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return LINE.simulate(theta, design, generator)


@pytest.mark.parametrize("method", ["posterior", "adaptive", "infonce", "nwj"])
def test_trained_bounds_enclose_a_linear_experiment(method: str) -> None:
    model: Any = Blind() if method in ("infonce", "nwj") else LINE
    training = TrainingSettings(num_train=2048, updates=200, hidden=32)
    bounds = expected_information_gain(
        model, DESIGNS, method, num_outer=2000, num_inner=127, num_batches=16, training=training, generator=rng()
    )
    assert bounds.lower is not None
    error = bounds.standard_error
    assert bool((bounds.lower <= TRUTH + 4 * error + 1e-9).all())
    # A trained critic or posterior that fits comes within a tenth of a nat here; the bound of NWJ is looser.
    assert bool((bounds.lower >= TRUTH - (0.3 if method == "nwj" else 0.1) - 4 * error).all())
    if method == "adaptive":
        assert bounds.upper is not None
        assert bool((bounds.upper >= TRUTH - 4 * error - 1e-9).all())
        assert bool((bounds.upper - bounds.lower < 0.02).all())  # a proposal near the posterior closes the gap
    else:
        assert bounds.upper is None


def test_the_linear_fit_is_the_posterior_of_a_linear_experiment() -> None:
    """Without any training the bound of Barber and Agakov is exact there, up to Monte Carlo error."""
    training = TrainingSettings(num_train=20_000, updates=0)
    bounds = expected_information_gain(LINE, DESIGNS, "posterior", num_outer=8000, training=training, generator=rng())
    assert bounds.lower is not None
    assert bool(((bounds.lower - TRUTH).abs() < 4 * bounds.standard_error + 1e-3).all())


def test_adaptive_draws_see_what_prior_draws_cannot() -> None:
    """Five nats with fifteen contrastive draws: from the prior the lower bound is capped at log 16, from the posterior not."""
    sharp = LinearGaussian(dim=1, noise=0.005)
    design = torch.ones(1, 1, dtype=torch.float64)
    truth = float(sharp.information(design))
    plain = expected_information_gain(sharp, design, num_outer=512, num_inner=15, generator=rng())
    adaptive = expected_information_gain(sharp, design, "adaptive", num_outer=2000, num_inner=15, generator=rng())
    assert plain.lower is not None
    assert adaptive.lower is not None
    assert adaptive.upper is not None
    assert float(plain.lower) <= math.log(16) < truth
    assert abs(float(adaptive.lower) - truth) < 4 * float(adaptive.standard_error) + 0.02
    assert float(adaptive.upper) > truth - 4 * float(adaptive.standard_error)
    assert bool(plain.saturated)


def test_laplace_is_exact_for_linear_experiments_and_says_that_it_is_no_bound() -> None:
    covariance = torch.eye(2, dtype=torch.float64)
    exact = laplace_information(LINE, LINE.sample(8, rng()), DESIGNS, covariance)
    assert exact.estimate is not None
    torch.testing.assert_close(exact.estimate, TRUTH.reshape(-1), rtol=0, atol=1e-12)
    assert (exact.lower, exact.upper) == (None, None)
    assert "no bound" in str(exact[1])
    drawn = expected_information_gain(LINE, DESIGNS, "laplace", num_outer=400, generator=rng())
    assert drawn.estimate is not None
    assert bool(((drawn.estimate - TRUTH.reshape(-1)).abs() <= 4 * drawn.standard_error).all())
    assert float(drawn.standard_error[2]) > 0.01  # the covariance of 400 draws errs by a few per cent


def test_laplace_ranks_hours_of_blood_samples_as_contrastive_estimates_do() -> None:
    hours = torch.tensor([[0.2], [1.0], [4.0], [12.0], [23.0]], dtype=torch.float64)
    near = expected_information_gain(Pharmacokinetic(), hours, "laplace", num_outer=512, generator=rng()).estimate
    both = expected_information_gain(Pharmacokinetic(), hours, num_outer=2048, num_inner=1024, generator=rng())
    assert near is not None
    assert both.lower is not None
    assert int(near.argmax()) == int(both.lower.argmax())
    assert bool(((near - both.lower).abs() < 0.1).all())


def test_laplace_is_differentiable_in_the_designs() -> None:
    x = DESIGNS[2:].clone().requires_grad_()
    value = laplace_information(LINE, LINE.sample(8, rng()), x, torch.eye(2, dtype=torch.float64)).estimate
    assert value is not None
    (slope,) = torch.autograd.grad(value.sum(), x)
    torch.testing.assert_close(slope, 4 * DESIGNS[2:] / (1 + 4 * DESIGNS[2:].square().sum()))


def test_nuisances_are_averaged_out() -> None:
    model = FirstOnly()
    truth = model.information_about_first(DESIGNS)  # 0, 0.35, 0.29: beside the nuisance the corner tells less
    assert float(truth[2]) < float(TRUTH[2])
    bounds = expected_information_gain(model, DESIGNS, num_outer=2048, num_inner=512, num_batches=16, generator=rng())
    assert bounds.lower is not None
    assert bounds.upper is not None
    assert bool((bounds.lower <= truth + 4 * bounds.standard_error).all())
    assert bool((bounds.upper >= truth - 4 * bounds.standard_error).all())
    assert bool((bounds.upper - bounds.lower < 0.02).all())
    few = expected_information_gain(model, DESIGNS[2:], num_outer=2048, num_inner=4, num_batches=16, generator=rng())
    assert few.lower is not None
    assert few.upper is not None
    assert float(few.lower) < float(truth[2] - 4 * few.standard_error)  # few draws: far, and on the right sides
    assert float(few.upper) > float(truth[2] + 4 * few.standard_error)


def test_a_goal_without_nuisances_is_asked_about_by_a_critic() -> None:
    model = Blind()
    model.goal = lambda theta: theta[..., :1]  # type: ignore[attr-defined]
    truth = FirstOnly().information_about_first(DESIGNS)
    training = TrainingSettings(num_train=2048, updates=150, hidden=32)
    bounds = expected_information_gain(model, DESIGNS, num_inner=127, num_batches=16, training=training, generator=rng())  # type: ignore[arg-type]
    assert bounds.lower is not None
    assert bool((bounds.lower <= truth + 4 * bounds.standard_error + 1e-9).all())
    assert bool((bounds.lower >= truth - 0.1 - 4 * bounds.standard_error).all())


def test_critic_bounds_by_hand() -> None:
    """The best critic of a pair of coins that always agree: one bit, as far as the number of pairs lets it be seen."""
    coins = torch.tensor([0, 1]).repeat(2)
    scores = torch.where(coins.unsqueeze(-1) == coins, 0.0, -50.0).double().expand(3, 4, 4)
    assert float(infonce_bound(scores).lower or 0) == pytest.approx(math.log(2))
    assert bool(infonce_bound(scores).saturated)
    # T = 1 + log p(y|theta)/p(y): log 2 for agreeing pairs; a third of the strangers among four agree.
    own = torch.where(coins.unsqueeze(-1) == coins, 1 + math.log(2), -50.0).double().expand(3, 4, 4)
    assert float(nwj_bound(own).lower or 0) == pytest.approx(1 + math.log(2) - 2 / 3)
    constant = torch.ones(2, 5, 5)
    assert float(infonce_bound(constant).lower or 0) == pytest.approx(0.0)
    assert float(nwj_bound(constant).lower or 0) == pytest.approx(0.0)


@given(st.integers(1, 3), st.integers(2, 5), st.integers(0, 2**31 - 1))
def test_infonce_never_exceeds_its_ceiling(sets: int, n: int, seed: int) -> None:
    scores = 30 * torch.randn(sets, n, n, generator=rng(seed), dtype=torch.float64)
    lower = infonce_bound(scores).lower
    assert lower is not None
    assert float(lower) <= math.log(n) + 1e-12


def test_parts_that_do_not_fit_are_refused() -> None:
    ones = torch.ones(4)
    with pytest.raises(ShapeError, match="square"):
        infonce_bound(torch.zeros(4, 4))
    with pytest.raises(ShapeError, match="strangers"):
        nwj_bound(torch.zeros(2, 1, 1))
    with pytest.raises(InvalidDataError, match="NaN"):
        infonce_bound(torch.full((2, 2, 2), math.nan))
    with pytest.raises(ShapeError, match="log_prior"):
        posterior_bound(ones, torch.ones(3))
    with pytest.raises(InvalidDataError, match="positive density"):
        posterior_bound(ones, torch.full((4,), -math.inf))
    with pytest.raises(ShapeError, match="N x M"):
        nuisance_bounds(ones, torch.ones(3, 2), torch.ones(4, 2))
    with pytest.raises(InvalidDataError, match="log_contrast"):
        nuisance_bounds(ones, torch.ones(4, 2), torch.full((4, 2), math.nan))
    with pytest.raises(InvalidDataError, match="impossible"):
        nuisance_bounds(ones * -math.inf, torch.ones(4, 2), torch.ones(4, 2))
    with pytest.raises(InvalidOptionError, match="moments"):
        laplace_information(HyperbolicDiscounting(), torch.zeros(8, 2), torch.ones(1, 2))
    with pytest.raises(ShapeError, match="four draws"):
        laplace_information(LINE, torch.zeros(2, 2), DESIGNS)
    with pytest.raises(ShapeError, match="covariance"):
        laplace_information(LINE, torch.zeros(8, 2), DESIGNS, torch.eye(3))


def test_methods_that_the_model_does_not_allow_are_refused() -> None:
    for method in ("contrastive", "marginal", "adaptive"):
        with pytest.raises(InvalidOptionError, match="log_prob"):
            expected_information_gain(Blind(), DESIGNS, method)  # type: ignore[arg-type]
    with pytest.raises(InvalidOptionError, match="log_prior"):
        expected_information_gain(Blind(), DESIGNS, "posterior")  # type: ignore[arg-type]
    with pytest.raises(InvalidOptionError, match="no other source"):
        expected_information_gain(LINE, DESIGNS, "adaptive", source=LINE)
    for method in ("posterior", "laplace", "marginal"):
        with pytest.raises(InvalidOptionError, match="goal"):
            expected_information_gain(FirstOnly(), DESIGNS, method)
    with pytest.raises(InvalidOptionError, match="num_train=3"):
        TrainingSettings(num_train=3)
    with pytest.raises(InvalidOptionError, match="learning_rate"):
        TrainingSettings(learning_rate=math.inf)
    wild = TrainingSettings(num_train=64, updates=50, learning_rate=1e3)
    with pytest.raises(DivergedError, match="diverged"):
        expected_information_gain(LINE, DESIGNS, "nwj", num_inner=15, training=wild)

    class Certain(Blind):
        def simulate(self, theta: Tensor, design: Tensor, generator: torch.Generator | None = None) -> Tensor:
            return theta[..., :1]

        def log_prior(self, theta: Tensor) -> Tensor:
            return LINE.log_prior(theta)

    with pytest.raises(InvalidDataError, match="known exactly"):
        expected_information_gain(Certain(), DESIGNS[:1], "posterior")  # type: ignore[arg-type]
    wrong = FirstOnly()
    object.__setattr__(wrong, "goal", lambda theta: theta[0])
    with pytest.raises(ShapeError, match="goal answered"):
        goal_of(wrong, torch.zeros(3, 2))
    few = FirstOnly()
    object.__setattr__(few, "nuisances", lambda theta, n, generator: theta)
    with pytest.raises(ShapeError, match="nuisances answered"):
        expected_information_gain(few, DESIGNS)
