"""What vbll promises beyond the contract: an exact head, features, noise of every output."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

import seqbdl
from seqbdl.errors import InvalidOptionError
from seqbdl.surrogates.vbll import VBLLSurrogate

BOUNDS = torch.tensor([[0.0, 0.0], [1.0, 1.0]])


def data(n: int = 30, m: int = 1, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Output ``c`` has noise of sd ``0.05 (1 + 5 c)``."""
    generator = torch.Generator().manual_seed(seed)
    X = torch.rand(n, 2, generator=generator, dtype=torch.float64)
    f = torch.sin(4 * X.sum(-1, keepdim=True) + torch.arange(m))
    return X, f + 0.05 * (1 + 5 * torch.arange(m)) * torch.randn(n, m, generator=generator, dtype=torch.float64)


def make(**options: Any) -> VBLLSurrogate:
    settings = {"network": (16, 16), "num_networks": 2, "steps": 20, "bounds": BOUNDS, **options}
    surrogate = seqbdl.make_surrogate("vbll", 2, **settings)
    assert isinstance(surrogate, VBLLSurrogate)
    return surrogate


def test_predictions_are_bayesian_linear_regression_on_the_features() -> None:
    X, Y = data(m=2)
    surrogate = make(output_dim=2).fit(X, Y)
    query = torch.rand(5, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    phi, here = surrogate.features(X), surrogate.features(query)
    mean, sd = Y.mean(0), Y.std(0)
    evidence = 0.0
    with torch.no_grad():
        posterior = surrogate.posterior(query)
    for c in range(2):
        noise = surrogate.noise_variance[c] / sd[c].square()
        K = phi @ phi.T + noise * torch.eye(30, dtype=torch.float64)
        y = (Y[:, c] - mean[c]) / sd[c]
        expected = here @ phi.T @ torch.linalg.solve(K, y)
        torch.testing.assert_close(posterior.mean[:, c], mean[c] + sd[c] * expected, rtol=1e-6, atol=1e-8)
        variance = (here @ here.T - here @ phi.T @ torch.linalg.solve(K, phi @ here.T)).diagonal()
        torch.testing.assert_close(posterior.variance[:, c], sd[c].square() * variance, rtol=1e-5, atol=1e-9)
        evidence += float(MultivariateNormal(torch.zeros(30).double(), K).log_prob(y) - 30 * sd[c].log())
    assert surrogate.log_evidence() == pytest.approx(evidence, rel=1e-8)


def test_updates_are_exact() -> None:
    """Means, variances and evidence after two updates are those of one, and of the linear model given everything."""
    X, Y = data(40)
    twice = make(noise=0.01).fit(X[:20], Y[:20])
    once = make(noise=0.01).fit(X[:20], Y[:20])
    twice.update(X[20:25], Y[20:25]).update(X[25:], Y[25:])
    once.update(X[20:], Y[20:])
    with torch.no_grad():
        torch.testing.assert_close(twice.posterior(X).mean, once.posterior(X).mean, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(twice.posterior(X).variance, once.posterior(X).variance, rtol=1e-6, atol=1e-10)
    assert twice.log_evidence() == pytest.approx(once.log_evidence(), rel=1e-8)


def test_every_output_has_its_noise() -> None:
    X, Y = data(150, m=2)
    surrogate = make(output_dim=2).fit(X, Y)
    noise = surrogate.noise_variance.sqrt()
    assert 0.03 < noise[0] < 0.1  # 0.05
    assert 0.2 < noise[1] < 0.45  # 0.3


def test_other_likelihoods_have_a_bound_until_they_update() -> None:
    X, _ = data()
    labels = (X[:, :1] > 0.5).double()
    surrogate = make(likelihood="bernoulli").fit(X, labels)
    bound = surrogate.log_evidence()
    assert bound is not None
    assert bound > 30 * torch.log(torch.tensor(0.5)).item()  # better than a coin
    assert surrogate.update(X[:2], labels[:2]).log_evidence() is None


def test_features_follow_module_and_networks() -> None:
    X, Y = data()
    module = nn.Sequential(nn.Linear(2, 7), nn.Tanh())
    before = [p.clone() for p in module.parameters()]
    surrogate = make(network=module, num_networks=3).fit(X, Y)
    assert surrogate.features(X.expand(2, 30, 2)).shape == (2, 30, 24)  # three times seven units and a constant
    assert surrogate.features(X.float()).dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


@pytest.mark.parametrize("options", [{"batch_size": 10}, {"steps": 0}, {"scales": {"weights": 2.0}}])
def test_options_work(options: dict[str, Any]) -> None:
    X, Y = data(60)
    surrogate = make(**options).fit(X[:40], Y[:40])
    assert (surrogate.predict(X[40:]).mean - Y[40:]).square().mean() < 0.25 * Y.var()


def test_many_rows() -> None:
    """Features from mini-batches, scales from a sample, and a head that knows all rows exactly."""
    X, Y = data(1100)
    surrogate = make(network=(8, 8), steps=10, noise=0.0025).fit(X, Y)
    phi, sd = surrogate.features(X), Y.std()
    precision = torch.eye(phi.shape[1], dtype=torch.float64) + phi.T @ phi * (sd.square() / 0.0025)
    torch.testing.assert_close(surrogate._head.factor[0] @ surrogate._head.factor[0].T, precision, rtol=1e-8, atol=1e-8)
    assert (surrogate.predict(X).mean - Y).square().mean() < 0.1 * Y.var()


def test_bad_options_are_refused() -> None:
    for bad in ({"num_networks": 0}, {"steps": -1}, {"learning_rate": 0.0}, {"noise_rows": 0.0}):
        with pytest.raises(InvalidOptionError):
            make(**bad)
