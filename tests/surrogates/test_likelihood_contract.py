"""The contract for likelihoods that are not Gaussian with one noise: every registered name times what it supports."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path

import pytest
import torch
from botorch.sampling.normal import SobolQMCNormalSampler
from torch import Tensor

import seqbdl
from seqbdl.acquisition import make_acquisition
from seqbdl.errors import InvalidDataError, InvalidOptionError
from seqbdl.surrogates import surrogate_class

_spec = importlib.util.spec_from_file_location("surrogate_settings", Path(__file__).with_name("conftest.py"))
assert _spec is not None
assert _spec.loader is not None
_settings = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_settings)
make = _settings.make

CASES = [
    (name, likelihood, m)
    for name in seqbdl.list_surrogates()
    for likelihood, m in (("bernoulli", 1), ("bernoulli", 2), ("categorical", 3), ("poisson", 1), ("heteroscedastic", 1))
    if likelihood in surrogate_class(name).likelihoods
]
BOUNDS = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
Cache = dict[tuple[str, str, int], seqbdl.Surrogate]
_cache: Cache = {}

pytestmark = pytest.mark.parametrize(("name", "likelihood", "m"), CASES)


def data(likelihood: str, m: int, n: int = 40, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    X = torch.rand(n, 2, generator=generator, dtype=torch.float64)
    f = 6.0 * (X[:, :1] - 0.5) * torch.linspace(1.0, -1.0, m if m > 1 else 2, dtype=torch.float64)[:m]  # n x m
    if likelihood == "bernoulli":
        return X, (torch.rand(n, m, generator=generator, dtype=torch.float64) < torch.sigmoid(3 * f)).double()
    if likelihood == "categorical":
        return X, (X[:, :1] * 2.999).floor()
    if likelihood == "poisson":
        return X, torch.poisson((f + 1).exp(), generator=generator)
    spread = 0.02 + 0.5 * X[:, :1]
    return X, f + spread * torch.randn(n, m, generator=generator, dtype=torch.float64)


def fitted(name: str, likelihood: str, m: int) -> seqbdl.Surrogate:
    key = (name, likelihood, m)
    if key not in _cache:
        _cache[key] = make(name, output_dim=m, likelihood=likelihood).fit(*data(likelihood, m))
    return _cache[key]


def grid(n: int = 5, seed: int = 7) -> Tensor:
    return torch.rand(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_shapes(name: str, likelihood: str, m: int) -> None:
    surrogate = fitted(name, likelihood, m)
    for batch in [(), (2, 3)]:
        X = grid(4).expand(*batch, 4, 2)
        posterior = surrogate.posterior(X)
        assert posterior.mean.shape == (*batch, 4, m)
        assert posterior.rsample(torch.Size([5])).shape == (5, *batch, 4, m)
        assert surrogate.sample_functions(6)(X).shape == (6, *batch, 4, m)
        prediction = surrogate.predict(X)
        for value in (prediction.mean, prediction.std, prediction.epistemic_std, prediction.aleatoric_std):
            assert value.shape == (*batch, 4, m)
            assert bool(value.isfinite().all())
        if likelihood in ("bernoulli", "categorical"):
            classes = (m,) if likelihood == "categorical" else (2,) if m == 1 else (m, 2)
            assert prediction.probs is not None
            assert prediction.probs.shape == (*batch, 4, *classes)
            torch.testing.assert_close(prediction.probs.sum(-1), torch.ones_like(prediction.probs[..., 0]))
            assert surrogate.log_probs(X, 3).shape == (3, *batch, 4, *classes)
        if likelihood != "categorical":
            assert bool((prediction.quantile(0.1) <= prediction.quantile(0.9)).all())


def test_it_learns(name: str, likelihood: str, m: int) -> None:
    surrogate = fitted(name, likelihood, m)
    X, Y = data(likelihood, m, 200, seed=1)
    prediction = surrogate.predict(X)
    if likelihood == "bernoulli":
        assert ((prediction.mean > 0.5).double() == Y).double().mean() > 0.75
    elif likelihood == "categorical":
        assert prediction.probs is not None
        assert (prediction.probs.argmax(-1, keepdim=True) == Y).double().mean() > 0.8
    elif likelihood == "poisson":
        error = prediction.mean.log() - (6.0 * (X[:, :1] - 0.5) + 1)
        assert error[X[:, :1] > 0.4].abs().mean() < 0.5
    else:
        assert (prediction.mean - Y).square().mean() < 0.25 * Y.var()


def test_noise_that_varies_is_found(name: str, likelihood: str, m: int) -> None:
    if likelihood != "heteroscedastic":
        return
    X, Y = data(likelihood, m, 120)
    surrogate = make(name, output_dim=m, likelihood=likelihood).fit(X, Y)
    low, high = torch.tensor([[0.1, 0.5]]).double(), torch.tensor([[0.9, 0.5]]).double()
    assert surrogate.predict(high).aleatoric_std > 1.2 * surrogate.predict(low).aleatoric_std
    noisy, latent = surrogate.posterior(high, observation_noise=True), surrogate.posterior(high)
    assert bool((noisy.variance > latent.variance).all())


def test_log_probs_are_of_the_same_functions_everywhere(name: str, likelihood: str, m: int) -> None:
    surrogate = fitted(name, likelihood, m)
    if likelihood not in ("bernoulli", "categorical"):
        with pytest.raises(InvalidOptionError, match="no classes"):
            surrogate.log_probs(grid(), 3)
        return
    X = grid(6)
    with torch.no_grad():
        first = surrogate.log_probs(X, 8)
        torch.testing.assert_close(surrogate.log_probs(X[2:4], 8), first[:, 2:4])
        many = surrogate.log_probs(X, 2000, torch.Generator().manual_seed(0)).exp()
        probs = surrogate.predict(X).probs
    assert probs is not None
    # Two estimates of one mean: 2,000 draws, and at least 256 quasi-random ones or the particles themselves.
    assert ((many.mean(0) - probs).abs() < 5 * many.std(0) / 2000**0.5 + 0.03).all()


def test_fantasies_and_conditioning(name: str, likelihood: str, m: int) -> None:
    surrogate = fitted(name, likelihood, m)
    X = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    with torch.no_grad():
        before = surrogate.predict(X).mean
        fantasy = surrogate.fantasize(X, SobolQMCNormalSampler(torch.Size([4]), seed=0))
        assert fantasy.batch_shape == torch.Size([4])
        assert fantasy.posterior(grid(3)).mean.shape == (4, 3, m)
        assert fantasy.predict(grid(3)).mean.shape == (4, 3, m)
        assert fantasy.sample_functions(2)(grid(3)).shape == (2, 4, 3, m)
        label = torch.zeros(6, surrogate.num_targets, dtype=torch.float64)
        if likelihood == "heteroscedastic":  # low, but no outlier, which the noise alone would explain
            label = (before - 2 * surrogate.predict(X).std).expand(6, -1)
        seen = surrogate.condition_on_observations(X.expand(6, 2) + 1e-3 * grid(6), label)
        after = seen.predict(X).mean
        torch.testing.assert_close(surrogate.predict(X).mean, before)
    if likelihood == "categorical":
        assert after[0, 0] > before[0, 0]
    else:
        assert bool((after < before).all())


def test_update_learns_and_save_load_keeps(name: str, likelihood: str, m: int, tmp_path: Path) -> None:
    surrogate = copy.deepcopy(fitted(name, likelihood, m))
    X, Y = data(likelihood, m, 20, seed=3)
    path = tmp_path / "s.safetensors"
    seqbdl.save(path, surrogate)
    loaded = seqbdl.load(path)
    loaded.update(X, Y)
    surrogate.update(X, Y)
    query = grid(4)
    with torch.no_grad():
        torch.testing.assert_close(loaded.posterior(query).mean, surrogate.posterior(query).mean, rtol=0, atol=0)
        torch.testing.assert_close(loaded.predict(query).mean, surrogate.predict(query).mean, rtol=0, atol=0)
    old_X, old_Y = data(likelihood, m)
    prediction = surrogate.predict(old_X)
    if likelihood == "categorical":
        assert prediction.probs is not None
        assert (prediction.probs.argmax(-1, keepdim=True) == old_Y).double().mean() > 0.7
    assert bool(prediction.mean.isfinite().all())


def test_gradients_and_acquisition(name: str, likelihood: str, m: int) -> None:
    surrogate = fitted(name, likelihood, m)
    X = grid(3).requires_grad_(True)
    value = lambda points: surrogate.posterior(points).mean[..., 0].sum()  # noqa: E731 - logits of all classes may sum to 0
    (gradient,) = torch.autograd.grad(value(X), X)
    step = torch.zeros_like(X)
    step[1, 0] = 1e-5
    with torch.no_grad():
        high, low = value(X + step), value(X - step)
    torch.testing.assert_close(gradient[1, 0], (high - low) / 2e-5, rtol=2e-3, atol=2e-3 * float(gradient.abs().max()))
    if m == 1:
        value = make_acquisition("qUCB", surrogate, bounds=BOUNDS, mc_samples=16, seed=0)(grid(2).unsqueeze(-2))
        assert bool(value.isfinite().all())


def test_bad_labels_are_refused(name: str, likelihood: str, m: int) -> None:
    surrogate = copy.deepcopy(fitted(name, likelihood, m))
    X, Y = data(likelihood, m, 6)
    bad = Y.clone()
    bad[4, 0] = {"bernoulli": 2.0, "categorical": 3.0, "poisson": -1.0}.get(likelihood, float("nan"))
    for learn in (surrogate.fit, surrogate.update):
        with pytest.raises(InvalidDataError, match="row 4"):
            learn(X, bad)
    if likelihood != "heteroscedastic":
        with pytest.raises(InvalidOptionError, match="noise"):
            make(name, output_dim=m, likelihood=likelihood, noise=0.1)
        with pytest.raises(InvalidOptionError, match="Yvar"):
            surrogate.fit(X, Y, torch.ones(6, m, dtype=torch.float64))
        with pytest.raises(InvalidOptionError, match="observation_noise"):
            surrogate.posterior(X, observation_noise=True)
    if likelihood == "categorical":
        with pytest.raises(InvalidOptionError, match="number of classes"):
            make(name, output_dim=1, likelihood=likelihood)
        with pytest.raises(InvalidOptionError, match="no quantiles"):
            surrogate.predict(X).quantile(0.5)
