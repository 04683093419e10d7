"""Residual blocks keep distances within their bounds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqbdl.networks.activations import ACTIVATIONS
from seqbdl.networks.residual import COEFFICIENT, contraction, initial_blocks, residual_features


def test_they_begin_as_the_identity() -> None:
    z = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = initial_blocks(3, (8, 16), torch.Generator().manual_seed(1))
    assert torch.equal(residual_features(weights, z), z)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.01, 100.0), blocks=st.integers(1, 3))
def test_distances_are_stretched_within_bounds(activation: str, seed: int, scale: float, blocks: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = {
        key: scale * torch.randn(value.shape, generator=generator, dtype=torch.float64)
        for key, value in initial_blocks(3, (7,) * blocks, generator).items()
    }
    a, b = torch.randn(2, 40, 3, generator=generator, dtype=torch.float64)
    before = (a - b).norm(dim=-1)
    after = (residual_features(weights, a, activation) - residual_features(weights, b, activation)).norm(dim=-1)
    assert bool((after <= (1 + COEFFICIENT) ** blocks * before * (1 + 1e-9)).all())
    assert bool((after >= (1 - COEFFICIENT) ** blocks * before * (1 - 1e-9)).all())


def test_gradients_of_the_normalization() -> None:
    matrix = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_(True)
    weight = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda W: (weight * contraction(3 * W)).sum(), matrix)
    zero = torch.zeros(4, 3, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad((weight * contraction(zero)).sum(), zero)
    assert torch.equal(gradient, weight)
