"""Filters over weights against linear regression, a pinned stream, modes, and numerical integrals."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from seqbdl.errors import InvalidOptionError
from seqbdl.inference import ekf, lofi
from seqbdl.inference.recursion import Belief, FilterSettings, Linearize, absorb, log_predictive, settle
from seqbdl.likelihoods import get_likelihood
from seqbdl.networks import MLP, DenseRows, JacobianRows, Network

GAUSSIAN = get_likelihood("gaussian")
KINDS: dict[str, Callable[[Tensor], Belief]] = {
    "full": lambda mean: ekf.prior_belief(mean, 1.0),
    "diagonal-decoupled": lambda mean: ekf.prior_belief(mean, 1.0, "diagonal-decoupled"),
    "diagonal-variational": lambda mean: ekf.prior_belief(mean, 1.0, "diagonal-variational"),
    "lofi 25": lambda mean: lofi.prior_belief(mean, 1.0, 25),
    "lofi 10": lambda mean: lofi.prior_belief(mean, 1.0, 10),
    "lofi 5": lambda mean: lofi.prior_belief(mean, 1.0, 5),
    "lofi 1": lambda mean: lofi.prior_belief(mean, 1.0, 1),
}


def at(network: Network, X: Tensor) -> Linearize:
    def linearize(w: Tensor) -> tuple[Tensor, JacobianRows]:
        tangents = network.tangents(w.unsqueeze(0), X)
        return tangents.values[0], network.rows(tangents)

    return linearize


# ---------------------------------------------------------------------------- a stream with known sums


def stream() -> tuple[Tensor, Tensor, Tensor]:
    """Noisy sine at random points, and starting weights of a tanh network of eight units: ``n x 1``, ``n x 1``, 25."""
    random = np.random.RandomState(1)  # the legacy generator: its numbers never change
    X = random.uniform(-3, 3, (200, 1))
    Y = np.sin(X) + 0.1 * random.randn(200, 1)
    return torch.from_numpy(X), torch.from_numpy(Y), torch.from_numpy(0.5 * random.randn(25))


def tanh_network(x: Tensor) -> Linearize:
    """``tanh(W1 x + b1) W2 + b2`` at ``x: n x 1``, the weights in this order."""

    def linearize(w: Tensor) -> tuple[Tensor, JacobianRows]:
        W1, b1, W2 = w[:24].split(8)
        h = torch.tanh(x * W1 + b1)
        inner = (1 - h.square()) * W2
        return (h @ W2 + w[24]).unsqueeze(-1), DenseRows(torch.cat([inner * x, inner, h, torch.ones_like(x)], 1))

    return linearize


def run(belief: Belief, steps: int = 200, age: str = "between") -> tuple[Belief, float]:
    """Score, update; age before every row but the first (``"between"``), before all, or never."""
    X, Y, w0 = stream()
    settings, noise, total = FilterSettings(forgetting=0.999, process_noise=1e-4), torch.full((1, 1), 0.01, dtype=w0.dtype), 0.0
    for t in range(steps):
        if age == "always" or (age == "between" and t > 0):
            belief = belief.aged(settings)
        belief, log_density = absorb(belief, tanh_network(X[t : t + 1]), GAUSSIAN, Y[t : t + 1], noise, settings)
        total += float(log_density)
    return belief, total


@pytest.mark.parametrize(
    ("kind", "expected", "tolerance"),
    [
        ("full", 73.16534222709, 1e-8),
        ("diagonal-decoupled", -49.8315093104, 1e-8),
        ("diagonal-variational", -112.7733046238, 1e-8),
        ("lofi 25", 73.16534223, 1e-6),
        ("lofi 10", 66.1702091, 1e-6),
        ("lofi 5", 55.1988685, 1e-6),
        ("lofi 1", 2.1524575, 1e-6),
    ],
)
def test_pinned_stream(kind: str, expected: float, tolerance: float) -> None:
    """The sums that three other implementations of these filters agree on, with forgetting and process noise."""
    assert abs(run(KINDS[kind](stream()[2]))[1] - expected) < tolerance


def test_pinned_first_predictions() -> None:
    X, Y, w0 = stream()
    belief = KINDS["full"](w0)
    known = [(0.9126376245934781, 4.441735410577196), (-0.7214136649854004, 7.852417448635507)]
    for t, (mean, variance) in enumerate(known):
        belief = belief.aged(FilterSettings(0.999, 1e-4)) if t > 0 else belief
        values, J = tanh_network(X[t : t + 1])(belief.mean)
        assert abs(float(values) - mean) < 1e-10
        assert abs(float(belief.seen(J)[0]) + 0.01 - variance) < 1e-10
        belief, _ = absorb(belief, tanh_network(X[t : t + 1]), GAUSSIAN, Y[t : t + 1], torch.full((1, 1), 0.01, dtype=w0.dtype))


@pytest.mark.parametrize(("age", "expected"), [("always", 72.70759), ("never", 19.13096)])
def test_pinned_orders_that_differ(age: str, expected: float) -> None:
    assert abs(run(KINDS["full"](stream()[2]), age=age)[1] - expected) < 1e-5


# ---------------------------------------------------------------------------- linear models


@pytest.mark.parametrize("block", [1, 3, 8])
@pytest.mark.parametrize("m", [1, 2])
@pytest.mark.parametrize("kind", ["full", "lofi 25"])
def test_linear_models_are_exact(kind: str, m: int, block: int, linear: SimpleNamespace) -> None:
    """One by one, in blocks, at once, in any order: the posterior and the evidence of linear regression."""
    p = linear.problem(m=m)
    belief, total = KINDS[kind](torch.zeros(p.network.num_params).double()), 0.0
    for rows in torch.randperm(8, generator=torch.Generator().manual_seed(block)).split(block):
        belief, log_density = absorb(belief, at(p.network, p.X[rows]), GAUSSIAN, p.Y[rows], p.variance[rows])
        total += float(log_density)
    torch.testing.assert_close(belief.mean, p.mean, rtol=0, atol=1e-8)
    eye = torch.eye(p.network.num_params).double()
    torch.testing.assert_close(belief.seen(DenseRows(eye))[0], p.covariance, rtol=0, atol=1e-8)
    torch.testing.assert_close(belief.weights.covariance_of(eye), p.covariance, rtol=0, atol=1e-8)
    assert abs(total - float(p.log_evidence)) < 1e-8


@pytest.mark.parametrize("kind", ["full", "lofi 25"])
def test_settling_on_a_known_mode_is_the_same(kind: str, linear: SimpleNamespace) -> None:
    p = linear.problem(m=2)
    belief, total = KINDS[kind](torch.zeros(p.network.num_params).double()), -0.5 * float(p.mean.square().sum())
    for rows in torch.arange(8).split(3):
        belief, part = settle(belief, at(p.network, p.X[rows]), GAUSSIAN, p.Y[rows], p.variance[rows], p.mean)
        total += float(part)
    torch.testing.assert_close(belief.weights.covariance_of(torch.eye(6).double()), p.covariance, rtol=0, atol=1e-8)
    assert abs(total - float(p.log_evidence)) < 1e-8


@pytest.mark.parametrize("kind", list(KINDS))
def test_pieces_against_dense_algebra(kind: str, linear: SimpleNamespace) -> None:
    """``J Sigma J^T``, ``Sigma J^T a`` and the posterior over weights belong to one covariance, with data behind it."""
    belief, _ = run(KINDS[kind](stream()[2]), steps=12)
    covariance = belief.seen(DenseRows(torch.eye(25).double()))[0]
    J, a = linear.normals(4, 25), linear.normals(4, seed=1)
    seen, lift = belief.seen(DenseRows(J))
    torch.testing.assert_close(seen, J @ covariance @ J.T, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(lift(a), covariance @ J.T @ a, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(belief.weights.covariance_of(J), J @ covariance @ J.T, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(belief.weights.mean, belief.mean)


@pytest.mark.parametrize("kind", list(KINDS))
def test_ageing(kind: str, linear: SimpleNamespace) -> None:
    belief, _ = run(KINDS[kind](stream()[2]), steps=12)
    centre, eye = linear.normals(25), torch.eye(25).double()
    aged = belief.aged(FilterSettings(forgetting=0.9, process_noise=0.03, inflation=0.2), centre)
    expected = 1.2 * (0.81 * belief.seen(DenseRows(eye))[0] + 0.03 * eye)
    torch.testing.assert_close(aged.seen(DenseRows(eye))[0], expected, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(aged.mean, centre + 0.9 * (belief.mean - centre))
    still = belief.aged(FilterSettings())
    torch.testing.assert_close(still.seen(DenseRows(eye))[0], belief.seen(DenseRows(eye))[0], rtol=1e-9, atol=1e-10)
    # q = 1 - gamma^2 leads back to the prior N(0, I), whatever was known.
    for _ in range(60):
        belief = belief.aged(FilterSettings(forgetting=0.8, process_noise=0.36))
    torch.testing.assert_close(belief.seen(DenseRows(eye))[0], eye, rtol=0, atol=1e-6)
    assert float(belief.mean.abs().max()) < 1e-4


# ---------------------------------------------------------------------------- other likelihoods, curved networks


def mlp(m: int) -> MLP:
    ones = torch.ones(3).double()
    return MLP((6, 5), 3 * ones[:2], ones[:2], ones, m)


@pytest.mark.parametrize(
    ("name", "m"), [("gaussian", 2), ("heteroscedastic", 1), ("bernoulli", 2), ("categorical", 3), ("poisson", 1)]
)
@pytest.mark.parametrize("kind", ["full", "lofi 25"])
def test_the_iterated_filter_ends_at_the_mode(kind: str, name: str, m: int, linear: SimpleNamespace) -> None:
    """Where the gradient of log p(Y | w) + log p(w) vanishes, with the curvature of the Fisher information there."""
    likelihood = get_likelihood(name)
    network = mlp(likelihood.num_latents(m))
    X, noise, prior_mean = linear.normals(7, 2).sigmoid(), torch.full((7, m), 0.1).double(), linear.normals(network.num_params)
    truth = network.forward(prior_mean[None] + 0.5 * linear.normals(1, network.num_params, seed=2), X)[0]
    Y = likelihood.sample(truth, noise, torch.Generator().manual_seed(0))
    prior = ekf.prior_belief(prior_mean, 0.5) if kind == "full" else lofi.prior_belief(prior_mean, 0.5, 25)
    settings = FilterSettings(iterations=100, halvings=20)
    belief, log_density = absorb(prior, at(network, X), likelihood, Y, noise, settings)
    w = belief.mean.clone().requires_grad_(True)
    loss = (w - prior_mean).square().sum() - likelihood.log_prob(network.forward(w[None], X)[0], Y, noise).sum()
    (gradient,) = torch.autograd.grad(loss, w)
    assert float(gradient.abs().max()) < 1e-3 * float((w.detach() - prior_mean).abs().max())
    assert bool(log_density.isfinite())
    values, J = at(network, X)(belief.mean)
    root = likelihood.root(values, noise)
    R = torch.block_diag(*(torch.diag_embed(root) if root.dim() == 2 else root))
    rows = R.T @ J.dense()
    precision = 2.0 * torch.eye(network.num_params).double() + rows.T @ rows
    covariance = belief.seen(DenseRows(torch.eye(network.num_params).double()))[0]
    torch.testing.assert_close(covariance, torch.linalg.inv(precision), rtol=0, atol=1e-3)


def test_steps_that_would_not_help_are_halved() -> None:
    """A count of a thousand where one is predicted: a whole Gauss-Newton step would ask for exp(500)."""
    poisson, Y, noise = get_likelihood("poisson"), torch.full((1, 1), 1000.0).double(), torch.ones(1, 1).double()

    def linearize(w: Tensor) -> tuple[Tensor, JacobianRows]:
        return w.reshape(1, 1), DenseRows(torch.ones(1, 1).double())

    prior = ekf.prior_belief(torch.zeros(1).double(), 1.0)
    careful, _ = absorb(prior, linearize, poisson, Y, noise, FilterSettings(iterations=50, halvings=20))
    careless, _ = absorb(prior, linearize, poisson, Y, noise, FilterSettings(iterations=1))
    assert float(careless.mean) > 400
    f = float(careful.mean)
    assert abs(1000 - math.exp(f) - f) < 1e-3 * 1000  # the mode: y - exp(f) = f


def test_a_step_that_cannot_help_leaves_the_point() -> None:
    """Values that always get worse (a Jacobian of the wrong sign): the point stays, the rows count as seen."""

    def linearize(w: Tensor) -> tuple[Tensor, JacobianRows]:
        return -w.reshape(1, 1), DenseRows(torch.ones(1, 1).double())

    prior = ekf.prior_belief(torch.zeros(1).double(), 1.0)
    one = torch.ones(1, 1).double()
    belief, _ = absorb(prior, linearize, GAUSSIAN, one, one, FilterSettings(halvings=5))
    assert float(belief.mean) == 0.0
    torch.testing.assert_close(belief.covariance, torch.full((1, 1), 0.5).double())


def test_predictive_density_is_exact_for_gaussian_noise(linear: SimpleNamespace) -> None:
    half, noise, Y = linear.normals(6, 6, seed=1), 0.1 + linear.normals(3, 2, seed=2).square(), linear.normals(3, 2, seed=3)
    values, covariance = linear.normals(3, 2), half @ half.T
    exact = torch.distributions.MultivariateNormal(values.flatten(), covariance + torch.diag(noise.flatten()))
    ours = log_predictive(values, covariance, GAUSSIAN, Y, noise)
    torch.testing.assert_close(ours, exact.log_prob(Y.flatten()), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("name", "y"), [("bernoulli", 1.0), ("poisson", 3.0)])
def test_predictive_density_of_labels_against_integrals(name: str, y: float) -> None:
    """Laplace's approximation: its error falls with the square of the variance of the latent."""
    likelihood, one, target = get_likelihood(name), torch.ones(1, 1).double(), torch.full((1, 1), y).double()
    grid = torch.linspace(-9, 9, 4001).double()
    errors = []
    for variance in (0.1, 0.025, 0.00625):
        f = 0.3 + variance**0.5 * grid
        log_prob = likelihood.log_prob(f[:, None, None], target, one).squeeze(-1)
        exact = torch.logsumexp(log_prob - 0.5 * grid.square(), 0) - torch.logsumexp(-0.5 * grid.square(), 0)
        ours = log_predictive(torch.full((1, 1), 0.3).double(), variance * one, likelihood, target, one)
        errors.append(abs(float(ours - exact)))
    assert errors[0] < 0.01
    assert errors[1] < errors[0] / 8  # 16 in the limit
    assert errors[2] < errors[1] / 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"forgetting": 0.0}, "forgetting"),
        ({"forgetting": 1.1}, "forgetting"),
        ({"process_noise": -1.0}, "process_noise"),
        ({"inflation": -0.1}, "inflation"),
        ({"iterations": 0}, "iterations"),
        ({"halvings": -1}, "halvings"),
    ],
)
def test_bad_settings_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(InvalidOptionError, match=message):
        FilterSettings(**options)  # type: ignore[arg-type]
