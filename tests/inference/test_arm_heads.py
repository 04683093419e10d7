"""Exact heads: recursive against batch, splits, evidence, forgetting, likelihood matching, draws, bounded time."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from seqbdl.errors import InvalidOptionError
from seqbdl.inference.arm_heads import (
    ArmHeads,
    ArmPrior,
    absorb_arm_rows,
    change_prior,
    draw_weights,
    forget,
    forget_directions,
    forget_exponentially,
    log_density,
    match_heads,
    prior_heads,
    tune_prior,
)
from seqbdl.surrogates.arm_heads import ArmHeadsModel

PRIOR = ArmPrior(0.25, 6.0, 6.0)


def rows(n: int, seed: int = 0, K: int = 2, F: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    phi = torch.randn(n, F, generator=generator, dtype=torch.float64)
    arms = torch.randint(K, (n,), generator=generator)
    rewards = phi @ torch.arange(1.0, F + 1).double() * (arms + 1) + torch.randn(n, generator=generator, dtype=torch.float64)
    return phi, arms, rewards


def closed_form(phi: Tensor, r: Tensor, alpha: float, a0: float, b0: float) -> tuple[Tensor, Tensor, Tensor]:
    """The textbook's mean, b and log evidence of one arm."""
    A = alpha * torch.eye(phi.shape[1]).double() + phi.T @ phi
    m = torch.linalg.solve(A, phi.T @ r)
    b = b0 + 0.5 * (r @ r - m @ A @ m)
    a = torch.tensor(a0 + 0.5 * len(r), dtype=torch.float64)
    evidence = 0.5 * phi.shape[1] * math.log(alpha) - 0.5 * torch.logdet(A) + a0 * math.log(b0) - a * b.log()
    evidence = evidence + torch.lgamma(a) - math.lgamma(a0) - 0.5 * len(r) * math.log(2 * math.pi)
    return m, b, evidence


def test_five_thousand_updates_are_the_batch_posterior_and_b_grows() -> None:
    phi, arms, r = rows(5000)
    state = prior_heads(2, 4, PRIOR)
    for i in range(5000):
        new = absorb_arm_rows(state, phi[i : i + 1], arms[i : i + 1], r[i : i + 1])
        assert bool((new.b >= state.b).all())
        state = new
    for k in range(2):
        mean, b, evidence = closed_form(phi[arms == k], r[arms == k], 0.25, 6.0, 6.0)
        assert torch.allclose(state.mean[k], mean, rtol=1e-8, atol=1e-8)
        assert torch.allclose(state.b[k], b, rtol=1e-8)
        assert torch.allclose(state.log_evidence[k], evidence, rtol=1e-8)


@pytest.mark.parametrize("cut", [1, 37, 99])
def test_splits_do_not_matter(cut: int) -> None:
    phi, arms, r = rows(100)
    prior = prior_heads(2, 4, PRIOR)
    whole = absorb_arm_rows(prior, phi, arms, r)
    parts = absorb_arm_rows(absorb_arm_rows(prior, phi[cut:], arms[cut:], r[cut:]), phi[:cut], arms[:cut], r[:cut])
    for name, value in whole.__dict__.items():
        assert torch.allclose(getattr(parts, name), value, rtol=1e-9, atol=1e-9), name


@pytest.mark.parametrize("n", [3, 9, 200_000])
def test_any_number_of_rows_at_once_is_the_closed_form(n: int) -> None:
    phi, arms, r = rows(n)  # of 200,000 an n x n covariance would not fit
    state = absorb_arm_rows(prior_heads(2, 4, PRIOR), phi, arms, r)
    for k in range(2):
        mean, b, evidence = closed_form(phi[arms == k], r[arms == k], 0.25, 6.0, 6.0)
        assert torch.allclose(state.mean[k], mean, rtol=1e-9, atol=1e-9)
        assert torch.allclose(state.b[k], b, rtol=1e-9)
        assert torch.allclose(state.log_evidence[k], evidence, rtol=1e-9)


