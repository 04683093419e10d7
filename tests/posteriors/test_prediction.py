"""What a person reads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from seqbdl.posteriors import FunctionDraws, Prediction


def normal_prediction() -> Prediction:
    mean, std = torch.tensor([[1.0], [2.0]]).double(), torch.tensor([[0.5], [2.0]]).double()

    def quantile(p: Tensor) -> Tensor:
        return mean + std * torch.special.ndtri(p)

    return Prediction(mean, std, std / 2, std * 0.75**0.5, quantile)


def test_intervals_are_central() -> None:
    prediction = normal_prediction()
    low, high = prediction.interval(0.9)
    torch.testing.assert_close((high - prediction.mean) / prediction.std, torch.full((2, 1), 1.6448536).double())
    torch.testing.assert_close(low + high, 2 * prediction.mean)


@pytest.mark.parametrize("p", [0.0, 1.0, -0.1, 2.0, float("nan")])
def test_levels_are_probabilities(p: float) -> None:
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        normal_prediction().quantile(p)


def test_function_draws_say_what_they_are() -> None:
    draws = FunctionDraws(lambda X: X.sum(-1, keepdim=True).expand(3, *X.shape[:-1], 1), 3, 1)
    assert len(draws) == 3
    assert "num_draws=3" in repr(draws)
    assert draws(torch.ones(2, 4, 5)).shape == (3, 2, 4, 1)
