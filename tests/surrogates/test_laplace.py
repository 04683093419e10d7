"""``laplace`` on linear networks, where it is exact, and how it updates."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import seqbdl
from seqbdl.errors import InvalidOptionError
from seqbdl.surrogates import linearized

BOUNDS = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
X_TEST = torch.rand(6, 2, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def data(n: int = 20, m: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    X = torch.rand(n, 2, generator=generator, dtype=torch.float64)
    Y = 5 + X @ torch.tensor([[2.0, -1.0], [1.0, 3.0]]).double()[:, :m]
    return X, Y + 0.3 * torch.randn(n, m, generator=generator, dtype=torch.float64)


def linear_posterior(X: Tensor, Y: Tensor, alpha: float, noise: float) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and covariance at ``X_TEST``, and the log evidence, of one output: weights N(0, 1/2) and bias N(0, 1), over alpha."""
    mean, std = Y.mean(), Y.std()

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return ((2 * a - 1) @ (2 * b - 1).T / 2 + 1) / alpha

    y, s2 = ((Y - mean) / std).squeeze(-1), noise / std**2
    C = kernel(X, X) + s2 * torch.eye(X.shape[0]).double()
    cross = kernel(X_TEST, X)
    evidence = torch.distributions.MultivariateNormal(torch.zeros_like(y), C).log_prob(y) - X.shape[0] * std.log()
    covariance = std**2 * (kernel(X_TEST, X_TEST) - cross @ torch.linalg.solve(C, cross.T))
    return mean + std * cross @ torch.linalg.solve(C, y), covariance, evidence


def make(m: int = 1, **options: object) -> seqbdl.Surrogate:
    settings = {"bounds": BOUNDS, "network": nn.Linear(2, m), "noise": 0.09, "prior_precision": 0.5, **options}
    return seqbdl.make_surrogate("laplace", 2, m, **settings)


@pytest.mark.parametrize("centre", ["start", "zero"])
def test_a_linear_network_is_bayesian_linear_regression(centre: str) -> None:
    X, Y = data()
    surrogate = make(centre=centre).fit(X, Y)
    mean, covariance, evidence = linear_posterior(X, Y, 0.5, 0.09)
    posterior = surrogate.posterior(X_TEST)
    torch.testing.assert_close(posterior.mean.squeeze(-1), mean, rtol=0, atol=1e-7)
    torch.testing.assert_close(posterior.distribution.covariance_matrix, covariance, rtol=0, atol=1e-7)
    ours = surrogate.log_evidence()
    assert ours is not None
    assert abs(ours - float(evidence)) < 1e-6


