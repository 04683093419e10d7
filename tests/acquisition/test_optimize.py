"""Maximization of acquisition functions: right, reproducible, on every kind of space."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from botorch.acquisition.acquisition import AcquisitionFunction
from torch import Tensor

from seqbdl.acquisition import make_acquisition, optimize_acquisition, optimize_over_candidates
from seqbdl.errors import InvalidOptionError, ShapeError
from seqbdl.surrogates import Surrogate

Fitted = Callable[..., Surrogate]


class Known(AcquisitionFunction):
    """A given function of points, as an acquisition function of batches of one."""

    def __init__(self, model: Surrogate, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__(model=model)
        self.function = function

    def forward(self, X: Tensor) -> Tensor:
        return self.function(X).sum(dim=-1)


def bumps(X: Tensor) -> Tensor:
    """Several local maxima; the best at (0.8, 0.2)."""
    best = torch.exp(-60 * ((X[..., 0] - 0.8).square() + (X[..., 1] - 0.2).square()))
    second = 0.8 * torch.exp(-20 * ((X[..., 0] - 0.2).square() + (X[..., 1] - 0.7).square()))
    return best + second


def test_the_global_maximum_is_found(make_fitted: Fitted, unit_square: Tensor) -> None:
    X, value = optimize_acquisition(Known(make_fitted(), bumps), unit_square)
    assert torch.allclose(X, torch.tensor([[0.8, 0.2]], dtype=torch.float64), atol=1e-3)
    assert float(value) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("q", [1, 3])
def test_the_generator_alone_decides(q: int, make_fitted: Fitted, unit_square: Tensor) -> None:
    results = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        before = torch.random.get_rng_state()
        acqf = make_acquisition("qLogNEI", make_fitted("ensemble"), seed=3)
        generator = torch.Generator().manual_seed(11)
        results.append(optimize_acquisition(acqf, unit_square, q=q, generator=generator, raw_samples=64))
        assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][0].shape == (q, 2)
    assert results[0][1].shape == (() if q == 1 else (q,))


def test_batches_spread_out_one_by_one_and_jointly(make_fitted: Fitted, unit_square: Tensor) -> None:
    for sequential in (True, False):
        acqf = make_acquisition("qUCB", make_fitted(), seed=3)
        X, _ = optimize_acquisition(acqf, unit_square, q=3, sequential=sequential)
        assert float(torch.pdist(X).min()) > 1e-2


def test_one_point_methods_refuse_batches_in_words(make_fitted: Fitted, unit_square: Tensor) -> None:
    ucb = make_acquisition("UCB", make_fitted())
    with pytest.raises(InvalidOptionError, match="use a q"):
        optimize_acquisition(ucb, unit_square, q=2)
    gibbon = make_acquisition("GIBBON", make_fitted(), bounds=unit_square, num_optima=4)
    with pytest.raises(InvalidOptionError, match="sequential=True"):
        optimize_acquisition(gibbon, unit_square, q=2, sequential=False)
    X, _ = optimize_acquisition(gibbon, unit_square, q=2, num_restarts=2, raw_samples=32)
    assert X.shape == (2, 2)


def test_mixed_spaces_reach_the_best_of_all_combinations(make_fitted: Fitted) -> None:
    bounds = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1.0, 9.0, 4.0, 30.0]], dtype=torch.float64)
    table = torch.randn(10, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def function(X: Tensor) -> Tensor:
        i, j = X[..., 1].round().long(), X[..., 2].round().long()
        return table[i, j] - 4 * (X[..., 0] - 0.1 * i).square() - 0.01 * (X[..., 3] - 17).square()

    X, value = optimize_acquisition(
        Known(make_fitted(), function),
        bounds,
        discrete_dims={1: list(range(10)), 3: list(range(31))},
        cat_dims={2: [0, 1, 2, 3, 4]},
    )
    best = int(table.argmax())
    assert X[0, 1:].tolist() == [best // 5, best % 5, 17.0]
    assert float(X[0, 0]) == pytest.approx(0.1 * (best // 5), abs=1e-3)
    assert float(value) == pytest.approx(float(table.max()), abs=1e-4)


def test_an_encoding_maps_search_coordinates_to_inputs(make_fitted: Fitted) -> None:
    """A category and an angle in degrees against the surrogate's unit square."""
    bounds = torch.tensor([[0.0, -180.0], [1.0, 180.0]], dtype=torch.float64)

    def encode(X: Tensor) -> Tensor:
        return torch.stack([0.1 + 0.3 * X[..., 0], (X[..., 1] + 180) / 360], dim=-1)

    acqf = make_acquisition("qSR", make_fitted())
    X, value = optimize_acquisition(acqf, bounds, encode=encode, cat_dims={0: [0, 1]})
    axis = torch.linspace(0, 1, 2001, dtype=torch.float64)
    columns = [torch.stack([torch.full_like(axis, c), axis], dim=-1) for c in (0.1, 0.4)]
    best = max(float(acqf(column.unsqueeze(-2)).max()) for column in columns)
    assert float(value) >= best - 1e-5
    assert float(X[0, 0]) in (0.0, 1.0)
    for name in ("qKG", "qLogNEI"):
        acqf = make_acquisition(name, make_fitted())
        X, _ = optimize_acquisition(acqf, bounds, q=2, encode=encode, cat_dims={0: [0, 1]}, num_restarts=2, raw_samples=32)
        assert X.shape == (2, 2)
        assert bool(((X[:, 0] == 0) | (X[:, 0] == 1)).all())


