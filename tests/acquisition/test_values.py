"""Acquisition values against closed forms and brute force, not only that they run."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from seqbdl.acquisition import DrawEntropySearch, make_acquisition, optimal_samples
from seqbdl.acquisition.context import observed_inputs
from seqbdl.surrogates import Surrogate, make_surrogate

NOISE = 0.01
LINE = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
GRID = torch.linspace(0, 1, 61, dtype=torch.float64).unsqueeze(-1)
PLACES = list(range(0, 61, 6))


def line_surrogate(name: str) -> Surrogate:
    X = torch.tensor([[0.1], [0.35], [0.9]], dtype=torch.float64)
    Y = torch.tensor([[0.0], [0.8], [0.2]], dtype=torch.float64)
    return make_surrogate(name, 1, bounds=LINE, noise=NOISE, seed=2).fit(X, Y)


@pytest.fixture(scope="module")
def gaussian() -> Surrogate:
    return line_surrogate("gp")


@pytest.fixture(scope="module")
def particles() -> Surrogate:
    return line_surrogate("ensemble")


def value(surrogate: Surrogate, name: str, X: Tensor, **options: Any) -> Tensor:
    with torch.no_grad():
        return make_acquisition(name, surrogate, bounds=LINE, seed=1, **options)(X)


def information(y: Tensor, key: Tensor, cells: int = 30) -> float:
    """Plug-in mutual information of two samples on quantile cells, with the Miller-Madow correction, in nats."""
    n = y.shape[0]
    a = (key.argsort().argsort() * cells) // n
    b = (y.argsort().argsort() * cells) // n
    joint = torch.bincount(a * cells + b, minlength=cells * cells).double()

    def entropy(counts: Tensor) -> Tensor:
        share = counts[counts > 0] / n
        return -(share * share.log()).sum() + (share.numel() - 1) / (2 * n)

    table = joint.view(cells, cells)
    return float(entropy(table.sum(0)) + entropy(table.sum(1)) - entropy(joint))


@pytest.fixture(scope="module")
def grid_functions(gaussian: Surrogate) -> Tensor:
    """100,000 joint draws of the Gaussian posterior on the grid, exact, ``n x 61``."""
    posterior: Any = gaussian.posterior(GRID)
    covariance = posterior.distribution.covariance_matrix.detach() + 1e-8 * torch.eye(61, dtype=torch.float64)
    white = torch.randn(61, 100_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (posterior.mean.detach() + torch.linalg.cholesky(covariance) @ white).T


@pytest.fixture(scope="module")
def exact_max_information(grid_functions: Tensor) -> Tensor:
    """I(y(x); max f) by brute force."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(grid_functions.shape, generator=generator, dtype=torch.float64) * math.sqrt(NOISE)
    maxima = grid_functions.amax(dim=-1)
    return torch.tensor([information(grid_functions[:, i] + noise[:, i], maxima) for i in PLACES], dtype=torch.float64)


class GridDraws:
    """Function draws known on the grid only."""

    def __init__(self, functions: Tensor) -> None:
        self.functions = functions

    def __call__(self, X: Tensor) -> Tensor:
        return self.functions[:, (X[..., 0] * 60).round().long()].unsqueeze(-1)

    def __len__(self) -> int:
        return self.functions.shape[0]


def test_draw_entropy_search_is_the_information_about_the_maximum(
    gaussian: Surrogate, grid_functions: Tensor, exact_max_information: Tensor
) -> None:
    functions = grid_functions[:2000]
    noise = torch.tensor(NOISE, dtype=torch.float64)
    acqf = DrawEntropySearch(gaussian, GridDraws(functions), functions.amax(dim=-1), noise, num_groups=16)
    estimate = acqf(GRID[PLACES].unsqueeze(-2))
    assert float((estimate - exact_max_information).abs().max()) < 0.04
    assert float(torch.corrcoef(torch.stack([estimate, exact_max_information]))[0, 1]) > 0.98


