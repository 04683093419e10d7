"""``bayesian-last-layer``: an exact head on features that stay while data are added."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_t
from torch import Tensor, nn

import seqbdl
from seqbdl.inference import last_layer
from seqbdl.surrogates import BayesianLastLayerSurrogate

BOUNDS = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
X_TEST = torch.rand(5, 2, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def data(n: int = 30, m: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    X = torch.rand(n, 2, generator=generator, dtype=torch.float64)
    Y = torch.sin(5 * X.sum(-1, keepdim=True) + torch.arange(m))
    return X, 50 + 4 * (Y + 0.1 * torch.randn(n, m, generator=generator, dtype=torch.float64))


def make(m: int = 1, **options: Any) -> BayesianLastLayerSurrogate:
    settings = {"bounds": BOUNDS, "network": (12,), "num_networks": 2, **options}
    surrogate = seqbdl.make_surrogate("bayesian-last-layer", 2, m, **settings)
    assert isinstance(surrogate, BayesianLastLayerSurrogate)
    return surrogate


def test_head_is_linear_regression_on_its_features() -> None:
    """Predictive moments and evidence are those of the Student-t process with the features that the surrogate shows."""
    X, Y = data()
    surrogate = make(prior_precision=0.3).fit(X, Y)
    features, at_test = surrogate.features(X), surrogate.features(X_TEST)
    state = surrogate.save_state()
    mean, std = state["scaling"]["y_mean"], state["scaling"]["y_std"]
    y = ((Y - mean) / std).squeeze(-1)
    a0, b0 = 2.0, float(state["method"]["prior"]["noise"]) * 1.0  # the prior mean of the noise is the evidence's estimate
    unit = torch.eye(30).double() + features @ features.T / 0.3
    a, b = a0 + 15, b0 + 0.5 * float(y @ torch.linalg.solve(unit, y))
    cross = at_test @ features.T / 0.3
    expected = mean + std * cross @ torch.linalg.solve(unit, y)
    spread = at_test @ at_test.T / 0.3 - cross @ torch.linalg.solve(unit, cross.T)
    posterior = surrogate.posterior(X_TEST)
    torch.testing.assert_close(posterior.mean.squeeze(-1), expected, rtol=1e-7, atol=1e-7)
    covariance = std**2 * b / (a - 1) * spread
    torch.testing.assert_close(posterior.distribution.covariance_matrix, covariance, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(surrogate.noise_variance, std**2 * b / (a - 1))
    evidence = multivariate_t(np.zeros(30), (unit * b0 / a0).numpy(), df=2 * a0).logpdf(y.numpy()) - 30 * float(std.log())
    ours = surrogate.log_evidence()
    assert ours is not None
    assert abs(ours - float(evidence)) < 1e-6


@pytest.mark.parametrize("m", [1, 2])
def test_many_updates_equal_one(m: int) -> None:
    X, Y = data(230, m)
    once, many = make(m).fit(X[:30], Y[:30]), make(m).fit(X[:30], Y[:30])
    once.update(X[30:], Y[30:])
    for i in range(30, 230):
        many.update(X[i : i + 1], Y[i : i + 1])
    a, b = once.posterior(X_TEST), many.posterior(X_TEST)
    torch.testing.assert_close(a.mean, b.mean, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(a.variance, b.variance, rtol=1e-8, atol=1e-8)
    assert once.log_evidence() == pytest.approx(many.log_evidence(), rel=1e-8)


def test_features_stay_while_updating_and_move_when_fitting() -> None:
    X, Y = data()
    surrogate = make(adaptation=1.0).fit(X[:20], Y[:20])
    before = surrogate.features(X_TEST)
    assert torch.equal(surrogate.update(X[20:], Y[20:]).features(X_TEST), before)
    assert not torch.equal(surrogate.fit(X, Y).features(X_TEST), before)


def test_known_noise_is_kept() -> None:
    X, Y = data(60)
    surrogate = make(noise=2.0).fit(X[:50], Y[:50]).update(X[50:], Y[50:])
    torch.testing.assert_close(surrogate.noise_variance, torch.tensor([2.0]).double(), rtol=1e-3, atol=0)


def test_noise_is_learned_from_repeats() -> None:
    """Forty repeats of four points: the noise is a variance of about 36 degrees of freedom."""
    X = X_TEST[:4].repeat(40, 1)
    noise = torch.randn(160, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    surrogate = make().fit(X, 5 * X[:, :1] + 0.5 * noise)
    assert abs(float(surrogate.noise_variance) / 0.25 - 1) < 4 * (2 / 156) ** 0.5 + 0.05


def test_draws_are_of_the_student_t_process() -> None:
    """Tails: draws come from the posterior over noise and head; moments are those of the posterior."""
    X, Y = data(12)
    surrogate = make().fit(X, Y)
    n = 8000
    draws = surrogate.sample_functions(n, torch.Generator().manual_seed(0))(X_TEST)[..., 0]
    posterior = surrogate.posterior(X_TEST)
    deviation = posterior.variance[:, 0].sqrt()
    assert float(((draws.mean(0) - posterior.mean[:, 0]) / deviation).abs().max()) < 4.5 / n**0.5
    covariance = posterior.distribution.covariance_matrix / torch.outer(deviation, deviation)
    # Kurtosis of a t with 2 a = 4 + 12 degrees of freedom is 3 + 6 / 12
    assert float(((draws / deviation).T.cov() - covariance).abs().max()) < 4.5 * (2.5 / n) ** 0.5


def test_before_data_the_prior_is_centred() -> None:
    posterior = make().posterior(X_TEST)
    torch.testing.assert_close(posterior.mean, torch.zeros(5, 1).double())
    assert bool((posterior.variance > 0).all())


@pytest.mark.parametrize("adaptation", [0.0, 0.5, 1.0])
def test_adaptation_is_the_share_of_the_way(adaptation: float) -> None:
    X, Y = data()
    weights = {a: make(adaptation=a).fit(X, Y).save_state()["method"] for a in (0.0, adaptation, 1.0)}
    assert torch.equal(weights[0.0]["z"], weights[0.0]["start"])
    expected = weights[0.0]["z"] + adaptation * (weights[1.0]["z"] - weights[0.0]["z"])
    torch.testing.assert_close(weights[adaptation]["z"], expected, rtol=1e-9, atol=1e-9)


def test_it_resumes_exactly(tmp_path: Path) -> None:
    X, Y = data()
    surrogate = make().fit(X[:20], Y[:20])
    seqbdl.save(tmp_path / "s", surrogate)
    loaded = seqbdl.load(tmp_path / "s")
    for s in (surrogate, loaded):
        s.update(X[20:], Y[20:])
    assert torch.equal(surrogate.posterior(X_TEST).mean, loaded.posterior(X_TEST).mean)
    assert isinstance(loaded, BayesianLastLayerSurrogate)
    assert isinstance(loaded._head, last_layer.LastLayer)


def test_a_module_is_a_feature_map() -> None:
    """A module that ends before its head, with any number of outputs; it is left as it was."""
    X, Y = data(300)
    module = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 7), nn.Tanh())
    before = {key: value.clone() for key, value in module.state_dict().items()}
    surrogate = make(network=module, num_networks=3).fit(X[:90], Y[:90])
    assert surrogate.features(X).shape == (300, 3 * (7 + 1))
    error = surrogate.update(X[90:100], Y[90:100]).posterior(X[100:]).mean - Y[100:]
    assert float(error.square().mean().sqrt()) < 0.5 * float(Y.std())
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())
