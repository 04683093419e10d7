"""One contract, one test: what every registered surrogate promises."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import seqbdl
from seqbdl.acquisition import make_acquisition, optimize_acquisition, thompson_candidates, thompson_continuous
from seqbdl.errors import InvalidDataError, InvalidOptionError, SeqbdlError, ShapeError, StateError, UnknownNameError
from seqbdl.posteriors import ParticlePosterior
from seqbdl.surrogates import surrogate_class, surrogate_options
from seqbdl.surrogates.gaussian import GaussianSurrogate

_spec = importlib.util.spec_from_file_location("surrogate_settings", Path(__file__).with_name("conftest.py"))
assert _spec is not None
assert _spec.loader is not None
_settings = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_settings)
make, data, get_fitted = _settings.make, _settings.data, _settings.get_fitted

NAMES = seqbdl.list_surrogates()
BOUNDS = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
Cache = dict[tuple[str, int], seqbdl.Surrogate]

pytestmark = pytest.mark.parametrize("name", NAMES)


def grid(n: int = 5, seed: int = 7) -> Tensor:
    return torch.rand(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def is_gaussian(surrogate: seqbdl.Surrogate) -> bool:
    return isinstance(surrogate, GaussianSurrogate)


def covariance(surrogate: seqbdl.Surrogate, X: Tensor) -> Tensor:
    """The joint covariance of all points and outputs, point slower than output."""
    posterior = surrogate.posterior(X)
    q, m = X.shape[-2], surrogate.num_outputs
    if isinstance(posterior, ParticlePosterior):
        values = (posterior.values - posterior.mean).flatten(-2)
        return torch.einsum("s,si,sj->ij", posterior.weights, values, values)
    matrix = posterior.distribution.covariance_matrix
    if m > 1 and not posterior.distribution._interleaved:
        return matrix.reshape(m, q, m, q).permute(1, 0, 3, 2).reshape(q * m, q * m)
    return matrix


# ---------------------------------------------------------------------------- shapes


@pytest.mark.parametrize("output_dim", [1, 2])
def test_shapes_and_batches(name: str, output_dim: int, fitted: Cache) -> None:
    surrogate = get_fitted(fitted, name, output_dim)
    for batch in [(), (3,), (2, 3), (1, 2, 3)]:
        X = grid(24)[: 1 * 4].expand(*batch, 4, 2)
        posterior = surrogate.posterior(X)
        assert posterior.mean.shape == (*batch, 4, output_dim)
        assert posterior.variance.shape == (*batch, 4, output_dim)
        assert posterior.rsample(torch.Size([5])).shape == (5, *batch, 4, output_dim)
        assert surrogate.sample_functions(6)(X).shape == (6, *batch, 4, output_dim)
        prediction = surrogate.predict(X)
        for value in (prediction.mean, prediction.std, prediction.quantile(0.9), prediction.epistemic_std):
            assert value.shape == (*batch, 4, output_dim)
    assert surrogate.num_outputs == output_dim
    assert surrogate.batch_shape == torch.Size([])


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batch=st.lists(st.integers(1, 3), max_size=2), q=st.integers(1, 4), seed=st.integers(0, 100))
def test_the_batch_a_point_stands_in_does_not_matter(name: str, fitted: Cache, batch: list[int], q: int, seed: int) -> None:
    surrogate = get_fitted(fitted, name, 2)
    count = int(torch.tensor([*batch, 1]).prod()) * q
    X = grid(count, seed).reshape(*batch, q, 2)
    with torch.no_grad():
        batched = surrogate.posterior(X)
        single = surrogate.posterior(X.reshape(-1, 1, 2))
        torch.testing.assert_close(batched.mean.reshape(-1), single.mean.reshape(-1))
        torch.testing.assert_close(batched.variance.reshape(-1), single.variance.reshape(-1), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_answers_follow_the_dtype_of_the_inputs(name: str, dtype: torch.dtype) -> None:
    X, Y = data(8)
    surrogate = make(name).fit(X.to(dtype), Y.to(dtype))
    query = grid(3).to(dtype)
    posterior = surrogate.posterior(query)
    assert posterior.mean.dtype == dtype
    assert posterior.rsample(torch.Size([2])).dtype == dtype
    assert surrogate.sample_functions(2)(query).dtype == dtype
    assert surrogate.predict(query).std.dtype == dtype
    assert bool(posterior.mean.isfinite().all())


# ---------------------------------------------------------------------------- the posterior is one joint distribution


@pytest.mark.parametrize("output_dim", [1, 2])
def test_joint_marginals_equal_marginals(name: str, output_dim: int, fitted: Cache) -> None:
    surrogate = get_fitted(fitted, name, output_dim)
    X = grid(6)
    with torch.no_grad():
        joint = covariance(surrogate, X)
        alone = surrogate.posterior(X.unsqueeze(-2))
        torch.testing.assert_close(joint.diagonal(), alone.variance.flatten(), rtol=1e-5, atol=1e-8)
        torch.testing.assert_close(surrogate.posterior(X).mean, alone.mean.squeeze(-2))
        assert torch.linalg.eigvalsh(joint).min() > -1e-8 * joint.diagonal().max()


@pytest.mark.parametrize("output_dim", [1, 2])
def test_function_draws_have_the_posteriors_moments_and_correlations(name: str, output_dim: int, fitted: Cache) -> None:
    """Distant inputs: draws that share one random number among all inputs have correlation one there."""
    surrogate = get_fitted(fitted, name, output_dim)
    X = torch.tensor([[0.05, 0.95], [0.95, 0.9], [0.5, 0.02], [0.45, 0.55]], dtype=torch.float64)
    n = 4000
    with torch.no_grad():
        values = surrogate.sample_functions(n, torch.Generator().manual_seed(3))(X).flatten(1)
        posterior = surrogate.posterior(X)
        target = covariance(surrogate, X)
    sd = target.diagonal().sqrt()
    error = (values.mean(0) - posterior.mean.flatten()).abs() / sd
    assert error.max() < 5.0 / n**0.5 + 1e-6
    estimate = torch.cov(values.T) / sd / sd.unsqueeze(-1)
    truth = target / sd / sd.unsqueeze(-1)
    # Monte Carlo error of a covariance of standardized variables is at most sqrt(2/n) for Gaussians; heavier tails and the
    # finite width of random features get the same again.
    assert (estimate - truth).abs().max() < 10.0 * (2.0 / n) ** 0.5


def test_posterior_samples_have_the_joint_covariance(name: str, fitted: Cache) -> None:
    surrogate = get_fitted(fitted, name, 2)
    X = torch.tensor([[0.05, 0.95], [0.95, 0.9], [0.5, 0.02]], dtype=torch.float64)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        values = surrogate.posterior(X).rsample(torch.Size([6000])).flatten(1)
        target = covariance(surrogate, X)
    sd = target.diagonal().sqrt()
    error = (torch.cov(values.T) - target) / sd / sd.unsqueeze(-1)
    assert error.abs().max() < 7.0 * (2.0 / 6000) ** 0.5


def test_function_draws_are_functions(name: str, fitted: Cache) -> None:
    surrogate = get_fitted(fitted, name, 2)
    draws = surrogate.sample_functions(5, torch.Generator().manual_seed(1))
    X = grid(6)
    with torch.no_grad():
        first = draws(X)
        torch.testing.assert_close(draws(X), first)
        torch.testing.assert_close(draws(X[2:3]), first[:, 2:3])
        torch.testing.assert_close(draws(X.reshape(2, 3, 2)).reshape(5, 6, 2), first)
        again = surrogate.sample_functions(5, torch.Generator().manual_seed(1))
        torch.testing.assert_close(again(X), first)
    assert len(draws) == 5


def numerical_gradient(f: Any, X: Tensor, step: float = 1e-5) -> Tensor:
    gradient = torch.zeros_like(X)
    flat = gradient.view(-1)
    for i in range(X.numel()):
        shift = torch.zeros(X.numel(), dtype=X.dtype)
        shift[i] = step
        shift = shift.reshape(X.shape)
        with torch.no_grad():
            flat[i] = (f(X + shift) - f(X - shift)) / (2 * step)
    return gradient


@pytest.mark.parametrize("what", ["mean", "variance", "sample", "draws"])
def test_gradients_in_the_inputs_agree_with_finite_differences(name: str, what: str, fitted: Cache) -> None:
    surrogate = get_fitted(fitted, name)
    draws = surrogate.sample_functions(3, torch.Generator().manual_seed(1))

    def value(X: Tensor) -> Tensor:
        if what == "draws":
            return draws(X).sum()
        posterior = surrogate.posterior(X)
        if what != "sample":
            return getattr(posterior, what).sum()
        base = torch.linspace(-1.5, 1.5, int(torch.tensor(posterior.base_sample_shape).prod()), dtype=X.dtype)
        base = base.reshape(1, *posterior.base_sample_shape)
        return posterior.rsample_from_base_samples(sample_shape=torch.Size([1]), base_samples=base).sum()

    X = grid(3, seed=11).requires_grad_(True)
    (gradient,) = torch.autograd.grad(value(X), X)
    expected = numerical_gradient(value, X.detach())
    torch.testing.assert_close(gradient, expected, rtol=2e-3, atol=2e-3 * float(expected.abs().max() + 1e-3))


# ---------------------------------------------------------------------------- edges


def test_answers_before_any_data(name: str) -> None:
    surrogate = make(name)
    X = grid(4)
    posterior = surrogate.posterior(X)
    assert bool(posterior.mean.isfinite().all())
    assert posterior.variance.min() > 1e-6
    assert surrogate.sample_functions(3)(X).shape == (3, 4, 1)
    assert surrogate.train_inputs is None
    assert surrogate.log_evidence() is None
    assert surrogate.predict(X).mean.shape == (4, 1)


@pytest.mark.parametrize("case", ["one point", "constant targets", "duplicated rows", "large units"])
def test_edge_cases(name: str, case: str) -> None:
    X, Y = data(1 if case == "one point" else 6)
    if case == "constant targets":
        Y = torch.full_like(Y, 5.0)
    elif case == "duplicated rows":
        X, Y = X[:3].repeat(3, 1), Y[:3].repeat(3, 1)
    elif case == "large units":
        Y = 1e6 * Y
    surrogate = make(name).fit(X, Y)
    posterior = surrogate.posterior(grid(5))
    assert bool(posterior.mean.isfinite().all())
    assert bool((posterior.variance > 0).all())
    if case == "constant targets":
        assert (surrogate.posterior(X).mean - 5.0).abs().max() < 0.5
    if case == "large units":
        assert (surrogate.posterior(X).mean - Y).abs().max() < 3e6


def test_units_do_not_matter(name: str) -> None:
    """Outcomes in other units and inputs in other boxes give the same answers, in those units."""
    X, Y = data(10)
    plain = make(name).fit(X, Y)
    bounds = torch.tensor([[10.0, -5.0], [30.0, 5.0]])
    scale, offset = torch.tensor([20.0, 10.0]), torch.tensor([10.0, -5.0])
    moved = make(name, bounds=bounds).fit(X * scale + offset, 100.0 * Y - 7.0)
    query = grid(4)
    with torch.no_grad():
        a, b = plain.posterior(query), moved.posterior(query * scale + offset)
        torch.testing.assert_close(100.0 * a.mean - 7.0, b.mean, rtol=1e-3, atol=0.5)
        torch.testing.assert_close(100.0 * a.variance.sqrt(), b.variance.sqrt(), rtol=3e-2, atol=0.5)


def test_it_learns(name: str) -> None:
    X, Y = data(40)
    surrogate = make(name).fit(X[:30], Y[:30])
    prediction = surrogate.predict(X[30:])
    error = prediction.mean - Y[30:]
    assert error.square().mean().sqrt() < 0.5 * Y.std()
    standardized = error / prediction.std
    assert standardized.abs().median() < 2.5
    torch.testing.assert_close(prediction.std.square(), prediction.epistemic_std.square() + prediction.aleatoric_std.square())
    low, high = prediction.interval(0.9)
    assert bool((low < prediction.mean).all())
    assert bool((prediction.mean < high).all())


# ---------------------------------------------------------------------------- posterior as prior


def test_update_against_fit(name: str, fitted: Cache) -> None:
    """After update(A); update(B) predictions are those of the same surrogate given A and B at once.

    Hyperparameters stay during updates, so the comparison is with one update of A and B together, on top of the same
    fit.
    """
    X, Y = data(24, seed=5)
    first = copy.deepcopy(get_fitted(fitted, name))
    twice, once = copy.deepcopy(first), copy.deepcopy(first)
    twice.update(X[:5], Y[:5]).update(X[5:10], Y[5:10])
    once.update(X[:10], Y[:10])
    query = grid(20)
    with torch.no_grad():
        a, b = twice.posterior(query), once.posterior(query)
        before = first.posterior(query)
    sd = before.variance.sqrt()
    tolerance = max(type(first).update_tolerance, 1e-4)
    assert ((a.mean - b.mean).abs() / sd).square().mean().sqrt() < tolerance
    ratio = (a.variance.mean() / b.variance.mean()).sqrt()
    assert 1 / (1 + 2 * tolerance) < ratio < 1 + 2 * tolerance
    # What was learned is used: the new rows are predicted better, and nothing about the old rows is forgotten.
    gap = lambda s, x, y: float((s.posterior(x).mean - y).abs().mean())  # noqa: E731
    assert gap(twice, X[:10], Y[:10]) < gap(first, X[:10], Y[:10])
    X_old, Y_old = data(14)
    assert gap(twice, X_old, Y_old) < gap(first, X_old, Y_old) + 0.15
    assert twice.train_inputs is not None
    assert twice.train_inputs[0].shape == (24, 2)


def test_update_without_data_is_fit(name: str) -> None:
    X, Y = data(6)
    a, b = make(name).update(X, Y), make(name).fit(X, Y)
    torch.testing.assert_close(a.posterior(grid(3)).mean, b.posterior(grid(3)).mean)


def test_known_noise_is_used(name: str) -> None:
    X, Y = data(10)
    sharp = make(name).fit(X, Y, torch.full_like(Y, 1e-4))
    blunt = make(name).fit(X, Y, torch.full_like(Y, 4.0))
    fit_of = lambda s: float((s.posterior(X).mean - Y).square().mean())  # noqa: E731
    assert fit_of(sharp) < fit_of(blunt)
    fixed = make(name, noise=0.3).fit(X, Y)
    torch.testing.assert_close(fixed.noise_variance, torch.tensor([0.3]).double(), rtol=0.05, atol=0.0)


def test_fit_forgets(name: str) -> None:
    X, Y = data(12)
    surrogate = make(name).fit(X, -Y).fit(X, Y)
    assert surrogate.train_targets is not None
    assert surrogate.train_targets.shape == (12, 1)
    assert (surrogate.posterior(X).mean - Y).abs().mean() < 0.6 * Y.std()


# ---------------------------------------------------------------------------- conditioning and fantasies


def test_conditioning_is_pure_and_shrinks_the_spread(name: str, fitted: Cache) -> None:
    surrogate = get_fitted(fitted, name)
    X = torch.tensor([[0.02, 0.03]], dtype=torch.float64)
    with torch.no_grad():
        before = surrogate.posterior(X)
        target = before.mean + before.variance.sqrt()
        conditioned = surrogate.condition_on_observations(X, target)
        after = conditioned.posterior(X)
        assert after.variance.sum() < before.variance.sum()
        assert (after.mean - target).abs().sum() < (before.mean - target).abs().sum()
        torch.testing.assert_close(surrogate.posterior(X).mean, before.mean)
        assert conditioned.sample_functions(3)(X).shape == (3, 1, 1)


@pytest.mark.parametrize("output_dim", [1, 2])
def test_conditioning_is_batched(name: str, output_dim: int, fitted: Cache) -> None:
    """A batch of fantasies equals its elements one by one."""
    surrogate = get_fitted(fitted, name, output_dim)
    X = grid(6).reshape(3, 2, 2)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        Y = surrogate.posterior(X).mean + 0.3 * torch.randn(4, 3, 2, output_dim, generator=generator, dtype=torch.float64)
        batched = surrogate.condition_on_observations(X, Y)
        assert batched.batch_shape == (4, 3)
        query = grid(5, seed=9)
        answer = batched.posterior(query)
        assert answer.mean.shape == (4, 3, 5, output_dim)
        own_points = batched.posterior(query.reshape(1, 1, 5, 2).expand(4, 3, 5, 2))
        torch.testing.assert_close(own_points.mean, answer.mean)
        one = surrogate.condition_on_observations(X[1], Y[2, 1]).posterior(query)
        torch.testing.assert_close(answer.mean[2, 1], one.mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(answer.variance[2, 1], one.variance, rtol=1e-3, atol=1e-6)


def test_fantasies(name: str, fitted: Cache) -> None:
    from botorch.sampling.normal import SobolQMCNormalSampler

    surrogate = get_fitted(fitted, name)
    X = grid(6).reshape(3, 2, 2).requires_grad_(True)
    sampler = SobolQMCNormalSampler(torch.Size([8]), seed=0)
    fantasies = surrogate.fantasize(X, sampler)
    assert fantasies.batch_shape == (8, 3)
    mean = fantasies.posterior(grid(4)).mean
    assert mean.shape == (8, 3, 4, 1)
    (gradient,) = torch.autograd.grad(mean.sum(), X)
    assert bool(gradient.isfinite().all())
    deeper = fantasies.fantasize(grid(1, seed=5).expand(8, 3, 1, 2), SobolQMCNormalSampler(torch.Size([2]), seed=1))
    assert deeper.posterior(grid(4)).mean.shape == (2, 8, 3, 4, 1)
    # Averaged over fantasies the mean does not change: a posterior mean is a martingale.
    many = surrogate.fantasize(grid(1), SobolQMCNormalSampler(torch.Size([256]), seed=0))
    with torch.no_grad():
        average = many.posterior(grid(4, seed=3)).mean.mean(0)
        posterior = surrogate.posterior(grid(4, seed=3))
    assert ((average - posterior.mean).abs() / posterior.variance.sqrt()).max() < 0.2


def test_gaussian_conditioning_equals_refitting_rows(name: str, fitted: Cache) -> None:
    """Exact posteriors: fantasies with the outcomes equal the update with the same rows."""
    surrogate = get_fitted(fitted, name)
    if type(surrogate).update_tolerance > 0 or name == "bayesian-last-layer":
        return  # updates there move more than the function values (weights, noise); the tests above bound them
    X, Y = data(4, seed=5)
    with torch.no_grad():
        a = surrogate.condition_on_observations(X, Y).posterior(grid(6))
        b = copy.deepcopy(surrogate).update(X, Y).posterior(grid(6))
        torch.testing.assert_close(a.mean, b.mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(a.variance, b.variance, rtol=1e-4, atol=1e-7)


def test_observation_noise_adds_exactly_the_noise(name: str, fitted: Cache) -> None:
    surrogate = get_fitted(fitted, name, 2)
    X = grid(4)
    with torch.no_grad():
        latent = surrogate.posterior(X)
        noisy = surrogate.posterior(X, observation_noise=True)
        given = surrogate.posterior(X, observation_noise=torch.full((4, 2), 0.7, dtype=torch.float64))
        torch.testing.assert_close(noisy.variance - latent.variance, surrogate.noise_variance.expand(4, 2), rtol=1e-5, atol=1e-8)
        torch.testing.assert_close(given.variance - latent.variance, torch.full((4, 2), 0.7).double(), rtol=1e-5, atol=1e-8)
        torch.testing.assert_close(noisy.mean, latent.mean)


def test_subset_of_outputs(name: str, fitted: Cache) -> None:
    surrogate = get_fitted(fitted, name, 2)
    X = grid(3)
    with torch.no_grad():
        whole = surrogate.posterior(X)
        view = surrogate.subset_output([1])
        assert view.num_outputs == 1
        torch.testing.assert_close(view.posterior(X).mean, whole.mean[..., 1:])
        torch.testing.assert_close(view.posterior(X).variance, whole.variance[..., 1:], rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(surrogate.posterior(X, output_indices=[1]).mean, whole.mean[..., 1:])
        assert view.sample_functions(3)(X).shape == (3, 3, 1)
        assert view.predict(X).std.shape == (3, 1)
    with pytest.raises(ShapeError, match="out of range"):
        surrogate.subset_output([5])


# ---------------------------------------------------------------------------- acquisition


ACQUISITIONS = ["LogEI", "UCB", "qLogEI", "qLogNEI", "qUCB", "qSR", "qKG", "GIBBON", "qMES", "qJES", "qPES", "qNIPV"]


@pytest.mark.parametrize("acquisition", ACQUISITIONS)
def test_every_acquisition_runs(name: str, acquisition: str, fitted: Cache) -> None:
    surrogate = get_fitted(fitted, name)
    function = make_acquisition(acquisition, surrogate, bounds=BOUNDS, mc_samples=16, num_fantasies=4, seed=0, best_f="observed")
    candidate, value = optimize_acquisition(
        function, BOUNDS, num_restarts=2, raw_samples=8, generator=torch.Generator().manual_seed(0), maxiter=4
    )
    assert candidate.shape == (1, 2)
    assert bool(((candidate >= 0) & (candidate <= 1)).all())
    assert bool(torch.as_tensor(value).isfinite().all())


@pytest.mark.parametrize("acquisition", ["qLogEHVI", "qLogNEHVI", "qLogNParEGO"])
def test_every_acquisition_of_several_objectives_runs(name: str, acquisition: str, fitted: Cache) -> None:
    surrogate = get_fitted(fitted, name, 2)
    function = make_acquisition(acquisition, surrogate, bounds=BOUNDS, mc_samples=16, seed=0, ref_point=[2.0, 2.0])
    candidate, value = optimize_acquisition(
        function, BOUNDS, q=2, num_restarts=2, raw_samples=8, generator=torch.Generator().manual_seed(0), maxiter=4
    )
    assert candidate.shape == (2, 2)
    assert bool(torch.as_tensor(value).isfinite().all())


def test_thompson_sampling(name: str, fitted: Cache) -> None:
    surrogate = get_fitted(fitted, name)
    candidates = grid(200, seed=2)
    picks = thompson_candidates(surrogate, candidates, n=4, generator=torch.Generator().manual_seed(0), chunk_size=64)
    assert len(set(picks.tolist())) == 4
    X = thompson_continuous(surrogate, BOUNDS, n=2, generator=torch.Generator().manual_seed(0), num_restarts=2, raw_samples=32)
    assert X.shape == (2, 2)


def test_equal_points_have_equal_values_in_every_slot(name: str, fitted: Cache) -> None:
    surrogate = get_fitted(fitted, name)
    function = make_acquisition("qLogEI", surrogate, bounds=BOUNDS, mc_samples=64, seed=0, best_f="observed")
    point = torch.tensor([[0.3, 0.7]], dtype=torch.float64)
    with torch.no_grad():
        values = function(point.expand(6, 1, 2))
        assert values.max() - values.min() < 1e-12
        torch.testing.assert_close(function(point.unsqueeze(0)), values[:1])


# ---------------------------------------------------------------------------- state and randomness


def test_save_and_load(name: str, fitted: Cache, tmp_path: Path) -> None:
    surrogate = copy.deepcopy(get_fitted(fitted, name, 2))
    path = tmp_path / "surrogate.safetensors"
    seqbdl.save(path, surrogate)
    loaded = seqbdl.load(path)
    X = grid(4)
    with torch.no_grad():
        torch.testing.assert_close(loaded.posterior(X).mean, surrogate.posterior(X).mean, rtol=0, atol=0)
        torch.testing.assert_close(loaded.posterior(X).variance, surrogate.posterior(X).variance, rtol=0, atol=0)
        # The generator continues where it was: the next draws, and the next fit, are the same.
        torch.testing.assert_close(loaded.sample_functions(3)(X), surrogate.sample_functions(3)(X), rtol=0, atol=0)
        new_X, new_Y = data(3, 2, seed=8)
        a, b = loaded.update(new_X, new_Y), surrogate.update(new_X, new_Y)
        torch.testing.assert_close(a.posterior(X).mean, b.posterior(X).mean, rtol=0, atol=0)
        all_X, all_Y = data(15, 2, seed=9)
        a, b = loaded.fit(all_X, all_Y), surrogate.fit(all_X, all_Y)
        torch.testing.assert_close(a.posterior(X).mean, b.posterior(X).mean, rtol=0, atol=0)
    assert loaded.log_evidence() == surrogate.log_evidence()


def test_state_dict_and_deepcopy(name: str, fitted: Cache) -> None:
    surrogate = get_fitted(fitted, name)
    X = grid(4)
    other = make(name)
    other.load_state_dict(surrogate.state_dict())
    twin = copy.deepcopy(surrogate)
    twin.fit(*data(5, seed=3))
    with torch.no_grad():
        torch.testing.assert_close(other.posterior(X).mean, surrogate.posterior(X).mean, rtol=0, atol=0)
    assert surrogate.train_inputs is not None
    assert surrogate.train_inputs[0].shape == (14, 2)  # the twin's fit did not reach the original
    with pytest.raises(StateError, match="input_dim"):
        make(name, input_dim=3).load_state(surrogate.save_state())


def test_same_seed_same_answers_and_the_global_generator_is_left_alone(name: str) -> None:
    X, Y = data(9)
    query = grid(3)
    state = torch.get_rng_state()
    answers = []
    for _ in range(2):
        surrogate = make(name, seed=4).fit(X, Y)
        with torch.no_grad():
            answers.append((surrogate.posterior(query).mean, surrogate.sample_functions(2)(query)))
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(answers[0][0], answers[1][0], rtol=0, atol=0)
    torch.testing.assert_close(answers[0][1], answers[1][1], rtol=0, atol=0)


def test_clone_has_the_options_and_no_data(name: str, fitted: Cache) -> None:
    twin = get_fitted(fitted, name).clone()
    assert twin.train_inputs is None
    a, b = twin.fit(*data(7)), make(name).fit(*data(7))
    torch.testing.assert_close(a.posterior(grid(2)).mean, b.posterior(grid(2)).mean, rtol=0, atol=0)


def test_features_are_offered_or_absent(name: str, fitted: Cache) -> None:
    surrogate = get_fitted(fitted, name)
    features = getattr(surrogate, "features", None)
    if features is not None:
        values = features(grid(4))
        assert values.shape[-2] == 4
        assert bool(values.isfinite().all())


# ---------------------------------------------------------------------------- bad input is refused


@pytest.mark.parametrize("verb", ["fit", "update"])
def test_bad_data_is_refused_and_changes_nothing(name: str, verb: str, fitted: Cache) -> None:
    surrogate = copy.deepcopy(get_fitted(fitted, name))
    X, Y = data(6)
    learn = getattr(surrogate, verb)
    before = surrogate.posterior(grid(3)).mean.detach()
    nan, infinite = Y.clone(), X.clone()
    nan[4, 0] = float("nan")
    infinite[2, 1] = float("inf")
    with pytest.raises(InvalidDataError, match=r"Y has 1 NaN.*row 4"):
        learn(X, nan)
    with pytest.raises(InvalidDataError, match=r"X has 1 NaN or infinite.*row 2"):
        learn(infinite, Y)
    with pytest.raises(ShapeError, match=r"input_dim=2"):
        learn(torch.rand(6, 3, dtype=torch.float64), Y)
    with pytest.raises(ShapeError, match=r"Y has 5 rows, X has 6"):
        learn(X, Y[:5])
    with pytest.raises(ShapeError, match=r"n x m"):
        learn(X, Y.squeeze(-1))
    with pytest.raises(ShapeError, match="no rows"):
        learn(X[:0], Y[:0])
    with pytest.raises(InvalidDataError, match=r"Yvar is negative in row 1"):
        learn(X, Y, torch.tensor([[0.1], [-0.1], [0.1], [0.1], [0.1], [0.1]], dtype=torch.float64))
    with pytest.raises(InvalidDataError, match="dtype"):
        learn(X, torch.ones(6, 1, dtype=torch.long))
    with pytest.raises(ShapeError, match=r"torch\.Tensor"):
        learn(X.numpy(), Y)
    torch.testing.assert_close(surrogate.posterior(grid(3)).mean, before, rtol=0, atol=0)


@pytest.mark.parametrize("verb", ["fit", "update"])
def test_a_failure_in_the_middle_changes_nothing(name: str, verb: str, fitted: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was half learned is undone, the random numbers that it took too: the next update is what it would have been."""
    surrogate, twin = (copy.deepcopy(get_fitted(fitted, name)) for _ in range(2))
    X, Y = data(5, seed=4)

    def fail(self: Any) -> None:
        raise torch.linalg.LinAlgError("not positive definite")

    with monkeypatch.context() as patched:
        patched.setattr(type(surrogate), "_settle", fail)
        with pytest.raises(torch.linalg.LinAlgError):
            getattr(surrogate, verb)(X, Y)
    assert surrogate.num_rows == twin.num_rows
    for _ in range(2):
        now, then = surrogate.posterior(grid(3)), twin.posterior(grid(3))
        torch.testing.assert_close(now.mean, then.mean, rtol=0, atol=0)
        torch.testing.assert_close(now.variance, then.variance, rtol=0, atol=0)
        surrogate.update(X, Y)
        twin.update(X, Y)


