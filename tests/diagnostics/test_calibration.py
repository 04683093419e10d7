"""Recalibration against closed forms, a grid, and a generic optimizer."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from seqbdl.diagnostics import fit_spread, fit_temperature, log_loss, nlpd
from seqbdl.errors import InvalidDataError, ShapeError


def problem(n: int, classes: int, temperature: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and labels drawn from ``softmax(logits / temperature)``."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, classes, generator=generator, dtype=torch.float64)
    labels = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator).squeeze(-1)
    return logits, labels


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 5), st.floats(0.3, 3.0), st.floats(0.01, 100.0), st.integers(0, 1000))
def test_temperature_minimizes_the_log_loss(classes: int, temperature: float, units: float, seed: int) -> None:
    logits, labels = problem(200, classes, temperature, seed)
    logits = logits * units
    found = fit_temperature(logits, labels)

    def loss(log_temperature: float) -> float:
        return log_loss((logits / math.exp(log_temperature)).log_softmax(-1), labels)

    best = minimize_scalar(loss, bounds=(math.log(units) - 4, math.log(units) + 4), method="bounded")
    assert loss(math.log(found.temperature)) <= best.fun + 1e-9
    assert log_loss(found.log_probs(logits), labels) == pytest.approx(loss(math.log(found.temperature)))
    # At the minimum the mean logit under the calibrated prediction is the labels' mean logit.
    p = found.log_probs(logits).exp()
    gap = (p * logits).sum(-1).mean() - logits.gather(1, labels.unsqueeze(1)).mean()
    assert abs(float(gap)) < 1e-8 * units


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_that_made_the_labels_is_found(temperature: float) -> None:
    n = 20_000
    logits, labels = problem(n, 3, temperature)
    found = fit_temperature(logits, labels).temperature
    # The inverse temperature has Fisher information n times the mean variance of the logits under the true prediction.
    p = (logits / temperature).softmax(-1)
    variance = (p * (logits - (p * logits).sum(-1, keepdim=True)).square()).sum(-1).mean()
    assert abs(1 / found - 1 / temperature) < 4 / math.sqrt(n * float(variance))


def test_two_classes_have_a_closed_form() -> None:
    """With one gap ``g`` and three of four labels on its side, the best ``b`` has ``sigmoid(b g) = 3/4``."""
    logits = torch.tensor([[0.0, 2.0]], dtype=torch.float64).expand(4, 2)
    found = fit_temperature(logits, torch.tensor([1, 1, 0, 1]))
    assert found.temperature == pytest.approx(2.0 / math.log(3.0), rel=1e-10)


def test_temperature_changes_no_guess_and_passes_gradients() -> None:
    logits, labels = problem(100, 4, 2.0)
    scaling = fit_temperature(logits, labels)
    assert torch.equal(scaling.log_probs(logits).argmax(-1), logits.argmax(-1))
    inputs = logits.float().requires_grad_()
    scaling.log_probs(inputs)[0, 0].backward()
    assert inputs.grad is not None
    assert inputs.grad.dtype == torch.float32
    assert float(inputs.grad[0].abs().sum()) > 0


def test_labels_for_which_no_temperature_is_best_are_refused() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    with pytest.raises(InvalidDataError, match="best temperature is 0"):
        fit_temperature(logits, torch.tensor([0, 1]))
    with pytest.raises(InvalidDataError, match="infinite"):
        fit_temperature(logits, torch.tensor([1, 0]))


def test_spread_is_the_closed_form_minimum() -> None:
    generator = torch.Generator().manual_seed(0)
    n, truth = 5000, 1.7
    mean = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    std = 0.1 + torch.rand(n, 2, generator=generator, dtype=torch.float64)
    y = mean + truth * std * torch.randn(n, 2, generator=generator, dtype=torch.float64)
    found = fit_spread(y, mean, std)
    assert found.scale == pytest.approx(truth, rel=4 / math.sqrt(2 * 2 * n))  # relative error of a standard deviation
    best = nlpd(y, mean, found.std(std))
    assert best < nlpd(y, mean, 1.001 * found.std(std))
    assert best < nlpd(y, mean, 0.999 * found.std(std))


def test_bad_input_is_named() -> None:
    logits, labels = problem(5, 3, 1.0)
    with pytest.raises(ShapeError, match="C >= 2"):
        fit_temperature(logits[:, 0], labels)
    with pytest.raises(ShapeError, match="labels has shape"):
        fit_temperature(logits, labels[:4])
    with pytest.raises(InvalidDataError, match="labels is 7"):
        fit_temperature(logits, torch.tensor([0, 1, 2, 7, 0]))
    with pytest.raises(InvalidDataError, match=r"logits has 1 NaN.*row 0"):
        fit_temperature(torch.where(torch.arange(15).reshape(5, 3) == 1, torch.nan, logits), labels)
    y = torch.zeros(3)
    with pytest.raises(ShapeError, match="mean has"):
        fit_spread(y, torch.zeros(2), torch.ones(3))
    with pytest.raises(InvalidDataError, match="std is zero or negative at entry 2"):
        fit_spread(y, y, torch.tensor([1.0, 1.0, 0.0]))
    with pytest.raises(InvalidDataError, match="best spread is 0"):
        fit_spread(y, y, torch.ones(3))
