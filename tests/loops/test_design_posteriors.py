"""Grids and particles against posteriors in closed form, and against each other."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from seqbdl.envs.design_models import DeathProcess, LinearGaussian, LocationFinding
from seqbdl.errors import InvalidDataError, InvalidOptionError, ShapeError, StateError
from seqbdl.loops.design_posteriors import GridPosterior, ParticlePosterior, moments, posterior_from_tree, quantiles


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def absorbed(
    posterior: GridPosterior | ParticlePosterior, model: object, designs: Tensor, outcomes: Tensor
) -> GridPosterior | ParticlePosterior:
    generator = rng(9)
    for t in range(1, len(designs) + 1):
        posterior = posterior.update(model, designs[:t], outcomes[:t], generator)  # type: ignore[arg-type]
    return posterior


def linear_data() -> tuple[LinearGaussian, Tensor, Tensor]:
    model = LinearGaussian(dim=2, scale=1.0, noise=0.05)  # a posterior 20 times narrower than the prior
    designs = torch.tensor([[1.0, 0.2], [-0.3, 1.0], [0.5, -1.0], [1.0, 1.0]], dtype=torch.float64)
    theta = torch.tensor([0.7, -1.1], dtype=torch.float64)
    return model, designs, model.simulate(theta, designs, rng(4))


def test_moved_particles_have_the_posterior_of_a_linear_model() -> None:
    model, designs, outcomes = linear_data()
    posterior = absorbed(ParticlePosterior.from_prior(model, 4096, rng()), model, designs, outcomes)
    mean, covariance = model.posterior(designs, outcomes)
    theta, weights = posterior.weighted()
    found, sd = moments(posterior)
    exact_sd = covariance.diagonal().sqrt()
    # Particles depend on each other through resampling: half of the nominal number at least is effective.
    error = exact_sd / math.sqrt(posterior.effective / 2)
    assert bool(((found - mean).abs() < 4 * error).all())
    assert bool(((sd / exact_sd - 1).abs() < 0.1).all())
    centred = theta - found
    correlation = float(((weights.unsqueeze(-1) * centred).mT @ centred)[0, 1] / sd.prod())
    assert correlation == pytest.approx(float(covariance[0, 1] / exact_sd.prod()), abs=0.1)
    assert isinstance(posterior, ParticlePosterior)
    assert 0.05 < posterior.acceptance < 0.95


def test_a_grid_is_exact() -> None:
    model = LinearGaussian(dim=1, scale=1.0, noise=0.5)
    designs = torch.tensor([[1.0], [0.5]], dtype=torch.float64)
    outcomes = torch.tensor([[0.8], [-0.1]], dtype=torch.float64)
    grid = GridPosterior.from_axes(model, [torch.linspace(-6, 6, 4001, dtype=torch.float64)])
    posterior = absorbed(grid, model, designs, outcomes)
    mean, covariance = model.posterior(designs, outcomes)
    found, sd = moments(posterior)
    assert float(found) == pytest.approx(float(mean), abs=1e-6)
    assert float(sd) == pytest.approx(float(covariance) ** 0.5, abs=1e-6)
    variance = float(covariance)
    assert isinstance(posterior, GridPosterior)
    truth = 0.5 * (variance + float(mean) ** 2 - 1 - math.log(variance))
    assert posterior.divergence() == pytest.approx(truth, abs=1e-6)
    low, high = quantiles(posterior, (0.025, 0.975)).squeeze(-1).tolist()
    assert (high - low) / (2 * 1.96 * variance**0.5) == pytest.approx(1.0, abs=0.01)


def test_uneven_axes_weigh_their_cells() -> None:
    model = DeathProcess()
    even = GridPosterior.from_axes(model, [torch.linspace(0.001, 8, 4000, dtype=torch.float64)])
    uneven = GridPosterior.from_axes(model, [torch.logspace(-3, math.log10(8), 4000, dtype=torch.float64)])
    for one, other in zip(moments(even), moments(uneven), strict=True):
        assert float(one) == pytest.approx(float(other), abs=1e-4)


def test_grid_particles_and_importance_agree_on_the_death_process() -> None:
    model = DeathProcess()
    designs = torch.tensor([[1.2], [2.0], [1.8]], dtype=torch.float64)
    outcomes = torch.tensor([[30.0], [41.0], [37.0]], dtype=torch.float64)
    grid = GridPosterior.from_axes(model, [torch.linspace(0.001, 8, 4000, dtype=torch.float64)])
    exact = moments(absorbed(grid, model, designs, outcomes))
    others = [ParticlePosterior.from_prior(model, 4096, rng(1)), GridPosterior.from_draws(model.sample(50_000, rng(2)))]
    for other in others:
        posterior = absorbed(other, model, designs, outcomes)
        mean, sd = moments(posterior)
        error = float(exact[1]) / math.sqrt(posterior.effective / 2)
        assert float(mean) == pytest.approx(float(exact[0]), abs=4 * error)
        assert float(sd) == pytest.approx(float(exact[1]), rel=0.1)


def test_four_looks_at_the_death_process_tell_what_was_published() -> None:
    """Static designs, T = 4: 2.023 +- 0.007 nats (A. Foster et al., "Deep adaptive design", 2021); here all at 1.2."""
    model, runs = DeathProcess(), 1000
    design = torch.full((4, 1), 1.2, dtype=torch.float64)
    prior = GridPosterior.from_axes(model, [torch.linspace(0.001, 8, 400, dtype=torch.float64)])
    gained = []
    for theta in model.sample(runs, rng(5)):
        outcomes = model.simulate(theta, design, rng(len(gained)))
        posterior = absorbed(prior, model, design, outcomes)
        assert isinstance(posterior, GridPosterior)
        gained.append(posterior.divergence())
    values = torch.tensor(gained)
    error = float(values.std()) / math.sqrt(runs)
    # The published designs are optimized, these are rounded: they tell 0.01 less at most.
    assert float(values.mean()) == pytest.approx(2.02, abs=4 * math.hypot(error, 0.007) + 0.01)


def test_particles_keep_both_labellings_of_two_sources() -> None:
    model = LocationFinding()
    truth = torch.tensor([1.0, 1.0, -1.0, -0.5], dtype=torch.float64)
    designs = torch.tensor([[1.1, 0.9], [0.8, 1.1], [-1.0, -0.3], [-1.2, -0.6], [0.0, 1.5], [0.0, -1.5]], dtype=torch.float64)
    outcomes = model.simulate(truth, designs, rng(3))
    posterior = absorbed(ParticlePosterior.from_prior(model, 4096, rng()), model, designs, outcomes)
    theta, weights = posterior.weighted()
    first = float(weights[theta[:, 0] > theta[:, 2]].sum())
    # By symmetry one half. Resampling lets the share of a mode drift: the bar is wide, but none may die out.
    assert 0.25 < first < 0.75
    ordered = torch.where((theta[:, 0] > theta[:, 2]).unsqueeze(-1), theta, theta[:, [2, 3, 0, 1]])
    assert bool(((weights @ ordered - truth).abs() < 0.5).all())


def test_updates_are_pure_and_reproducible() -> None:
    model, designs, outcomes = linear_data()
    prior = ParticlePosterior.from_prior(model, 256, rng())
    before = prior.theta.clone()
    one, two = (absorbed(prior, model, designs, outcomes) for _ in range(2))
    assert torch.equal(prior.theta, before)
    assert torch.equal(one.theta, two.theta)
    for posterior in (one, GridPosterior.from_draws(before)):
        again = posterior_from_tree(posterior.to_tree())
        assert type(again) is type(posterior)
        assert torch.equal(again.sample(5, rng(1)), posterior.sample(5, rng(1)))
    with pytest.raises(StateError, match="no posterior"):
        posterior_from_tree({"kind": "grid"})


class NoDensity:
    """A model without a prior density."""

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return torch.randn(n, 1, generator=generator, dtype=torch.float64)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InvalidOptionError, match="log_prior"):
        ParticlePosterior.from_prior(NoDensity(), 10, rng())  # type: ignore[arg-type]
    with pytest.raises(InvalidOptionError, match="log_prior"):
        GridPosterior.from_axes(NoDensity(), [torch.arange(3.0)])  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="increasing"):
        GridPosterior.from_axes(DeathProcess(), [torch.tensor([1.0, 1.0])])
    with pytest.raises(InvalidOptionError, match="move the grid"):
        GridPosterior.from_axes(DeathProcess(), [torch.tensor([-2.0, -1.0])])
    grid = GridPosterior.from_axes(DeathProcess(), [torch.linspace(0.1, 3, 10)])
    with pytest.raises(InvalidDataError, match="impossible under every parameter"):
        grid.update(DeathProcess(), torch.tensor([[1.0]]), torch.tensor([[0.5]]))
