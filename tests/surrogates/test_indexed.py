"""``epinet`` and ``hypermodel`` on linear networks, where they are Bayesian regression; their options, and the testbed's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import seqbdl
from seqbdl.errors import InvalidOptionError
from seqbdl.posteriors import ParticlePosterior

NAMES = ["epinet", "hypermodel"]
BOUNDS = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
X_TEST = torch.rand(3, 2, generator=torch.Generator().manual_seed(7), dtype=torch.float64)

pytestmark = pytest.mark.parametrize("name", NAMES)


def data(n: int = 20, m: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    X = torch.rand(n, 2, generator=generator, dtype=torch.float64)
    Y = 5 + X @ torch.tensor([[2.0, -1.0], [1.0, 3.0]], dtype=torch.float64)[:, :m]
    return X, Y + 0.3 * torch.randn(n, m, generator=generator, dtype=torch.float64)


def curved(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    X = torch.rand(n, 2, generator=generator, dtype=torch.float64)
    Y = torch.sin(5 * X[:, :1]) + X[:, 1:]
    return X, Y + 0.05 * torch.randn(n, 1, generator=generator, dtype=torch.float64)


def make(name: str, m: int = 2, **options: Any) -> seqbdl.Surrogate:
    """With a linear network unless told otherwise; of the epinet, an extractor that passes the inputs on."""
    linear = nn.Identity() if name == "epinet" else nn.Linear(2, m)
    return seqbdl.make_surrogate(name, 2, m, **{"bounds": BOUNDS, "network": linear, "noise": 0.09, **options})


def regression(surrogate: seqbdl.Surrogate, X: Tensor, Y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean ``3 x 2`` and joint covariance ``6 x 6`` of the latent functions: weights N(0, 1 / 2), biases N(0, 1), no coupling,
    under the scaling of a fitted surrogate."""
    scaling = surrogate.save_state()["scaling"]
    y_mean, y_std = scaling["y_mean"], scaling["y_std"]

    def kernel(a: Tensor, b: Tensor, i: int) -> Tensor:
        return y_std[i] ** 2 * ((2 * a - 1) @ (2 * b - 1).T / 2 + 1)

    means, covariance = [], torch.zeros(3, 2, 3, 2).double()
    for i in range(2):
        C, cross = kernel(X, X, i) + 0.09 * torch.eye(X.shape[0]).double(), kernel(X_TEST, X, i)
        means.append(y_mean[i] + cross @ torch.linalg.solve(C, Y[:, i] - y_mean[i]))
        covariance[:, i, :, i] = kernel(X_TEST, X_TEST, i) - cross @ torch.linalg.solve(C, cross.T)
    return torch.stack(means, -1), covariance.reshape(6, 6)


@pytest.mark.parametrize("rows", [(20,), (12, 8), (8, 1, 11)])
def test_linear_networks_are_bayesian_regression(name: str, rows: tuple[int, ...]) -> None:
    """At three inputs and two outputs, of fits and of updates: the mean, and the covariance over indices to within the error of
    ``index_dim`` samples."""
    X, Y = data()
    dim = 300
    surrogate = make(name, index_dim=dim, num_members=dim + 60)
    for i, (x, y) in enumerate(zip(X.split(rows), Y.split(rows), strict=True)):
        surrogate.fit(x, y) if i == 0 else surrogate.update(x, y)
    mean, covariance = regression(surrogate, X, Y)
    with torch.no_grad():
        posterior = surrogate.posterior(X_TEST)
        assert isinstance(posterior, ParticlePosterior)
        torch.testing.assert_close(posterior.mean, mean, rtol=0, atol=1e-6)
        values = (posterior.values - posterior.mean).flatten(1)
        draws = surrogate.sample_functions(dim + 60, torch.Generator().manual_seed(0))(X_TEST).flatten(1)
    ours = values.T @ values / values.shape[0]
    sd = covariance.diagonal().sqrt()
    correlation = covariance / sd / sd[:, None]
    error = (ours / sd / sd[:, None] - correlation).abs() / ((1 + correlation.square()) / dim).sqrt()
    assert float(error.max()) < 4.5
    # As many draws as particles: every particle once, with the covariance of the posterior.
    torch.testing.assert_close(draws.T.cov(correction=0), ours, rtol=1e-6, atol=1e-9)


def test_without_bootstrap_the_spread_at_the_data_is_smaller(name: str) -> None:
    X, Y = data(40)
    with_noise, without = make(name).fit(X, Y), make(name, bootstrap=False).fit(X, Y)
    assert float(without.posterior(X).variance.mean()) < 0.7 * float(with_noise.posterior(X).variance.mean())


def test_prior_functions_make_the_spread_before_and_far_from_data(name: str) -> None:
    X, Y = curved(20)
    near, far = 0.5 * X, torch.tensor([[1.0, 1.0], [0.9, 0.95]]).double()
    surrogate = make(name, 1, network=(12, 12))
    assert float(surrogate.posterior(far).variance.min()) > 0.01
    surrogate.fit(near, Y)
    spread = surrogate.posterior(far).variance.mean() / surrogate.posterior(near).variance.mean()
    none = make(name, 1, network=(12, 12), prior_scale=0.0).fit(near, Y)
    assert float(spread) > 4.0
    assert float(none.posterior(far).variance.mean()) < float(surrogate.posterior(far).variance.mean())


