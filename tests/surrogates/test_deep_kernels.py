"""What all deep kernels promise alike: draws, joint covariances, exact updates, numbers in either precision."""

from __future__ import annotations

import importlib.util
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


def test_updates_under_the_frozen_kernel_are_refits(name: str) -> None:
    """All rows at once, the dense way or by conditioning, whatever the calls. Components of a mixture: their own weights too."""
    X, Y = data(30)
    start = make(name).fit(X[:20], Y[:20])
    state, query = start.save_state(), points(10)
    several = start.update(X[20:23], Y[20:23]).update(X[23:], Y[23:])
    once = make(name).load_state(state).update(X[20:], Y[20:])
    # Rows join the basis of due unless it explains all but a millionth of their variance, a thousandth of their sd; those that
    # join that of dwp together share the jitter of their block.
    tolerance = {"due": 1e-3, "dwp": 1e-3}.get(name, 1e-6)
    with torch.no_grad():
        torch.testing.assert_close(several.posterior(query).mean, once.posterior(query).mean, rtol=0, atol=tolerance)
        torch.testing.assert_close(several.posterior(query).variance, once.posterior(query).variance, rtol=0, atol=tolerance)
        if name != "dwp":  # whose fantasies are weighted particles
            dense = make(name).load_state(state).condition_on_observations(X[20:], Y[20:]).posterior(query)
            torch.testing.assert_close(once.posterior(query).mean, dense.mean, rtol=0, atol=max(tolerance, 1e-5))


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
