"""``dwp``: a mixture of Gaussian processes, conditioned component by component."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import seqbdl
from seqbdl.errors import InvalidOptionError
from seqbdl.surrogates import DWPSurrogate
from seqbdl.surrogates.dwp import tempered

BOUNDS = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)


def steps(n: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    X = torch.rand(n, 2, generator=generator, dtype=torch.float64)
    Y = torch.sign(X.sum(-1, keepdim=True) - 1.0)
    return X, Y + 0.05 * torch.randn(n, 1, generator=generator, dtype=torch.float64)


def make(**options: Any) -> DWPSurrogate:
    surrogate = seqbdl.make_surrogate("dwp", 2, **{"bounds": BOUNDS, **options})
    assert isinstance(surrogate, DWPSurrogate)
    return surrogate


def log_density(surrogate: seqbdl.Surrogate, X: Tensor, Y: Tensor) -> float:
    prediction = surrogate.predict(X)
    return float(torch.distributions.Normal(prediction.mean, prediction.std).log_prob(Y).mean())


def test_a_step_is_predicted_better_than_by_the_infinitely_wide_network() -> None:
    X, Y = steps(80, 0)
    X_test, Y_test = steps(400, 1)
    dwp, nngp = make().fit(X, Y), seqbdl.make_surrogate("nngp", 2, bounds=BOUNDS).fit(X, Y)
    assert log_density(dwp, X_test, Y_test) > log_density(nngp, X_test, Y_test)
    assert dwp.log_evidence() is not None
    assert dwp.nus in ((3,), (10,))


def test_the_particles_have_the_moments_of_their_components() -> None:
    X, Y = steps(30, 0)
    surrogate = make(network=(4,), steps=40, num_components=4, num_members=1200, draw_width=64).fit(X, Y)
    X_test, _ = steps(5, 3)
    with torch.no_grad():
        phi = surrogate._layers.hidden(surrogate._scaling.inputs(X_test))
        state = surrogate._sums.conditioning()
        cross = surrogate._top_kernel(phi, surrogate._basis)
        mean = (cross @ state.weights.unsqueeze(-1)).squeeze(-1)  # S x N
        half = cross @ state.whitener.transpose(-1, -2)
        variance = surrogate._layers.variance(1, phi) - half.square().sum(-1)
        values = surrogate._members(surrogate._scaling.inputs(X_test))[..., 0].unflatten(0, (300, 4))
    sd = variance.sqrt()
    assert float(((values.mean(0) - mean) / sd).abs().max()) < 4.5 / 300**0.5
    # Random features of width 64 vary the spread by a few per cent beside the Monte Carlo error.
    assert float((values.std(0) / sd - 1).abs().max()) < 4.5 / 600**0.5 + 0.05


def test_components_are_weighed_by_their_predictions_in_any_calls() -> None:
    X, Y = steps(40, 0)
    new_X, new_Y = steps(20, 1)
    start = make(network=(4,), steps=40).fit(X, Y).save_state()
    one, two = (make(network=(4,), steps=40).load_state(start) for _ in range(2))
    one.update(new_X, new_Y)
    two.update(new_X[:6], new_Y[:6]).update(new_X[6:], new_Y[6:])
    torch.testing.assert_close(one._log_weights, two._log_weights, rtol=0, atol=1e-6)
    torch.testing.assert_close(one.posterior(X).mean, two.posterior(X).mean, rtol=0, atol=1e-6)
    assert float(one._log_weights.std()) > 0  # they disagreed
    assert one.log_evidence() is None
    # Every component is the process of its kernel given all rows, the dense way.
    X_test, _ = steps(30, 2)
    scaling, rows = one._scaling, torch.cat([X, new_X])
    outcomes = scaling.outcomes(torch.cat([Y, new_Y]))
    phi, at_test = (one._layers.hidden(scaling.inputs(points)) for points in (rows, X_test))
    C = one._top_kernel(phi, phi) + one._noise() * torch.eye(60).double()
    expected = one._top_kernel(at_test, phi) @ torch.linalg.solve(C, outcomes)
    state = one._sums.conditioning()
    ours = one._top_kernel(at_test, one._basis) @ state.weights.unsqueeze(-1)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)
    half = one._top_kernel(at_test, one._basis) @ state.whitener.mT
    cross = one._top_kernel(at_test, phi)
    torch.testing.assert_close(half @ half.mT, cross @ torch.linalg.solve(C, cross.mT), rtol=0, atol=1e-6)
    # The bound on a basis of all rows is the evidence itself.
    densities = torch.distributions.MultivariateNormal(C.new_zeros(60), C).log_prob(outcomes[:, 0])
    torch.testing.assert_close(one._sums.bound, densities, rtol=0, atol=1e-6)


def test_tempered_weights_keep_their_order_and_their_effective_number() -> None:
    weights = torch.tensor([0.0, -3.0, -50.0, 2.0]).double()
    kept = tempered(weights, 0.5)
    assert torch.equal(kept.argsort(), weights.argsort())
    assert float(1 / kept.softmax(0).square().sum()) == pytest.approx(2.0, abs=1e-3)
    assert torch.equal(tempered(0.01 * weights, 0.5), 0.01 * weights)


def test_two_layers_and_two_outputs() -> None:
    X, Y = steps(40, 0)
    surrogate = seqbdl.make_surrogate("dwp", 2, 2, bounds=BOUNDS, network=(4, 3), steps=30)
    surrogate.fit(X, torch.cat([Y, X[:, :1]], 1))
    posterior = surrogate.posterior(X)
    assert posterior.mean.shape == (40, 2)
    assert float((posterior.mean[:, 1] - X[:, 0]).abs().mean()) < 0.2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_single_and_double_precision_with_duplicated_rows(dtype: torch.dtype) -> None:
    X, Y = steps(30, 0)
    X, Y = X.repeat(2, 1).to(dtype), Y.repeat(2, 1).to(dtype)
    posterior = make(network=(5,), steps=40).fit(X, Y).posterior(X)
    assert posterior.mean.dtype == dtype
    assert bool(posterior.mean.isfinite().all())
    assert float((posterior.mean - Y).square().mean().sqrt()) < 0.6


def test_options_are_checked() -> None:
    for options in ({"network": ()}, {"network": (2.5,)}, {"num_members": 30, "num_components": 16}, {"num_inducing": 1}):
        with pytest.raises(InvalidOptionError):
            make(**options)
