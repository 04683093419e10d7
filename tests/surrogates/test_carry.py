"""Posterior as prior between models: natural parameters, ends of the scale, heads, and what updates make of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import seqbdl
from seqbdl.errors import InvalidOptionError
from seqbdl.inference import ekf, last_layer, lofi
from seqbdl.networks import DenseRows
from seqbdl.posteriors.mean_field import MeanField
from seqbdl.surrogates.carry import temper_belief, temper_mean_field
from tests.surrogates.conftest import SMALL, data, make


@pytest.mark.parametrize("name", list(SMALL))
def test_full_trust_changes_no_answer_and_learns_on(name: str) -> None:
    X, Y = data(14)
    old = make(name).fit(X, Y)
    new = seqbdl.prior_from(old)
    points = data(5, seed=3)[0]
    assert torch.equal(new.predict(points).mean, old.predict(points).mean)
    assert new.train_inputs is not None
    assert new.train_inputs[0].shape == (0, 2)
    before = old.predict(points).mean
    more = data(4, seed=5)
    assert torch.equal(new.update(*more).predict(points).mean, old.__deepcopy__({}).update(*more).predict(points).mean)
    assert torch.equal(old.predict(points).mean, before)


@pytest.mark.parametrize("name", ["gp", "ekf", "lofi", "mfvi", "ensemble", "laplace", "bayesian-last-layer"])
def test_spread_grows_as_trust_falls(name: str) -> None:
    old = make(name).fit(*data(14))
    points = data(20, seed=3)[0]
    spreads = [float(seqbdl.prior_from(old, temper=t).predict(points).epistemic_std.mean()) for t in (1.0, 0.1, 0.001)]
    assert spreads[0] < spreads[1] < spreads[2]


@pytest.mark.parametrize("name", list(SMALL))
def test_the_noise_of_new_rows_stays_and_spread_does_not_shrink(name: str) -> None:
    old = make(name).fit(*data(14))
    points = data(20, seed=3)[0]
    new = seqbdl.prior_from(old, temper=0.05)
    if name != "bayesian-last-layer":  # whose noise is part of the posterior that is tempered
        torch.testing.assert_close(new.noise_variance, old.noise_variance)
    if name not in ("swag", "multiswag", "mc-dropout"):  # whose spread is set by step sizes, or by a rate, not by rows
        assert float(new.predict(points).epistemic_std.mean()) > float(old.predict(points).epistemic_std.mean())
    new.update(*data(14))
    assert float((new.predict(points).mean - old.predict(points).mean).square().mean().sqrt()) < 1.0


def test_a_tempered_process_is_one_with_more_noise() -> None:
    X, Y = data(12)
    old = make("gp", noise=0.01).fit(X, Y)
    points = data(6, seed=3)[0]
    half = seqbdl.prior_from(old, temper=0.5).posterior(points)
    # The same rows under twice the noise, one by one from the prior.
    twin = seqbdl.prior_from(old, temper=0.0).update(X, Y, torch.full_like(Y, 0.02)).posterior(points)
    torch.testing.assert_close(half.mean, twin.mean, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(half.variance, twin.variance, rtol=1e-6, atol=1e-9)


def _beliefs(P: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, P, generator=generator, dtype=torch.float64), torch.randn(P, generator=generator, dtype=torch.float64)


@given(temper=st.floats(0.0, 1.0), inflate=st.floats(0.0, 3.0))
@settings(max_examples=20, deadline=None)
def test_natural_parameters_mix(temper: float, inflate: float) -> None:
    A, mean = _beliefs()
    centre, v0 = torch.full_like(mean, 0.3), 0.7
    full = ekf.prior_belief(centre, v0).learned(DenseRows(A), mean)
    low = lofi.prior_belief(centre, v0, 4).learned(DenseRows(A), mean)
    P_q, P_0 = torch.linalg.inv(full.covariance), torch.eye(5).double() / v0
    precision = temper * P_q + (1 - temper) * P_0
    expected = torch.linalg.solve(precision, temper * P_q @ mean + (1 - temper) * P_0 @ centre)
    for belief in (full, low):
        out = temper_belief(belief, centre, v0, temper, inflate)
        torch.testing.assert_close(out.mean, expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(out.weights.precision.dense(), precision / (1 + inflate), rtol=1e-8, atol=1e-8)
    diagonal = ekf.prior_belief(centre, v0, "diagonal-variational").learned(DenseRows(A), mean)
    out = temper_belief(diagonal, centre, v0, temper, inflate)
    torch.testing.assert_close(out.weights.precision.diagonal * (1 + inflate), temper / diagonal.variance + (1 - temper) / v0)
    q, p = MeanField(mean[None], (0.1 + mean.abs())[None]), MeanField(centre[None], torch.ones_like(mean)[None])
    mixed = temper_mean_field(q, p, temper)
    torch.testing.assert_close(mixed.mean / mixed.sd**2, temper * q.mean / q.sd**2 + (1 - temper) * p.mean / p.sd**2)


@pytest.mark.parametrize("name", ["ekf", "lofi", "mfvi"])
def test_no_trust_is_the_prior_with_the_learned_scales(name: str) -> None:
    old = make(name).fit(*data(14))
    blank: Any = seqbdl.prior_from(old, temper=0.0)
    if name == "mfvi":
        torch.testing.assert_close(blank._q.mean, old._prior_components().mean)
    else:
        torch.testing.assert_close(blank._belief.mean, old._start[0])
        torch.testing.assert_close(blank._belief.weights.precision.diagonal, torch.ones_like(blank._belief.mean))


@pytest.mark.parametrize("name", ["ekf", "lofi", "mfvi"])
def test_a_reset_head_forgets_and_the_others_do_not(name: str) -> None:
    old = make(name, output_dim=2).fit(*data(14, 2))
    new: Any = seqbdl.prior_from(old, reset_heads=[1])
    points = data(30, 2, seed=3)[0]
    a, b = old.predict(points), new.predict(points)
    torch.testing.assert_close(a.mean[:, 0], b.mean[:, 0], rtol=1e-6, atol=1e-6)
    assert float(b.epistemic_std[:, 1].mean()) > 2 * float(a.epistemic_std[:, 1].mean())


def test_labels_and_a_saved_campaign(tmp_path: Any) -> None:
    X, _ = data(20)
    labels = (X.sum(-1, keepdim=True) > 1.0).double()
    old = make("ensemble", likelihood="bernoulli").fit(X, labels)
    seqbdl.save(tmp_path / "old", old)
    new = seqbdl.prior_from(seqbdl.load(tmp_path / "old"), temper=0.5)
    seqbdl.save(tmp_path / "new", new)
    assert torch.equal(seqbdl.load(tmp_path / "new").predict(X).mean, new.predict(X).mean)


def test_before_data_and_bad_arguments() -> None:
    fresh = make("gp")
    assert seqbdl.prior_from(fresh).train_inputs is None
    old = make("gp").fit(*data(6))
    for wrong in ({"temper": 1.5}, {"temper": float("nan")}, {"inflate": -1.0}, {"reset_heads": [0]}):
        with pytest.raises(InvalidOptionError):
            seqbdl.prior_from(old, **wrong)  # type: ignore[arg-type]
    rowless = seqbdl.prior_from(make("ensemble").fit(*data(6)))
    later = seqbdl.prior_from(rowless).update(*data(4, seed=5))  # these rows are not all that it knows
    for gone in (rowless, later, make("ensemble", keep_data=False).fit(*data(6)).update(*data(4, seed=5))):
        with pytest.raises(InvalidOptionError, match="training rows"):
            seqbdl.prior_from(gone, temper=0.5)
    fresh_again = seqbdl.prior_from(make("ensemble").fit(*data(6)), temper=0.0).update(*data(4, seed=5))
    assert seqbdl.prior_from(fresh_again, temper=0.5).num_rows == 0


@pytest.mark.parametrize("known", [False, True])
def test_a_last_layer_without_rows_mixes_natural_parameters(known: bool, tmp_path: Path) -> None:
    """The features stay, and the tempered head is what rows that count for less would have made of its prior."""
    X, Y = data(14)
    noise = torch.full_like(Y, 0.04) if known else None
    old: Any = make("bayesian-last-layer", prior_precision=0.5).fit(X, Y, noise)
    stream: Any = seqbdl.prior_from(old)
    seqbdl.save(tmp_path / "stream", stream)
    stream = seqbdl.load(tmp_path / "stream")
    half: Any = seqbdl.prior_from(stream, temper=0.5)
    features, outcomes = old._features(old._scaling.inputs(X)), old._scaling.outcomes(Y)
    relative = old._relative(outcomes, old._scaling.variances(noise)) if known else old._relative(outcomes, None)
    expected = last_layer.absorb(old._prior_head, features, outcomes, 2 * relative)
    torch.testing.assert_close(half._head.mean, expected.mean, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(half._head.factor, expected.factor, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(half._head.b, expected.b, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(half._head.a, old._prior_head.a + 0.25 * 14)
    nothing: Any = seqbdl.prior_from(stream, temper=0.0)
    torch.testing.assert_close(nothing._head.b, old._prior_head.b)
    torch.testing.assert_close(nothing._head.mean, torch.zeros_like(nothing._head.mean))
