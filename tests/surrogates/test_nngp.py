"""``nngp``: infinitely wide networks of several shapes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import seqbdl
from seqbdl.inference import infinite_width
from seqbdl.surrogates import NNGPSurrogate

BOUNDS = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)


def data(n: int = 30, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    X = torch.rand(n, 2, generator=generator, dtype=torch.float64)
    Y = torch.sin(5 * X[:, :1]) + X[:, 1:] + 0.1 * torch.randn(n, 1, generator=generator, dtype=torch.float64)
    return X, 100 + 20 * Y


def make(**options: object) -> NNGPSurrogate:
    surrogate = seqbdl.make_surrogate("nngp", 2, **{"bounds": BOUNDS, **options})
    assert isinstance(surrogate, NNGPSurrogate)
    return surrogate


@pytest.mark.parametrize("activation", ["erf", "relu", "leaky_relu"])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_posterior_is_that_of_its_kernel(depth: int, activation: str) -> None:
    X, Y = data()
    X_test, Y_test = data(40, seed=1)
    surrogate = make(depth=depth, activation=activation).fit(X, Y)
    scales = surrogate.scales
    assert scales.depth == depth

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return infinite_width.kernel(scales, a, b, activation)[0]

    mean, std = Y.mean(), Y.std()
    C = kernel(X, X) + scales.noise * torch.eye(30).double()
    cross = kernel(X_test, X)
    expected = mean + std * cross @ torch.linalg.solve(C, (Y - mean) / std)
    covariance = std**2 * (kernel(X_test, X_test) - cross @ torch.linalg.solve(C, cross.T))
    posterior = surrogate.posterior(X_test)
    torch.testing.assert_close(posterior.mean, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(posterior.distribution.covariance_matrix, covariance, rtol=0, atol=1e-4)
    # It has learned: noise is 2, the spread of Y above 10.
    assert float((posterior.mean - Y_test).square().mean().sqrt()) < 5.0


def test_refits_start_where_the_last_one_ended() -> None:
    X, Y = data(40)
    surrogate = make().fit(X[:39], Y[:39])
    evidence: list[float | None] = []
    for max_iterations in (1, 60):
        surrogate.max_iterations = max_iterations
        evidence.append(surrogate.fit(X, Y).log_evidence())
    cold = make(max_iterations=1).fit(X, Y).log_evidence()
    assert evidence[0] is not None
    assert evidence[1] is not None
    assert cold is not None
    assert evidence[0] > cold  # one step from the old scales is worth more than one from the defaults
    assert abs(evidence[0] - evidence[1]) < 0.5


def test_every_output_has_scales_of_its_own() -> None:
    X, _ = data()
    Y = torch.cat([torch.sin(5 * X[:, :1]), torch.sin(5 * X[:, 1:])], 1)
    surrogate = seqbdl.make_surrogate("nngp", 2, 2, bounds=BOUNDS).fit(X, Y)
    assert isinstance(surrogate, NNGPSurrogate)
    inputs = surrogate.scales.inputs
    assert float(inputs[0, 0]) > 5 * float(inputs[0, 1])
    assert float(inputs[1, 1]) > 5 * float(inputs[1, 0])
    alone = make().fit(X, Y[:, 1:])
    torch.testing.assert_close(surrogate.posterior(X).mean[:, 1:], alone.posterior(X).mean, rtol=0, atol=1e-2)


def test_draws_of_a_finite_width_keep_the_posteriors_moments() -> None:
    """Matheron's correction is exact at the data whatever the width."""
    X, Y = data(12)
    surrogate = make(draw_width=16, noise=1e-4).fit(X, Y)
    values = surrogate.sample_functions(200, torch.Generator().manual_seed(0))(X)[..., 0]
    torch.testing.assert_close(values.mean(0), Y[:, 0], rtol=0, atol=0.01)
    assert float(values.std(0).max()) < 0.05
