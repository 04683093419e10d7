"""What ``hmc``, ``sgld``, ``sghmc`` and ``csghmc`` share: exact joint posteriors, reports, updates, options."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import seqbdl
from seqbdl.diagnostics import convergence_report, kinetic_temperature
from seqbdl.errors import DivergedError, InvalidOptionError
from seqbdl.inference.sgld import SGLDSettings
from seqbdl.surrogates import sampler
from seqbdl.surrogates.sampler import SamplerSurrogate

NAMES = ("hmc", "sgld", "sghmc", "csghmc")
SHORT: dict[str, dict[str, Any]] = {
    "hmc": {"warmup": 2, "max_steps": 15},
    "sgld": {"warmup": 10, "thinning": 5},
    "sghmc": {"warmup": 15, "thinning": 8},
    "csghmc": {"cycles": 1, "steps": 40},
}
BOUNDS = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
X_TEST = torch.tensor([[0.1, 0.9], [0.5, 0.4], [1.0, 0.0]], dtype=torch.float64)


class Shared(nn.Module):
    """Linear in its weights; outputs share some of them."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Linear(2, 1)
        self.second = nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.both(x)
        return torch.cat([first, first + self.second(x)], -1)


def data(n: int = 20, m: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    X = torch.rand(n, 2, generator=generator, dtype=torch.float64)
    Y = 5 + X @ torch.tensor([[2.0, -1.0], [1.0, 1.0]]).double()[:, :m]
    return X, Y + 0.5 * torch.randn(n, m, generator=generator, dtype=torch.float64)


def make(name: str, output_dim: int = 1, **options: Any) -> SamplerSurrogate:
    settings = {"bounds": BOUNDS, "network": (8,), "num_members": 16, "num_chains": 8, **SHORT[name], **options}
    surrogate = seqbdl.make_surrogate(name, 2, output_dim, **settings)
    assert isinstance(surrogate, SamplerSurrogate)
    return surrogate


@pytest.mark.parametrize("name", NAMES)
def test_function_draws_have_the_exact_joint_covariance(name: str) -> None:
    """Three inputs, two outputs that share weights, and noise that is known in the units of the outcomes."""
    X, Y = data(8, 2)
    chains = 1500
    fine = {"sgld": {"warmup": 60, "learning_rate": 0.05}, "sghmc": {"learning_rate": 0.2, "warmup": 40}}
    options = {"network": Shared(), "num_members": chains, "num_chains": chains, "noise": 0.25, **fine.get(name, {})}
    surrogate = make(name, 2, **options).fit(X, Y)
    scaling = surrogate.save_state()["scaling"]
    std, mean = scaling["y_std"], scaling["y_mean"]

    def features(X: Tensor) -> Tensor:  # n x 2 x 6: two weights and a bias of each layer, of fan-in scaled unit variance
        phi = torch.cat([(2 * X - 1) / 2**0.5, torch.ones_like(X[:, :1])], -1)
        return torch.stack([torch.cat([phi, torch.zeros_like(phi)], -1), torch.cat([phi, phi], -1)], 1)

    J, J_test = features(X).flatten(0, 1), features(X_TEST).flatten(0, 1)
    noise = (0.25 / std.square()).expand(8, 2).flatten()
    precision = torch.eye(6).double() + J.T @ (J / noise[:, None])
    weights = torch.linalg.solve(precision, J.T @ (((Y - mean) / std).flatten() / noise))
    scale = std.expand(3, 2).flatten()
    exact_mean = scale * (J_test @ weights) + mean.expand(3, 2).flatten()
    exact = torch.outer(scale, scale) * (J_test @ torch.linalg.solve(precision, J_test.T))
    draws = surrogate.sample_functions(chains)(X_TEST).flatten(1)
    deviation = exact.diagonal().sqrt()
    assert float(((draws.mean(0) - exact_mean) / deviation).abs().max()) < 4.5 / chains**0.5
    error = (draws.T.cov() - exact) / torch.outer(deviation, deviation)
    bias = {"hmc": 0.0, "sgld": 0.026, "sghmc": 0.03, "csghmc": 0.1}[name]  # of the variance, by the steps
    assert float(error.abs().max()) < 4.5 * (2 / chains) ** 0.5 + bias


@pytest.mark.parametrize("name", NAMES)
def test_reports_feed_the_diagnostics(name: str) -> None:
    X, Y = data()
    surrogate = make(name, num_members=80, samples=10).fit(X, Y)
    report = surrogate.report
    assert report is not None
    assert report.values.shape == (10, 8, 20, 1)
    assert report.weights.shape == (10, 8, surrogate.save_state()["method"]["z"].shape[1])
    assert report.configurational.shape == (10, 8)
    assert (report.acceptance is not None) == (name == "hmc")
    assert (report.kinetic is not None) == (name in ("sghmc", "csghmc"))
    assert report.noise is not None
    assert report.noise.shape == (10, 8, 1)
    summary = convergence_report(report.values, report.weights).summary()
    assert float(summary["r_hat_max"].max()) > 0.9
    if report.kinetic is not None:
        temperature = kinetic_temperature(report.kinetic.sqrt().unsqueeze(-1))
        assert abs(temperature.estimate - float(report.kinetic.mean())) < 1e-9
    assert seqbdl.make_surrogate("hmc", 2).load_state(make("hmc").save_state()).report is None  # type: ignore[attr-defined]


def test_only_so_many_rows_and_weights_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "_REPORTED_ROWS", 6)
    monkeypatch.setattr(sampler, "_REPORTED_WEIGHTS", 5)
    report = make("hmc").fit(*data()).report
    assert report is not None
    assert report.values.shape[2] == 6
    assert report.weights.shape[2] == 5


