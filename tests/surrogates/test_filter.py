"""``ekf`` and ``lofi`` on linear networks, where they are exact; their recursion, forgetting and running noise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import seqbdl
from seqbdl.errors import InvalidOptionError
from seqbdl.surrogates import filter as module

NAMES = ["ekf", "lofi"]
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
    settings = {"bounds": BOUNDS, "network": nn.Linear(2, m), "noise": 0.09, "initial_covariance": 2.0, **options}
    return seqbdl.make_surrogate(name, 2, m, **settings)


def regression(surrogate: seqbdl.Surrogate, X: Tensor, Y: Tensor) -> tuple[Tensor, Tensor, float]:
    """Mean ``3 x m``, covariance per output ``m x 3 x 3``, and log evidence: weights N(0, 2 / 2), bias N(0, 2), under the scaling
    of a fitted surrogate."""
    scaling = surrogate.save_state()["scaling"]
    y_mean, y_std = scaling["y_mean"], scaling["y_std"]

    def kernel(a: Tensor, b: Tensor, i: int) -> Tensor:
        return 2.0 * y_std[i] ** 2 * ((2 * a - 1) @ (2 * b - 1).T / 2 + 1)

    means, covariances, evidence = [], [], 0.0
    for i in range(Y.shape[1]):
        C = kernel(X, X, i) + 0.09 * torch.eye(X.shape[0]).double()
        cross, y = kernel(X_TEST, X, i), Y[:, i] - y_mean[i]
        means.append(y_mean[i] + cross @ torch.linalg.solve(C, y))
        covariances.append(kernel(X_TEST, X_TEST, i) - cross @ torch.linalg.solve(C, cross.T))
        evidence += float(torch.distributions.MultivariateNormal(torch.zeros_like(y), C).log_prob(y))
    return torch.stack(means, -1), torch.stack(covariances), evidence


def check(surrogate: seqbdl.Surrogate, X: Tensor, Y: Tensor, atol: float = 1e-8) -> None:
    mean, covariance, evidence = regression(surrogate, X, Y)
    posterior = surrogate.posterior(X_TEST)
    torch.testing.assert_close(posterior.mean, mean, rtol=0, atol=atol)
    joint = posterior.distribution.covariance_matrix.reshape(3, 2, 3, 2)
    for i in range(2):
        torch.testing.assert_close(joint[:, i, :, i], covariance[i], rtol=1e-8, atol=atol)
        assert float(joint[:, i, :, 1 - i].abs().max()) < atol
    ours = surrogate.log_evidence()
    assert ours is not None
    assert abs(ours - evidence) < 1e-6


@pytest.mark.parametrize("options", [{}, {"batch_rows": 0}, {"batch_rows": 7}, {"batch_rows": 0, "block_size": 6}])
def test_fits_of_linear_networks_are_exact(name: str, options: dict[str, Any]) -> None:
    """As one block, as a stream, or the one after the other."""
    X, Y = data()
    check(make(name, **options).fit(X, Y), X, Y)


@pytest.mark.parametrize("block_size", [1, 4])
def test_updates_of_linear_networks_are_exact(name: str, block_size: int) -> None:
    X, Y = data()
    surrogate = make(name, block_size=block_size).fit(X[:8], Y[:8])
    for rows in (slice(8, 9), slice(9, 20)):
        surrogate.update(X[rows], Y[rows])
    check(surrogate, X, Y)


def test_jacobians_may_come_in_pieces(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    X, Y = data()
    monkeypatch.setattr(module, "_JACOBIAN_ENTRIES", 2 * 6 * 3)  # three rows at a time
    check(make(name).fit(X, Y), X, Y)


def test_function_draws_have_the_joint_covariance(name: str) -> None:
    """Three inputs, two outputs that share a hidden layer: every entry, between inputs and between outputs."""
    X, Y = data(12)
    surrogate = make(name, network=(6,)).fit(X, Y)
    with torch.no_grad():
        target = surrogate.posterior(X_TEST).distribution.covariance_matrix
        draws = surrogate.sample_functions(8000, torch.Generator().manual_seed(0))(X_TEST).flatten(1)
    sd = target.diagonal().sqrt()
    error = (draws.T.cov() - target) / sd / sd[:, None]
    assert float(error.abs().max()) < 4.5 * (2 / 8000) ** 0.5


def test_update_is_the_recursion_and_keeps_no_rows(name: str) -> None:
    """Rows one by one equal rows together; the size of the method's state does not grow with them."""
    X, Y = curved(40)
    options: dict[str, Any] = {"network": (8,), "noise": None} | ({"rank": 20} if name == "lofi" else {})
    together, apart = (make(name, 1, **options).fit(X[:15], Y[:15]) for _ in range(2))
    together.update(X[15:], Y[15:])
    sizes = []
    for x, y in zip(X[15:].split(1), Y[15:].split(1), strict=True):
        apart.update(x, y)
        belief = apart.save_state()["method"]["belief"]
        sizes.append(sum(value.numel() for value in belief.values() if isinstance(value, Tensor)))
    torch.testing.assert_close(apart.posterior(X_TEST).mean, together.posterior(X_TEST).mean, rtol=0, atol=1e-10)
    torch.testing.assert_close(apart.posterior(X_TEST).variance, together.posterior(X_TEST).variance, rtol=1e-8, atol=1e-10)
    assert len(set(sizes[10:])) == 1


