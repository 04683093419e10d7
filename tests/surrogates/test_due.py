"""``due``: the sparse Gaussian process where features do not help, in mini-batches and bounded memory."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import seqbdl
from seqbdl.errors import InvalidOptionError
from seqbdl.surrogates import DUESurrogate

BOUNDS = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)


def steps(n: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    X = torch.rand(n, 2, generator=generator, dtype=torch.float64)
    Y = torch.sign(X.sum(-1, keepdim=True) - 1.0)
    return X, Y + 0.05 * torch.randn(n, 1, generator=generator, dtype=torch.float64)


def waves(n: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    X = torch.rand(n, 2, generator=generator, dtype=torch.float64)
    Y = torch.sin(6 * X[:, :1]) + X[:, 1:].square()
    return X, Y + 0.1 * torch.randn(n, 1, generator=generator, dtype=torch.float64)


def make(**options: Any) -> DUESurrogate:
    surrogate = seqbdl.make_surrogate("due", 2, **{"bounds": BOUNDS, **options})
    assert isinstance(surrogate, DUESurrogate)
    return surrogate


def log_density(surrogate: seqbdl.Surrogate, X: Tensor, Y: Tensor) -> float:
    prediction = surrogate.predict(X)
    return float(torch.distributions.Normal(prediction.mean, prediction.std).log_prob(Y).mean())


def test_few_rows_get_the_exact_process_of_its_kernel() -> None:
    X, Y = waves(40, 0)
    due = make(steps=0).fit(X, Y)
    K = due._kernel(X, X)[0]
    scaling = due._scaling
    y = scaling.outcomes(Y)
    C = K + due._noise() * torch.eye(40).double()
    X_test, _ = waves(20, 1)
    cross = due._kernel(X_test, X)[0]
    posterior = due.posterior(X_test)
    expected = scaling.y_mean + scaling.y_std * cross @ torch.linalg.solve(C, y)
    torch.testing.assert_close(posterior.mean, expected, rtol=0, atol=1e-6)
    variance = scaling.y_std**2 * (1 - (cross * torch.linalg.solve(C, cross.T).T).sum(-1))
    torch.testing.assert_close(posterior.variance[:, 0], variance, rtol=0, atol=1e-6)
    assert not due.uses_features
    assert due.features(X).shape == (40, 2)


def test_a_step_is_learned_where_features_help() -> None:
    X, Y = steps(80, 0)
    X_test, Y_test = steps(400, 1)
    due, gp = make().fit(X, Y), seqbdl.make_surrogate("gp", 2, bounds=BOUNDS).fit(X, Y)
    assert due.uses_features
    assert log_density(due, X_test, Y_test) > log_density(gp, X_test, Y_test) + 0.1


class Distance(nn.Module):
    """Knows the direction across which the step lies."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(1, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(4 * self.hidden(x.sum(-1, keepdim=True))))
        return out


@pytest.mark.parametrize("factory", [False, True])
def test_a_module_as_extractor(factory: bool, tmp_path: Path) -> None:
    X, Y = steps(80, 0)
    X_test, Y_test = steps(200, 1)
    module = Distance()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    surrogate = make(network=(lambda: module) if factory else module, num_features=2).fit(X, Y)
    assert surrogate.uses_features
    assert surrogate.features(X).shape == (80, 4)
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())
    assert list(surrogate.parameters()) == []
    assert log_density(surrogate, X_test, Y_test) > log_density(make(steps=0).fit(X, Y), X_test, Y_test)
    assert surrogate.sample_functions(3)(X_test).shape == (3, 200, 1)
    seqbdl.save(tmp_path / "s", surrogate)
    loaded = seqbdl.load(tmp_path / "s", network=Distance())
    assert torch.equal(loaded.posterior(X_test).mean, surrogate.posterior(X_test).mean)


def test_thousands_of_rows_in_batches() -> None:
    X, Y = waves(5000, 0)
    X_test, Y_test = waves(500, 1)
    surrogate = make(steps=60, num_inducing=40).fit(X, Y)
    error = float((surrogate.predict(X_test).mean - Y_test).square().mean().sqrt())
    assert error < 0.11  # the noise is 0.1
    assert float(surrogate.noise_variance.sqrt()) == pytest.approx(0.1, rel=0.1)
    evidence = surrogate.log_evidence()
    assert evidence is not None
    assert surrogate._basis.shape[0] <= 40  # what is kept does not grow with the rows
    assert all(value.numel() < 20_000 for value in surrogate.save_state()["method"]["sums"].values())


SPARSE = {"steps": 20, "num_inducing": 20, "max_rows": 40}  # of sixty rows