def test_draw_entropy_search_subtracts_what_pending_points_tell(gaussian: Surrogate, grid_functions: Tensor) -> None:
    """A second look at the same place tells less; one that is told nothing new about tells as much as before."""
    functions = grid_functions[:2000]
    noise = torch.tensor(NOISE, dtype=torch.float64)
    acqf = DrawEntropySearch(gaussian, GridDraws(functions), functions.amax(dim=-1), noise, num_fantasies=64)
    place = GRID[30].reshape(1, 1, 1)
    alone = float(acqf(place))
    acqf.set_X_pending(GRID[30].reshape(1, 1))
    repeated = float(acqf(place))
    acqf.set_X_pending(GRID[0].reshape(1, 1))
    unrelated = float(acqf(place))
    acqf.set_X_pending(None)
    assert float(acqf(place)) == alone
    assert repeated < 0.6 * alone
    assert unrelated == pytest.approx(alone, rel=0.25)


def test_draw_entropy_search_builds_on_a_surrogates_own_draws(gaussian: Surrogate, exact_max_information: Tensor) -> None:
    X = GRID[PLACES].unsqueeze(-2)
    estimate = value(gaussian, "DrawEntropySearch", X)
    assert float(torch.corrcoef(torch.stack([estimate, exact_max_information]))[0, 1]) > 0.9


@pytest.mark.parametrize("name", ["qMES", "GIBBON"])
def test_max_value_entropy_of_a_gaussian_is_near_the_brute_force_value(
    name: str, gaussian: Surrogate, exact_max_information: Tensor
) -> None:
    """Both replace the conditional by a truncated Gaussian, so they are near, not equal."""
    estimate = value(gaussian, name, GRID[PLACES].unsqueeze(-2), num_optima=128)
    assert float((estimate - exact_max_information).abs().max()) < 0.1
    assert float(torch.corrcoef(torch.stack([estimate, exact_max_information]))[0, 1]) > 0.93


def test_entropy_search_of_particles_is_information_about_which_particle(particles: Surrogate) -> None:
    """Every particle has its own maximum, so I(y; max f) is exactly H[mixture] - H[noise]."""
    X = GRID[PLACES].unsqueeze(-2)
    posterior: Any = particles.posterior(X)
    values = posterior.values[:, :, 0, 0].detach()
    y = torch.linspace(-6, 6, 12001, dtype=torch.float64)

    def entropy(means: Tensor) -> Tensor:
        density = torch.exp(-0.5 * (y.unsqueeze(1) - means).square() / NOISE).mean(1) / math.sqrt(2 * math.pi * NOISE)
        return -(density * density.clamp_min(1e-300).log()).sum() * 1e-3

    exact = torch.stack([entropy(values[:, i]) - entropy(values[:1, i]) for i in range(len(PLACES))])
    ours = value(particles, "qMES", X)
    moment_matched = value(particles, "qMES", X, method="gaussian", num_optima=64)
    # Groups of similar maxima and kernel smoothing only ever lose information; sampling noise adds a little.
    assert bool((ours <= exact + 0.02).all())
    assert bool((ours >= 0.55 * exact - 0.01).all())
    assert float((ours - exact).abs().mean()) < 0.5 * float((moment_matched - exact).abs().mean())


def test_joint_entropy_search_is_its_own_formula_on_the_exact_conditional(gaussian: Surrogate) -> None:
    """qJES through our conditioning equals the lower bound computed by hand from the joint Gaussian."""
    X = GRID[PLACES].unsqueeze(-2)
    observed = observed_inputs(gaussian)
    optima = optimal_samples(gaussian, LINE, 8, torch.Generator().manual_seed(1), start=observed)
    total = torch.zeros(len(PLACES), dtype=torch.float64)
    for place, best in zip(optima.inputs, optima.values, strict=True):
        for k, x in enumerate(X):
            joint: Any = gaussian.posterior(torch.cat([x, place.unsqueeze(0)]))
            mean, covariance = joint.mean[:, 0].detach(), joint.distribution.covariance_matrix.detach()
            gain = covariance[0, 1] / (covariance[1, 1] + 1e-4)
            m = mean[0] + gain * (best - mean[1])
            v = covariance[0, 0] - gain * covariance[0, 1]
            z = (best - m) / v.sqrt()
            ratio = torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi) / torch.special.ndtr(z)
            truncated = v * (1 - ratio * (z + ratio))
            total[k] += 0.5 * torch.log((covariance[0, 0] + NOISE) / (truncated + NOISE)) / 8
    ours = value(gaussian, "qJES", X, num_optima=8)
    assert torch.allclose(ours, total, atol=0.02)


