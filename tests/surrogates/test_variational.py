"""What mfvi, ivon and fsvi promise beyond the contract: bounds, components, options."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import seqbdl
from seqbdl.errors import InvalidOptionError
from seqbdl.inference.fsvi import function_moments
from seqbdl.surrogates import variational
from seqbdl.surrogates.fsvi import FSVISurrogate
from seqbdl.surrogates.variational import VariationalSurrogate, gauss_newton_diagonals

NAMES = ("mfvi", "ivon", "fsvi")
SMALL: dict[str, Any] = {"network": (8,), "num_components": 4, "num_members": 16, "steps": 60}


def data(n: int = 30, m: int = 1, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    X = torch.rand(n, 2, generator=generator, dtype=torch.float64)
    Y = torch.sin(4 * X.sum(-1, keepdim=True) + torch.arange(m))
    return X, Y + 0.1 * torch.randn(Y.shape, generator=generator, dtype=torch.float64)


def make(name: str, **options: Any) -> VariationalSurrogate:
    bounds = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    surrogate = seqbdl.make_surrogate(name, 2, bounds=bounds, **{**SMALL, **options})
    assert isinstance(surrogate, VariationalSurrogate)
    return surrogate


@pytest.mark.parametrize("name", NAMES)
def test_the_bound_is_below_the_evidence_of_the_process(name: str) -> None:
    """Of the infinitely wide network; a finite one has nearly its evidence, and the bound is far below both. It is in the units
    of the outcomes, and gone after an update."""
    X, Y = data()
    surrogate = make(name, noise=0.01).fit(X, Y)
    bound = surrogate.log_evidence()
    assert bound is not None
    reference = seqbdl.make_surrogate("nngp", 2, bounds=torch.tensor([[0.0, 0.0], [1.0, 1.0]]), noise=0.01).fit(X, Y)
    evidence = reference.log_evidence()
    assert evidence is not None
    assert bound < evidence
    scaled = make(name, noise=100.0).fit(X, 100 * Y).log_evidence()
    assert scaled is not None
    assert scaled == pytest.approx(bound - 30 * torch.log(torch.tensor(100.0)).item(), abs=1e-3 * abs(bound))
    assert surrogate.update(X[:2], Y[:2]).log_evidence() is None


@pytest.mark.parametrize("name", ["mfvi", "ivon"])
def test_anchors_raise_the_bound(name: str) -> None:
    """Why the default is not the textbook's single Gaussian: on small data its bound is lower, and it is too sure elsewhere."""
    X, Y = data(20)
    gains = []
    for seed in range(4):  # the bound of a single Gaussian is that of the mode its start leads to, which varies by ten nats
        one = make(name, num_components=1, anchor_share=0.0, steps=300, seed=seed).fit(X, Y)
        many = make(name, num_components=8, steps=300, seed=seed).fit(X, Y)
        assert one.num_components == 1
        single, several = one.log_evidence(), many.log_evidence()
        assert single is not None
        assert several is not None
        gains.append(float(several - single))
    assert sum(gains) / len(gains) > 0


@pytest.mark.parametrize("name", NAMES)
def test_particles_are_draws_of_the_components(name: str) -> None:
    surrogate = make(name).fit(*data())
    q, z = surrogate._q, surrogate._z
    deviations = ((z - q.mean[q.owners(16)]) / q.sd[q.owners(16)]).unflatten(0, (-1, 4))
    torch.testing.assert_close(deviations[0], -deviations[1])  # pairs of opposite deviation
    assert 0.8 < deviations.std() < 1.2


def test_functions_have_the_joint_covariance_that_was_fitted() -> None:
    """fsvi, three inputs, two outputs, one component: the particles' covariance is that of the linearized network."""
    surrogate = make("fsvi", output_dim=2, num_components=1, num_members=4000).fit(*data(m=2))
    assert isinstance(surrogate, FSVISurrogate)
    X = torch.tensor([[0.0, 1.0], [1.0, 0.9], [0.5, 0.1]], dtype=torch.float64)
    q, network = surrogate._q, surrogate._network
    J = network.jacobian(network.tangents(q.mean, X))[0].flatten(0, 1)
    covariance = (J * q.sd[0].square()) @ J.T
    torch.testing.assert_close(function_moments(network, q, X)[1][0, 1], covariance[1::2, 1::2])
    with torch.no_grad():
        values = surrogate._members(X).flatten(1)
    torch.testing.assert_close(values.mean(0), network.forward(q.mean, X).flatten())  # pairs: exact
    scale = covariance.diagonal().sqrt()
    error = (values.T.cov() - covariance) / scale / scale[:, None]
    assert error.abs().max() < 4.5 * (2 / 2000) ** 0.5  # 2,000 independent pairs