def test_bad_queries_are_refused(name: str, fitted: Cache) -> None:
    surrogate = get_fitted(fitted, name)
    with pytest.raises(ShapeError, match="input_dim=2"):
        surrogate.posterior(torch.rand(3, 4, dtype=torch.float64))
    with pytest.raises(ShapeError, match="q = 0"):
        surrogate.posterior(torch.rand(0, 2, dtype=torch.float64))
    with pytest.raises(ShapeError, match="q x d"):
        surrogate.posterior(torch.rand(2, dtype=torch.float64))
    with pytest.raises(InvalidDataError, match="row 1"):
        surrogate.posterior(torch.tensor([[0.1, 0.2], [float("nan"), 0.3]], dtype=torch.float64))
    with pytest.raises(InvalidOptionError, match="at least one"):
        surrogate.sample_functions(0)
    with pytest.raises(ShapeError, match="the rows of X"):
        surrogate.condition_on_observations(grid(2), torch.zeros(3, 1, dtype=torch.float64))
    with pytest.raises(ValueError, match="strictly between"):
        surrogate.predict(grid(1)).quantile(1.0)


def test_bad_options_are_refused(name: str) -> None:
    with pytest.raises(UnknownNameError, match=f"option of '{name}'"):
        seqbdl.make_surrogate(name, 2, no_such_option=1)
    with pytest.raises(UnknownNameError, match="likelihood"):
        seqbdl.make_surrogate(name, 2, likelihood="gausian")
    with pytest.raises(SeqbdlError, match="at least 1"):
        seqbdl.make_surrogate(name, 0)
    with pytest.raises(SeqbdlError, match="variance"):
        seqbdl.make_surrogate(name, 2, noise=-1.0)
    with pytest.raises(SeqbdlError, match="bounds"):
        seqbdl.make_surrogate(name, 2, bounds=torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    assert {"bounds", "noise", "seed"} <= set(surrogate_options(surrogate_class(name)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda(name: str) -> None:
    X, Y = data(10)
    surrogate = make(name).fit(X.cuda(), Y.cuda())
    query = grid(4).cuda()
    posterior = surrogate.posterior(query)
    assert posterior.mean.is_cuda
    assert surrogate.sample_functions(3)(query).is_cuda
    surrogate.update(X[:2].cuda(), Y[:2].cuda())
    assert surrogate.fantasize(query[:1], _sampler()).posterior(query).mean.is_cuda
    back = copy.deepcopy(surrogate).cpu()
    torch.testing.assert_close(back.posterior(query.cpu()).mean, surrogate.posterior(query).mean.cpu())


def _sampler() -> Any:
    from botorch.sampling.normal import SobolQMCNormalSampler

    return SobolQMCNormalSampler(torch.Size([4]), seed=0)
