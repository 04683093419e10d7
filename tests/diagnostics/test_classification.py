"""Scores of class probabilities against scikit-learn, definitions and closed forms."""

from __future__ import annotations

import math

import pytest
import sklearn.metrics
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seqbdl.diagnostics import (
    ReliabilityCurve,
    accuracy,
    brier_score,
    entropy,
    expected_calibration_error,
    log_loss,
    ood_auroc,
    plot_reliability,
    predictive_log_probs,
    reliability_curve,
    uncertainty_split,
)
from seqbdl.errors import InvalidDataError, InvalidOptionError, ShapeError


def log_probs(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(*shape, generator=generator, dtype=torch.float64)).log_softmax(-1)


def labels(n: int, classes: int, seed: int = 1) -> Tensor:
    return torch.randint(classes, (n,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("classes", [2, 4])
def test_scores_are_those_of_scikit_learn(classes: int) -> None:
    logs, y = log_probs(60, classes), labels(60, classes)
    probs = logs.exp()
    every = list(range(classes))
    assert log_loss(logs, y) == pytest.approx(sklearn.metrics.log_loss(y.numpy(), probs.numpy(), labels=every))
    assert accuracy(probs, y) == pytest.approx(sklearn.metrics.accuracy_score(y.numpy(), probs.argmax(-1).numpy()))
    expected = sklearn.metrics.brier_score_loss(y.numpy(), probs.numpy(), labels=every, scale_by_half=False)
    assert brier_score(probs, y) == pytest.approx(expected)


def test_batches_and_single_precision_are_taken() -> None:
    logs, y = log_probs(3, 5, 4), labels(15, 4).reshape(3, 5)
    flat, flat_y = logs.flatten(0, 1), y.flatten()
    assert log_loss(logs, y) == pytest.approx(log_loss(flat, flat_y))
    assert brier_score(logs.exp(), y) == pytest.approx(brier_score(flat.exp(), flat_y))
    assert accuracy(logs.exp(), y.double()) == accuracy(flat.exp(), flat_y.int())
    assert log_loss(logs.float(), y) == pytest.approx(log_loss(logs, y), rel=1e-6)
    assert expected_calibration_error(logs.exp(), y) == expected_calibration_error(flat.exp(), flat_y)


def test_a_label_that_was_ruled_out_costs_everything() -> None:
    logs = torch.tensor([[0.0, -torch.inf], [math.log(0.5), math.log(0.5)]], dtype=torch.float64)
    assert log_loss(logs, torch.tensor([1, 0])) == math.inf
    assert log_loss(logs, torch.tensor([0, 0])) == pytest.approx(0.5 * math.log(2))
    assert entropy(logs).tolist() == pytest.approx([0.0, math.log(2)])


def test_calibration_error_of_a_worked_example() -> None:
    """Confidences .6, .6, .9, .9 of which one, one, both are right: gaps .1 and .1 in bins of two rows each."""
    confidence = torch.tensor([0.6, 0.6, 0.9, 0.9], dtype=torch.float64)
    probs = torch.stack([1 - confidence, confidence], -1)
    y = torch.tensor([1, 0, 1, 1])
    for binning in ("equal-width", "equal-mass"):
        curve = reliability_curve(probs, y, num_bins=2 if binning == "equal-mass" else 10, binning=binning)
        assert curve.confidence.tolist() == pytest.approx([0.6, 0.9])
        assert curve.accuracy.tolist() == pytest.approx([0.5, 1.0])
        assert curve.count.tolist() == [2, 2]
        assert curve.expected_calibration_error == pytest.approx(0.1)
        assert curve.maximum_calibration_error == pytest.approx(0.1)
    # In one bin the gaps cancel: mean confidence .75, accuracy .75.
    assert expected_calibration_error(probs, y, num_bins=1) == pytest.approx(0.0)


def test_bins_of_equal_width_close_on_the_right() -> None:
    confidence = torch.tensor([0.5, 0.50001, 0.75, 1.0], dtype=torch.float64)
    curve = reliability_curve(torch.stack([confidence, 1 - confidence], -1), torch.zeros(4), num_bins=4)
    assert curve.count.tolist() == [1, 2, 1]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 8), st.integers(0, 10_000))
