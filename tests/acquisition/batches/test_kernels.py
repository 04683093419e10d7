"""Kernels on a pool: all forms agree with the matrix that they stand for."""

from __future__ import annotations

import pytest
import torch

from seqbdl.acquisition.batches import PoolKernel
from seqbdl.acquisition.batches.kernels import as_kernel, stacked
from seqbdl.errors import InvalidDataError, ShapeError


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_all_forms_are_their_matrix() -> None:
    left, right = normal(6, 3), normal(6, 2, seed=1)
    outer = torch.einsum("if,ic->ifc", left, right).flatten(1)
    index = torch.tensor([4, 0])
    for kernel, matrix in (
        (PoolKernel.of_features(left), left @ left.T),
        (as_kernel(left), left @ left.T),
        (PoolKernel.of_covariance(left @ left.T), left @ left.T),
        (PoolKernel.of_outer_products(left, right), outer @ outer.T),
    ):
        assert kernel.size == 6
        assert torch.allclose(kernel.diagonal, matrix.diagonal(), atol=1e-13)
        assert torch.allclose(kernel.columns(index), matrix[:, index], atol=1e-13)
    distances = PoolKernel.of_outer_products(left, right).squared_distances(index)
    assert torch.allclose(distances, torch.cdist(outer, outer[index]).square(), atol=1e-12)
    assert bool((distances >= 0).all())


def test_bad_matrices_are_refused() -> None:
    with pytest.raises(ShapeError, match="N x N"):
        PoolKernel.of_covariance(normal(3, 2))
    with pytest.raises(InvalidDataError, match="negative variance at point 1"):
        PoolKernel.of_covariance(torch.diag(torch.tensor([1.0, -1.0])))
    with pytest.raises(ShapeError, match="4 x D"):
        PoolKernel.of_outer_products(normal(4, 2), normal(3, 2))
    with pytest.raises(ShapeError, match="N x 3"):
        stacked(normal(4, 3), normal(4, 2))
    with pytest.raises(InvalidDataError, match="NaN"):
        PoolKernel.of_features(torch.tensor([[torch.nan]]))