def test_fsvi_options() -> None:
    X, Y = data()
    assert make("fsvi", max_context=10).fit(X, Y).log_evidence() is None  # rows beyond the context: no bound
    through = make("fsvi", linearized=False).fit(X, Y)
    query = X[:3]
    with torch.no_grad():
        values = through._network.forward(through._z, through._scaling.inputs(query))
        torch.testing.assert_close(through._members(through._scaling.inputs(query)), values)
    updated = make("fsvi", max_context=32).fit(X, Y).update(*data(20, seed=1))
    assert isinstance(updated, FSVISurrogate)
    assert updated._context.shape[0] == updated.num_context + 32  # bounded, however many rows come
    for bad in ({"num_context": 0}, {"max_context": 0}, {"nugget": 0.0}):
        with pytest.raises(InvalidOptionError):
            make("fsvi", **bad)


@pytest.mark.parametrize("name", NAMES)
def test_temperature_is_explicit_and_one(name: str) -> None:
    """A colder posterior is narrower."""
    X, Y = data()
    assert make(name).temperature == 1.0
    warm, cold = make(name).fit(X, Y), make(name, temperature=0.05).fit(X, Y)
    assert cold._q.sd.log().mean() < warm._q.sd.log().mean() - 0.3


@pytest.mark.parametrize("name", NAMES)
def test_user_modules_and_mini_batches(name: str) -> None:
    X, Y = data()
    module = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1))
    before = [p.clone() for p in module.parameters()]
    surrogate = make(name, network=module, steps=20).fit(X, Y).update(X[:2], Y[:2])
    assert bool(surrogate.predict(X).mean.isfinite().all())
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
    batched = make(name, batch_size=10, steps=150).fit(X, Y)
    assert (batched.predict(X).mean - Y).square().mean() < 0.25 * Y.var()


def test_many_rows_start_from_adam(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where rows and weights are too many for Gauss-Newton, starts are as good."""
    X, Y = data()
    monkeypatch.setattr(variational, "_GAUSS_NEWTON_SIZE", 10)
    surrogate = make("ivon").fit(X, Y)
    assert (surrogate.predict(X).mean - Y).square().mean() < 0.25 * Y.var()


@pytest.mark.parametrize("prior", ["laplace", "student-t", "horseshoe"])
def test_mfvi_takes_other_priors(prior: str) -> None:
    X, Y = data()
    surrogate = make("mfvi", prior=prior, steps=150).fit(X, Y)
    assert surrogate.anchor_share == 0.0
    assert (surrogate.predict(X).mean - Y).square().mean() < 0.25 * Y.var()
    with pytest.raises(InvalidOptionError, match="anchor_share"):
        make("mfvi", prior=prior, anchor_share=0.5)
    with pytest.raises(InvalidOptionError, match="gaussian prior only"):
        make("ivon", prior=prior)


@pytest.mark.parametrize("estimator", ["flipout", "weights"])
def test_mfvi_estimators(estimator: str) -> None:
    X, Y = data()
    surrogate = make("mfvi", estimator=estimator, steps=150).fit(X, Y)
    assert (surrogate.predict(X).mean - Y).square().mean() < 0.25 * Y.var()
    with pytest.raises(InvalidOptionError, match="multilayer"):
        make("mfvi", estimator="flipout", network=nn.Linear(2, 1)).fit(X, Y)


@pytest.mark.parametrize("name", NAMES)
def test_bad_options_are_refused(name: str) -> None:
    for bad in (
        {"num_components": 0},
        {"num_components": 17},
        {"anchor_share": 1.0},
        {"anchor_share": -0.1},
        {"max_iterations": 0},
        {"temperature": 0.0},
        {"learning_rate": 0.0},
        {"steps": 0},
    ):
        with pytest.raises(InvalidOptionError):
            make(name, **bad)


@pytest.mark.parametrize("likelihood", ["gaussian", "categorical", "poisson"])
def test_curvatures_of_all_components_at_once(likelihood: str) -> None:
    """Against one component at a time."""
    from seqbdl.inference.curvature import gauss_newton_diagonal
    from seqbdl.inference.log_joint import LogJoint

    m = 3 if likelihood == "categorical" else 1
    surrogate = make("mfvi", output_dim=m, likelihood=likelihood)
    X, _ = data(7)
    Y = (3 * X[:, :1]).floor()
    noise = torch.full((7, m), 0.1, dtype=torch.float64)
    network, z = surrogate._network, surrogate._starts
    joint = LogJoint(network, surrogate._lik, surrogate._weight_prior, X, Y, noise)
    together = gauss_newton_diagonals(joint, z)
    for k in range(2):
        root = surrogate._lik.root(network.forward(z[k : k + 1], X)[0], noise)
        torch.testing.assert_close(together[k], gauss_newton_diagonal(network, z[k : k + 1], X, root))
