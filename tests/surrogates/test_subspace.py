"""``subspace``: exact where the subspace is everything, tempered where it is not, with chains to diagnose."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import seqbdl
from seqbdl.diagnostics.convergence import convergence_report
from seqbdl.errors import InvalidOptionError
from seqbdl.surrogates import SubspaceSurrogate

BOUNDS = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
X_TEST = torch.rand(5, 2, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
CHAINS, SAMPLES = 150, 4


def data(n: int = 20) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    X = torch.rand(n, 2, generator=generator, dtype=torch.float64)
    Y = 5 + X @ torch.tensor([[2.0], [1.0]]).double()
    return X, Y + 0.5 * torch.randn(n, 1, generator=generator, dtype=torch.float64)


def make(**options: Any) -> SubspaceSurrogate:
    surrogate = seqbdl.make_surrogate("subspace", 2, **{"bounds": BOUNDS, **options})
    assert isinstance(surrogate, SubspaceSurrogate)
    return surrogate


def whole(**options: Any) -> SubspaceSurrogate:
    """A linear network, whose three weights the directions span."""
    settings: dict[str, Any] = {"network": nn.Linear(2, 1), "rank": 3, "noise": 0.25, "temperature": 1.0, "burn_in": 30}
    settings |= {"num_members": CHAINS * SAMPLES, "num_chains": CHAINS, "warmup": 15, "thin": 3, "spacing": 2, "iterates": 10}
    return make(**{**settings, **options})


def assert_exact(surrogate: SubspaceSurrogate, X: Tensor, Y: Tensor, ess: float) -> None:
    scaling = surrogate.save_state()["scaling"]
    mean, std = scaling["y_mean"], scaling["y_std"]

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return std**2 * ((2 * a - 1) @ (2 * b - 1).T / 2 + 1)

    C, cross = kernel(X, X) + 0.25 * torch.eye(X.shape[0]).double(), kernel(X_TEST, X)
    expected = mean + (cross @ torch.linalg.solve(C, Y - mean)).squeeze(-1)
    covariance = kernel(X_TEST, X_TEST) - cross @ torch.linalg.solve(C, cross.T)
    posterior, deviation = surrogate.posterior(X_TEST), covariance.diagonal().sqrt()
    assert float(((posterior.mean[:, 0] - expected) / deviation).abs().max()) < 4.5 / ess**0.5
    ours = posterior.distribution.covariance_matrix / torch.outer(deviation, deviation)
    assert float((ours - covariance / torch.outer(deviation, deviation)).abs().max()) < 4.5 * (2 / ess) ** 0.5


def test_a_linear_network_has_its_exact_posterior_and_updates_are_exact() -> None:
    """Within the error of the draws, and after an update of the covariance that the draws of the fit estimated."""
    X, Y = data(30)
    surrogate = whole().fit(X[:20], Y[:20])
    assert_exact(surrogate, X[:20], Y[:20], CHAINS * SAMPLES / 2)
    surrogate.update(X[20:], Y[20:])
    assert_exact(surrogate, X, Y, CHAINS * SAMPLES / 4)


def test_a_gaussian_by_variational_inference_is_exact_too() -> None:
    X, Y = data()
    surrogate = whole(sampler="vi").fit(X, Y)
    assert surrogate.report is None
    assert_exact(surrogate, X, Y, CHAINS * SAMPLES / 2)


def test_the_report_is_ready_for_diagnostics() -> None:
    X, Y = data()
    surrogate = make(network=(12, 12), rank=5, num_members=48, num_chains=4, burn_in=40, iterates=10, spacing=4).fit(X, Y)
    report = surrogate.report
    assert report is not None
    assert report.draws.shape == (12, 4, 5)
    assert report.values.shape == (12, 4, 20, 1)
    assert report.log_likelihood.shape == (12, 4)
    assert report.evaluations > 4 * 12
    assert report.temperature >= 1.0
    assert convergence_report(report.values, report.draws).functions.r_hat.shape == (20,)
    values = surrogate.posterior(X).values  # type: ignore[attr-defined]
    scaling = surrogate.save_state()["scaling"]
    torch.testing.assert_close(scaling["y_mean"] + scaling["y_std"] * report.values.flatten(0, 1), values)


def test_temperature_widens_and_keeps_the_mode() -> None:
    X, Y = data()
    cold, warm = whole().fit(X, Y), whole(temperature=20.0).fit(X, Y)
    assert float(warm.posterior(X_TEST).variance.mean()) > 4 * float(cold.posterior(X_TEST).variance.mean())
    # Linear network: mode and mean agree, whatever the temperature.
    error = (warm.posterior(X_TEST).mean - cold.posterior(X_TEST).mean).abs() / warm.posterior(X_TEST).variance.sqrt()
    assert float(error.max()) < 4.5 * 2**0.5 / (CHAINS * SAMPLES / 2) ** 0.5


def test_bad_options_are_refused() -> None:
    for bad in ({"rank": 50}, {"rank": 1}, {"temperature": 0.0}, {"prior_scale": -1.0}, {"sampler": "nuts"}, {"num_chains": 7}):
        with pytest.raises(InvalidOptionError, match=next(iter(bad))):
            make(**bad)
