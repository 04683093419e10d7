"""``dkm``: the infinitely wide network at one end, learned representations at the other."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from sklearn.datasets import load_diabetes
from torch import Tensor

import seqbdl
from seqbdl.errors import InvalidOptionError, UnknownNameError
from seqbdl.inference.gram import gram
from seqbdl.surrogates import DKMSurrogate

BOUNDS = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)


def steps(n: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    X = torch.rand(n, 2, generator=generator, dtype=torch.float64)
    Y = torch.sign(X.sum(-1, keepdim=True) - 1.0)
    return X, 10 + 4 * Y + 0.2 * torch.randn(n, 1, generator=generator, dtype=torch.float64)


def make(name: str = "dkm", **options: Any) -> DKMSurrogate:
    surrogate = seqbdl.make_surrogate(name, 2, **{"bounds": BOUNDS, **options})
    assert isinstance(surrogate, DKMSurrogate)
    return surrogate


def log_density(surrogate: seqbdl.Surrogate, X: Tensor, Y: Tensor) -> float:
    prediction = surrogate.predict(X)
    return float(torch.distributions.Normal(prediction.mean, prediction.std).log_prob(Y).mean())


@pytest.mark.parametrize("options", [{}, {"activation": "relu", "depth": 3}, {"noise": 0.05}])
def test_an_infinite_nu_is_nngp(options: dict[str, Any]) -> None:
    X, Y = steps(30, 0)
    ours = make(nu=math.inf, **options).fit(X, Y)
    theirs = seqbdl.make_surrogate("nngp", 2, bounds=BOUNDS, **options).fit(X, Y)
    X_test, _ = steps(40, 1)
    a, b = ours.posterior(X_test), theirs.posterior(X_test)
    torch.testing.assert_close(a.mean, b.mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(a.distribution.covariance_matrix, b.distribution.covariance_matrix, rtol=0, atol=1e-6)
    assert ours.log_evidence() == pytest.approx(theirs.log_evidence(), abs=1e-6)
    assert make(nu=10.0, steps=5).fit(X, Y).log_evidence() is None  # a penalized objective, not comparable


def test_the_posterior_is_that_of_its_kernel() -> None:
    X, Y = steps(40, 0)
    X_test, _ = steps(10, 1)
    surrogate = make(nu=20.0, num_inducing=15, steps=15).fit(X, Y)
    kernel = surrogate.kernel
    assert kernel.roots.shape == (1, 15, 15)
    mean, std = Y.mean(), Y.std()
    noise = surrogate.noise_variance / std**2
    C = gram(kernel, X, X) + noise * torch.eye(40).double()
    cross = gram(kernel, X_test, X)
    expected = mean + std * cross @ torch.linalg.solve(C, (Y - mean) / std)
    covariance = std**2 * (gram(kernel, X_test, X_test) - cross @ torch.linalg.solve(C, cross.T))
    posterior = surrogate.posterior(X_test)
    torch.testing.assert_close(posterior.mean, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(posterior.distribution.covariance_matrix, covariance, rtol=0, atol=1e-5)


def test_updates_under_the_learned_kernel_are_refits() -> None:
    X, Y = steps(50, 0)
    surrogate = make(nu=20.0, steps=15).fit(X[:40], Y[:40])
    conditioned = surrogate.condition_on_observations(X[40:], Y[40:])
    X_test, _ = steps(10, 1)
    expected = conditioned.posterior(X_test)
    updated = surrogate.update(X[40:45], Y[40:45]).update(X[45:], Y[45:]).posterior(X_test)
    torch.testing.assert_close(updated.mean, expected.mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(updated.variance, expected.variance, rtol=0, atol=1e-6)


def test_beyond_max_rows_it_stands_on_inducing_inputs_and_updates_are_refits_there_too() -> None:
    X, Y = steps(150, 0)
    both = make(nu=math.inf, max_rows=60, num_inducing=60).fit(X, Y)
    exact = make(nu=math.inf).fit(X, Y)
    X_test, Y_test = steps(100, 1)
    assert float((both.predict(X_test).mean - exact.predict(X_test).mean).square().mean().sqrt()) < 1.5
    assert log_density(both, X_test, Y_test) > log_density(exact, X_test, Y_test) - 1.0
    state = both.save_state()
    more_X, more_Y = steps(30, 2)
    one, two = (make(nu=math.inf, max_rows=60, num_inducing=60).load_state(state) for _ in range(2))
    one.update(more_X, more_Y)
    two.update(more_X[:7], more_Y[:7]).update(more_X[7:], more_Y[7:])
    torch.testing.assert_close(one.posterior(X_test).mean, two.posterior(X_test).mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(one.posterior(X_test).variance, two.posterior(X_test).variance, rtol=0, atol=1e-6)


@pytest.mark.parametrize("seed", [0, 1])
def test_learned_representations_predict_steps_with_smaller_errors(seed: int) -> None:
    X, Y = steps(100, seed)
    X_test, Y_test = steps(400, 9)
    error = lambda s: float((s.fit(X, Y).predict(X_test).mean - Y_test).square().mean())  # noqa: E731
    assert error(make(nu=10.0)) < error(make(nu=math.inf))


def test_in_noise_nothing_is_learned() -> None:
    X, _ = steps(60, 0)
    Y = torch.randn(60, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert make(steps=20).fit(X, Y).learned_nu == math.inf


@pytest.mark.parametrize("seed", [0, 1])
def test_no_worse_than_gp_on_measured_data(seed: int) -> None:
    inputs, outcomes = load_diabetes(return_X_y=True)
    X, Y = torch.from_numpy(inputs).double(), torch.from_numpy(outcomes).double().unsqueeze(-1)
    order = torch.randperm(442, generator=torch.Generator().manual_seed(seed))
    train, test = order[:200], order[200:]
    scores = {
        name: log_density(seqbdl.make_surrogate(name, 10).fit(X[train], Y[train]), X[test], Y[test]) for name in ("gp", "dkm")
    }
    assert scores["dkm"] > scores["gp"] - 0.1


@pytest.mark.parametrize("activation", ["erf", "relu", "squared-exponential"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_single_and_double_precision(dtype: torch.dtype, activation: str) -> None:
    X, Y = steps(60, 0)
    X, Y = torch.cat([X, X[:20]]).to(dtype), torch.cat([Y, Y[:20]]).to(dtype)  # duplicated rows too
    surrogate = make(nu=10.0, depth=3, activation=activation, steps=15).fit(X, Y)
    posterior = surrogate.posterior(X)
    assert posterior.mean.dtype == dtype
    assert bool(posterior.mean.isfinite().all())
    assert float((posterior.mean - Y).square().mean().sqrt()) < 2.5


def test_nu_is_kept_until_the_rows_have_grown_and_batches_are_possible() -> None:
    X, Y = steps(60, 0)
    surrogate = make(steps=10).fit(X[:40], Y[:40])
    chosen = surrogate.learned_nu
    surrogate.fit(X[:50], Y[:50])
    assert surrogate.learned_nu == chosen
    batched = make(nu=30.0, batch_size=16, steps=20).fit(X, Y)
    assert batched.learned_nu == 30.0
    assert log_density(batched, X, Y) > log_density(make("dkm", nu=math.inf, noise=20.0).fit(X, Y), X, Y)


@pytest.mark.parametrize("activation", ["erf", "squared-exponential"])
def test_refits_start_where_the_last_one_ended(activation: str) -> None:
    X, Y = steps(50, 0)
    options = {"nu": math.inf, "activation": activation}
    first = make(**options).fit(X[:40], Y[:40])
    short = {**options, "max_iterations": 1}
    warm, cold = make(**short).load_state(first.save_state()).fit(X, Y), make(**short).fit(X, Y)
    best = make(**options).fit(X, Y).log_evidence()
    assert warm.log_evidence() > cold.log_evidence() + 0.5 * (best - cold.log_evidence())


def test_options_are_checked() -> None:
    with pytest.raises(UnknownNameError, match="squared-exponential"):
        make(activation="tanh")
    for options in ({"nu": 0.0}, {"nu": float("nan")}, {"depth": 0}, {"num_inducing": 1}):
        with pytest.raises(InvalidOptionError):
            make(**options)


def pictures(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """A bright stroke, upright or flat, somewhere in 4 x 4 pixels of noise; which one it is."""
    generator = torch.Generator().manual_seed(seed)
    X = 0.2 * torch.rand(n, 4, 4, generator=generator, dtype=torch.float64)
    labels, places = torch.randint(2, (n,), generator=generator), torch.randint(4, (n,), generator=generator)
    for image, label, place in zip(X, labels, places, strict=True):
        (image if label else image.T)[place] += 0.7
    return X.flatten(1), labels.double().unsqueeze(-1)


@pytest.mark.parametrize("nu", [math.inf, 20.0])
@pytest.mark.parametrize("likelihood", ["gaussian", "categorical"])
def test_convolutions_tell_strokes_apart(likelihood: str, nu: float) -> None:
    X, Y = pictures(40, 0)
    X_test, Y_test = pictures(60, 1)
    options = {"likelihood": likelihood, "nu": nu, "image_shape": (1, 4, 4), "num_inducing": 12, "steps": 8, "max_iterations": 15}
    surrogate = seqbdl.make_surrogate(
        "dkm", 16, 1 if likelihood == "gaussian" else 2, bounds=BOUNDS[:, :1].repeat(1, 16), **options
    )
    surrogate.fit(X, Y)
    prediction = surrogate.predict(X_test)
    said = prediction.mean if likelihood == "gaussian" else prediction.mean[..., 1:]
    assert float(((said > 0.5) == (Y_test > 0.5)).double().mean()) > 0.8
    again = seqbdl.make_surrogate("dkm", 16, surrogate.output_dim, bounds=BOUNDS[:, :1].repeat(1, 16), **options)
    again.load_state(surrogate.save_state())
    torch.testing.assert_close(again.posterior(X_test).mean, surrogate.posterior(X_test).mean)
    draws = surrogate.sample_functions(200, torch.Generator().manual_seed(0))(X_test[:4]).detach()
    posterior = surrogate.posterior(X_test[:4])
    error = (draws.mean(0) - posterior.mean).abs() / posterior.variance.sqrt()
    assert float(error.max()) < 4.5 / 200**0.5


def test_images_have_the_shape_that_is_said() -> None:
    for options in ({"image_shape": (1, 4, 5)}, {"image_shape": (4, 4)}, {"image_shape": (1, 4, 4), "patch_size": 2}):
        with pytest.raises(InvalidOptionError):
            seqbdl.make_surrogate("dkm", 16, **options)


def test_predictions_beyond_max_rows_stand_on_more_rows_than_gram_matrices() -> None:
    X, Y = steps(300, 0)
    surrogate = make(nu=30.0, max_rows=150, num_inducing=15, steps=5).fit(X, Y)
    assert surrogate.kernel.Z.shape == (15, 2)
    assert surrogate._basis.shape == (150, 2)
    X_test, Y_test = steps(200, 1)
    exact = make(nu=30.0, num_inducing=15, steps=5).fit(X, Y)
    errors = [float((s.predict(X_test).mean - Y_test).square().mean().sqrt()) for s in (surrogate, exact)]
    assert errors[0] < 1.1 * errors[1]  # on a basis of half the rows
