"""``swag`` and ``multiswag``: particles of their Gaussians, the factor on the covariance, large data."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import seqbdl
from seqbdl.errors import InvalidOptionError
from seqbdl.surrogates import SwagSurrogate, trajectory
from seqbdl.surrogates.swag import SCALES

BOUNDS = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
X_TEST = torch.rand(6, 2, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
SHORT: dict[str, Any] = {"network": (12, 12), "num_members": 32, "burn_in": 40, "iterates": 20, "spacing": 4}


def data(n: int = 20, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    X = torch.rand(n, 2, generator=generator, dtype=torch.float64)
    return X, torch.sin(4 * X[:, :1]) + X[:, 1:] + 0.1 * torch.randn(n, 1, generator=generator, dtype=torch.float64)


def make(name: str = "swag", **options: Any) -> SwagSurrogate:
    surrogate = seqbdl.make_surrogate(name, 2, **{"bounds": BOUNDS, **SHORT, **options})
    assert isinstance(surrogate, SwagSurrogate)
    return surrogate


@pytest.mark.parametrize(("name", "starts"), [("swag", 1), ("multiswag", 4)])
def test_particles_are_draws_of_the_gaussians_that_are_kept(name: str, starts: int) -> None:
    options = {} if starts == 1 else {"num_starts": starts}
    surrogate = make(name, scale=0.5, num_members=4000, **options).fit(*data())
    state = surrogate.save_state()["method"]
    z, gaussians = state["z"], state["own"]["gaussians"]
    assert gaussians["mean"].shape == (starts, z.shape[1])
    for start in range(starts):
        own = z[start::starts]
        expected = 0.5 * (gaussians["variance"][start] + gaussians["deviations"][start].square().sum(0) / 19)
        ratio = own.var(0) / expected
        assert abs(float(ratio.mean()) - 1) < 0.1
        assert float(own.mean(0).sub(gaussians["mean"][start]).abs().max()) < 1e-9  # pairs of opposite sign
    # Every particle is read relative to the start of its own Gaussian, picked or not.
    picks = torch.tensor([5, 0, 3, 3, 2])
    with torch.no_grad():
        torch.testing.assert_close(surrogate._members(X_TEST, picks), surrogate._members(X_TEST)[picks])


@pytest.mark.parametrize("name", ["swag", "multiswag"])
def test_functions_of_two_outputs_have_a_joint_covariance(name: str) -> None:
    """Draws at three inputs and two outputs against the particles themselves, every entry."""
    X, Y = data()
    surrogate = seqbdl.make_surrogate(name, 2, 2, bounds=BOUNDS, **SHORT).fit(X, torch.cat([Y, Y * X[:, :1]], 1))
    points = torch.tensor([[0.1, 0.9], [0.9, 0.8], [0.5, 0.1]], dtype=torch.float64)
    with torch.no_grad():
        values = surrogate.posterior(points).values.flatten(1)  # type: ignore[attr-defined]
        n = 3200
        draws = surrogate.sample_functions(n, torch.Generator().manual_seed(0))(points).flatten(1)
    truth, ours = values.T.cov(correction=0), draws.T.cov()
    scale = truth.diagonal().sqrt()
    # Systematic resampling takes every particle a hundred times: what remains is the correction of the small sample.
    assert float(((ours - truth) / torch.outer(scale, scale)).abs().max()) < 2 / n + 1e-9


def test_the_factor_is_the_papers_where_it_serves_and_larger_where_it_does_not() -> None:
    """Plenty of data: one half, or nearly. Few rows in many dimensions: one basin says little, so more."""
    many = make().fit(*data(150))
    assert many.posterior_scale <= 2.0
    generator = torch.Generator().manual_seed(0)
    X = torch.rand(30, 8, generator=generator, dtype=torch.float64)
    Y = torch.sin(6 * X[:, :1]) * torch.cos(6 * X[:, 1:2]) + 0.01 * torch.randn(30, 1, generator=generator, dtype=torch.float64)
    bounds = torch.stack([torch.zeros(8), torch.ones(8)]).double()
    few = seqbdl.make_surrogate("swag", 8, bounds=bounds, **SHORT).fit(X, Y)
    assert isinstance(few, SwagSurrogate)
    assert few.posterior_scale > 2.0
    assert few.posterior_scale in SCALES
    assert make(scale=3.0).fit(*data()).posterior_scale == 3.0


def test_updates_learn_what_is_new_where_nothing_was_known() -> None:
    X, Y = data(24)
    left = X[:, 0] < 0.6
    surrogate = make().fit(X[left], Y[left])
    before = (surrogate.posterior(X[~left]).mean - Y[~left]).abs().mean()
    surrogate.update(X[~left], Y[~left])
    assert float((surrogate.posterior(X[~left]).mean - Y[~left]).abs().mean()) < 0.5 * float(before)
    assert float((surrogate.posterior(X[left]).mean - Y[left]).abs().mean()) < 0.2


def test_large_data_take_modes_by_mini_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    X, Y = data(120)
    exact = make(scale=0.5).fit(X, Y)
    monkeypatch.setattr(trajectory, "GAUSS_NEWTON_ROWS", 50)
    large = make(scale=0.5, batch_size=40).fit(X, Y)
    error = lambda s: float((s.posterior(X_TEST).mean - (torch.sin(4 * X_TEST[:, :1]) + X_TEST[:, 1:])).square().mean().sqrt())  # noqa: E731
    assert error(large) < error(exact) + 0.1


def test_memory_is_capped_and_what_comes_is_learned_all_the_same() -> None:
    X, Y = data(60)
    grid = torch.rand(200, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    error = lambda s: float((s.posterior(grid).mean - torch.sin(4 * grid[:, :1]) - grid[:, 1:]).abs().mean())  # noqa: E731
    surrogate = make(memory=30, scale=0.5).fit(X[:15], Y[:15])
    first = error(surrogate)
    for part in range(15, 60, 15):
        surrogate.update(X[part : part + 15], Y[part : part + 15])
        assert surrogate.save_state()["method"]["memory"][0].shape[0] == 30
    assert error(surrogate) < first


def test_modules_and_bad_options() -> None:
    module = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
    surrogate = make(network=module, scale=0.5).fit(*data(12))
    assert bool((surrogate.posterior(X_TEST).variance > 0).all())
    with pytest.raises(InvalidOptionError, match="scale"):
        make(scale=0.0)
    with pytest.raises(InvalidOptionError, match="multiple of num_starts"):
        make("multiswag", num_members=10, num_starts=4)
    with pytest.raises(InvalidOptionError, match="swag has one"):
        make("multiswag", num_starts=1)
    with pytest.raises(InvalidOptionError, match="momentum"):
        make(momentum=1.5)
    with pytest.raises(InvalidOptionError, match="gaussian prior only"):
        make(prior="horseshoe")