def test_the_evidence_grows_by_the_predictive_density() -> None:
    phi, arms, r = rows(20)
    state = absorb_arm_rows(prior_heads(2, 4, PRIOR), phi[:19], arms[:19], r[:19])
    after = absorb_arm_rows(state, phi[19:], arms[19:], r[19:])
    grown = float((after.log_evidence - state.log_evidence).sum())
    assert grown == pytest.approx(log_density(state, phi[19], int(arms[19]), float(r[19])), abs=1e-9)


def test_draws_have_the_posterior_moments() -> None:
    state = absorb_arm_rows(prior_heads(2, 4, PRIOR), *rows(30))
    draws = draw_weights(state, 40_000, torch.Generator().manual_seed(0))
    covariance = torch.cholesky_inverse(state.factor) * (state.b / (state.a - 1))[:, None, None]
    sd = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    assert bool(((draws.mean(0) - state.mean).abs() < 5 * sd / 200).all())
    sample = torch.stack([torch.cov(draws[:, k].T) for k in range(2)])
    assert bool(((sample - covariance).abs() < 6 * 1.5 / 200 * sd.unsqueeze(-1) * sd.unsqueeze(-2)).all())


def test_forgetting_is_in_natural_parameters_and_ends_at_the_prior() -> None:
    prior = prior_heads(2, 4, PRIOR)
    state = absorb_arm_rows(prior, *rows(30))
    aged, gamma = forget(state, prior, 0.9), 0.9
    A, A0 = state.factor @ state.factor.mT, prior.factor @ prior.factor.mT
    new = aged.factor @ aged.factor.mT
    assert torch.allclose(new, gamma * A + (1 - gamma) * A0)
    assert torch.allclose((new @ aged.mean.unsqueeze(-1)), gamma * A @ state.mean.unsqueeze(-1), atol=1e-9)
    quadratic = [0.5 * (s.mean.unsqueeze(-2) @ M @ s.mean.unsqueeze(-1)).squeeze() for s, M in ((state, A), (aged, new))]
    assert torch.allclose(aged.b + quadratic[1], gamma * (state.b + quadratic[0]) + (1 - gamma) * prior.b)
    for _ in range(500):
        state = forget(state, prior, 0.9)
    assert torch.allclose(state.factor, prior.factor, atol=1e-6)
    assert torch.allclose(state.mean, prior.mean, atol=1e-6)
    assert torch.allclose(state.a, prior.a)


def test_exponential_forgetting_is_a_kalman_filter_with_growing_noise() -> None:
    """``Sigma + (1 / gamma - 1) Sigma``; the noise is as large as before, and less certain."""
    state = absorb_arm_rows(prior_heads(2, 4, PRIOR), *rows(30))
    aged = forget_exponentially(state, 0.9)
    covariance = torch.cholesky_inverse(state.factor[1])
    torch.testing.assert_close(torch.cholesky_inverse(aged.factor[1]), covariance + (1 / 0.9 - 1) * covariance)
    assert torch.equal(aged.mean, state.mean)
    torch.testing.assert_close(aged.b / aged.a, state.b / state.a)
    torch.testing.assert_close(aged.a, 0.9 * state.a)


@pytest.mark.parametrize("n", [1, 3, 7])
def test_directional_forgetting_forgets_what_new_rows_speak_of(n: int) -> None:
    """``X A' X^T = gamma X A X^T``, and what is ``A``-orthogonal to the rows keeps its precision; so do other arms."""
    state = absorb_arm_rows(prior_heads(2, 4, PRIOR), *rows(30))
    X = rows(n, seed=3)[0]
    aged = forget_directions(state, torch.cat([X, X[:1]]), torch.zeros(n + 1, dtype=torch.long), 0.7)  # a row twice is one
    old, new = (s.factor @ s.factor.mT for s in (state, aged))
    torch.testing.assert_close(X @ new[0] @ X.T, 0.7 * X @ old[0] @ X.T)
    v = torch.linalg.svd(X @ old[0])[2][min(n, 4) :]  # X A v = 0
    torch.testing.assert_close(v @ new[0], v @ old[0])
    assert torch.equal(new[1], old[1])
    assert torch.equal(aged.mean, state.mean)
    torch.testing.assert_close(aged.a, torch.tensor([0.7, 1.0], dtype=torch.float64) * state.a)