@pytest.mark.parametrize("name", NAMES)
def test_rows_that_stay_speak_for_those_that_go(name: str) -> None:
    """After updates the posterior is as sure as all rows make it, though a quarter of them are remembered."""
    X, Y = data(120)
    chains = 200
    fine = {"sgld": {"warmup": 60, "learning_rate": 0.05}, "sghmc": {"learning_rate": 0.2, "warmup": 40}}
    options = {"network": nn.Linear(2, 1), "num_members": chains, "num_chains": chains, "noise": 0.25, **fine.get(name, {})}
    surrogate = make(name, memory=30, **options).fit(X[:30], Y[:30])
    for x, y in zip(X[30:].split(30), Y[30:].split(30), strict=True):
        surrogate.update(x, y)
        state = surrogate.save_state()["method"]
        assert state["memory"][0].shape[0] == 30
    assert abs(float(state["own"]["row_weights"].sum()) - 120) < 1e-9
    exact = make(name, **options).fit(X, Y)
    ours, theirs = surrogate.posterior(X_TEST).variance, exact.posterior(X_TEST).variance
    # Weights of four rows each: leverages differ by a factor of at most two from those of the rows that went.
    assert bool((ours < 2 * theirs).all())
    assert bool((ours > 0.4 * theirs).all())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("prior", ["laplace", "student-t", "horseshoe"])
def test_priors(name: str, prior: str) -> None:
    X, Y = data(30)
    surrogate = make(name, prior=prior)
    before = surrogate.posterior(X_TEST).variance
    assert bool((before > 0).all())  # the prior answers before any data
    error = surrogate.fit(X, Y).posterior(X_TEST).mean - (5 + X_TEST @ torch.tensor([[2.0], [1.0]]).double())
    assert float(error.abs().max()) < 1.0


@pytest.mark.parametrize("name", NAMES)
def test_users_modules(name: str) -> None:
    network = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1))
    before = [p.detach().clone() for p in network.parameters()]
    surrogate = make(name, network=network).fit(*data(30))
    error = surrogate.posterior(X_TEST).mean - (5 + X_TEST @ torch.tensor([[2.0], [1.0]]).double())
    assert float(error.abs().max()) < 1.0
    assert all(torch.equal(p, q) for p, q in zip(network.parameters(), before, strict=True))


