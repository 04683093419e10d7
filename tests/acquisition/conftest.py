"""Small fitted surrogates that the tests of acquisition functions share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from seqbdl.surrogates import Surrogate, make_surrogate


@pytest.fixture(scope="session")
def unit_square() -> Tensor:
    return torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)


@pytest.fixture(scope="session")
def make_fitted(unit_square: Tensor) -> Callable[[str, int], Surrogate]:
    """``make_fitted(name, outputs)``: a surrogate fitted to twelve points of a smooth function; made once."""
    made: dict[tuple[str, int], Surrogate] = {}

    def make(name: str = "gp", outputs: int = 1) -> Surrogate:
        if (name, outputs) not in made:
            generator = torch.Generator().manual_seed(0)
            X = torch.rand(12, 2, generator=generator, dtype=torch.float64)
            first = -5 * (X - 0.4).square().sum(dim=-1, keepdim=True)
            Y = torch.cat([first, X[:, :1]], dim=-1)[:, :outputs]
            made[name, outputs] = make_surrogate(name, 2, outputs, bounds=unit_square, seed=1).fit(X, Y)
        return made[name, outputs]

    return make