def test_linearized_at_the_start_any_order_is_the_batch(name: str) -> None:
    """A network with hidden layers, as a linear model: one block, row by row, and backwards end in one posterior."""
    X, Y = curved(30)
    options: dict[str, Any] = {
        "network": (6, 6),
        "linearize": "start",
        "scales": {},
        "outcome_bounds": torch.tensor([[-1.0], [2.0]]),
    }
    batch = make(name, 1, **options).fit(X, Y)
    forwards = make(name, 1, **options).fit(X[:1], Y[:1]).update(X[1:], Y[1:])
    backwards = make(name, 1, **options).fit(X[-1:], Y[-1:]).update(X[:-1].flip(0), Y[:-1].flip(0))
    for other in (forwards, backwards):
        torch.testing.assert_close(other.posterior(X_TEST).mean, batch.posterior(X_TEST).mean, rtol=0, atol=1e-8)
        torch.testing.assert_close(other.posterior(X_TEST).variance, batch.posterior(X_TEST).variance, rtol=1e-7, atol=1e-10)
        assert other.log_evidence() == pytest.approx(batch.log_evidence(), abs=1e-6)
    features = batch.features(X)
    torch.testing.assert_close(features, backwards.features(X), rtol=0, atol=0)
    kernel = features @ features.T * 2.0 + 0.09 / 1.5**2 * torch.eye(30).double()
    mean = 0.5 + 2.0 * batch.features(X_TEST) @ features.T @ torch.linalg.solve(kernel, Y - 0.5)
    torch.testing.assert_close(batch.posterior(X_TEST).mean, mean, rtol=0, atol=1e-8)


def test_labels_of_a_linearized_network_are_iterated(name: str) -> None:
    """One step of least squares is no maximum of a Bernoulli likelihood: the textbook filter's mean differs."""
    X, Y = curved(30)
    labels = Y.gt(Y.median()).double()

    def mean(iterations: int) -> Tensor:
        surrogate = seqbdl.make_surrogate(
            name, 2, likelihood="bernoulli", bounds=BOUNDS, network=(6,), linearize="start", iterations=iterations, batch_rows=0,
            block_size=30,
        )  # fmt: skip
        return surrogate.fit(X, labels).posterior(X_TEST).mean

    torch.testing.assert_close(mean(8), mean(9), rtol=1e-4, atol=1e-4)
    assert float((mean(1) - mean(8)).abs().max()) > 0.01


