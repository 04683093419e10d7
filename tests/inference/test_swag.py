"""SWAG: moments of iterates, the stationary law of the path on quadratics, the Gaussian made of both."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from seqbdl.errors import InvalidOptionError
from seqbdl.inference import swag as module
from seqbdl.inference.gauss_newton import GaussNewtonSettings, minimize
from seqbdl.inference.log_joint import LogJoint
from seqbdl.inference.observations import Labels
from seqbdl.inference.swag import CentredPrior, SwagPosterior, SwagSettings, stationary_rate, swag
from seqbdl.likelihoods import LIKELIHOODS, get_likelihood
from seqbdl.networks import ModuleNetwork
from seqbdl.priors import get_prior


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def joint_of(p: SimpleNamespace, weights: Tensor | None = None) -> LogJoint:
    return LogJoint(p.network, get_likelihood("gaussian"), get_prior("gaussian"), p.X, p.Y, p.variance, weights)


def collect(joint: LogJoint, start: Tensor, settings: SwagSettings, seed: int = 0) -> tuple[SwagPosterior, Tensor]:
    """The posterior, and the iterates it was made of, ``T x M x P``."""
    iterates: list[Tensor] = []
    found = swag(joint, start, settings, generator(seed), lambda count, z: iterates.append(z.clone()))
    return found, torch.stack(iterates)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_moments_are_those_of_the_iterates(offset: float, linear: SimpleNamespace) -> None:
    """Exactly, wherever the path begins: a mean that starts at the first weights, or a difference of squares, would show."""
    p = linear.problem()
    start = p.mean + offset + linear.normals(2, 3)
    joint = LogJoint(p.network, get_likelihood("gaussian"), CentredPrior(start), p.X, p.Y, p.variance)
    settings = SwagSettings(burn_in=3, iterates=9, spacing=2, rank=4, learning_rate=1e-4)
    found, iterates = collect(joint, start, settings)
    assert iterates.shape == (9, 2, 3)
    torch.testing.assert_close(found.mean, iterates.mean(0), rtol=1e-14, atol=0)
    torch.testing.assert_close(found.variance, iterates.var(0), rtol=1e-9, atol=0)
    running = iterates.cumsum(0) / torch.arange(1, 10).double()[:, None, None]
    expected = (iterates - running)[-4:].movedim(0, 1)
    torch.testing.assert_close(found.deviations, expected, rtol=0, atol=1e-12 * (1 + offset))


def test_variances_are_never_negative(linear: SimpleNamespace) -> None:
    """A path that hardly moves, far from zero: the mean of squares minus the square of the mean is negative in places."""
    p = linear.problem()
    start = 1e6 + linear.normals(50, 3)
    joint = LogJoint(p.network, get_likelihood("gaussian"), CentredPrior(start), p.X, p.Y, 1e9 * p.variance)
    found, iterates = collect(joint, start, SwagSettings(burn_in=0, iterates=6, spacing=1, learning_rate=1e-6))
    naive = iterates.square().mean(0) - iterates.mean(0).square()
    assert float(naive.min()) < 0
    assert bool((found.variance >= 0).all())
    torch.testing.assert_close(found.variance, iterates.var(0), rtol=1e-6, atol=0)


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_the_path_on_a_quadratic_has_its_stationary_law(momentum: float, linear: SimpleNamespace) -> None:
    """Full batches: the gradient noise is the score noise, and the discrete Lyapunov equation gives the covariance of
    weights and velocity, at any step size."""
    p = linear.problem(level=0.3)
    G = p.J.T @ (p.J / p.variance.flatten()[:, None])
    H, eye, zero = G + torch.eye(3).double(), torch.eye(3).double(), torch.zeros(3, 3).double()
    rate = 0.3 / float(torch.linalg.eigvalsh(H).max())
    velocity = torch.cat([H, momentum * eye], 1)
    step = torch.cat([torch.cat([eye, zero], 1) - rate * velocity, velocity])  # of (z - mode, velocity)
    enters = torch.cat([-rate * eye, eye])
    kron = torch.eye(36).double() - torch.kron(step, step)
    stationary = torch.linalg.solve(kron, (enters @ G @ enters.T).flatten()).reshape(6, 6)[:3, :3]
    settings = SwagSettings(burn_in=300, iterates=2, spacing=1, momentum=momentum, learning_rate=rate, batch_size=8)
    _, iterates = collect(joint_of(p), p.mean.expand(1500, 3), settings)
    linear.assert_samples(iterates[-1], p.mean, stationary)


def test_swag_on_a_quadratic_has_the_covariance_of_the_iterates(linear: SimpleNamespace) -> None:
    """Diagonal: exactly. Low rank: deviations from the running mean, which late in a long path is the mean."""
    p = linear.problem(level=0.3)
    settings = SwagSettings(burn_in=100, iterates=800, spacing=5, rank=500, batch_size=3)
    found, iterates = collect(joint_of(p), p.mean.unsqueeze(0), settings)
    empirical = iterates[:, 0].T.cov()
    torch.testing.assert_close(found.variance[0], empirical.diagonal(), rtol=1e-10, atol=0)
    D = found.deviations[0]
    low_rank = D.T @ D / (D.shape[0] - 1)
    # Both estimate one covariance, from overlapping draws; of 500 nearly independent ones entries err by sqrt(2 / 500).
    scale = empirical.diagonal().sqrt()
    assert float(((low_rank - empirical) / torch.outer(scale, scale)).abs().max()) < 4 * (2 / 500) ** 0.5


def test_the_rate_spreads_iterates_as_the_posterior_does(linear: SimpleNamespace) -> None:
    """``H S + S H = e C`` with the covariance ``C`` of gradients, one row at a time: ``tr(H S)`` is the effective number of
    parameters."""
    p = linear.problem(m=2, level=2.0)
    settings = SwagSettings(batch_size=2)
    J = p.J.unflatten(0, p.Y.shape)  # n x m x P
    white = J / p.variance.sqrt().unsqueeze(-1)
    residual = (p.Y - J @ p.mean) / p.variance.sqrt()
    rows = torch.einsum("nmp,nm->np", white, residual)
    G = white.flatten(0, 1).T @ white.flatten(0, 1)
    n, B = 8, 2
    C = n / B * (G + (1 - B / n) * rows.T @ rows)
    H = G + torch.eye(6).double()
    rate = stationary_rate(joint_of(p), p.mean.unsqueeze(0), settings)
    effective = float(rate) / (1 - settings.momentum)
    kron = torch.kron(H, torch.eye(6).double()) + torch.kron(torch.eye(6).double(), H)
    S = torch.linalg.solve(kron, effective * C.flatten()).reshape(6, 6)
    values = torch.linalg.eigvalsh(G)
    torch.testing.assert_close((H @ S).trace(), (values / (1 + values)).sum(), rtol=1e-8, atol=0)
    # With hardly any gradient noise the stable rate is the limit: a quarter of 2 (1 + momentum) / largest curvature.
    quiet = stationary_rate(joint_of(linear.problem(level=1e-4)), p.mean[:3].unsqueeze(0) * 0, SwagSettings(batch_size=8))
    sharp = linear.problem(level=1e-4)
    largest = torch.linalg.eigvalsh(sharp.J.T @ (sharp.J / sharp.variance.flatten()[:, None])).max() + 1
    assert float(quiet) <= 0.25 * 2 * 1.9 / float(largest) * (1 + 1e-9)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_a_path_finds_no_lower_place_than_the_mode_and_stays_near(likelihood: str, linear: SimpleNamespace) -> None:
    """The misfit of the iterates lies above the mode's by half the effective number of parameters, as under the posterior,
    to first order in the step: finite steps and a curvature that varies are given a third."""
    lik = get_likelihood(likelihood)
    m = 3 if likelihood == "categorical" else 1
    network = ModuleNetwork(nn.Linear(2, lik.num_latents(m)), 2, lik.num_latents(m))
    X = torch.rand(60, 2, generator=generator(), dtype=torch.float64)
    noise = torch.full((60, m), 0.1, dtype=torch.float64)
    truth = linear.normals(1, network.num_params, seed=5)
    Y = lik.sample(network.forward(truth, X)[0], noise, generator(1))
    joint = LogJoint(network, lik, get_prior("gaussian"), X, Y, noise)
    zero = torch.zeros(1, network.num_params, dtype=torch.float64)
    z = minimize(network, X, Labels(lik, Y, noise), zero, zero, GaussNewtonSettings(max_iterations=50, tolerance=1e-10)).z
    settings = SwagSettings(burn_in=150, iterates=20, spacing=15)
    _, iterates = collect(joint, z.expand(60, -1), settings)
    excess = joint.log_likelihood(z) - joint.log_likelihood(iterates.flatten(0, 1))
    tangents = network.tangents(z, X)
    J = network.jacobian(tangents)[0]
    R = lik.root(tangents.values, noise)[0]
    white = (R.unsqueeze(-1) * J if R.dim() == 2 else R.transpose(-1, -2) @ J).flatten(0, 1)
    values = torch.linalg.eigvalsh(white.T @ white)
    half = 0.5 * float((values / (1 + values)).sum())
    assert half / 1.33 < float(excess.mean()) < 1.33 * half


def test_draws_have_the_covariance_of_the_formula_across_tensors(linear: SimpleNamespace) -> None:
    """``z2`` is shared by all weights: the weight and the bias of one unit move together; the factor is on the variance."""
    found = SwagPosterior(
        linear.normals(2, 4),
        0.5 + linear.normals(2, 4, seed=1).square(),
        2 * linear.normals(2, 3, 4, seed=2),
        torch.ones(2).double(),
    )
    draws = found.sample(6000, generator(), scale=0.5)
    assert draws.shape == (12000, 4)
    for start in range(2):
        D = found.deviations[start]
        covariance = 0.5 * (torch.diag(found.variance[start]) + D.T @ D / 2)
        assert float(covariance.fill_diagonal_(0).abs().max()) > 0.3
        covariance = 0.5 * (torch.diag(found.variance[start]) + D.T @ D / 2)
        own = draws[start::2]
        torch.testing.assert_close(own.mean(0), found.mean[start])  # pairs of opposite sign
        linear.assert_samples(own, found.mean[start], covariance, ess=3000)  # a pair has one square
        gaussian = found.gaussian(start)
        torch.testing.assert_close(torch.linalg.inv(gaussian.precision.dense()), covariance, rtol=1e-9, atol=1e-12)
        density = torch.distributions.MultivariateNormal(found.mean[start], covariance).log_prob(draws[:5])
        torch.testing.assert_close(gaussian.as_prior().log_prob(draws[:5]), density)


def test_weights_that_never_move_have_no_density(linear: SimpleNamespace) -> None:
    still = SwagPosterior(linear.normals(1, 3), torch.tensor([[1.0, 0.0, 1.0]]).double(), linear.normals(1, 2, 3), torch.ones(1))
    assert bool(still.sample(3, generator()).isfinite().all())
    with pytest.raises(InvalidOptionError, match="1 of 3 weights never moved"):
        still.gaussian()


def test_interpolation_does_not_stop_the_path(linear: SimpleNamespace) -> None:
    """Residuals are zero at the mode of a network without prior pull: mini-batches alone stand still, the score noise moves."""
    p = linear.problem(n=3)
    exact = torch.linalg.solve(p.J, p.Y.flatten()).unsqueeze(0)
    joint = LogJoint(p.network, get_likelihood("gaussian"), CentredPrior(exact), p.X, p.Y, p.variance)
    still = SwagSettings(burn_in=5, iterates=10, spacing=2, batch_size=1, learning_rate=1e-4, score_noise=False)
    found, _ = collect(joint, exact, still)
    assert float(found.variance.max()) < 1e-20
    found, _ = collect(joint, exact, SwagSettings(burn_in=5, iterates=10, spacing=2, batch_size=1))
    assert float(found.variance.min()) > 1e-8
    with pytest.raises(InvalidOptionError, match="nothing moves"):
        swag(joint, exact, SwagSettings(batch_size=3, score_noise=False), generator())


def test_rates_that_diverge_are_lowered_or_refused(linear: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    p = linear.problem()
    start, settings = p.mean.unsqueeze(0), SwagSettings(burn_in=20, iterates=5, spacing=5)
    with pytest.raises(InvalidOptionError, match=r"learning_rate=10\.0: the walk diverged"):
        swag(joint_of(p), start, SwagSettings(burn_in=20, iterates=5, spacing=5, learning_rate=10.0), generator())
    monkeypatch.setattr(module, "stationary_rate", lambda joint, start, settings: torch.full((1,), 0.05).double())
    found = swag(joint_of(p), start, settings, generator())
    assert float(found.learning_rate) < 0.05
    assert bool(found.variance.isfinite().all())


def test_rows_that_weigh_two_are_rows_seen_twice(linear: SimpleNamespace) -> None:
    p = linear.problem()
    twice = LogJoint(
        p.network, get_likelihood("gaussian"), get_prior("gaussian"), p.X.repeat(2, 1), p.Y.repeat(2, 1), p.variance.repeat(2, 1)
    )
    heavy = joint_of(p, torch.full((8,), 2.0).double())
    settings = SwagSettings(burn_in=0, iterates=5, spacing=3, batch_size=100, learning_rate=1e-3, score_noise=False)
    start = linear.normals(2, 3)
    torch.testing.assert_close(swag(heavy, start, settings, generator()).mean, swag(twice, start, settings, generator()).mean)
    noisy = SwagSettings(batch_size=100)
    torch.testing.assert_close(stationary_rate(heavy, start, noisy), stationary_rate(twice, start, noisy))


def test_the_prior_around_centres(linear: SimpleNamespace) -> None:
    prior, z = CentredPrior(linear.normals(4, 3)), linear.normals(4, 3, seed=1).requires_grad_(True)
    (gradient,) = torch.autograd.grad(prior.log_prob(z).sum(), z)
    torch.testing.assert_close(prior.score(z.detach()), gradient)
    draws = prior.sample(8000, 3, generator(), z.detach())
    linear.assert_samples(draws[1::4], prior.centres[1], torch.eye(3).double())


def test_same_seed_same_path_and_bad_settings(linear: SimpleNamespace) -> None:
    p, state = linear.problem(), torch.get_rng_state()
    settings = SwagSettings(burn_in=3, iterates=4, spacing=2)
    a, b = (swag(joint_of(p), linear.normals(2, 3), settings, generator(3)) for _ in range(2))
    assert torch.equal(a.deviations, b.deviations)
    assert torch.equal(torch.get_rng_state(), state)
    for bad in ({"rank": 1}, {"iterates": 1}, {"momentum": 1.0}, {"learning_rate": 0.0}, {"batch_size": 0}, {"spacing": 0}):
        with pytest.raises(InvalidOptionError, match=next(iter(bad))):
            SwagSettings(**bad)  # type: ignore[arg-type]
