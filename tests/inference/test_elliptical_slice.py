"""Elliptical slices against posteriors in closed form."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from seqbdl.errors import InvalidDataError, InvalidOptionError, ShapeError
from seqbdl.inference.elliptical_slice import SliceSettings, elliptical_slice

C = 1000
ONE_DRAW = SliceSettings(warmup=30, samples=1)  # one draw of every chain: independent draws


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("full", [False, True])
def test_gaussian_times_gaussian(full: bool, linear: SimpleNamespace) -> None:
    r, n = 3, 4
    A, y, mean = linear.normals(n, r, seed=1), linear.normals(n, seed=2), linear.normals(r, seed=3)
    variance = torch.tensor([0.2, 0.5, 1.0, 0.1], dtype=torch.float64)
    root = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    if full:
        root = root[:, None] * linear.normals(r, r, seed=4)
    prior = root @ root.T if full else torch.diag(root.square())
    precision = torch.linalg.inv(prior) + A.T @ (A / variance[:, None])
    covariance = torch.linalg.inv(precision)
    expected = covariance @ (A.T @ (y / variance) + torch.linalg.solve(prior, mean))

    def log_likelihood(z: Tensor, chains: Tensor) -> Tensor:
        return -0.5 * ((y - z @ A.T).square() / variance).sum(-1)

    start = linear.normals(C, r)
    result = elliptical_slice(log_likelihood, start, mean, root, generator(), ONE_DRAW)
    assert result.draws.shape == (1, C, r)
    linear.assert_samples(result.draws[0], expected, covariance)
    torch.testing.assert_close(result.log_likelihood[0], log_likelihood(result.draws[0], torch.arange(C)))
    assert result.evaluations >= C * 31


def test_successive_draws_of_a_chain_have_the_same_law(linear: SimpleNamespace) -> None:
    """Kept draws, thinned or not, are all from the target once a chain is."""
    settings = SliceSettings(warmup=30, samples=4, thin=2)
    result = elliptical_slice(
        lambda z, chains: -2.0 * z[:, 0].square(),
        linear.normals(C, 1),
        torch.zeros(1).double(),
        torch.ones(1).double(),
        generator(),
        settings,
    )
    for draws in result.draws:
        linear.assert_samples(draws, torch.zeros(1).double(), torch.tensor([[0.2]]).double())
    assert float((result.draws[0] - result.draws[1]).abs().min()) > 0


def test_every_chain_may_have_its_own_target(linear: SimpleNamespace) -> None:
    centres = torch.tensor([-2.0, 3.0], dtype=torch.float64).repeat(C // 2)

    def log_likelihood(z: Tensor, chains: Tensor) -> Tensor:
        return -0.5 * (z[:, 0] - centres[chains]).square()

    ones = torch.ones(1, dtype=torch.float64)
    result = elliptical_slice(log_likelihood, linear.normals(C, 1), 0 * ones, ones, generator(), ONE_DRAW)
    half = torch.tensor([[0.5]], dtype=torch.float64)
    for first in range(2):
        linear.assert_samples(result.draws[0, first::2], centres[first : first + 1] / 2, half)


def test_impossible_regions_are_never_entered(linear: SimpleNamespace) -> None:
    """A normal cut off at zero has mean ``sqrt(2 / pi)``; NaN counts as impossible too."""

    def log_likelihood(z: Tensor, chains: Tensor) -> Tensor:
        return torch.where(z[:, 0] > 0, 0.0 * z[:, 0], torch.full_like(z[:, 0], torch.nan))

    ones = torch.ones(1, dtype=torch.float64)
    start = linear.normals(C, 1).abs() + 0.1
    draws = elliptical_slice(log_likelihood, start, 0 * ones, ones, generator(), ONE_DRAW).draws[0]
    assert bool((draws > 0).all())
    linear.assert_samples(draws, torch.tensor([math.sqrt(2 / math.pi)]).double(), torch.tensor([[1 - 2 / math.pi]]).double())


def test_same_seed_same_draws_and_the_global_generator_is_left_alone(linear: SimpleNamespace) -> None:
    ones, start, state = torch.ones(2, dtype=torch.float64), linear.normals(5, 2), torch.get_rng_state()
    settings = SliceSettings(warmup=3, samples=4)
    a, b = (
        elliptical_slice(lambda z, chains: -z.square().sum(-1), start, 0 * ones, ones, generator(4), settings) for _ in range(2)
    )
    assert torch.equal(a.draws, b.draws)
    assert torch.equal(state, torch.get_rng_state())


def test_what_cannot_be_sampled_is_refused(linear: SimpleNamespace) -> None:
    ones, start = torch.ones(2, dtype=torch.float64), linear.normals(3, 2)
    with pytest.raises(ShapeError, match="root"):
        elliptical_slice(lambda z, chains: z[:, 0], start, ones, torch.ones(3).double(), generator())
    with pytest.raises(InvalidDataError, match=r"row 1 .*finite"):
        elliptical_slice(lambda z, chains: torch.where(chains == 1, -torch.inf, 0.0), start, ones, ones, generator())
    level = iter(range(0, -1000, -1))  # every call answers less than the one before
    with pytest.raises(InvalidDataError, match="deterministic"):
        elliptical_slice(
            lambda z, chains: torch.full((z.shape[0],), 100.0 * next(level)).double(), start, ones, ones, generator()
        )
    with pytest.raises(InvalidOptionError, match="thin"):
        SliceSettings(thin=0)