def test_fixed_features_stay(make_fitted: Fitted, unit_square: Tensor) -> None:
    acqf = Known(make_fitted(), bumps)
    X, _ = optimize_acquisition(acqf, unit_square, fixed_features={0: 0.3})
    assert float(X[0, 0]) == 0.3
    with pytest.raises(InvalidOptionError, match="outside its bounds"):
        optimize_acquisition(acqf, unit_square, fixed_features={0: 2.0})
    with pytest.raises(InvalidOptionError, match="columns are 0 to 1"):
        optimize_acquisition(acqf, unit_square, fixed_features={5: 0.0})


def test_linear_constraints_hold(make_fitted: Fitted, unit_square: Tensor) -> None:
    acqf = Known(make_fitted(), bumps)
    both = torch.tensor([0, 1])
    X, _ = optimize_acquisition(
        acqf,
        unit_square,
        inequality_constraints=[(both, torch.tensor([-1.0, -1.0], dtype=torch.float64), -0.7)],
        num_restarts=4,
        raw_samples=64,
    )
    assert float(X.sum()) <= 0.7 + 1e-6
    state = torch.random.get_rng_state()
    X, _ = optimize_acquisition(
        acqf,
        unit_square,
        equality_constraints=[(both, torch.ones(2, dtype=torch.float64), 1.0)],
        num_restarts=4,
        raw_samples=64,
    )
    assert float(X.sum()) == pytest.approx(1.0, abs=1e-6)
    assert float(X[0, 0]) == pytest.approx(0.8, abs=1e-2)
    assert torch.equal(state, torch.random.get_rng_state())


def test_candidates_are_enumerated_greedily_without_repeats(make_fitted: Fitted) -> None:
    pool = torch.rand(700, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    acqf = Known(make_fitted(), bumps)
    X, value = optimize_acquisition(acqf, candidates=pool)
    values = bumps(pool)
    assert torch.equal(X[0], pool[values.argmax()])
    assert float(value) == pytest.approx(float(values.max()))
    noisy = make_acquisition("qLogNEI", make_fitted(), seed=2)
    indices, gains = optimize_over_candidates(noisy, pool, 3, chunk_size=64)
    assert len(set(indices.tolist())) == 3
    assert gains.shape == (3,)
    again, _ = optimize_over_candidates(noisy, pool, 2, exclude=[int(indices[0])])
    assert int(indices[0]) not in again.tolist()
    X, _ = optimize_acquisition(noisy, candidates=pool, q=2)
    assert torch.equal(X, pool[indices[:2]])


def test_duplicated_candidates_are_chosen_as_rows(make_fitted: Fitted) -> None:
    pool = torch.tensor([[0.8, 0.2], [0.8, 0.2], [0.1, 0.1]], dtype=torch.float64)
    indices, _ = optimize_over_candidates(make_acquisition("qUCB", make_fitted()), pool, 3)
    assert sorted(indices.tolist()) == [0, 1, 2]


def test_candidates_bad_requests(make_fitted: Fitted) -> None:
    pool = torch.rand(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    one_shot = make_acquisition("qKG", make_fitted(), num_fantasies=2)
    with pytest.raises(InvalidOptionError, match="one-shot"):
        optimize_over_candidates(one_shot, pool)
    over_pool = make_acquisition("qKG", make_fitted(), candidates=pool, num_fantasies=2)
    assert optimize_over_candidates(over_pool, pool)[0].shape == (1,)
    with pytest.raises(InvalidOptionError, match="4 candidates can be chosen"):
        optimize_over_candidates(over_pool, pool, 5)
    with pytest.raises(ShapeError, match="N x d"):
        optimize_over_candidates(over_pool, pool[0])
    with pytest.raises(InvalidOptionError, match="pass candidates too"):
        optimize_acquisition(over_pool, torch.stack([pool[0] * 0, pool[0] * 0 + 1]), exclude=[1])


def test_bad_spaces_are_named(make_fitted: Fitted, unit_square: Tensor) -> None:
    acqf = Known(make_fitted(), bumps)
    with pytest.raises(InvalidOptionError, match="pass bounds"):
        optimize_acquisition(acqf)
    with pytest.raises(InvalidOptionError, match="reversed in column 0"):
        optimize_acquisition(acqf, unit_square.flip(0))
    with pytest.raises(InvalidOptionError, match="NaN or infinite"):
        optimize_acquisition(acqf, unit_square * torch.inf)
    with pytest.raises(InvalidOptionError, match="both in discrete_dims and in cat_dims"):
        optimize_acquisition(acqf, unit_square, discrete_dims={0: [0.0]}, cat_dims={0: [1.0]})
    with pytest.raises(InvalidOptionError, match="has no values"):
        optimize_acquisition(acqf, unit_square, discrete_dims={0: []})
    with pytest.raises(InvalidOptionError, match="q=0"):
        optimize_acquisition(acqf, unit_square, q=0)


def test_values_that_are_not_numbers_are_survived(make_fitted: Fitted, unit_square: Tensor) -> None:
    def broken(X: Tensor) -> Tensor:
        return torch.where(X[..., 0] < 0.5, X[..., 1] * torch.nan, bumps(X))

    X, value = optimize_acquisition(Known(make_fitted(), broken), unit_square)
    assert bool(value.isfinite())
    assert float(X[0, 0]) == pytest.approx(0.8, abs=1e-2)


def test_many_calls_keep_memory_level(make_fitted: Fitted, unit_square: Tensor) -> None:
    """Nothing that an optimization made may stay alive after it (measured in live tensors)."""
    import gc

    def live() -> int:
        gc.collect()
        return sum(1 for item in gc.get_objects() if type(item) is Tensor)

    def once(seed: int) -> None:
        acqf = make_acquisition("qLogNEI", make_fitted(), seed=seed, mc_samples=16)
        optimize_acquisition(acqf, unit_square, num_restarts=2, raw_samples=16, maxiter=5)

    once(0)
    before = live()
    for seed in range(1, 6):
        once(seed)
    assert live() <= before + 2
