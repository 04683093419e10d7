"""Cross-validation never lets a fold see itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from seqbdl.diagnostics import coverage, cross_validate, crps_gaussian, crps_mixture, miscalibration_area, mixture_cdf
from seqbdl.errors import InvalidOptionError, ShapeError
from seqbdl.surrogates import make_surrogate


class Memory:
    """Predicts the outcome of the row it remembers at that input, else 99."""

    def __init__(self) -> None:
        self.known: dict[tuple[float, ...], Tensor] = {}

    def clone(self) -> Memory:
        return Memory()

    def fit(self, X: Tensor, Y: Tensor, Yvar: Tensor | None = None) -> Memory:
        self.known.update({tuple(x.tolist()): y for x, y in zip(X, Y, strict=True)})
        return self

    def posterior(self, X: Tensor, observation_noise: Any = False) -> SimpleNamespace:
        mean = torch.stack([self.known.get(tuple(x.tolist()), torch.full((1,), 99.0, dtype=X.dtype)) for x in X])
        return SimpleNamespace(mean=mean, variance=torch.ones_like(mean))


def data(n: int = 10) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    X = torch.rand(n, 2, generator=generator, dtype=torch.float64)
    Y = torch.sin(4 * X[:, :1]) + X[:, 1:]
    return X, Y


@pytest.mark.parametrize("folds", ["loo", 3])
def test_nothing_leaks_even_from_a_surrogate_that_memorizes(folds: int | str) -> None:
    X, Y = data()
    known_all = Memory().fit(X, Y)
    result = cross_validate(known_all, X, Y, folds=folds)  # type: ignore[arg-type]  # quacks like one
    assert bool((result.mean == 99.0).all())


def test_leave_one_out_is_the_brute_force_of_fresh_fits() -> None:
    X, Y = data(7)
    surrogate = make_surrogate("gp", 2)
    surrogate.fit(X, Y)
    before = surrogate.posterior(X).mean.detach().clone()
    result = cross_validate(surrogate, X, Y)
    for i in range(7):
        rest = torch.arange(7) != i
        fresh = make_surrogate("gp", 2).fit(X[rest], Y[rest])
        posterior: Any = fresh.posterior(X[i : i + 1], observation_noise=True)
        assert torch.allclose(result.mean[i], posterior.mean[0], atol=1e-6)
        assert torch.allclose(result.std[i], posterior.variance[0].sqrt(), atol=1e-6)
        expected = torch.distributions.Normal(result.mean[i], result.std[i]).log_prob(Y[i])
        assert torch.allclose(result.log_density[i], expected)
    in_sample = float((before - Y).square().mean().sqrt())
    assert result.rmse > 2 * in_sample
    assert torch.equal(surrogate.posterior(X).mean, before)


def test_every_row_is_held_out_once_and_the_generator_decides_where() -> None:
    X, Y = data(11)
    first = cross_validate(make_surrogate("gp", 2), X, Y, folds=4, generator=torch.Generator().manual_seed(1))
    again = cross_validate(make_surrogate("gp", 2), X, Y, folds=4, generator=torch.Generator().manual_seed(1))
    assert sorted(torch.bincount(first.fold).tolist()) == [2, 3, 3, 3]
    assert torch.equal(first.fold, again.fold)
    assert torch.equal(first.mean, again.mean)
    assert set(first.summary()) == {"rmse", "nlpd", "crps", "coverage_95", "miscalibration_area"}


def test_known_noise_of_the_held_out_rows_widens_their_predictions() -> None:
    X, Y = data(8)
    Yvar = torch.full_like(Y, 1e-4)
    Yvar[3] = 4.0
    result = cross_validate(make_surrogate("gp", 2), X, Y, Yvar, folds=4)
    assert float(result.std[3]) >= 2.0


def test_particles_are_scored_by_their_mixture_density() -> None:
    X, Y = data(8)
    options = {"num_members": 4, "seed": 3}
    result = cross_validate(make_surrogate("ensemble", 2, **options), X, Y, folds=2)
    out = result.fold == 0
    fresh = make_surrogate("ensemble", 2, **options).fit(X[~out], Y[~out])
    posterior: Any = fresh.posterior(X[out], observation_noise=True)
    assert torch.allclose(result.log_density[out], posterior.density(Y[out]).log(), atol=1e-6)
    mixture = (posterior.values, posterior.noise.sqrt())
    assert float(result.crps_values[out].mean()) == pytest.approx(crps_mixture(Y[out], *mixture), abs=1e-6)
    assert torch.allclose(result.cdf[out], mixture_cdf(Y[out], *mixture), atol=1e-6)


def test_gaussian_predictions_have_the_scores_of_their_moments() -> None:
    X, Y = data(9)
    result = cross_validate(make_surrogate("gp", 2), X, Y, folds=3)
    gaussian = (result.y, result.mean, result.std)
    assert result.crps == pytest.approx(crps_gaussian(*gaussian))
    assert result.miscalibration_area == pytest.approx(miscalibration_area(*gaussian))
    assert [result.coverage(level) for level in (0.3, 0.95)] == [coverage(*gaussian, level) for level in (0.3, 0.95)]


def test_plot_shows_every_row() -> None:
    X, Y = data(6)
    result = cross_validate(make_surrogate("gp", 2), X, Y, folds=3)
    ax = result.plot()
    assert len(ax.containers[0].lines[0].get_xdata()) == 6
    with pytest.raises(InvalidOptionError, match="output=1"):
        result.plot(output=1)


def test_bad_settings_are_named() -> None:
    X, Y = data(5)
    surrogate = make_surrogate("gp", 2)
    with pytest.raises(InvalidOptionError, match="folds=1"):
        cross_validate(surrogate, X, Y, folds=1)
    with pytest.raises(InvalidOptionError, match="2 to 5"):
        cross_validate(surrogate, X, Y, folds=6)
    with pytest.raises(InvalidOptionError, match="loo"):
        cross_validate(surrogate, X, Y, folds="all")
    with pytest.raises(ShapeError, match="n x d"):
        cross_validate(surrogate, X, Y[:3])
    with pytest.raises(ShapeError, match="Yvar"):
        cross_validate(surrogate, X, Y, Y[:3])
    with pytest.raises(InvalidOptionError, match="level=1"):
        cross_validate(make_surrogate("gp", 2), X, Y, folds=2).coverage(1.0)
