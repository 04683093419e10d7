"""Private randomness."""

from __future__ import annotations

import pytest
import torch

from seqbdl.acquisition._random import draw_seed, isolated_rng, multinomial, sobol_points


def test_isolated_rng_restores_the_global_state_also_after_errors() -> None:
    before = torch.random.get_rng_state()
    with isolated_rng(3):
        first = torch.rand(2)
    seen = []

    def fail() -> None:
        with isolated_rng(3):
            seen.append(torch.rand(2))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert torch.equal(first, seen[0])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_seeds_come_from_the_generator_and_move_it_on() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = draw_seed(generator), draw_seed(generator)
    assert first != second
    assert draw_seed(torch.Generator().manual_seed(0)) == first
    assert draw_seed(None) == 0


def test_sobol_points_fill_the_box_evenly_also_in_very_many_dimensions() -> None:
    bounds = torch.tensor([[-1.0, 5.0], [1.0, 6.0]], dtype=torch.float64)
    points = sobol_points(bounds, 64, seed=1, q=3)
    assert points.shape == (64, 3, 2)
    assert points.dtype == torch.float64
    assert bool(((points >= bounds[0]) & (points <= bounds[1])).all())
    counts = torch.histc(points[:, 0, 0], bins=8, min=-1, max=1)
    assert bool((counts == 8).all())
    wide = sobol_points(bounds.repeat(1, 6000), 2, seed=1, q=2)
    assert wide.shape == (2, 2, 12000)


def test_multinomial_takes_the_heaviest_when_few_weights_are_positive() -> None:
    weights = torch.tensor([0.0, 3.0, 0.0, 1.0], dtype=torch.float64)
    assert sorted(multinomial(weights, 2, None).tolist()) == [1, 3]
    assert multinomial(weights, 1, torch.Generator().manual_seed(0)).tolist()[0] in (1, 3)
