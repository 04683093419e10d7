"""Posteriors that become priors, row by row: of one size and one cost, whatever has come before."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import seqbdl
from seqbdl.errors import InvalidOptionError, ShapeError
from tests.surrogates.conftest import data, make

BOUNDED: dict[str, dict[str, Any]] = {
    "ekf": {"network": (8,), "block_size": 50},
    "lofi": {"network": (8,), "block_size": 50, "rank": 16},
    "last-layer-laplace": {"network": (8,), "num_networks": 2, "adaptation": 0.0},
    "vbll": {"network": (8,), "num_networks": 2, "steps": 2},
}
bounded = pytest.mark.parametrize("name", list(BOUNDED))


def stream(n: int) -> tuple[Tensor, Tensor]:
    X, Y = data(n)
    return X, Y + 0.3 * torch.randn(Y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Work(TorchDispatchMode):
    """Counts the numbers that operations read and write: a time that does not depend on the machine."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.count += sum(leaf.numel() for leaf in tree_leaves((args, out)) if isinstance(leaf, Tensor))
        return out


def size(surrogate: seqbdl.Surrogate) -> int:
    """Bytes of everything that is saved."""
    tensors = [leaf for leaf in tree_leaves(surrogate.save_state()) if isinstance(leaf, Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@bounded
def test_memory_and_work_do_not_grow(name: str) -> None:
    X, Y = stream(5000)
    surrogate = make(name, noise=0.1, keep_data=False, **BOUNDED[name]).fit(X[:20], Y[:20])
    sizes, work, done = [], [], 20
    for total in (500, 5000):
        surrogate.update(X[done : total - 1], Y[done : total - 1])
        with Work() as counter:
            surrogate.sample_values(X[:5], 1)
            surrogate.update(X[total - 1 : total], Y[total - 1 : total])
        sizes.append(size(surrogate))
        work.append(counter.count)
        done = total
        assert surrogate.num_rows == total
    assert sizes[1] == sizes[0]
    assert work[1] <= 1.5 * work[0]


@pytest.mark.parametrize("name", ["ekf", "bayesian-last-layer", "ensemble", "gp"])
def test_answers_without_the_rows_at_hand(name: str) -> None:
    X, Y = data(14)
    kept, dropped = (make(name, keep_data=keep).fit(X[:9], Y[:9]).update(X[9:], Y[9:]) for keep in (True, False))
    assert torch.equal(kept.posterior(X).mean, dropped.posterior(X).mean)
    assert torch.equal(kept.posterior(X).variance, dropped.posterior(X).variance)
    assert kept.log_evidence() == dropped.log_evidence()
    assert kept.num_rows == dropped.num_rows == 14
    assert dropped.train_inputs is not None
    assert dropped.train_inputs[0].shape == (0, 2)
    assert seqbdl.prior_from(kept).num_rows == 0
    with_noise = make(name, keep_data=False).fit(X[:9], Y[:9], torch.full_like(Y[:9], 0.1)).update(X[9:], Y[9:])
    assert with_noise.num_rows == 14


@bounded
def test_saved_in_midstream(name: str, tmp_path: Any) -> None:
    X, Y = stream(60)
    surrogate = make(name, keep_data=False, **BOUNDED[name]).fit(X[:20], Y[:20]).update(X[20:40], Y[20:40])
    seqbdl.save(tmp_path / "posterior", surrogate)
    twin = seqbdl.load(tmp_path / "posterior")
    surrogate.update(X[40:], Y[40:])
    twin.update(X[40:], Y[40:])
    assert torch.equal(twin.posterior(X).mean, surrogate.posterior(X).mean)
    assert torch.equal(twin.sample_values(X[:4], 3), surrogate.sample_values(X[:4], 3))
    assert twin.num_rows == 60


@pytest.mark.parametrize("name", ["ekf", "bayesian-last-layer", "gp", "ensemble"])
def test_values_at_points_are_those_of_function_draws(name: str) -> None:
    """Means and the whole covariance, between inputs and between outputs."""
    surrogate = make(name, output_dim=2).fit(*data(14, 2))
    X = torch.tensor([[0.2, 0.4], [0.25, 0.4], [1.6, -0.4]], dtype=torch.float64)
    values = surrogate.sample_values(X, 6000, torch.Generator().manual_seed(0)).flatten(1)
    with torch.no_grad():
        functions = surrogate.sample_functions(6000, torch.Generator().manual_seed(1))(X).flatten(1)
    sd = functions.std(0)
    assert float(((values.mean(0) - functions.mean(0)) / sd).abs().max()) < 5 * (2 / 6000) ** 0.5
    # Student-t draws and eight members have heavier tails, and fewer, than a Gaussian: twice its error
    assert float(((values.T.cov() - functions.T.cov()) / sd / sd[:, None]).abs().max()) < 10 * (4 / 6000) ** 0.5
    view = surrogate.subset_output([1])
    assert view.sample_values(X, 2).shape == (2, 3, 1)


def test_values_at_points_are_refused() -> None:
    surrogate = make("ekf")
    with pytest.raises(InvalidOptionError, match="n=0"):
        surrogate.sample_values(torch.zeros(1, 2), 0)
    with pytest.raises(ShapeError, match="q x 2"):
        surrogate.sample_values(torch.zeros(1, 3, 2), 1)


def test_known_bounds_of_outcomes() -> None:
    """The prior speaks in their units, and rows that happen to be near one another do not set the scale."""
    bounds = torch.tensor([[0.0], [50.0]])
    settings: dict[str, Any] = {"outcome_bounds": bounds, "scales": {}, "noise": 1.0}
    surrogate = make("ekf", **settings)
    X = torch.rand(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    before = surrogate.posterior(X)
    torch.testing.assert_close(before.mean, torch.full((5, 1), 25.0, dtype=torch.float64))
    surrogate.fit(X[:3], torch.tensor([[1.0], [1.01], [0.99]], dtype=torch.float64))
    scaling = surrogate.save_state()["scaling"]
    assert (float(scaling["y_mean"]), float(scaling["y_std"])) == (25.0, 25.0)
    far = torch.tensor([[4.0, -3.0]], dtype=torch.float64)
    assert float(surrogate.posterior(far).variance) > 0.5 * float(make("ekf", **settings).posterior(far).variance)
    standardized = make("ekf").fit(X[:3], torch.tensor([[1.0], [1.01], [0.99]], dtype=torch.float64))
    assert float(standardized.posterior(far).variance) < 1.0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"outcome_bounds": torch.tensor([[1.0], [0.0]])}, "below"),
        ({"outcome_bounds": torch.tensor([0.0, 1.0])}, "2 x output_dim"),
        ({"outcome_bounds": torch.tensor([[0.0], [1.0]]), "likelihood": "bernoulli"}, "no scale"),
    ],
)
def test_bad_bounds_of_outcomes(options: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidOptionError, match=text):
        make("ekf", **options)
