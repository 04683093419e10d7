"""Checks of predictions and labels; each error names the argument, the first offending row, and the remedy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from seqbdl._checks import check_finite, check_tensor
from seqbdl.errors import InvalidDataError, InvalidOptionError, ShapeError


def finite(name: str, value: object) -> Tensor:
    """The tensor in float64, finite and not empty."""
    tensor = check_tensor(name, value).double()
    if tensor.numel() == 0:
        raise ShapeError(f"{name} is empty, of shape {tuple(tensor.shape)}; there is nothing to score")
    if tensor.dim() == 0:
        raise ShapeError(f"{name} is a single number; it needs at least one dimension: hand in {name}.reshape(1)")
    check_finite(name, tensor)
    return tensor


def probabilities(name: str, value: object) -> Tensor:
    """``... x C`` class probabilities in float64: finite, not negative, each row with the sum one."""
    probs = finite(name, value)
    _needs_classes(name, probs)
    negative = (probs < 0).any(-1)
    if bool(negative.any()):
        raise InvalidDataError(
            f"{name} is negative in row {_first(negative)}; if it holds log-probabilities, hand in {name}.exp()"
        )
    _sums_to_one(name, probs.sum(-1), _tolerance(value), f"divide it by {name}.sum(-1, keepdim=True)")
    return probs


def log_probabilities(name: str, value: object) -> Tensor:
    """``... x C`` class log-probabilities in float64; minus infinity is a class that is ruled out."""
    log_probs = check_tensor(name, value).double()
    _needs_classes(name, log_probs)
    bad = (log_probs.isnan() | (log_probs == torch.inf)).any(-1)
    if bool(bad.any()):
        raise InvalidDataError(f"{name} has NaN or +infinity in row {_first(bad)}; remove those rows or mend them")
    _sums_to_one(
        f"exp({name})",
        log_probs.logsumexp(-1).exp(),
        _tolerance(value),
        f"normalize it with {name}.log_softmax(-1), or hand in the logarithm of probabilities",
    )
    return log_probs


def labels(name: str, value: object, shape: Sequence[int], num_classes: int) -> Tensor:
    """Class indices of that shape, as integers from 0 to ``num_classes - 1``."""
    if not isinstance(value, Tensor):
        raise ShapeError(f"{name} is a {type(value).__name__}; hand in a torch.Tensor of class indices")
    if tuple(value.shape) != tuple(shape):
        raise ShapeError(
            f"{name} has shape {tuple(value.shape)}; it needs {tuple(shape)}, one class index for each row of predictions"
        )
    if value.is_complex() or value.dtype == torch.bool:
        raise InvalidDataError(f"{name} has dtype {value.dtype}; convert it with {name}.long()")
    whole = value.long()
    if value.is_floating_point() and not bool((whole == value).all()):
        raise InvalidDataError(f"{name} is not a whole number in row {_first(whole != value)}; it holds class indices")
    outside = (whole < 0) | (whole >= num_classes)
    if bool(outside.any()):
        row = _first(outside)
        raise InvalidDataError(
            f"{name} is {int(whole.flatten()[_flat_first(outside)])} in row {row}; the {num_classes} classes of the "
            f"predictions are 0 to {num_classes - 1}"
        )
    return whole


def positive(name: str, value: object) -> Tensor:
    """A finite tensor in float64 that is strictly positive, such as a standard deviation."""
    tensor = finite(name, value)
    bad = ~(tensor > 0)
    if bool(bad.any()):
        raise InvalidDataError(
            f"{name} is zero or negative at entry {_first(bad)}; a prediction needs a positive spread, "
            "add the variance of the observation noise"
        )
    return tensor


def same_shape(first: str, a: Tensor, second: str, b: Tensor) -> None:
    """Refuse two tensors of different shapes."""
    if a.shape != b.shape:
        raise ShapeError(f"{first} has shape {tuple(a.shape)}, {second} has {tuple(b.shape)}; they need the same")


def broadcastable(name: str, value: Tensor, second: str, like: Tensor) -> None:
    """Refuse a tensor that does not broadcast to the shape of another."""
    trailing = like.shape[max(like.dim() - value.dim(), 0) :]
    if value.dim() > like.dim() or any(a not in (1, b) for a, b in zip(value.shape, trailing, strict=True)):
        raise ShapeError(f"{name} has shape {tuple(value.shape)}; it needs to broadcast to that of {second}, {tuple(like.shape)}")


def level(name: str, value: float) -> None:
    """Refuse levels outside the open interval from 0 to 1."""
    if not 0 < value < 1:
        raise InvalidOptionError(f"{name}={value}; it lies strictly between 0 and 1")


def at_least(name: str, value: int, smallest: int) -> None:
    """Refuse counts that are too small."""
    if value < smallest:
        raise InvalidOptionError(f"{name}={value}; it needs to be at least {smallest}")


def one_of(name: str, value: str, known: Sequence[str]) -> None:
    """Refuse options that are not in the list."""
    if value not in known:
        raise InvalidOptionError(f"{name}={value!r}; the known ones are: {', '.join(known)}")


def normalized_weights(log_weights: Tensor | None, like: Tensor) -> Tensor:
    """Log weights of the ``S`` leading members of ``like``, normalized, broadcastable to it; equal by default.

    Args:
        log_weights: ``S``, or ``S x`` dimensions that broadcast with those of ``like``.
        like: ``S x ...``.
    """
    members = like.shape[0]
    if log_weights is None:
        log_weights = like.new_zeros(members)
    weights = check_tensor("log_weights", log_weights).double()
    if weights.dim() not in (1, like.dim()) or weights.shape[0] != members:
        raise ShapeError(
            f"log_weights has shape {tuple(weights.shape)}; it needs one weight for each of the {members} members, "
            f"or the shape {tuple(like.shape)}"
        )
    if bool((weights.isnan() | (weights == torch.inf)).any()) or bool((weights.amax(0) == -torch.inf).any()):
        raise InvalidDataError("log_weights has NaN or +infinity, or leaves no member any weight; check the re-weighting")
    return weights.log_softmax(0).reshape(*weights.shape, *([1] * (like.dim() - weights.dim())))


def _needs_classes(name: str, value: Tensor) -> None:
    if value.dim() < 2 or value.numel() == 0 or value.shape[-1] < 2:
        raise ShapeError(
            f"{name} has shape {tuple(value.shape)}; it needs ... x C with a column for each of C >= 2 classes. "
            "For two classes and one column p, hand in torch.cat([1 - p, p], -1)"
        )


def _tolerance(value: object) -> float:
    """Rounding of a softmax over many classes in the dtype that was handed in, with some room."""
    half = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
    return 1e-2 if half else 1e-4


def _sums_to_one(name: str, sums: Tensor, tolerance: float, remedy: str) -> None:
    bad = (sums - 1).abs() > tolerance
    if bool(bad.any()):
        total = float(sums.flatten()[_flat_first(bad)])
        raise InvalidDataError(f"{name} sums to {total:.6g}, not to 1, over the classes in row {_first(bad)}; {remedy}")


def _flat_first(bad: Tensor) -> int:
    return int(bad.flatten().nonzero()[0])


def _first(bad: Tensor) -> int | tuple[int, ...]:
    index = tuple(int(i) for i in bad.nonzero()[0])
    return index[0] if len(index) == 1 else index
