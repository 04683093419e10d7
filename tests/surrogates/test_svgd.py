"""``svgd``: its three spaces, the last layer against Bayesian linear regression on the same features, saving in between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import seqbdl
from seqbdl.errors import InvalidOptionError, UnknownNameError
from seqbdl.surrogates import SVGDSurrogate

BOUNDS = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
X_TEST = torch.rand(40, 2, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def truth(X: Tensor) -> Tensor:
    return torch.sin(4 * X[:, :1]) + X[:, 1:]


def data(n: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    X = torch.rand(n, 2, generator=generator, dtype=torch.float64)
    return X, truth(X) + 0.1 * torch.randn(n, 1, generator=generator, dtype=torch.float64)


def make(**options: Any) -> SVGDSurrogate:
    surrogate = seqbdl.make_surrogate("svgd", 2, **{"bounds": BOUNDS, "network": (16, 16), **options})
    assert isinstance(surrogate, SVGDSurrogate)
    return surrogate


def error(surrogate: seqbdl.Surrogate) -> float:
    return float((surrogate.posterior(X_TEST).mean - truth(X_TEST)).abs().mean())


def test_the_last_layer_is_linear_regression_on_shared_features() -> None:
    """Mean and spread of 60 particles against the exact posterior of the head given the features that the fit has found."""
    X, Y = data(30)
    surrogate = make(space="last-layer", network=(8,), noise=0.01, num_members=60, steps=300).fit(X, Y)
    z, k = surrogate._z, surrogate._head_size
    assert k == 9
    assert bool((z[:, :-k] == z[:1, :-k]).all())
    assert float(z[:, -k:].var(0).min()) > 0
    scaling = surrogate._scaling
    Phi, Phi_test = (surrogate._network.hidden(z[:1], scaling.inputs(x))[0] for x in (X, X_TEST))
    y = (Y - scaling.y_mean) / scaling.y_std
    precision = torch.eye(k).double() + Phi.T @ Phi / (0.01 / scaling.y_std.square())
    mean = Phi_test @ torch.linalg.solve(precision, Phi.T @ y / (0.01 / scaling.y_std.square()))
    deviation = (Phi_test * torch.linalg.solve(precision, Phi_test.T).T).sum(-1).sqrt()
    values = surrogate._network.forward(z, scaling.inputs(X_TEST))[..., 0]
    assert float(((values.mean(0) - mean[:, 0]) / deviation).abs().max()) < 0.5
    assert float((values.std(0) / deviation).log().abs().max()) < 0.5


@pytest.mark.parametrize("space", ["function", "last-layer", "weight"])
def test_every_space_fits_updates_and_resumes(space: str, tmp_path: Path) -> None:
    X, Y = data(40)
    surrogate = make(space=space, steps=20).fit(X[:20], Y[:20])
    first = error(surrogate)
    seqbdl.save(tmp_path / "s", surrogate)
    loaded = seqbdl.load(tmp_path / "s")
    for one in (surrogate, loaded):
        one.update(X[20:], Y[20:])
    assert error(surrogate) < first
    assert torch.equal(loaded.posterior(X_TEST).mean, surrogate.posterior(X_TEST).mean)
    assert torch.equal(loaded.posterior(X_TEST).variance, surrogate.posterior(X_TEST).variance)


@pytest.mark.parametrize(
    ("likelihood", "outputs"), [("bernoulli", 1), ("categorical", 3), ("poisson", 1), ("heteroscedastic", 1)]
)
def test_the_last_layer_takes_labels_counts_and_varying_noise(likelihood: str, outputs: int) -> None:
    X, _ = data(40)
    f = 6 * (X[:, :1] - 0.5)
    Y = {"bernoulli": (f > 0).double(), "categorical": (X[:, :1] * 2.999).floor(), "poisson": f.exp().round()}.get(likelihood, f)
    options = {"network": (8,), "space": "last-layer", "num_members": 12, "steps": 20, "bounds": BOUNDS}
    surrogate = seqbdl.make_surrogate("svgd", 2, outputs, likelihood=likelihood, **options).fit(X[:30], Y[:30])
    surrogate.update(X[30:], Y[30:])
    assert bool(surrogate.log_probs(X, n=12).isfinite().all() if likelihood == "categorical" else True)
    prediction = surrogate.predict(X)
    assert bool(prediction.mean.isfinite().all())
    high = prediction.mean[X[:, 0] > 0.8].mean(0)[-1]
    low = prediction.mean[X[:, 0] < 0.2].mean(0)[-1]
    assert float(high) > float(low)


def test_bad_options() -> None:
    with pytest.raises(UnknownNameError, match="space"):
        make(space="output")
    with pytest.raises(InvalidOptionError, match=r"last-layer.*widths"):
        make(space="last-layer", network=nn.Linear(2, 1))
