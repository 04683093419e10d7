"""Small, fast settings of every registered surrogate, and data they are tested on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import seqbdl

SHORT_PATH = {"burn_in": 40, "iterates": 20, "spacing": 4}
SMALL: dict[str, dict[str, Any]] = {
    "gp": {},
    "nngp": {"draw_width": 64},
    "ensemble": {"network": (16, 16), "num_members": 8},
    "anchored-ensemble": {"network": (16, 16), "num_members": 8},
    "ensemble-plus": {"network": (16, 16), "num_members": 8},
    "repulsive-ensemble": {"network": (16, 16), "num_members": 16, "steps": 20, "num_inputs": 8},
    "svgd": {"network": (16, 16), "num_members": 16, "steps": 20, "num_inputs": 8},
    "laplace": {"network": (16, 16)},
    "last-layer-laplace": {"network": (16, 16), "num_networks": 2},
    "subnetwork-laplace": {"network": (16, 16), "num_weights": 128},
    "bayesian-last-layer": {"network": (16, 16), "num_networks": 2},
    "hmc": {"network": (16, 16), "num_members": 16, "num_chains": 8, "warmup": 3, "max_steps": 20},
    "sgld": {"network": (16, 16), "num_members": 32, "num_chains": 16, "warmup": 20, "thinning": 10},
    "sghmc": {"network": (16, 16), "num_members": 32, "num_chains": 16, "warmup": 30, "thinning": 15},
    "csghmc": {"network": (16, 16), "num_members": 16, "num_chains": 8, "cycles": 1, "steps": 60},
    "dkl": {"network": (8, 8), "max_steps": 30},
    "dkm": {"nu": 30.0, "steps": 10, "draw_width": 64},
    "due": {"network": (8,), "steps": 20, "num_frequencies": 128},
    "dwp": {"network": (10,), "num_members": 64, "num_components": 8, "steps": 60, "draw_width": 32},
    "ekf": {"network": (12, 12)},
    "lofi": {"network": (16, 16)},
    "mfvi": {"network": (8,), "num_components": 8, "num_members": 32, "steps": 150},
    "ivon": {"network": (8,), "num_components": 8, "num_members": 32, "steps": 150},
    "fsvi": {"network": (8,), "num_components": 8, "num_members": 32, "steps": 50, "num_context": 16},
    "vbll": {"network": (16, 16), "num_networks": 2, "steps": 20},
    "swag": {"network": (16, 16), "num_members": 64, **SHORT_PATH},
    "multiswag": {"network": (16, 16), "num_members": 64, "num_starts": 2, **SHORT_PATH},
    "subspace": {"network": (16, 16), "num_members": 64, "rank": 8, "warmup": 10, "thin": 2, **SHORT_PATH},
    "mc-dropout": {"network": (32, 32), "num_members": 32, "steps": 60, "rate": 0.1},
    "continual": {"network": (12,)},
    "epinet": {"network": (16, 16), "num_members": 32, "num_branches": 2},
    "hypermodel": {"network": (16, 16), "num_members": 16, "num_branches": 1, "index_dim": 6},
}


def make(name: str, input_dim: int = 2, output_dim: int = 1, **options: Any) -> seqbdl.Surrogate:
    """A surrogate in its small setting (defaults for names that this file does not know)."""
    bounds = torch.tensor([[0.0] * input_dim, [1.0] * input_dim])
    settings = {"bounds": bounds, **SMALL.get(name, {}), **options}
    return seqbdl.make_surrogate(name, input_dim, output_dim, **settings)


def data(n: int, output_dim: int = 1, input_dim: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A smooth function with noise of sd 0.05 around a mean of 3, ``n x d`` and ``n x m``."""
    generator = torch.Generator().manual_seed(seed)
    X = torch.rand(n, input_dim, generator=generator, dtype=torch.float64)
    phases = torch.arange(output_dim, dtype=torch.float64)
    Y = 3.0 + 2.0 * torch.sin(4.0 * X.sum(-1, keepdim=True) / input_dim**0.5 + phases) * (X[:, :1] + 0.5)
    return X, Y + 0.05 * torch.randn(Y.shape, generator=generator, dtype=torch.float64)


@pytest.fixture(scope="session")
def fitted() -> dict[tuple[str, int], seqbdl.Surrogate]:
    """A cache of fitted surrogates; tests must not change what they take from it."""
    return {}


def get_fitted(cache: dict[tuple[str, int], seqbdl.Surrogate], name: str, output_dim: int = 1) -> seqbdl.Surrogate:
    key = (name, output_dim)
    if key not in cache:
        cache[key] = make(name, output_dim=output_dim).fit(*data(14, output_dim))
    return cache[key]
