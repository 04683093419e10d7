"""Checks of what users hand in; each error names the argument, the first offending row, and the remedy."""

from __future__ import annotations

import torch
from torch import Tensor

from seqbdl.errors import InvalidDataError, ShapeError


def check_tensor(name: str, value: object) -> Tensor:
    """The value itself when it is a floating-point tensor."""
    if not isinstance(value, Tensor):
        raise ShapeError(f"{name} is a {type(value).__name__}; hand in a torch.Tensor")
    if not value.is_floating_point():
        raise InvalidDataError(f"{name} has dtype {value.dtype}; convert it with {name}.double()")
    return value


def check_finite(name: str, value: Tensor) -> None:
    """Refuse NaN and infinite entries.

    Args:
        name: How the argument is called in the message.
        value: ``... x n x k``.
    """
    bad = ~torch.isfinite(value)
    if bool(bad.any()):
        index = tuple(int(i) for i in bad.nonzero()[0])
        row = index[-2] if len(index) > 1 else index[0]
        raise InvalidDataError(
            f"{name} has {int(bad.sum())} NaN or infinite entries, the first in row {row} (index {index}); "
            "remove those rows or mend them"
        )


def check_inputs(name: str, X: object, input_dim: int) -> Tensor:
    """Inputs ``batch x q x d`` with the right ``d``, finite."""
    value = check_tensor(name, X)
    if value.dim() < 2:
        raise ShapeError(f"{name} has shape {tuple(value.shape)}; it needs (batch x) q x d, for one point 1 x {input_dim}")
    if value.shape[-1] != input_dim:
        raise ShapeError(f"{name} has {value.shape[-1]} columns, the surrogate was made for input_dim={input_dim}")
    check_finite(name, value)
    return value


def check_data(X: object, Y: object, Yvar: object, input_dim: int, output_dim: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Training data ``X: n x d``, ``Y: n x m``, ``Yvar: n x m`` or ``None``, consistent and finite."""
    inputs = check_inputs("X", X, input_dim)
    outcomes = check_tensor("Y", Y)
    if inputs.dim() != 2:
        raise ShapeError(f"X has shape {tuple(inputs.shape)}; data are n x d, without batch dimensions")
    if inputs.shape[0] == 0:
        raise ShapeError("X has no rows; a surrogate without data already answers with its prior")
    _check_rows("Y", outcomes, inputs.shape[0], output_dim)
    variances = None
    if Yvar is not None:
        variances = check_tensor("Yvar", Yvar)
        _check_rows("Yvar", variances, inputs.shape[0], output_dim)
        if bool((variances < 0).any()):
            row = int((variances < 0).nonzero()[0, 0])
            raise InvalidDataError(f"Yvar is negative in row {row}; it holds variances")
    return inputs, outcomes, variances


def _check_rows(name: str, value: Tensor, rows: int, columns: int) -> None:
    if value.dim() != 2 or value.shape[1] != columns:
        raise ShapeError(f"{name} has shape {tuple(value.shape)}; it needs n x m with m = output_dim = {columns}")
    if value.shape[0] != rows:
        raise ShapeError(f"{name} has {value.shape[0]} rows, X has {rows}")
    check_finite(name, value)