def test_updates_in_any_calls_are_one_update_while_the_basis_grows_and_after() -> None:
    X, Y = waves(60, 0)
    new_X, new_Y = waves(50, 1)
    new_X[5:8] = new_X[:3]  # duplicates, which the basis does not take in
    start = make(**SPARSE).fit(X, Y).save_state()
    one = make(**SPARSE).load_state(start).update(new_X, new_Y)
    X_test, _ = waves(20, 2)
    for cuts in ((15,), (6, 12, 30), tuple(range(1, 50))):
        two, ends = make(**SPARSE).load_state(start), (0, *cuts, 50)
        for begin, end in pairwise(ends):
            two.update(new_X[begin:end], new_Y[begin:end])
        assert torch.equal(two._basis, one._basis)
        ours, expected = two.posterior(X_test), one.posterior(X_test)
        torch.testing.assert_close(ours.mean, expected.mean, rtol=0, atol=1e-6)
        covariance = expected.distribution.covariance_matrix
        torch.testing.assert_close(ours.distribution.covariance_matrix, covariance, rtol=0, atol=1e-6)
        assert two.log_evidence() == pytest.approx(one.log_evidence(), abs=1e-6)


def test_on_a_full_basis_an_update_is_the_refit_of_all_rows_on_it() -> None:
    X, Y = waves(60, 0)
    new_X, new_Y = waves(30, 1)
    options = {**SPARSE, "max_rows": 20}
    due = make(**options).fit(X, Y)
    assert due._basis.shape[0] == 20
    due.update(new_X[:11], new_Y[:11]).update(new_X[11:], new_Y[11:])
    X_test, _ = waves(20, 2)
    scaling, Z = due._scaling, due._basis
    rows, points = scaling.inputs(torch.cat([X, new_X])), scaling.inputs(X_test)
    y, noise = scaling.outcomes(torch.cat([Y, new_Y])), due._noise()
    # Titsias' formula, the dense way, with the jitter of the basis.
    K = due._kernel(Z, Z)[0]
    K = K + 1e-8 * K.diagonal().mean() * torch.eye(20).double()
    with_rows, cross = due._kernel(Z, rows)[0], due._kernel(points, Z)[0]
    inverse = torch.linalg.inv(K + with_rows @ with_rows.T / noise)
    expected = scaling.y_mean + scaling.y_std * cross @ inverse @ with_rows @ y / noise
    covariance = due._kernel(points, points)[0] - cross @ (torch.linalg.inv(K) - inverse) @ cross.T
    posterior = due.posterior(X_test)
    torch.testing.assert_close(posterior.mean, expected, rtol=0, atol=1e-6)
    ours = posterior.distribution.covariance_matrix
    torch.testing.assert_close(ours, scaling.y_std**2 * covariance, rtol=0, atol=1e-6)


def test_while_the_basis_grows_an_update_is_the_exact_conditioning_of_the_posterior() -> None:
    """But for parts of rows whose standard deviation is below 1e-5 of the prior's."""
    X, Y = waves(60, 0)
    new_X, new_Y = waves(8, 1)
    surrogate = make(**SPARSE).fit(X, Y)
    X_test, _ = waves(20, 2)
    conditioned = surrogate.condition_on_observations(new_X, new_Y).posterior(X_test)
    updated = surrogate.update(new_X, new_Y).posterior(X_test)
    torch.testing.assert_close(updated.mean, conditioned.mean, rtol=0, atol=1e-5)
    torch.testing.assert_close(updated.variance, conditioned.variance, rtol=0, atol=1e-5)


def test_rings_are_classified_and_labels_update_online() -> None:
    generator = torch.Generator().manual_seed(0)
    X = torch.rand(700, 2, generator=generator, dtype=torch.float64)
    labels = ((X - 0.5).norm(dim=1, keepdim=True) * 6).floor().clamp_max(2)
    surrogate = seqbdl.make_surrogate("due", 2, 3, likelihood="categorical", bounds=BOUNDS, steps=100, num_inducing=60)
    surrogate.fit(X[:300], labels[:300])
    test, truth = X[500:], labels[500:]

    def score() -> tuple[float, float]:
        probs = surrogate.predict(test).probs
        assert probs is not None
        return float((probs.argmax(-1, keepdim=True) == truth).double().mean()), float(
            probs.gather(-1, truth.long()).log().mean()
        )

    accuracy, density = score()
    assert accuracy > 0.9
    assert surrogate.log_evidence() is not None
    surrogate.update(X[300:400], labels[300:400]).update(X[400:500], labels[400:500])
    more, better = score()
    assert better > density
    assert more > 0.9
    assert surrogate.log_evidence() is None  # sites of old rows no longer know the new ones


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_single_and_double_precision_with_duplicated_rows(dtype: torch.dtype) -> None:
    X, Y = waves(40, 0)
    X, Y = X.repeat(3, 1).to(dtype), Y.repeat(3, 1).to(dtype)
    posterior = make(steps=30).fit(X, Y).posterior(X)
    assert posterior.mean.dtype == dtype
    assert bool(posterior.mean.isfinite().all())
    assert float((posterior.mean - Y).square().mean().sqrt()) < 0.2


def test_options_are_checked() -> None:
    for options in ({"network": ()}, {"network": "wide"}, {"num_inducing": 1}, {"steps": -1}, {"learning_rate": 0.0}):
        with pytest.raises(InvalidOptionError):
            make(**options)
