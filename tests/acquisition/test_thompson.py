"""Thompson sampling: the right distribution, distinct choices, bounded memory."""

from __future__ import annotations

import resource
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from seqbdl.acquisition import thompson_candidates, thompson_continuous
from seqbdl.errors import InvalidDataError, InvalidOptionError, ShapeError
from seqbdl.surrogates import Surrogate

Fitted = Callable[..., Surrogate]


def pool(n: int, d: int = 2, seed: int = 7) -> Tensor:
    return torch.rand(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Linear(torch.nn.Module):
    """A cheap stand-in for a surrogate: functions w . x with random w."""

    num_outputs = 1

    def __init__(self, d: int) -> None:
        super().__init__()
        self.d = d

    def sample_functions(self, n: int, generator: torch.Generator | None = None) -> Any:
        return _LinearDraws(torch.randn(n, self.d, generator=generator, dtype=torch.float64))


class _LinearDraws:
    def __init__(self, weights: Tensor) -> None:
        self.weights = weights

    def __call__(self, X: Tensor) -> Tensor:
        return torch.einsum("nd,...qd->n...q", self.weights.to(X), X).unsqueeze(-1)

    def __len__(self) -> int:
        return self.weights.shape[0]


@pytest.mark.parametrize("kind", ["gp", "ensemble"])
def test_the_choice_is_the_maximum_of_each_draw_whatever_the_chunks(kind: str, make_fitted: Fitted) -> None:
    surrogate, X = make_fitted(kind), pool(301)
    draws = surrogate.sample_functions(5, torch.Generator().manual_seed(3))
    values = draws(X)[..., 0].detach()
    expected: list[int] = []
    for row in values:
        expected.append(next(i for i in row.argsort(descending=True).tolist() if i not in expected))
    for chunk_size in (None, 7, 301):
        found = thompson_candidates(surrogate, X, 5, torch.Generator().manual_seed(3), chunk_size=chunk_size)
        assert found.tolist() == expected


def test_points_are_chosen_as_often_as_they_are_best() -> None:
    """With w ~ N(0, I) and candidates on the circle, every one is best with probability 1/8."""
    angles = torch.arange(8, dtype=torch.float64) * torch.pi / 4
    X = torch.stack([angles.cos(), angles.sin()], dim=-1)
    generator = torch.Generator().manual_seed(0)
    surrogate: Any = Linear(2)
    counts = torch.bincount(torch.cat([thompson_candidates(surrogate, X, 1, generator) for _ in range(2000)]), minlength=8)
    assert float((counts - 250).abs().max()) < 5 * (2000 * 0.125 * 0.875) ** 0.5


def test_indices_are_distinct_and_never_excluded() -> None:
    X = pool(20)
    surrogate: Any = Linear(2)
    banned = torch.tensor([0, 3, 3, 11])
    found = thompson_candidates(surrogate, X, 17, torch.Generator().manual_seed(0), exclude=banned, chunk_size=6)
    assert len(set(found.tolist())) == 17
    assert not set(found.tolist()) & {0, 3, 11}
    with pytest.raises(InvalidOptionError, match="17 candidates can be chosen"):
        thompson_candidates(surrogate, X, 18, exclude=banned)


def test_a_million_candidates_need_little_memory() -> None:
    d = 8
    X = torch.rand(1_000_000, d, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    surrogate: Any = Linear(d)
    thompson_candidates(surrogate, X[:20_000], 4, torch.Generator().manual_seed(1))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = thompson_candidates(surrogate, X, 4, torch.Generator().manual_seed(1))
    grown_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    # All values at once would be 4 x 1,000,000 x 4 bytes = 16 MB, and a covariance 4 terabytes.
    assert grown_kb < 8_000
    weights = torch.randn(4, d, generator=torch.Generator().manual_seed(1), dtype=torch.float64).float()
    best = (X @ weights.T).amax(dim=0)
    assert torch.allclose((X[found] * weights).sum(-1).sort().values, best.sort().values, atol=1e-5)


def test_constraints_hold_under_the_draw_itself(make_fitted: Fitted) -> None:
    surrogate, X = make_fitted("gp", 2), pool(400)
    found = thompson_candidates(
        surrogate, X, 4, torch.Generator().manual_seed(2), objective=0, constraints=[lambda Y: Y[..., 1] - 0.2]
    )
    assert float(X[found, 0].max()) < 0.25
    points = thompson_continuous(
        surrogate,
        torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64),
        3,
        torch.Generator().manual_seed(2),
        objective=0,
        constraints=[lambda Y: Y[..., 1] - 0.2],
    )
    assert float(points[:, 0].max()) < 0.25


@pytest.mark.parametrize("kind", ["gp", "ensemble"])
def test_continuous_points_maximize_their_own_draws(kind: str, make_fitted: Fitted, unit_square: Tensor) -> None:
    surrogate = make_fitted(kind)
    before = torch.random.get_rng_state()
    X = thompson_continuous(surrogate, unit_square, 4, torch.Generator().manual_seed(3))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert X.shape == (4, 2)
    draws = surrogate.sample_functions(4, torch.Generator().manual_seed(3))
    axis = torch.linspace(0, 1, 61, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    best = draws(grid)[..., 0].detach().amax(dim=-1)
    reached = draws(X)[..., 0].detach().diagonal()
    assert bool((reached >= best - 1e-3).all())


def test_continuous_search_respects_discrete_columns_and_encodings(make_fitted: Fitted) -> None:
    bounds = torch.tensor([[0.0, -3.0], [4.0, 3.0]], dtype=torch.float64)

    def encode(X: Tensor) -> Tensor:
        return torch.stack([X[..., 0] / 4, (X[..., 1] + 3) / 6], dim=-1)

    X = thompson_continuous(
        make_fitted("gp"),
        bounds,
        5,
        torch.Generator().manual_seed(0),
        discrete_dims={0: [0, 1, 2, 3, 4]},
        encode=encode,
    )
    assert torch.equal(X[:, 0], X[:, 0].round())
    assert bool(((bounds[0] <= X) & (bounds[1] >= X)).all())


def test_bad_requests_are_named(make_fitted: Fitted) -> None:
    surrogate = make_fitted("gp")
    with pytest.raises(ShapeError, match="N x d"):
        thompson_candidates(surrogate, torch.zeros(3))
    with pytest.raises(InvalidOptionError, match="n=0"):
        thompson_candidates(surrogate, pool(3), 0)
    with pytest.raises(InvalidOptionError, match="chunk_size=0"):
        thompson_candidates(surrogate, pool(3), 1, chunk_size=0)
    with pytest.raises(InvalidOptionError, match="objective"):
        thompson_candidates(make_fitted("gp", 2), pool(3))
    broken = pool(9)
    broken[4] = torch.nan
    stand_in: Any = Linear(2)
    with pytest.raises(InvalidDataError, match="candidate 4"):
        thompson_candidates(stand_in, broken, 1, chunk_size=3)
