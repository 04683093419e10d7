"""``repulsive-ensemble``: linear regression through the surrogate, its spaces and options, memory, modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import seqbdl
from seqbdl.errors import InvalidOptionError, UnknownNameError

BOUNDS = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
X_TEST = torch.rand(40, 2, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def truth(X: Tensor) -> Tensor:
    return torch.sin(4 * X[:, :1]) + X[:, 1:]


def data(n: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    X = torch.rand(n, 2, generator=generator, dtype=torch.float64)
    return X, truth(X) + 0.1 * torch.randn(n, 1, generator=generator, dtype=torch.float64)


def make(name: str = "repulsive-ensemble", **options: Any) -> seqbdl.Surrogate:
    return seqbdl.make_surrogate(name, 2, **{"bounds": BOUNDS, "network": (16, 16), **options})


def error(surrogate: seqbdl.Surrogate) -> float:
    return float((surrogate.posterior(X_TEST).mean - truth(X_TEST)).abs().mean())


@pytest.mark.parametrize("name", ["repulsive-ensemble", "svgd"])
def test_the_spread_of_a_linear_network(name: str) -> None:
    """A module whose function prior is estimated: standard deviations of the exact posterior to within a third."""
    X, Y = data(20)
    surrogate = make(name, network=nn.Linear(2, 1), noise=0.25, steps=150).fit(X, Y)
    scaling = surrogate.save_state()["scaling"]

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        std: Tensor = scaling["y_std"]
        return std.square() * ((2 * a - 1) @ (2 * b - 1).T / 2 + 1)

    cross, gram = kernel(X_TEST, X), kernel(X, X) + 0.25 * torch.eye(20).double()
    covariance = kernel(X_TEST, X_TEST) - cross @ torch.linalg.solve(gram, cross.T)
    mean = scaling["y_mean"] + cross @ torch.linalg.solve(gram, Y - scaling["y_mean"])
    posterior, deviation = surrogate.posterior(X_TEST), covariance.diagonal().sqrt()
    assert float((posterior.mean - mean).squeeze(-1).div(deviation).abs().max()) < 0.5
    assert float((posterior.variance.sqrt().squeeze(-1) / deviation).log().abs().max()) < 0.3


@pytest.mark.parametrize("options", [{}, {"space": "weight"}, {"estimator": "sge"}, {"estimator": "ssge"}, {"normalize": False}])
def test_all_settings_fit_and_update(options: dict[str, Any]) -> None:
    X, Y = data(40)
    surrogate = make(steps=30, **options).fit(X[:20], Y[:20])
    first = error(surrogate)
    surrogate.update(X[20:], Y[20:])
    assert error(surrogate) < first
    assert bool((surrogate.posterior(X_TEST).variance > 0).all())


def test_long_moves_keep_the_spread_of_functions_and_lose_that_of_weights() -> None:
    """Mean epistemic standard deviations after four hundred steps, against those of the randomized members at the start."""
    X, Y = data(20)
    spread = {}
    for key, options in {"start": {"steps": 0}, "function": {"steps": 400}, "weight": {"steps": 400, "space": "weight"}}.items():
        spread[key] = float(make(**options).fit(X, Y).posterior(X_TEST).variance.sqrt().mean())
    assert spread["function"] > 1.3 * spread["weight"]
    assert 0.5 < spread["function"] / spread["start"] < 1.5


def test_batches_of_many_rows_and_a_memory_that_is_capped() -> None:
    X, Y = data(200)
    surrogate = make(num_members=6, network=(8,), steps=20, batch_size=64, memory=40).fit(X[:150], Y[:150])
    assert error(surrogate) < 0.15
    surrogate.update(X[150:], Y[150:])
    assert surrogate.save_state()["method"]["memory"][0].shape[0] == 40
    assert error(surrogate) < 0.15


def test_bad_options() -> None:
    with pytest.raises(UnknownNameError, match="space"):
        make(space="last-layer")
    with pytest.raises(UnknownNameError, match="estimator"):
        make(estimator="kernel")
    with pytest.raises(InvalidOptionError, match="num_inputs"):
        make(num_inputs=-1)
    with pytest.raises(InvalidOptionError, match="learning_rate"):
        make(learning_rate=0.0)
    with pytest.raises(InvalidOptionError, match="batch_size"):
        make(batch_size=0)
    with pytest.raises(InvalidOptionError, match="gaussian prior only"):
        make(prior="horseshoe")