def test_equal_mass_does_not_depend_on_the_order_of_the_rows(n: int, bins: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    confidence = 0.5 + 0.1 * torch.randint(1, 6, (n,), generator=generator).double()  # many ties
    probs, y = torch.stack([confidence, 1 - confidence], -1), labels(n, 2, seed)
    order = torch.randperm(n, generator=generator)
    first = reliability_curve(probs, y, bins, "equal-mass")
    second = reliability_curve(probs[order], y[order], bins, "equal-mass")
    assert torch.equal(first.count, second.count)
    assert first.expected_calibration_error == pytest.approx(second.expected_calibration_error)
    assert int(first.count.sum()) == n


def test_equal_mass_bins_hold_equally_many_different_rows() -> None:
    curve = reliability_curve(log_probs(60, 3).exp(), labels(60, 3), 6, "equal-mass")
    assert curve.count.tolist() == [10] * 6
    assert bool((curve.confidence.diff() > 0).all())


def test_labels_drawn_from_the_predictions_are_calibrated() -> None:
    n, bins = 20_000, 15
    probs = log_probs(n, 3).exp()
    y = torch.multinomial(probs, 1, generator=torch.Generator().manual_seed(2)).squeeze(-1)
    for binning in ("equal-width", "equal-mass"):
        # Each bin's gap has standard deviation at most 0.5 / sqrt(rows), a mean distance of 0.8 times that; so the sum
        # over bins is at most 0.4 sqrt(bins / n) on average, and its standard deviation is smaller than that.
        assert expected_calibration_error(probs, y, bins, binning) < 3 * 0.4 * math.sqrt(bins / n)
        assert expected_calibration_error((2 * probs.log()).softmax(-1), y, bins, binning) > 0.05


def test_entropies_add_up_and_have_closed_forms() -> None:
    p = torch.tensor([[0.9, 0.1], [0.2, 0.8]], dtype=torch.float64).unsqueeze(1)  # two draws, one row
    split = uncertainty_split(p.log())
    mean = [0.55, 0.45]
    total = -sum(q * math.log(q) for q in mean)
    aleatoric = -0.5 * sum(q * math.log(q) for q in (0.9, 0.1, 0.2, 0.8))
    assert float(split.total) == pytest.approx(total)
    assert float(split.aleatoric) == pytest.approx(aleatoric)
    assert float(split.epistemic) == pytest.approx(total - aleatoric)
    assert predictive_log_probs(p.log()).exp().flatten().tolist() == pytest.approx(mean)


def test_draws_that_agree_leave_no_epistemic_part_and_certain_ones_only_that() -> None:
    same = log_probs(1, 5, 3).expand(7, 5, 3)
    split = uncertainty_split(same)
    assert torch.allclose(split.epistemic, torch.zeros(5, dtype=torch.float64), atol=1e-15)
    assert torch.allclose(split.total, entropy(same[0]))
    certain = torch.eye(3, dtype=torch.float64).log().unsqueeze(1)  # each draw is sure of another class
    split = uncertainty_split(certain)
    assert float(split.aleatoric) == 0.0
    assert float(split.epistemic) == pytest.approx(math.log(3))


def test_weights_count_draws_several_times() -> None:
    logs = log_probs(3, 4, 2)
    weights = torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64).log() + 5.0
    repeated = logs[[0, 0, 1, 2]]
    assert torch.allclose(predictive_log_probs(logs, weights), predictive_log_probs(repeated))
    one, other = uncertainty_split(logs, weights), uncertainty_split(repeated)
    assert torch.allclose(one.total, other.total)
    assert torch.allclose(one.epistemic, other.epistemic)
    assert bool((one.epistemic >= 0).all())


def test_auroc_is_the_share_of_ordered_pairs() -> None:
    inside = torch.tensor([0.1, 0.4, 0.4])
    outside = torch.tensor([0.4, 0.9])
    pairs = (outside.unsqueeze(1) > inside).double() + 0.5 * (outside.unsqueeze(1) == inside).double()
    assert ood_auroc(inside, outside) == pytest.approx(float(pairs.mean()))
    assert ood_auroc(inside, inside + 1) == 1.0


def test_a_reliability_plot_has_every_bin() -> None:
    curve = reliability_curve(log_probs(50, 3).exp(), labels(50, 3))
    assert isinstance(curve, ReliabilityCurve)
    ax = plot_reliability(curve, label="random")
    assert len(ax.lines[1].get_xdata()) == len(curve.count)
    assert "equal-width" in ax.get_title()
    assert plot_reliability(curve, ax) is ax


def test_bad_input_is_named() -> None:
    probs, y = log_probs(4, 3).exp(), labels(4, 3)
    with pytest.raises(InvalidDataError, match=r"probs sums to 1.5.*row 2"):
        brier_score(torch.where(torch.arange(4).unsqueeze(1) == 2, 1.5 * probs, probs), y)
    with pytest.raises(InvalidDataError, match=r"negative in row 0.*exp"):
        accuracy(probs.log(), y)
    with pytest.raises(InvalidDataError, match=r"exp\(log_probs\) sums to"):
        log_loss(probs, y)
    with pytest.raises(InvalidDataError, match=r"log_probs has NaN.*row 1"):
        log_loss(torch.where(torch.arange(4).unsqueeze(1) == 1, torch.nan, probs.log()), y)
    with pytest.raises(InvalidDataError, match="probs has 3 NaN"):
        accuracy(torch.where(torch.arange(4).unsqueeze(1) == 1, torch.nan, probs), y)
    with pytest.raises(InvalidDataError, match=r"labels is 3 in row 2; the 3 classes"):
        accuracy(probs, torch.tensor([0, 1, 3, 2]))
    with pytest.raises(InvalidDataError, match="not a whole number in row 1"):
        accuracy(probs, torch.tensor([0, 0.5, 1, 2]))
    with pytest.raises(InvalidDataError, match="bool"):
        accuracy(probs, torch.ones(4, dtype=torch.bool))
    with pytest.raises(ShapeError, match=r"labels has shape \(4, 1\).*\(4,\)"):
        accuracy(probs, y.unsqueeze(-1))
    with pytest.raises(ShapeError, match="labels is a list"):
        accuracy(probs, [0, 1, 2, 0])  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="column"):
        brier_score(torch.ones(4, 1), torch.zeros(4))
    with pytest.raises(InvalidOptionError, match="equal-width, equal-mass"):
        reliability_curve(probs, y, binning="quantile")
    with pytest.raises(InvalidOptionError, match="num_bins=0"):
        reliability_curve(probs, y, num_bins=0)
    with pytest.raises(ShapeError, match="n draws"):
        uncertainty_split(probs.log())
    with pytest.raises(ShapeError, match="log_weights has shape"):
        predictive_log_probs(log_probs(3, 4, 2), torch.zeros(2))
    with pytest.raises(InvalidDataError, match="log_weights has NaN"):
        predictive_log_probs(log_probs(3, 4, 2), torch.full((3,), -torch.inf))
    with pytest.raises(InvalidDataError, match="scores_out has 1 NaN"):
        ood_auroc(torch.zeros(2), torch.tensor([0.0, math.nan]))
    with pytest.raises(ShapeError, match="scores_in is empty"):
        ood_auroc(torch.zeros(0), torch.zeros(1))
