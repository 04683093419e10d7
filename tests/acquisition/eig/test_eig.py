"""Information estimators against closed forms and enumeration."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seqbdl.acquisition.eig import (
    Bounds,
    contrastive_bounds,
    exact_information,
    expected_information_gain,
    history_log_likelihood,
    information_of_history,
    marginal_bound,
    sequence_bounds,
)
from seqbdl.errors import InvalidDataError, InvalidOptionError, ShapeError

LOG_ROOT = 0.5 * math.log(2 * math.pi)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@dataclass
class Linear:
    """``y = x theta + noise`` with ``theta ~ N(0, 2^2)``: information ``log(1 + 4 x^2) / 2``."""

    sd: float = 2.0
    reparametrized: bool = True

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return self.sd * torch.randn(n, 1, generator=generator, dtype=torch.float64)

    def simulate(self, theta: Tensor, design: Tensor, generator: torch.Generator | None = None) -> Tensor:
        mean = theta * design
        return mean + torch.randn(mean.shape, generator=generator, dtype=torch.float64)

    def log_prob(self, y: Tensor, theta: Tensor, design: Tensor) -> Tensor:
        return (-0.5 * (y - theta * design).square() - LOG_ROOT).sum(-1)

    def information(self, design: Tensor) -> Tensor:
        return 0.5 * (1 + self.sd**2 * design.square().sum(-1)).log()


class Recall:
    """Remembered or not: ``p(1) = sigmoid(theta - length)``."""

    support = torch.tensor([[0.0], [1.0]], dtype=torch.float64)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return torch.randn(n, 1, generator=generator, dtype=torch.float64)

    def simulate(self, theta: Tensor, design: Tensor, generator: torch.Generator | None = None) -> Tensor:
        probs = (theta - design).sigmoid()
        return (torch.rand(probs.shape, generator=generator, dtype=torch.float64) < probs).double()

    def log_prob(self, y: Tensor, theta: Tensor, design: Tensor) -> Tensor:
        return torch.nn.functional.logsigmoid((2 * y - 1) * (theta - design)).squeeze(-1)


DESIGNS = torch.tensor([[0.0], [0.5], [1.0], [3.0]], dtype=torch.float64)


def test_linear_gaussian_information_lies_between_the_bounds() -> None:
    truth = Linear().information(DESIGNS)
    bounds = expected_information_gain(Linear(), DESIGNS, num_outer=4000, num_inner=1000, num_batches=20, generator=rng())
    assert bounds.lower is not None
    assert bounds.upper is not None
    assert bool((bounds.lower <= truth + 4 * bounds.standard_error).all())
    assert bool((bounds.upper >= truth - 4 * bounds.standard_error).all())
    # A thousand contrastive draws leave a bias far below the error here.
    assert bool(((bounds.lower - truth).abs() < 4 * bounds.standard_error + 0.02).all())
    assert not bool(bounds.saturated.any())


def test_without_a_signal_there_is_no_information() -> None:
    bounds = expected_information_gain(Linear(), DESIGNS[:1], num_outer=64, num_inner=16, generator=rng())
    assert bounds.lower is not None
    assert bounds.upper is not None
    assert float(bounds.lower) == pytest.approx(0, abs=1e-12)
    assert float(bounds.upper) == pytest.approx(0, abs=1e-12)


def test_few_contrastive_draws_bound_from_both_sides_and_say_that_they_are_few() -> None:
    """PCE <= EIG <= NMC in expectation, with a bias that 4 draws make far larger than the error."""
    design = torch.tensor([[5.0]], dtype=torch.float64)
    truth = float(Linear().information(design))
    bounds = expected_information_gain(Linear(), design, num_outer=4000, num_inner=4, num_batches=2000, generator=rng())
    assert bounds.lower is not None
    assert bounds.upper is not None
    assert float(bounds.lower) <= math.log(5) + 1e-12
    assert float(bounds.lower) < truth < float(bounds.upper)
    assert bool(bounds.saturated)


def test_the_standard_error_is_the_spread_of_repetitions() -> None:
    found = [
        expected_information_gain(Linear(), DESIGNS[2:3], num_outer=160, num_inner=20, num_batches=16, generator=rng(i))
        for i in range(200)
    ]
    lower = torch.cat([bounds.lower for bounds in found if bounds.lower is not None])
    upper = torch.cat([bounds.upper for bounds in found if bounds.upper is not None])
    claimed = torch.cat([bounds.standard_error for bounds in found]).square().mean().sqrt()
    spread = max(float(lower.std()), float(upper.std()))
    # The larger of two errors is claimed; a spread from 200 repetitions errs by 5 %, the mean of its estimates by 3 %.
    assert spread * 0.8 < float(claimed) < spread * 1.3


def test_exact_information_is_enumeration() -> None:
    log_probs = torch.randn(3, 7, 4, generator=rng(), dtype=torch.float64).log_softmax(-1)
    weights = torch.rand(7, generator=rng(1), dtype=torch.float64)
    weights = weights / weights.sum()
    bounds = exact_information(log_probs, weights)
    for d in range(3):
        p = log_probs[d].exp()
        mean = (weights[:, None] * p).sum(0)
        expected = -(mean * mean.log()).sum() + (weights[:, None] * p * p.log()).sum()
        assert float(bounds[d].middle) == pytest.approx(float(expected), abs=1e-12)
    assert bool((bounds.standard_error == 0).all())


def test_two_members_that_disagree_tell_one_bit() -> None:
    log_probs = torch.eye(2, dtype=torch.float64).log()
    bounds = exact_information(log_probs)
    assert float(bounds.middle) == pytest.approx(math.log(2), abs=1e-12)


def test_impossible_outcomes_leave_gradients_finite() -> None:
    p = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    zero = torch.tensor(-math.inf, dtype=torch.float64)
    rows = torch.stack([torch.stack([p.log(), (1 - p).log(), zero]), torch.stack([(1 - p).log(), p.log(), zero])])
    exact_information(rows).middle.backward()
    assert p.grad is not None
    assert bool(p.grad.isfinite())


def test_finite_outcomes_are_enumerated_and_agree_with_contrastive_estimates() -> None:
    designs = torch.tensor([[-1.0], [0.0], [2.0]], dtype=torch.float64)
    exact = expected_information_gain(Recall(), designs, num_outer=20_000, generator=rng())
    sampled = expected_information_gain(
        Recall(), designs, "contrastive", num_outer=8000, num_inner=500, num_batches=20, generator=rng(1)
    )
    assert exact.lower is not None
    assert torch.equal(exact.middle, exact.lower)
    error = 4 * (exact.standard_error + sampled.standard_error)
    assert bool(((exact.middle - sampled.middle).abs() < error + 1e-3).all())


def test_the_marginal_estimator_is_exact_for_normal_outcomes() -> None:
    truth = Linear().information(DESIGNS)
    bounds = expected_information_gain(Linear(), DESIGNS, "marginal", num_outer=20_000, generator=rng())
    assert bounds.lower is None
    assert bounds.upper is not None
    assert bool(((bounds.upper - truth).abs() < 4 * bounds.standard_error + 1e-3).all())


def test_weights_of_a_perfect_proposal_make_both_bounds_exact() -> None:
    """ACE and VNMC with draws of the posterior: every weighted likelihood is the evidence itself."""
    model, x, n, count = Linear(), 3.0, 500, 5
    design = torch.tensor([x], dtype=torch.float64)
    theta = model.sample(n, rng())
    y = model.simulate(theta, design, rng(1))
    precision = 1 / model.sd**2 + x**2
    mean = x * y / precision

    def log_normal(value: Tensor, centre: Tensor | float, variance: float) -> Tensor:
        return -0.5 * (value - centre).square() / variance - 0.5 * math.log(variance) - LOG_ROOT

    others = mean + torch.randn(n, count, generator=rng(2), dtype=torch.float64) / math.sqrt(precision)

    def weight(value: Tensor) -> Tensor:
        return log_normal(value, 0.0, model.sd**2) - log_normal(value, mean, 1 / precision)

    own = model.log_prob(y, theta, design)
    contrast = model.log_prob(y.unsqueeze(1), others.unsqueeze(-1), design)
    bounds = contrastive_bounds(own, contrast, weight(theta).squeeze(-1), weight(others))
    evidence = log_normal(y, 0.0, 1 + (x * model.sd) ** 2).squeeze(-1)
    exact = float((own - evidence).mean())
    assert bounds.lower is not None
    assert bounds.upper is not None
    assert float(bounds.lower) == pytest.approx(exact, abs=1e-9)
    assert float(bounds.upper) == pytest.approx(exact, abs=1e-9)


def test_gradients_agree_with_differences() -> None:
    for model in (Linear(), Recall()):
        design = torch.tensor([[0.7]], dtype=torch.float64, requires_grad=True)

        def value(x: Tensor, model: Linear | Recall = model) -> Tensor:
            lower = expected_information_gain(model, x, num_outer=64, num_inner=32, generator=rng(3)).lower
            assert lower is not None
            return lower.sum()

        assert torch.autograd.gradcheck(value, (design,))


def test_sequences_of_a_linear_model_in_closed_form() -> None:
    model, steps, runs = Linear(), 3, 400
    designs = torch.tensor([[0.5], [1.0], [0.2]], dtype=torch.float64).expand(runs, steps, 1)
    theta = model.sample(runs, rng())
    outcomes = designs * theta.unsqueeze(1) + torch.randn(runs, steps, 1, generator=rng(1), dtype=torch.float64)
    truth = 0.5 * math.log(1 + 4 * float(designs[0].square().sum()))
    bounds = sequence_bounds(model, designs, outcomes, theta, 2000, rng(2))
    assert bounds.lower is not None
    assert bounds.upper is not None
    assert float(bounds.lower) <= float(bounds.upper)
    assert abs(float(bounds.lower) - truth) < 4 * float(bounds.standard_error)
    total = history_log_likelihood(model, designs, outcomes, theta)
    each = sum(model.log_prob(outcomes[:, t], theta, designs[:, t]) for t in range(steps))
    assert torch.allclose(total, torch.as_tensor(each))


class Posterior:
    """Of the linear model after one history."""

    def __init__(self, model: Linear, designs: Tensor, outcomes: Tensor) -> None:
        self.precision = 1 / model.sd**2 + float(designs.square().sum())
        self.mean = float((designs * outcomes).sum()) / self.precision

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return self.mean + torch.randn(n, 1, generator=generator, dtype=torch.float64) / math.sqrt(self.precision)


def test_information_of_one_history_is_its_divergence() -> None:
    model = Linear()
    designs = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    outcomes = torch.tensor([[3.0], [5.0]], dtype=torch.float64)
    posterior = Posterior(model, designs, outcomes)
    variance = 1 / posterior.precision
    truth = 0.5 * (math.log(4 / variance) + (variance + posterior.mean**2) / 4 - 1)
    bounds = information_of_history(model, designs, outcomes, posterior, 1600, 2000, 16, rng())
    assert bounds.lower is not None
    assert bounds.upper is not None
    assert float(bounds.lower) <= truth + 4 * float(bounds.standard_error)
    assert float(bounds.upper) >= truth - 4 * float(bounds.standard_error)
    assert float(bounds.middle) == pytest.approx(truth, abs=4 * float(bounds.standard_error))


def test_a_bounds_object_reads_well() -> None:
    one = Bounds(torch.tensor(1.0), None, torch.tensor(0.1), torch.tensor(True))
    assert str(one) == "1 to - nats (standard error 0.1, saturated: use more contrastive draws)"
    assert float(one.middle) == 1.0


class Wrong(Linear):
    def log_prob(self, y: Tensor, theta: Tensor, design: Tensor) -> Tensor:
        return -0.5 * (y - theta * design).square()


class Broken(Linear):
    def log_prob(self, y: Tensor, theta: Tensor, design: Tensor) -> Tensor:
        return super().log_prob(y, theta, design) * math.nan


def test_bad_models_and_settings_are_refused() -> None:
    with pytest.raises(ShapeError, match="sum over the last dimension"):
        expected_information_gain(Wrong(), DESIGNS)
    with pytest.raises(InvalidDataError, match="NaN"):
        expected_information_gain(Broken(), DESIGNS)
    with pytest.raises(ShapeError, match="D x d"):
        expected_information_gain(Linear(), DESIGNS[:, 0])
    with pytest.raises(InvalidOptionError, match="finite support"):
        expected_information_gain(Linear(), DESIGNS, "exact")
    with pytest.raises(InvalidOptionError, match="not one of"):
        expected_information_gain(Linear(), DESIGNS, "nmc")
    with pytest.raises(InvalidDataError, match="sum to"):
        exact_information(torch.zeros(3, 2))
    with pytest.raises(ShapeError, match="outcomes"):
        marginal_bound(torch.zeros(9), torch.zeros(8, 1))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(2, 6), st.integers(1, 5), st.integers(0, 1000))
def test_the_lower_bound_never_exceeds_its_ceiling(d: int, n: int, count: int, seed: int) -> None:
    values = 5 * torch.randn(d, n, count + 1, generator=rng(seed), dtype=torch.float64)
    bounds = contrastive_bounds(values[..., 0], values[..., 1:])
    assert bounds.lower is not None
    assert bounds.upper is not None
    assert bounds.lower.shape == (d,)
    assert bool((bounds.lower <= math.log(count + 1) + 1e-12).all())


@given(st.integers(1, 4), st.integers(1, 4))
def test_shapes_that_do_not_fit_are_refused(n: int, other: int) -> None:
    if n != other:
        with pytest.raises(ShapeError, match="log_contrast"):
            contrastive_bounds(torch.zeros(n), torch.zeros(other, 3))