def test_a_stream_is_learned(name: str) -> None:
    """Sixty rows by the recursion, after ten by the fit: errors shrink, and predictions say how large they are."""
    X, Y = curved(70)
    X_new, Y_new = curved(300, seed=1)
    surrogate = make(name, 1, network=(16,), noise=None).fit(X[:10], Y[:10])
    before = float((surrogate.predict(X_new).mean - Y_new).square().mean())
    after = surrogate.update(X[10:], Y[10:]).predict(X_new)
    assert float((after.mean - Y_new).square().mean()) < 0.5 * before
    assert float(((after.mean - Y_new).abs() < 2 * after.std).double().mean()) > 0.8


@pytest.mark.parametrize("options", [{"forgetting": 0.9}, {"process_noise": 0.05}, {"inflation": 0.1}])
def test_old_rows_are_forgotten(name: str, options: dict[str, float]) -> None:
    """After a jump of the function, a filter that ages follows and stays uncertain; one that does not averages."""
    X, Y = data(60)
    Y = torch.cat([Y[:30], Y[30:] + 3.0])
    still, ageing = make(name), make(name, **options)
    for surrogate in (still, ageing):
        surrogate.fit(X[:30], Y[:30]).update(X[30:], Y[30:])
    truth = data(60)[1][30:].mean(0) + 3.0
    error = [float((s.posterior(X[30:]).mean.mean(0) - truth).abs().max()) for s in (still, ageing)]
    assert error[1] < 0.5 * error[0]
    assert bool((ageing.posterior(X_TEST).variance > still.posterior(X_TEST).variance).all())


def test_running_noise_follows_the_errors(name: str) -> None:
    X, Y = data(120)
    quiet = make(name, noise=None, running_noise=True).fit(X[:20], Y[:20])
    start = float(quiet.noise_variance.mean())
    Y = Y + 2.0 * torch.randn(Y.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    quiet.update(X[20:], Y[20:])
    # Variance 4.09 of 100 rows times 2, sd of the estimate 10 %, .09 of 20 rows; errors of predictions add a little.
    assert 2.5 < float(quiet.noise_variance.mean()) < 5.0
    assert start < 1.0
    known = make(name, noise=None, running_noise=True).fit(X[:20], Y[:20])
    before = known.noise_variance
    known.update(X[20:25], Y[20:25], torch.ones(5, 2).double())
    torch.testing.assert_close(known.noise_variance, before)


def test_the_diagonal_filters_fit_the_same_mode(name: str) -> None:
    if name != "ekf":
        return
    X, Y = curved(20)
    kinds = ("full", "diagonal-decoupled", "diagonal-variational")
    means = [make(name, 1, network=(8,), covariance=kind).fit(X, Y).posterior(X_TEST).mean for kind in kinds]
    for mean in means[1:]:
        torch.testing.assert_close(mean, means[0])


def test_features_are_those_of_the_posterior(name: str) -> None:
    X, Y = curved(15)
    surrogate = make(name, 1, network=(8,), initial_covariance=1.0).fit(X, Y)
    features = getattr(surrogate, "features")  # noqa: B009 - not in the base class
    rows, at_test = features(X), features(X_TEST)
    scale = surrogate.save_state()["scaling"]["y_std"]
    precision = torch.eye(rows.shape[1]).double() + rows.T @ rows / (surrogate.noise_variance / scale**2)
    covariance = scale**2 * at_test @ torch.linalg.solve(precision, at_test.T)
    torch.testing.assert_close(surrogate.posterior(X_TEST).distribution.covariance_matrix, covariance, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"initial_covariance": 0.0}, "initial_covariance"),
        ({"block_size": 0}, "block_size"),
        ({"batch_rows": -1}, "batch_rows"),
        ({"num_branches": 0}, "num_branches"),
        ({"forgetting": 2.0}, "forgetting"),
        ({"linearize": "end"}, "linearize"),
        ({"running_noise": True}, "running_noise"),
    ],
)
def test_bad_options_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidOptionError, match=message):
        make(name, **options)
    with pytest.raises(InvalidOptionError, match="gaussian likelihood"):
        seqbdl.make_surrogate(name, 2, likelihood="bernoulli", running_noise=True)
    own = {"ekf": {"covariance": "diagonal"}, "lofi": {"rank": 0}}[name]
    with pytest.raises(InvalidOptionError, match=next(iter(own))):
        make(name, **own)