@pytest.mark.parametrize("options", [{"fit": "adam", "steps": 150, "learning_rate": 0.03, "batch_size": 10}, {"fit": "lbfgs"}])
def test_both_ways_of_fitting_learn(name: str, options: dict[str, Any]) -> None:
    X, Y = curved(40)
    X_new, Y_new = curved(200, seed=1)
    surrogate = make(name, 1, network=(16,), noise=None, num_branches=2, num_members=24, index_dim=6, **options).fit(X, Y)
    assert float((surrogate.predict(X_new).mean - Y_new).square().mean()) < 0.1 * float(Y_new.var())


def test_many_rows_are_fitted_by_mini_batches(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    X, Y = curved(40)
    surrogate = make(name, 1, network=(8,), noise=None, steps=3, batch_size=8)
    monkeypatch.setattr(type(surrogate), "max_rows", 30)
    called = []
    monkeypatch.setattr(type(surrogate), "_train", lambda self, *args: called.append(args[0].shape[0]))
    surrogate.fit(X, Y)
    assert called == [40]


def test_long_updates_come_in_blocks_and_memory_is_capped(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """More new rows than are absorbed at once, more old ones than are kept: still the regression of all, nearly."""
    from seqbdl.surrogates import indexed

    monkeypatch.setattr(indexed, "_BLOCK", 16)
    X, Y = data(60)
    surrogate = make(name, memory=20, num_members=40).fit(X[:20], Y[:20]).update(X[20:], Y[20:])
    mean, covariance = regression(surrogate, X, Y)
    assert surrogate.save_state()["method"]["memory"][0].shape == (20, 2)
    error = (surrogate.posterior(X_TEST).mean - mean).flatten().abs() / covariance.diagonal().sqrt()
    assert float(error.max()) < 2.5


def test_members_are_the_kept_indices(name: str) -> None:
    """The same functions answer every question; indices outlive fits."""
    X, Y = curved(12)
    surrogate = make(name, 1, network=(8,), num_members=20, index_dim=4).fit(X, Y)
    before = surrogate.save_state()["method"]["z"]
    assert before.shape == (20, 4)
    surrogate.fit(*curved(14)).update(*curved(3, seed=5))
    assert torch.equal(surrogate.save_state()["method"]["z"], before)


def test_settings_of_the_neural_testbed_are_reachable(name: str) -> None:
    """Two classes, ReLU, mini-batches of 100 rows that repeat, an MLP without skip connection (of the epinet), small prior
    networks."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(30, 2, generator=generator, dtype=torch.float64)
    Y = (X.sum(-1, keepdim=True) > 0).double()
    options: dict[str, Any] = {"fit": "adam", "steps": 60, "learning_rate": 0.02, "batch_size": 100, "activation": "relu"}
    if name == "epinet":
        options |= {"index_dim": 8, "epinet": (15, 15), "skip": False, "prior_network": (5, 5), "prior_scale": 0.3}
    else:
        options |= {"index_dim": 6, "prior_network": (10,), "prior_form": "network"}
    scales = {"inputs": 4.5, "weights": 1.5, "biases": 0.3}
    bounds = torch.tensor([[-3.0, -3.0], [3.0, 3.0]])
    surrogate = seqbdl.make_surrogate(
        name, 2, 2, "categorical", bounds=bounds, network=(50, 50), num_branches=1, scales=scales, **options
    ).fit(X, Y)
    probs = surrogate.predict(X).probs
    assert probs is not None
    assert float((probs.argmax(-1, keepdim=True) == Y).double().mean()) > 0.85
    log_probs = surrogate.log_probs(X, 64)
    assert log_probs.shape == (64, 30, 2)
    assert float(log_probs.exp().std(0).max()) > 0.01


def test_an_mlp_on_the_index_is_trained_too(name: str) -> None:
    if name != "epinet":
        return
    X, Y = curved(30)
    both = make(name, 1, network=(16,), noise=None, epinet=(10, 8)).fit(X, Y)
    alone = make(name, 1, network=(16,), noise=None, epinet=(10, 8), skip=False).fit(X, Y)
    for surrogate in (both, alone):
        assert float((surrogate.predict(X).mean - Y).square().mean()) < 0.1 * float(Y.var())
        before = float((surrogate.posterior(X[:5]).mean - (Y[:5] + 0.5)).abs().mean())
        surrogate.update(X[:5], Y[:5] + 0.5)
        assert float((surrogate.posterior(X[:5]).mean - (Y[:5] + 0.5)).abs().mean()) < before


def test_features_are_the_base_networks(name: str) -> None:
    if name != "epinet":
        return
    surrogate = make(name, 1, network=(8, 6), num_branches=2).fit(*curved(12))
    features = getattr(surrogate, "features")(X_TEST)  # noqa: B009 - not in the base class
    assert features.shape == (3, 2 * 7)
    assert bool(features.isfinite().all())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"index_dim": 0}, "index_dim"),
        ({"num_branches": 0}, "num_branches"),
        ({"prior_scale": -1.0}, "prior_scale"),
        ({"fit": "sgd"}, "fit"),
        ({"steps": 0}, "steps"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"prior": "laplace"}, "gaussian"),
    ],
)
def test_bad_options_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidOptionError, match=message):
        make(name, **options)


def test_bad_options_of_their_own_are_refused(name: str) -> None:
    if name == "hypermodel":
        with pytest.raises(InvalidOptionError, match="prior_form"):
            make(name, prior_form="net")
        return
    with pytest.raises(InvalidOptionError, match="positive integers"):
        make(name, epinet=(0,))
    with pytest.raises(InvalidOptionError, match="empty"):
        make(name, skip=False)