def test_integrated_variance_is_exact_for_gaussians(gaussian: Surrogate) -> None:
    X = GRID[PLACES].unsqueeze(-2)
    acqf: Any = make_acquisition("qNIPV", gaussian, bounds=LINE, num_points=32)
    points = acqf.mc_points
    assert acqf.sampler.sample_shape == torch.Size([1])
    expected = []
    for x in X:
        joint: Any = gaussian.posterior(torch.cat([points, x]))
        covariance = joint.distribution.covariance_matrix.detach()
        left = covariance.diagonal()[:-1] - covariance[:-1, -1].square() / (covariance[-1, -1] + NOISE)
        expected.append(-left.mean())
    assert torch.allclose(acqf(X), torch.stack(expected), atol=1e-5)


def test_integrated_variance_of_particles_averages_over_outcomes(particles: Surrogate) -> None:
    acqf: Any = make_acquisition("qNIPV", particles, bounds=LINE, num_points=16)
    assert acqf.sampler.sample_shape == torch.Size([8])
    before: Any = particles.posterior(acqf.mc_points.unsqueeze(-2))
    gains = acqf(GRID[PLACES].unsqueeze(-2)) + before.variance.mean()
    assert float(gains.max()) > 0


def test_discrete_knowledge_gradient_is_that_of_frazier(gaussian: Surrogate) -> None:
    """E max_i (a_i + b_i Z) - max a, by numerical integration over the standard normal Z."""
    candidates = GRID[::4]
    acqf = make_acquisition("qKG", gaussian, candidates=candidates, num_fantasies=512)
    z = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    weight = torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi) * (z[1] - z[0])
    for x in candidates[::3]:
        joint: Any = gaussian.posterior(torch.cat([candidates, x.unsqueeze(0)]))
        mean, covariance = joint.mean[:, 0].detach(), joint.distribution.covariance_matrix.detach()
        slope = covariance[:, -1] / (covariance[-1, -1] + NOISE).sqrt()
        best = (mean.unsqueeze(-1) + slope.unsqueeze(-1) * z).amax(dim=0)
        expected = (best * weight).sum() - mean.max()
        assert float(acqf(x.reshape(1, 1, 1))) == pytest.approx(float(expected), abs=3e-3)


def test_log_expected_improvement_of_a_batch_of_one_is_the_analytic_one(gaussian: Surrogate) -> None:
    X = GRID[[20, 30, 40]].unsqueeze(-2)
    analytic = value(gaussian, "LogEI", X, best_f=0.5)
    sampled = value(gaussian, "qLogEI", X, best_f=0.5, mc_samples=4096)
    assert torch.allclose(analytic, sampled, atol=0.02)


def test_noisy_improvement_prunes_nothing_of_importance(gaussian: Surrogate) -> None:
    X = GRID[[20, 30, 40]].unsqueeze(-2)
    pruned = value(gaussian, "qLogNEI", X, mc_samples=2048)
    full = value(gaussian, "qLogNEI", X, mc_samples=2048, prune_baseline=False)
    assert torch.allclose(pruned, full, atol=0.05)


def test_optimal_samples_are_the_maxima_of_function_draws(gaussian: Surrogate) -> None:
    optima = optimal_samples(gaussian, LINE, 6, torch.Generator().manual_seed(4))
    draws = gaussian.sample_functions(6, torch.Generator().manual_seed(4))
    fine = torch.linspace(0, 1, 1001, dtype=torch.float64).unsqueeze(-1)
    best = draws(fine)[..., 0].amax(dim=-1)
    assert torch.allclose(optima.values, best, atol=1e-3)
    assert bool((optima.values >= best - 1e-5).all())
    own = torch.stack([draws(x.unsqueeze(0))[i, 0, 0] for i, x in enumerate(optima.inputs)])
    assert torch.allclose(own, optima.values, atol=1e-6)
    pool = optimal_samples(gaussian, LINE, 6, torch.Generator().manual_seed(4), candidates=fine)
    assert torch.allclose(pool.values, best)
