"""Modules that users hand in: never changed, saved by name only, and allowed to reshape inside."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import seqbdl
from seqbdl.errors import StateError

NAMES = ["laplace", "ensemble", "hmc", "bayesian-last-layer", "dkl", "ekf", "lofi", "epinet", "hypermodel"]
NAMES += ["swag", "multiswag", "subspace", "mc-dropout", "due", "repulsive-ensemble", "svgd"]
SMALL: dict[str, dict[str, Any]] = {
    "ensemble": {"num_members": 4},
    "hmc": {"num_members": 8, "num_chains": 4, "warmup": 3, "samples": 2},
    "dkl": {"num_features": 1, "max_steps": 20},
    "due": {"num_features": 1, "steps": 20},
    "hypermodel": {"num_members": 12, "index_dim": 4},
    "swag": {"num_members": 8, "burn_in": 10, "iterates": 6, "spacing": 2, "scale": 1.0},
    "multiswag": {"num_members": 8, "num_starts": 2, "burn_in": 10, "iterates": 6, "spacing": 2, "scale": 1.0},
    "subspace": {"num_members": 8, "rank": 4, "burn_in": 10, "iterates": 6, "warmup": 2, "thin": 1, "temperature": 1.0},
    "mc-dropout": {"num_members": 8, "steps": 10, "rate": 0.3},
    "repulsive-ensemble": {"num_members": 4, "steps": 10, "num_inputs": 8},
    "svgd": {"num_members": 4, "steps": 10, "num_inputs": 8},
}
BOUNDS = torch.tensor([[0.0] * 4, [1.0] * 4], dtype=torch.float64)


class Convolution(nn.Module):
    """Rows become one-channel signals; with dropout, a buffer and a parameter used twice."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 3, 2)
        self.dropout = nn.Dropout(0.5)
        self.norm = nn.LayerNorm(3)
        self.head = nn.Linear(9, 1)
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv(self.scale * x.reshape(x.shape[0], 1, 4))
        hidden = self.norm(hidden.transpose(1, 2))
        out: Tensor = self.head(self.dropout(torch.tanh(hidden)).reshape(x.shape[0], -1))
        return out


def data(n: int = 12) -> tuple[Tensor, Tensor]:
    X = torch.rand(n, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return X, torch.sin(4 * X[:, :1]) + X[:, 1:2]


def make(name: str, network: nn.Module | Callable[[], nn.Module]) -> seqbdl.Surrogate:
    return seqbdl.make_surrogate(name, 4, bounds=BOUNDS, network=network, **SMALL.get(name, {}))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_a_module_is_never_changed(name: str, training: bool) -> None:
    module = Convolution().train(training)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    X, Y = data()
    surrogate = make(name, module)
    surrogate.fit(X[:9], Y[:9]).update(X[9:], Y[9:])
    X_grad = X[:3].clone().requires_grad_(True)
    surrogate.posterior(X_grad).mean.sum().backward()
    surrogate.sample_functions(2)(X)
    surrogate.train()
    surrogate.eval()
    surrogate.to(torch.float32)
    assert module.training is training
    assert module.dropout.training is training
    for key, value in module.state_dict().items():
        assert torch.equal(before[key], value)
        assert value.dtype == torch.float32
    assert all(p.grad is None and p.requires_grad for p in module.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_modules_and_factories_answer_alike(name: str) -> None:
    """Only the architecture counts, not the weights that the module happens to hold."""
    X, Y = data()
    a, b = make(name, Convolution()).fit(X, Y), make(name, Convolution).fit(X, Y)
    torch.testing.assert_close(a.posterior(X).mean, b.posterior(X).mean, rtol=0, atol=1e-9)
    assert bool((a.posterior(X).variance > 0).all())


@pytest.mark.parametrize("name", NAMES)
def test_loading_needs_the_module_again(name: str, tmp_path: Path) -> None:
    X, Y = data()
    surrogate = make(name, Convolution()).fit(X, Y)
    seqbdl.save(tmp_path / "s", surrogate)
    with pytest.raises(StateError, match="hand them in: network"):
        seqbdl.load(tmp_path / "s")
    loaded = seqbdl.load(tmp_path / "s", network=Convolution())
    assert torch.equal(loaded.posterior(X).mean, surrogate.posterior(X).mean)
    assert torch.equal(loaded.posterior(X).variance, surrogate.posterior(X).variance)
    twin = surrogate.clone()
    assert twin.train_inputs is None
    torch.testing.assert_close(twin.fit(X, Y).posterior(X).mean, make(name, Convolution()).fit(X, Y).posterior(X).mean)


@pytest.mark.parametrize("name", NAMES)
def test_batch_normalization_is_refused(name: str) -> None:
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    with pytest.raises(ValueError, match=r"BatchNorm1d.*LayerNorm"):
        make(name, module)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_in_the_inputs(name: str) -> None:
    X, Y = data()
    surrogate = make(name, Convolution()).fit(X, Y)

    def target(x: Tensor) -> Tensor:
        posterior = surrogate.posterior(x)
        return posterior.mean.sum() + posterior.variance.sum()

    # A small step: where the layer norm divides by a small spread, third derivatives are of the order of 1e6.
    assert torch.autograd.gradcheck(target, (X[:2].clone().requires_grad_(True),), eps=1e-6, atol=1e-4)
