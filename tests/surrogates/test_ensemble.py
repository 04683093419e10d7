"""``ensemble``: members, their spread, and what updates keep."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import seqbdl
from seqbdl.surrogates import EnsembleSurrogate

BOUNDS = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
X_TEST = torch.rand(6, 2, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def data(n: int = 20) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    X = torch.rand(n, 2, generator=generator, dtype=torch.float64)
    Y = 5 + X @ torch.tensor([[2.0], [1.0]]).double()
    return X, Y + 0.5 * torch.randn(n, 1, generator=generator, dtype=torch.float64)


def make(**options: Any) -> EnsembleSurrogate:
    settings = {"bounds": BOUNDS, "network": nn.Linear(2, 1), "noise": 0.25, "num_members": 4000, **options}
    surrogate = seqbdl.make_surrogate("ensemble", 2, **settings)
    assert isinstance(surrogate, EnsembleSurrogate)
    return surrogate


def regression(X: Tensor, Y: Tensor, surrogate: seqbdl.Surrogate) -> tuple[Tensor, Tensor]:
    """The exact posterior of the linear network at ``X_TEST``, in the surrogate's scaling."""
    scaling = surrogate.save_state()["scaling"]
    mean, std = scaling["y_mean"], scaling["y_std"]

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return std**2 * ((2 * a - 1) @ (2 * b - 1).T / 2 + 1)

    C, cross = kernel(X, X) + 0.25 * torch.eye(X.shape[0]).double(), kernel(X_TEST, X)
    posterior_mean = mean + (cross @ torch.linalg.solve(C, Y - mean)).squeeze(-1)
    return posterior_mean, kernel(X_TEST, X_TEST) - cross @ torch.linalg.solve(C, cross.T)


def assert_moments(surrogate: seqbdl.Surrogate, X: Tensor, Y: Tensor) -> None:
    mean, covariance = regression(X, Y, surrogate)
    posterior, n = surrogate.posterior(X_TEST), 4000
    deviation = covariance.diagonal().sqrt()
    assert float(((posterior.mean[:, 0] - mean) / deviation).abs().max()) < 4.5 / n**0.5
    ours = posterior.distribution.covariance_matrix
    spread = ((torch.outer(deviation, deviation)).square() + covariance.square()).div(n).sqrt()
    assert float(((ours - covariance) / spread).abs().max()) < 4.5


def test_randomized_members_of_a_linear_network_are_posterior_samples() -> None:
    X, Y = data()
    assert_moments(make(randomize_targets=True).fit(X, Y), X, Y)


def test_updates_of_randomized_members_are_posterior_samples_too() -> None:
    X, Y = data()
    surrogate = make(randomize_targets=True).fit(X[:8], Y[:8])
    surrogate.update(X[8:11], Y[8:11]).update(X[11:], Y[11:])
    assert_moments(surrogate, X, Y)


def test_plain_members_are_the_solutions_nearest_their_starts() -> None:
    """The mean is the posterior's, the spread is smaller: targets are not randomized."""
    X, Y = data()
    surrogate = make().fit(X, Y)
    mean, covariance = regression(X, Y, surrogate)
    posterior = surrogate.posterior(X_TEST)
    assert float(((posterior.mean[:, 0] - mean) / covariance.diagonal().sqrt()).abs().max()) < 4.5 / 4000**0.5
    assert bool((posterior.variance[:, 0] < covariance.diagonal()).all())


def test_members_keep_their_identity_from_fit_to_fit() -> None:
    """After a refit every member is nearer to where it was than any other, so that acquisition functions do not jump."""
    X, Y = data()
    surrogate = make(network=(8, 8), num_members=6).fit(X, Y)
    first = surrogate.posterior(X_TEST).values  # type: ignore[attr-defined]
    again = surrogate.fit(X, Y).posterior(X_TEST).values  # type: ignore[attr-defined]
    distances = torch.cdist(again.squeeze(-1), first.squeeze(-1))
    assert distances.argmin(1).tolist() == list(range(6))
    assert distances.argmin(0).tolist() == list(range(6))


def test_memory_is_capped() -> None:
    X, Y = data(120)
    surrogate = make(network=(8,), num_members=4, memory=30).fit(X[:20], Y[:20])
    for x, y in zip(X[20:].split(10), Y[20:].split(10), strict=True):
        surrogate.update(x, y)
        assert surrogate.save_state()["method"]["memory"][0].shape[0] <= 30
    error = surrogate.posterior(X_TEST).mean - (5 + X_TEST @ torch.tensor([[2.0], [1.0]]).double())
    assert float(error.abs().max()) < 0.5  # one standard deviation of the noise
    assert surrogate.train_inputs is not None
    assert surrogate.train_inputs[0].shape == (120, 2)


def test_memory_that_is_capped_keeps_the_information() -> None:
    """Two hundred rows through a memory of fifty: about as certain as with all of them, and near the same mean."""
    X, Y = data(200)
    surrogate = make(randomize_targets=True, memory=50, num_members=500).fit(X[:20], Y[:20])
    for x, y in zip(X[20:].split(20), Y[20:].split(20), strict=True):
        surrogate.update(x, y)
    mean, covariance = regression(X, Y, surrogate)
    _, fifty = regression(X[:50], Y[:50], surrogate)
    posterior = surrogate.posterior(X_TEST)
    assert float((posterior.variance[:, 0] / covariance.diagonal()).log().abs().max()) < 0.3
    assert float((fifty.diagonal() / covariance.diagonal()).log().min()) > 0.9
    assert float(((posterior.mean[:, 0] - mean) / covariance.diagonal().sqrt()).abs().max()) < 1.0


@pytest.mark.parametrize("n", [6, 12, 7])
def test_function_draws_take_members_evenly(n: int) -> None:
    X, Y = data()
    surrogate = make(network=(8,), num_members=6).fit(X, Y)
    values = surrogate.posterior(X_TEST).values[..., 0]  # type: ignore[attr-defined]
    draws = surrogate.sample_functions(n, torch.Generator().manual_seed(0))(X_TEST)[..., 0]
    counts = torch.isclose(draws[:, None], values[None], rtol=0, atol=1e-9).all(-1).sum(0)
    assert int(counts.sum()) == n
    assert set(counts.tolist()) <= {n // 6, n // 6 + 1}