@pytest.mark.parametrize(("kind", "elsewhere"), [("stabilized", 0.25), ("exponential", 0.0), ("directional", 10.25)])
def test_kinds_of_forgetting_where_no_row_comes(kind: str, elsewhere: float) -> None:
    """Ten rows along one axis, then many along the other: the precision of the first goes to the prior's, to nothing, or stays;
    that of the other to the ten rows' worth that ``gamma = 0.9`` remembers."""
    prior = prior_heads(1, 2, PRIOR)
    arm, one = torch.zeros(1, dtype=torch.long), torch.ones(10).double()
    first, second = torch.eye(2).double().split(1)
    forgets: dict[str, Callable[[ArmHeads], ArmHeads]] = {
        "stabilized": lambda state: forget(state, prior, 0.9),
        "exponential": lambda state: forget_exponentially(state, 0.9),
        "directional": lambda state: forget_directions(state, second, arm, 0.9),
    }
    state = absorb_arm_rows(prior, first.expand(10, -1), arm.expand(10), one)
    for _ in range(200):
        state = absorb_arm_rows(forgets[kind](state), second, arm, one[:1])
    A = state.factor[0] @ state.factor[0].T
    assert float(A[0, 0]) == pytest.approx(elsewhere, abs=1e-6)
    assert float(A[1, 1]) == pytest.approx(10.0 + (0.25 if kind == "stabilized" else 0.0), abs=1e-6)
    model = ArmHeadsModel(2, 1, hidden=(), forgetting=0.9, forgetting_kind=kind)
    x = rows(12, F=2)[0]
    model.absorb(x[:9], arm.expand(9), x[:9, 0])
    phi, before = model.features(x[9:]), model.heads
    model.absorb(x[9:], arm.expand(3), x[9:, 0])
    aged = {
        "stabilized": lambda: forget(before, prior_heads(1, 3, PRIOR), 0.9),
        "exponential": lambda: forget_exponentially(before, 0.9),
        "directional": lambda: forget_directions(before, phi, arm.expand(3), 0.9),
    }[kind]()
    torch.testing.assert_close(model.heads.mean, absorb_arm_rows(aged, phi, arm.expand(3), x[9:, 0]).mean)


def test_matching_keeps_the_variances_of_remembered_rows() -> None:
    prior = prior_heads(2, 4, PRIOR)
    phi, arms, r = rows(12)
    state = absorb_arm_rows(prior, phi, arms, r)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64))[0]
    new = phi @ turn  # a rotation: an exact match exists
    carried = match_heads(state, phi, new, arms, prior, steps=3000)
    for k in range(2):
        was, now = phi[arms == k], new[arms == k]
        old_var = torch.linalg.solve_triangular(state.factor[k], was.T, upper=False).square().sum(0)
        new_var = torch.linalg.solve_triangular(carried.factor[k], now.T, upper=False).square().sum(0)
        assert torch.allclose(new_var, old_var, rtol=0.05, atol=1e-3)
        assert torch.allclose(now @ carried.mean[k], was @ state.mean[k], atol=0.05)


def test_matching_makes_no_direction_more_certain_than_a_row() -> None:
    """Rows along one direction only: nothing was said about the others."""
    prior = prior_heads(1, 3, PRIOR)
    arms, generator = torch.zeros(40, dtype=torch.long), torch.Generator().manual_seed(0)
    phi = torch.tensor([[1.0, 0.2, 0.1]]).double() + 0.01 * torch.randn(40, 3, generator=generator, dtype=torch.float64)
    state = absorb_arm_rows(prior, phi, arms, torch.ones(40).double())
    carried = match_heads(state, phi, phi, arms, prior)
    least = torch.linalg.solve_triangular(state.factor[0], phi.T, upper=False).square().sum(0).min()
    variances = 1 / torch.linalg.eigvalsh(carried.factor[0] @ carried.factor[0].T)
    assert float(variances.min() * phi.square().sum(-1).max()) > 0.999 * float(least)


