"""Checks of what pool scores and batch selections are given; each error names the argument, the first offending row, and
the remedy."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from seqbdl._checks import check_finite, check_tensor
from seqbdl.errors import InvalidDataError, InvalidOptionError, ShapeError

#: Numbers that one step of a computation holds at once: it bounds the memory beyond the arguments, and is near the caches.
VALUES_AT_ONCE = 2**21


def check_log_probs(name: str, value: object, min_draws: int = 1) -> Tensor:
    """Class log-probabilities ``n x N x C`` as they are, detached; minus infinity is a class that is ruled out.

    Args:
        name: How the argument is called in the message.
        value: What was handed in.
        min_draws: Fewer draws than this are refused.
    """
    log_probs = check_tensor(name, value).detach()
    if log_probs.dim() != 3 or log_probs.numel() == 0 or log_probs.shape[-1] < 2:
        raise ShapeError(
            f"{name} has shape {tuple(log_probs.shape)}; it needs n x N x C: n function draws, N points, C >= 2 classes "
            f"(of N x n x C hand in {name}.transpose(0, 1))"
        )
    if log_probs.shape[0] < min_draws:
        raise ShapeError(
            f"{name} has {log_probs.shape[0]} draw(s); what is scored is their disagreement, give {min_draws} or more"
        )
    tolerance = 1e-2 if log_probs.dtype in (torch.float16, torch.bfloat16) else 1e-4
    for start, part in row_chunks(log_probs):
        bad = part.isnan() | (part == torch.inf)
        if bool(bad.any()):
            draw, row, _ = (int(i) for i in bad.nonzero()[0])
            raise InvalidDataError(f"{name} is NaN or +infinity at point {start + row} of draw {draw}; remove or mend that point")
        sums = part.exp().sum(-1)
        off = (sums - 1.0).abs() > tolerance
        if bool(off.any()):
            draw, row = (int(i) for i in off.nonzero()[0])
            raise InvalidDataError(
                f"exp({name}) sums to {float(sums[draw, row]):.6g}, not to 1, over the classes at point {start + row} of draw "
                f"{draw}; normalize it with {name}.log_softmax(-1), or hand in the logarithm of probabilities"
            )
    return log_probs


def row_chunks(values: Tensor, held_per_row: int | None = None) -> Iterator[tuple[int, Tensor]]:
    """Parts along the second dimension, with where they start, each in float64.

    Args:
        values: ``n x N x ...``.
        held_per_row: Numbers that the computation holds for one row; those of ``values`` by default.
    """
    held = values[:, :1].numel() if held_per_row is None else held_per_row
    size = max(1, VALUES_AT_ONCE // max(1, held))
    for start in range(0, values.shape[1], size):
        yield start, values[:, start : start + size].double()


def check_vector(name: str, value: object, length: int | None = None) -> Tensor:
    """A finite vector in float64, detached."""
    vector = check_tensor(name, value).detach().double()
    if vector.dim() != 1 or (length is not None and vector.shape[0] != length):
        wanted = "a vector" if length is None else f"a vector of {length} entries, one for each point"
        raise ShapeError(f"{name} has shape {tuple(vector.shape)}; it needs {wanted}")
    check_finite(name, vector)
    return vector


def check_matrix(name: str, value: object, rows: int | None = None, columns: int | None = None) -> Tensor:
    """A finite matrix in float64, detached."""
    matrix = check_tensor(name, value).detach().double()
    wanted = f"{'N' if rows is None else rows} x {'D' if columns is None else columns}"
    right = matrix.dim() == 2 and rows in (None, matrix.shape[0]) and columns in (None, matrix.shape[-1])
    if not right:
        raise ShapeError(f"{name} has shape {tuple(matrix.shape)}; it needs {wanted}")
    check_finite(name, matrix)
    return matrix


def check_variances(name: str, value: object, length: int, like: Tensor, allow_zero: bool = False) -> Tensor:
    """Variances of ``length`` points in float64, from one number for all or a vector.

    Args:
        name: How the argument is called in the message.
        value: A number, or a tensor of one or of ``length`` entries.
        length: How many points.
        like: Gives the device.
        allow_zero: Whether a point may have none.
    """
    if isinstance(value, (int, float)):
        value = torch.tensor([float(value)], dtype=torch.float64, device=like.device)
    vector = check_tensor(name, value).detach().double().reshape(-1)
    if vector.shape[0] not in (1, length):
        raise ShapeError(f"{name} has {vector.shape[0]} entries; give one variance, or one for each of the {length} points")
    check_finite(name, vector)
    bad = (vector < 0) if allow_zero else (vector <= 0)
    if bool(bad.any()):
        kind = "negative" if allow_zero else "zero or negative"
        raise InvalidDataError(f"{name} is {kind} at point {int(bad.nonzero()[0])}; it holds variances, not log-variances")
    return vector.expand(length)


def check_weights(weights: object, length: int, like: Tensor) -> Tensor:
    """Weights of target points, normalized to the sum one; equal by default.

    Args:
        weights: ``M`` non-negative numbers, or ``None``.
        length: ``M``.
        like: Gives the device.
    """
    if weights is None:
        return torch.full((length,), 1.0 / length, dtype=torch.float64, device=like.device)
    vector = check_vector("target_weights", weights, length)
    if bool((vector < 0).any()) or not bool(vector.sum() > 0):
        row = int((vector < 0).nonzero()[0]) if bool((vector < 0).any()) else 0
        raise InvalidDataError(
            f"target_weights is negative at target {row}, or zero everywhere; give density ratios of the target distribution "
            "to the one that the targets come from"
        )
    return vector / vector.sum()


def check_indices(name: str, value: object, size: int, device: torch.device) -> Tensor:
    """Different indices into a pool of ``size`` points, as a ``LongTensor``; a mask of ``size`` booleans is one too."""
    if value is None:
        return torch.empty(0, dtype=torch.long, device=device)
    indices = torch.as_tensor(value, device=device)
    if indices.dtype == torch.bool:
        if indices.shape != (size,):
            raise ShapeError(f"{name} is a mask of shape {tuple(indices.shape)}; it needs one entry for each of {size} points")
        return indices.nonzero().squeeze(-1)
    if indices.numel() == 0:
        return torch.empty(0, dtype=torch.long, device=device)
    if indices.is_floating_point() or indices.is_complex() or indices.dim() != 1:
        raise ShapeError(f"{name} has shape {tuple(indices.shape)} and dtype {indices.dtype}; it needs a list of whole numbers")
    outside = (indices < 0) | (indices >= size)
    if bool(outside.any()):
        position = int(outside.nonzero()[0])
        raise InvalidDataError(f"{name}[{position}] is {int(indices[position])}; the pool's indices are 0 to {size - 1}")
    values, counts = indices.unique(return_counts=True)
    if bool((counts > 1).any()):
        twice = int(values[counts > 1][0])
        raise InvalidDataError(f"{name} holds index {twice} {int(counts.max())} times; every index may stand there once")
    return indices.long()


def check_generator(generator: object, purpose: str) -> torch.Generator:
    """The generator itself; an error where there is none and ``purpose`` needs one."""
    if not isinstance(generator, torch.Generator):
        raise InvalidOptionError(f"generator is {generator!r}; {purpose} needs torch.Generator().manual_seed(...)")
    return generator