@pytest.mark.parametrize("centre", ["start", "zero"])
def test_before_data_there_is_a_prior_of_mean_zero(centre: str) -> None:
    posterior = make(centre=centre).posterior(X_TEST)
    torch.testing.assert_close(posterior.mean, torch.zeros(6, 1).double(), rtol=0, atol=1e-12)
    expected = 2 * ((2 * X_TEST - 1).square().sum(-1) / 2 + 1)
    torch.testing.assert_close(posterior.variance.squeeze(-1), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("block", [1024, 4])
@pytest.mark.parametrize("centre", ["start", "zero"])
def test_updates_of_a_linear_network_are_exact(centre: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mean, covariance and evidence after updates in chunks are those of all rows under the same scales."""
    monkeypatch.setattr(linearized, "_BLOCK", block)
    X, Y = data()
    chunked = make(centre=centre).fit(X[:8], Y[:8])
    for rows in (slice(8, 9), slice(9, 20)):
        chunked.update(X[rows], Y[rows])
    inner = chunked.save_state()["scaling"]
    y_mean, y_std = inner["y_mean"], inner["y_std"]

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return y_std**2 * ((2 * a - 1) @ (2 * b - 1).T / 2 + 1) / 0.5

    C = kernel(X, X) + 0.09 * torch.eye(20).double()
    cross, y = kernel(X_TEST, X), (Y - y_mean).squeeze(-1)
    posterior = chunked.posterior(X_TEST)
    torch.testing.assert_close(posterior.mean.squeeze(-1), y_mean + cross @ torch.linalg.solve(C, y), rtol=0, atol=1e-6)
    covariance = kernel(X_TEST, X_TEST) - cross @ torch.linalg.solve(C, cross.T)
    torch.testing.assert_close(posterior.distribution.covariance_matrix, covariance, rtol=0, atol=1e-6)
    evidence = chunked.log_evidence()
    assert evidence is not None
    exact = torch.distributions.MultivariateNormal(torch.zeros_like(y), C).log_prob(y)
    assert abs(evidence - float(exact)) < 1e-6


def test_two_outputs_are_updated_jointly() -> None:
    """A shared hidden layer: observations of one output move the other; update and conditioning of few rows agree."""
    X, Y = data(16, 2)
    surrogate = seqbdl.make_surrogate("laplace", 2, 2, bounds=BOUNDS, network=(16,), noise=0.09).fit(X[:15], Y[:15])
    conditioned = surrogate.condition_on_observations(X[15:], Y[15:]).posterior(X_TEST)
    updated = surrogate.update(X[15:], Y[15:]).posterior(X_TEST)
    deviation = conditioned.variance.sqrt()
    # The linearization point moves by one row only.
    assert float(((updated.mean - conditioned.mean) / deviation).abs().max()) < 0.5
    assert float((updated.variance / conditioned.variance).log().abs().max()) < 0.5


def test_replicates_cost_what_their_distinct_inputs_cost() -> None:
    """A linear network of more weights than rows, whose rows are held one by one: three inputs, each ten times, are three rows,
    and the posterior and the evidence are those of thirty."""
    _, Y = data(30)
    X = X_TEST[:3].repeat(10, 1)
    wide = make(network=nn.Sequential(nn.Linear(2, 80), nn.Linear(80, 1)), prior_precision=1.0)
    start = wide.save_state()
    wide.fit(X[:12], Y[:12])
    wide.update(X[12:], Y[12:])
    assert wide.save_state()["method"]["laplace"]["curvature"]["X"].shape == (3, 2)
    near = X + 1e-10 * torch.arange(30).unsqueeze(-1)  # nothing is equal: thirty rows
    other = make(network=nn.Sequential(nn.Linear(2, 80), nn.Linear(80, 1)), prior_precision=1.0)
    other.load_state(start)
    other.fit(near[:12], Y[:12])
    other.update(near[12:], Y[12:])
    assert other.save_state()["method"]["laplace"]["curvature"]["X"].shape == (30, 2)
    ours, theirs = wide.posterior(X_TEST), other.posterior(X_TEST)
    torch.testing.assert_close(ours.mean, theirs.mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.distribution.covariance_matrix, theirs.distribution.covariance_matrix, rtol=0, atol=1e-6)
    evidences = wide.log_evidence(), other.log_evidence()
    assert evidences[0] == pytest.approx(evidences[1], abs=1e-5)


def test_tuned_precision_is_better_than_its_neighbours() -> None:
    X, Y = data(20)
    tuned = make(prior_precision="evidence").fit(X, Y)
    best = tuned.log_evidence()
    assert best is not None
    alpha = float(tuned.save_state()["method"]["log_precisions"][0].exp())
    for factor in (0.25, 4.0):
        other = make(prior_precision=factor * alpha).fit(X, Y).log_evidence()
        assert other is not None
        assert other < best


def test_memory_is_capped_and_information_kept() -> None:
    """Two hundred rows in a memory of fifty, with enlarged weights: about as certain as all, far more than fifty alone. A
    linear network of more weights than rows, so that rows are what is kept."""
    X, Y = data(200)
    wide = {"network": nn.Sequential(nn.Linear(2, 80), nn.Linear(80, 1)), "prior_precision": 1.0}
    capped, whole, few = make(memory=50, **wide), make(memory=500, **wide), make(memory=500, **wide)
    capped.fit(X[:20], Y[:20])
    whole.fit(X[:20], Y[:20])
    few.fit(X[:20], Y[:20])
    few.update(X[20:50], Y[20:50])
    for x, y in zip(X[20:].split(30), Y[20:].split(30), strict=True):
        capped.update(x, y)
        whole.update(x, y)
    assert capped.save_state()["method"]["laplace"]["curvature"]["X"].shape == (50, 2)
    ours, all_rows, fifty = (s.posterior(X_TEST).variance for s in (capped, whole, few))
    assert float((ours / all_rows).log().abs().max()) < 0.7
    assert float((fifty / all_rows).log().min()) > 0.9
    error = (capped.posterior(X_TEST).mean - whole.posterior(X_TEST).mean) / all_rows.sqrt()
    assert float(error.abs().max()) < 3.0


def test_feature_map_is_that_of_the_posterior() -> None:
    X, Y = data(15)
    surrogate = seqbdl.make_surrogate("laplace", 2, bounds=BOUNDS, network=(8,)).fit(X, Y)
    features = getattr(surrogate, "features")(X_TEST)  # noqa: B009 - not in the base class
    posterior = surrogate.posterior(X_TEST)
    state = surrogate.save_state()
    scale, noise = state["scaling"]["y_std"], state["method"]["prior"]["noise"]
    rows = getattr(surrogate, "features")(X)  # noqa: B009
    precision = torch.eye(rows.shape[1]).double() + rows.T @ (rows / noise)
    covariance = scale**2 * features @ torch.linalg.solve(precision, features.T)
    torch.testing.assert_close(posterior.distribution.covariance_matrix, covariance, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("structure", ["full", "kron", "diag"])
def test_structures_of_the_curvature(structure: str) -> None:
    """Every structure fits, predicts in the units of the data, updates and knows its evidence."""
    X, Y = data(40, 2)
    surrogate = seqbdl.make_surrogate("laplace", 2, 2, bounds=BOUNDS, network=(8, 8), structure=structure).fit(X[:30], Y[:30])
    assert surrogate.log_evidence() is not None
    surrogate.update(X[30:], Y[30:])
    assert bool((surrogate.posterior(X_TEST).variance > 0).all())
    assert (surrogate.predict(X).mean - Y).square().mean().sqrt() < 0.5


def test_structures_are_exact_where_the_curvature_is_theirs() -> None:
    """Two weights of one output, in one tensor: the Kronecker factors are exact, the diagonal leaves out a correlation."""
    X, Y = data(12)
    answers = [
        make(network=nn.Linear(2, 1, bias=False), structure=s).fit(X, Y).posterior(X_TEST) for s in ("full", "kron", "diag")
    ]
    full, kron, diag = answers
    torch.testing.assert_close(kron.mean, full.mean)
    torch.testing.assert_close(kron.variance, full.variance)
    torch.testing.assert_close(diag.mean, full.mean)
    assert float((diag.variance - full.variance).abs().max()) > 1e-4


def test_precisions_of_layers_are_tuned() -> None:
    X, Y = data(30)
    one = make(prior_precision="evidence").fit(X, Y)
    layers = make(prior_precision="layerwise").fit(X, Y)
    log_precisions = layers.save_state()["method"]["log_precisions"]
    assert log_precisions.shape == (2,)
    assert float((log_precisions[0] - log_precisions[1]).abs()) > 1e-3
    better, worse = layers.log_evidence(), one.log_evidence()
    assert better is not None
    assert worse is not None
    # Of the sum with the hyper-prior, whose share is at most a few units here.
    assert better > worse - 0.5


def test_noise_and_precision_are_tuned_together() -> None:
    """A network linear in its inputs, 200 rows with noise of variance 0.09, three weights."""
    X, Y = data(200)
    surrogate = make(noise=None, prior_precision=None, tune="evidence").fit(X, Y)
    # 4.5 sqrt(2 / 200), and the hyper-prior's pull.
    assert abs(float(surrogate.noise_variance) / 0.09 - 1) < 0.5
    again = surrogate.save_state()["method"]
    assert float(again["log_precisions"].abs().max()) > 0.0
    fixed = make(noise=0.09, prior_precision=0.5, tune="evidence").fit(X, Y)
    torch.testing.assert_close(fixed.noise_variance, torch.tensor([0.09]).double())
    torch.testing.assert_close(fixed.save_state()["method"]["log_precisions"].exp(), torch.full((2,), 0.5).double())


def test_networks_sampled_without_linearization() -> None:
    """Of a linear network they are the function draws; they are functions, in the user's units."""
    X, Y = data()
    surrogate = make().fit(X, Y)
    draws = surrogate.sample_networks(5, torch.Generator().manual_seed(0))  # type: ignore[attr-defined]
    linear = surrogate.sample_functions(5, torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(draws(X_TEST), linear(X_TEST))
        torch.testing.assert_close(draws(X_TEST[:2]), draws(X_TEST)[:, :2])
    curved = seqbdl.make_surrogate("laplace", 2, bounds=BOUNDS, network=(16,)).fit(X, Y)
    nets = curved.sample_networks(5, torch.Generator().manual_seed(0))  # type: ignore[attr-defined]
    assert float((nets(X_TEST) - curved.sample_functions(5, torch.Generator().manual_seed(0))(X_TEST)).abs().max()) > 1e-3


def test_posterior_over_weights() -> None:
    """Pushed through the Jacobian it is the posterior over functions; and it is a prior."""
    X, Y = data(15)
    surrogate = seqbdl.make_surrogate("laplace", 2, bounds=BOUNDS, network=(8,)).fit(X, Y)
    weights = surrogate.weight_posterior()  # type: ignore[attr-defined]
    rows = surrogate.features(X_TEST)  # type: ignore[attr-defined]
    covariance = surrogate.save_state()["scaling"]["y_std"] ** 2 * weights.covariance_of(rows)
    expected = surrogate.posterior(X_TEST).distribution.covariance_matrix
    torch.testing.assert_close(covariance, expected, rtol=1e-6, atol=1e-8)
    z = weights.sample(3, torch.Generator().manual_seed(0))
    torch.testing.assert_close(weights.as_prior().score(weights.mean.unsqueeze(0)), torch.zeros(1, z.shape[1]).double())


def test_a_fit_of_two_hundred_rows_needs_little_memory() -> None:
    """Two layers of 64: the ``P x P`` matrix alone would take 175 MB; draws and predictions come in blocks."""
    generator = torch.Generator().manual_seed(0)
    X = torch.rand(200, 6, generator=generator, dtype=torch.float64)
    Y = torch.sin(3 * X.sum(-1, keepdim=True))
    query = torch.rand(500, 6, generator=generator, dtype=torch.float64)
    surrogate = seqbdl.make_surrogate("laplace", 6, num_branches=1, scales={"inputs": 2.0}, noise=0.01, max_iterations=3)
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        surrogate.fit(X, Y)
        surrogate.predict(query)
        surrogate.sample_functions(64)(query[:50])
    held = peak = 0
    for event in sorted(recorded.profiler.kineto_results.events(), key=lambda e: e.start_ns()):  # type: ignore[union-attr]
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    assert peak < 100e6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"structure": "block"}, "structure"),
        ({"prior_precision": "laplace"}, "layerwise"),
        ({"prior_precision": -1.0}, "positive"),
        ({"tune": "noise"}, "tune"),
        ({"centre": "middle"}, "centre"),
        ({"num_branches": 0}, "at least 1"),
        ({"memory": 0}, "at least 1"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidOptionError, match=message):
        make(**options)
