"""What all deep kernels promise alike: draws, joint covariances, exact updates, numbers in either precision."""

from __future__ import annotations

import importlib.util
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_diabetes
from torch import Tensor

import seqbdl
from seqbdl.posteriors import ParticlePosterior

_spec = importlib.util.spec_from_file_location("surrogate_settings", Path(__file__).with_name("conftest.py"))
assert _spec is not None
assert _spec.loader is not None
_settings = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_settings)
make, data, get_fitted = _settings.make, _settings.data, _settings.get_fitted

NAMES = ("nngp", "dkl", "due", "dkm", "dwp")
Cache = dict[tuple[str, int], seqbdl.Surrogate]

pytestmark = pytest.mark.parametrize("name", NAMES)


def points(n: int, d: int = 2, seed: int = 3) -> Tensor:
    return torch.rand(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covariance(surrogate: seqbdl.Surrogate, X: Tensor) -> Tensor:
    posterior = surrogate.posterior(X)
    if isinstance(posterior, ParticlePosterior):
        values = (posterior.values - posterior.mean).flatten(-2)
        return torch.einsum("s,si,sj->ij", posterior.weights, values, values)
    matrix: Tensor = posterior.distribution.covariance_matrix
    return matrix


def test_draws_have_the_posteriors_moments_at_a_hundred_points(name: str, fitted: Cache) -> None:
    surrogate, X, n = get_fitted(fitted, name), points(100), 600
    with torch.no_grad():
        posterior = surrogate.posterior(X)
        values = surrogate.sample_functions(n, torch.Generator().manual_seed(0))(X)
    sd = posterior.variance.sqrt()
    # Beyond the Monte Carlo errors, of which the largest of a hundred is about three and a half.
    assert float(((values.mean(0) - posterior.mean) / sd).abs().max()) < 0.1 + 3.5 / n**0.5
    assert float((values.std(0) / sd - 1).abs().max()) < 0.05 + 3.5 / (2 * n) ** 0.5


def test_two_hundred_points_together_are_positive_semi_definite(name: str, fitted: Cache) -> None:
    with torch.no_grad():
        joint = covariance(get_fitted(fitted, name), points(200))
    assert torch.linalg.eigvalsh(joint).min() > -1e-8 * joint.diagonal().max()


SPLITS = ((23,), (20, 25, 26), tuple(range(16, 40)))  # of rows 15 to 40; at 25 the basis is full, where it has a limit


@pytest.mark.parametrize("limit", [None, 25])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_updates_under_the_frozen_kernel_are_refits(name: str, limit: int | None, dtype: torch.dtype) -> None:
    """All rows at once or in any calls: one posterior, within the limit of rows of an exact one and across it. Below it, that is
    the Gaussian process given all rows, the dense way."""
    X, Y = (rows.to(dtype) for rows in data(40))
    options = {} if limit is None else {"memory" if name == "dwp" else "max_rows": limit}
    start = make(name, **options).fit(X[:15], Y[:15])
    state, query = start.save_state(), points(10).to(dtype)

    def answers(cuts: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        surrogate, ends = make(name, **options).load_state(state), (15, *cuts, 40)
        for begin, end in pairwise(ends):
            surrogate.update(X[begin:end], Y[begin:end])
        return surrogate.posterior(query).mean, covariance(surrogate, query)

    # The algebra is in double precision; answers are rounded to a type whose numbers have gaps of 5e-7 around their size, 4.
    tolerance = 1e-6 if dtype == torch.float64 else 4e-6
    with torch.no_grad():
        mean, joint = answers(())
        for cuts in SPLITS:
            for ours, expected in zip(answers(cuts), (mean, joint), strict=True):
                torch.testing.assert_close(ours, expected, rtol=0, atol=tolerance)
        if limit is None and name != "dwp":  # whose fantasies are weighted particles; its components are compared in its file
            dense = make(name).load_state(state).condition_on_observations(X[15:], Y[15:])
            for ours, expected in zip((mean, joint), (dense.posterior(query).mean, covariance(dense, query)), strict=True):
                torch.testing.assert_close(ours, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("noise", [None, 1e-8])
def test_answers_have_the_unit_of_the_outcomes(name: str, noise: float | None) -> None:
    """Of size 1e-6 and 1e6 (powers of two, which round nothing), with learned noise and with next to none."""
    X, Y = data(20)
    query, answers = torch.cat([points(8), X[:2]]), []
    for unit in (1.0, 2.0**-20, 2.0**20):
        surrogate = make(name, noise=None if noise is None else noise * unit**2).fit(X, unit * Y)
        with torch.no_grad():
            posterior = surrogate.posterior(query)
            joint = covariance(surrogate, query)
            values = surrogate.sample_functions(3, torch.Generator().manual_seed(0))(query)
        sd = posterior.variance.sqrt()
        answers.append((posterior.mean / unit, sd / unit, joint / unit**2, surrogate.predict(query).std / unit, values / unit))
    for others in answers[1:]:
        for ours, expected in zip(others, answers[0], strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-6, atol=0)
    if noise is not None and name != "dwp":  # whose variance is that of a few particles
        sd = answers[1][1][-2:]  # at rows of the data: that of the noise, and what is kept against rounding
        assert float(sd.max()) < 2e-4


@pytest.mark.parametrize("case", ["as it is", "duplicated rows", "a constant column", "tiny scale", "nearly the same rows"])
def test_both_precisions_on_measured_data(name: str, case: str) -> None:
    """Diabetes; the algebra is in float64 in any case, so that both answer alike, and are never NaN."""
    inputs, outcomes = load_diabetes(return_X_y=True)
    X, Y = torch.from_numpy(inputs).double()[:48, :4], torch.from_numpy(outcomes).double()[:48, None]
    if case == "duplicated rows":
        X, Y = X[:16].repeat(3, 1), Y[:16].repeat(3, 1)
    elif case == "a constant column":
        X = torch.cat([X[:, :3], torch.full((48, 1), 7.0).double()], 1)
    elif case == "tiny scale":
        X, Y = 1e-6 * X, 1e-6 * Y
    elif case == "nearly the same rows":
        X = X[:1] + 1e-7 * X
    answers = []
    for dtype in (torch.float64, torch.float32):
        surrogate = seqbdl.make_surrogate(name, 4, seed=0, **_settings.SMALL[name]).fit(X.to(dtype), Y.to(dtype))
        posterior = surrogate.posterior(X.to(dtype))
        assert posterior.mean.dtype == dtype
        assert bool(posterior.mean.isfinite().all())
        assert bool((posterior.variance > 0).all())
        assert bool(surrogate.sample_functions(3)(X.to(dtype)).isfinite().all())
        assert float((posterior.mean - Y).square().mean().sqrt()) < 1.05 * float(Y.std())
        answers.append(posterior.mean.double())
    if case != "nearly the same rows":  # which single precision cannot tell apart
        assert float((answers[0] - answers[1]).abs().max()) < 0.25 * float(Y.std())