@pytest.mark.parametrize("new", [ArmPrior(3.0, 6.0, 6.0), ArmPrior(1e-3, 2.0, 0.5)])
def test_another_prior_is_exact_without_rows(new: ArmPrior) -> None:
    phi, arms, r = rows(60)
    moved = change_prior(absorb_arm_rows(prior_heads(2, 4, PRIOR), phi, arms, r), PRIOR, new)
    direct = absorb_arm_rows(prior_heads(2, 4, new), phi, arms, r)
    for name, value in direct.__dict__.items():
        assert torch.allclose(getattr(moved, name), value, rtol=1e-9, atol=1e-9), name


def test_the_tuned_prior_has_the_best_evidence() -> None:
    phi, arms, r = rows(80)
    state = absorb_arm_rows(prior_heads(2, 4, PRIOR), phi, arms, r)
    best = tune_prior(state, PRIOR)
    assert best.a0 == PRIOR.a0

    def evidence(precision: float, b0: float) -> float:
        return sum(float(closed_form(phi[arms == k], r[arms == k], precision, 6.0, b0)[2]) for k in range(2))

    top = evidence(best.precision, best.b0)
    step = math.exp(0.25)
    for p, q in ((step, 1.0), (1 / step, 1.0), (1.0, step), (1.0, 1 / step)):
        assert evidence(best.precision * p, best.b0 * q) < top
    assert tune_prior(state, PRIOR, precision=False).precision == PRIOR.precision
    assert tune_prior(state, PRIOR, b0=False).b0 == PRIOR.b0


@pytest.mark.parametrize("hidden", [(), (8,)])
def test_models_tune_their_prior(hidden: tuple[int, ...]) -> None:
    phi, arms, r = rows(80)
    model = ArmHeadsModel(4, 2, hidden=hidden, steps=5, prior_precision=None, b0=None)
    model.absorb(phi, arms, 100.0 * r)
    before = model.log_evidence()
    model.retrain()
    after = model.log_evidence()
    assert after > before + 10.0  # rewards in hundreds are not what b0 = 6 expects
    again = absorb_arm_rows(prior_heads(2, model.num_features, model.prior), model.features(phi), arms, 100.0 * r)
    assert torch.allclose(model.heads.mean, again.mean, rtol=1e-7)
    assert torch.allclose(model.heads.log_evidence, again.log_evidence, rtol=1e-9)
    twin = ArmHeadsModel(4, 2, hidden=hidden, steps=5, prior_precision=None, b0=None)
    twin.load_state_dict(model.state_dict())
    assert twin.prior == model.prior
    for options in ({"forgetting": 0.9, "hidden": ()}, {"memory": 5}):
        with pytest.raises(InvalidOptionError, match="evidence"):
            ArmHeadsModel(4, 2, prior_precision=None, **options)


def test_retraining_rebuilds_exactly_and_memory_is_bounded() -> None:
    phi, arms, r = rows(60)
    model = ArmHeadsModel(4, 2, hidden=(8,), steps=5)
    model.absorb(phi, arms, r)
    model.retrain()
    again = absorb_arm_rows(model._prior(), model.features(phi), arms, r)
    assert torch.allclose(model.heads.mean, again.mean)
    small = ArmHeadsModel(4, 2, hidden=(8,), steps=5, memory=10)
    for i in range(60):
        small.absorb(phi[i : i + 1], arms[i : i + 1], r[i : i + 1])
    assert len(small.state_dict()["rows"][0]) == 20
    exact = absorb_arm_rows(small._prior(), small.features(phi), arms, r)
    assert torch.allclose(small.heads.mean, exact.mean, atol=1e-8)
    small.retrain()
    assert torch.allclose(small.heads.a, exact.a)  # the rows that left still count


def test_an_abrupt_change_resets_the_arm() -> None:
    model = ArmHeadsModel(1, 1, hidden=(), a0=2.0, b0=0.1, reset_threshold=5.0)
    x, arm = torch.zeros(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.long)
    for i in range(50):
        model.absorb(x, arm, torch.tensor([0.1 * (-1) ** i], dtype=torch.float64))
    assert model.heads.a > 20
    for _ in range(5):
        model.absorb(x, arm, torch.tensor([2.0], dtype=torch.float64))
    assert model.heads.a < 10
    assert float(model.mean(x[0], [0])) == pytest.approx(2.0, abs=0.6)