@pytest.mark.parametrize("options", [{}, {"network": nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1))}])
def test_many_rows_start_by_adam(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "MAX_DENSE_ROWS", 5)
    monkeypatch.setattr(sampler, "MAX_JACOBIAN", 5)
    surrogate = make("sghmc", batch_size=10, **options).fit(*data(40))
    error = surrogate.posterior(X_TEST).mean - (5 + X_TEST @ torch.tensor([[2.0], [1.0]]).double())
    assert float(error.abs().max()) < 1.0
    surrogate.update(X_TEST[:1].expand(6, 2), torch.full((6, 1), 9.0).double())
    assert float(surrogate.posterior(X_TEST[:1]).mean) > 5.5


@pytest.mark.parametrize(
    ("name", "preconditioner"),
    [("hmc", "gauss-newton"), ("hmc", "diagonal"), ("sgld", "rmsprop"), ("sgld", "identity"), ("sghmc", "adaptive")],
)
def test_preconditioners(name: str, preconditioner: str) -> None:
    surrogate = make(name, preconditioner=preconditioner).fit(*data(30))
    error = surrogate.posterior(X_TEST).mean - (5 + X_TEST @ torch.tensor([[2.0], [1.0]]).double())
    assert float(error.abs().max()) < 1.0


def test_layers_may_have_precisions_of_their_own() -> None:
    report = make("hmc", sample_scales=True).fit(*data()).report
    assert report is not None
    assert report.precision is not None
    assert report.precision.shape == (2, 8, 2)
    assert float(report.precision.std()) > 0


def test_single_precision_changes_digits_only() -> None:
    X, Y = data()
    means = [
        make("hmc", precision=p, warmup=1, samples=2, seed=3).fit(X, Y).posterior(X_TEST).mean for p in ("float32", "float64")
    ]
    torch.testing.assert_close(means[0], means[1], rtol=0, atol=0.02)


def test_automatic_steps_are_halved_where_chains_explode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SGLDSettings, "caution", 12.8)
    surrogate = make("sgld", warmup=100).fit(*data())
    assert surrogate.report is not None
    assert bool(surrogate.report.values.isfinite().all())
    with pytest.raises(DivergedError, match="set a smaller one"):
        make("sgld", learning_rate=50.0).fit(*data())


def test_temperature_is_one_unless_set() -> None:
    for name in NAMES[1:]:
        assert make(name).temperature == 1.0  # type: ignore[attr-defined]
    X, Y = data()
    options = {"network": nn.Linear(2, 1), "num_members": 200, "num_chains": 200, "noise": 0.25, "warmup": 60}
    warm, cold = (make("sghmc", temperature=T, **options).fit(X, Y).posterior(X_TEST).variance for T in (1.0, 0.01))
    assert bool((cold < 0.05 * warm).all())


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("hmc", {"num_chains": 1}, "num_chains=1"),
        ("hmc", {"samples": 1}, "raise samples"),
        ("hmc", {"warmup": 0}, "warmup=0"),
        ("hmc", {"preconditioner": "rmsprop"}, "preconditioner='rmsprop'"),
        ("hmc", {"precision": "half"}, "precision='half'"),
        ("hmc", {"prior": "laplace", "sample_scales": True}, "sample_scales"),
        ("hmc", {"prior": "horseshoe", "preconditioner": "gauss-newton"}, "horseshoe"),
        ("sgld", {"learning_rate": 0.0}, "learning_rate=0"),
        ("sgld", {"batch_size": 0}, "batch_size=0"),
        ("sgld", {"temperature": -1.0}, "temperature=-1"),
        ("sghmc", {"friction": 1.5}, "friction=1.5"),
        ("csghmc", {"exploration": 1.0}, "exploration=1"),
        ("csghmc", {"steps": 3, "samples": 4}, "too short"),
    ],
)
def test_bad_options_are_refused(name: str, options: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidOptionError, match=match):
        make(name, **options)
