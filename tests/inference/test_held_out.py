"""Folds, densities of held-out rows, and the choice by them."""

from __future__ import annotations

import pytest
import torch

from seqbdl.inference.held_out import HELD_OUT_ROWS, first_good, folds, mixture_log_density
from seqbdl.likelihoods import get_likelihood


@pytest.mark.parametrize("n", [2, 3, 7, 25, 60, 130, 1000])
def test_folds_are_disjoint_and_hold_out_enough(n: int) -> None:
    pairs = folds(n, torch.Generator().manual_seed(0))
    held = torch.cat([h for _, h in pairs])
    assert held.unique().shape[0] == held.shape[0] >= min(HELD_OUT_ROWS, max(2, n // 2))
    for train, out in pairs:
        assert sorted(torch.cat([train, out]).tolist()) == list(range(n))
        assert train.shape[0] >= 1
    assert len(pairs) == (1 if n == 1000 else len(pairs)) <= 10


def test_one_row_cannot_be_held_out() -> None:
    assert folds(1, torch.Generator().manual_seed(0)) == []


def test_the_density_is_that_of_the_mixture() -> None:
    f = torch.tensor([[[0.0], [1.0]], [[2.0], [1.5]], [[-1.0], [0.3]]], dtype=torch.float64)  # 3 functions, 2 rows
    Y, noise = torch.tensor([[0.4], [1.1]], dtype=torch.float64), torch.tensor([[0.3], [0.5]], dtype=torch.float64)
    density = torch.distributions.Normal(f, noise.sqrt()).log_prob(Y).exp().mean(0).log().squeeze(-1)
    torch.testing.assert_close(mixture_log_density(get_likelihood("gaussian"), f, Y, noise), density)
    wild = torch.full((1, 2, 1, 1), 1e4, dtype=torch.float64)  # exp overflows: a count there is impossible
    counts = torch.ones(1, 1, dtype=torch.float64)
    assert bool((mixture_log_density(get_likelihood("poisson"), wild, counts, noise[:1]) == -torch.inf).all())


def test_one_surprising_row_does_not_decide() -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(40, generator=generator, dtype=torch.float64)
    outlier = torch.zeros(40, dtype=torch.float64)
    outlier[3] = 3.0
    assert first_good(torch.stack([base, base + outlier - 0.05])) == 0  # better in sum, but by one row
    assert first_good(torch.stack([base, base + 0.05])) == 1  # a little better everywhere
    assert first_good(torch.stack([base, base - 0.1])) == 0
    impossible = base.clone()
    impossible[0] = -torch.inf
    assert first_good(torch.stack([impossible, base])) == 1
