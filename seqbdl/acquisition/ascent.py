"""Batched gradient ascent inside a box, one independent L-BFGS-B per row, all rows evaluated together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from botorch.optim import batched_lbfgs_b
from numpy.typing import NDArray
from torch import Tensor

#: ``value(X, rows) -> b``: the value of each row of ``X`` (``b x q x d``), where ``rows`` (``b``) says which of the
#: starting points each row came from. Rows must not influence each other.
RowValue = Callable[[Tensor, Tensor], Tensor]

# L-BFGS-B does arithmetic on the values: stand-ins for minus infinity and NaN have to be finite.
_LOWEST = -1e20


def evaluate_in_chunks(value: RowValue, X: Tensor, rows: Tensor | None = None, chunk_size: int = 512) -> Tensor:
    """Values of all rows without gradients, ``chunk_size`` rows at a time; NaN becomes minus infinity.

    Args:
        value: See :data:`RowValue`.
        X: ``b x q x d``.
        rows: ``b``; by default ``0 ... b-1``.
        chunk_size: Rows held in memory at once.
    """
    if rows is None:
        rows = torch.arange(X.shape[0], device=X.device)
    if X.shape[0] == 0:
        return X.new_empty(0)
    with torch.no_grad():
        parts = [value(X[i : i + chunk_size], rows[i : i + chunk_size]) for i in range(0, X.shape[0], chunk_size)]
    values = torch.cat(parts)
    return torch.where(values.isnan(), torch.full_like(values, -torch.inf), values)


def ascend(
    value: RowValue,
    X0: Tensor,
    bounds: Tensor,
    rows: Tensor | None = None,
    free: Sequence[int] | None = None,
    maxiter: int = 200,
    gradient_tolerance: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """Climb from every starting point to a local maximum of ``value`` in the box.

    Args:
        value: See :data:`RowValue`.
        X0: Starting points ``b x q x d``.
        bounds: ``2 x d``.
        rows: ``b``, handed to ``value``; by default ``0 ... b-1``.
        free: Columns that may move; all by default.
        maxiter: L-BFGS-B iterations for each row.
        gradient_tolerance: A row stops where its projected gradient is below this.

    Returns:
        The end points ``b x q x d`` and their values ``b``; a row never ends lower than it began.
    """
    b, q, d = X0.shape
    if rows is None:
        rows = torch.arange(b, device=X0.device)
    columns = list(range(d)) if free is None else list(free)
    start = torch.minimum(torch.maximum(X0.detach(), bounds[0]), bounds[1])
    start_values = evaluate_in_chunks(value, start, rows)
    if not columns or b == 0 or maxiter == 0:
        return start, start_values

    def negative(x: NDArray[np.float64], batch_indices: list[int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        index = torch.as_tensor(batch_indices, device=start.device)
        moving = torch.from_numpy(x).to(start).reshape(-1, q, len(columns)).requires_grad_(True)
        full = start[index].clone()
        with torch.enable_grad():  # also when the caller is not interested in gradients
            full[..., columns] = moving
            values = value(full, rows[index])
            gradient = None
            if values.requires_grad:
                (gradient,) = torch.autograd.grad(values.sum(), moving, allow_unused=True)
        if gradient is None:
            gradient = torch.zeros_like(moving)
        # A row whose value is not a number has no useful slope either: it stops where it is.
        broken = ~values.isfinite()
        gradient = gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        gradient = gradient.masked_fill(broken.view(-1, 1, 1), 0.0)
        values = values.detach().nan_to_num(nan=_LOWEST, posinf=-_LOWEST, neginf=_LOWEST)
        return (
            -values.cpu().double().numpy(),
            -gradient.detach().cpu().double().numpy().reshape(x.shape[0], -1),
        )

    lower = bounds[0, columns].repeat(q).cpu().double().tolist()
    upper = bounds[1, columns].repeat(q).cpu().double().tolist()
    minimize = cast(Any, batched_lbfgs_b.fmin_l_bfgs_b_batched)
    x, _, _ = minimize(
        negative,
        start[..., columns].reshape(b, -1).cpu().double().numpy(),
        bounds=list(zip(lower, upper, strict=True)),
        maxiter=maxiter,
        pgtol=gradient_tolerance,
        pass_batch_indices=True,
    )
    end = start.clone()
    end[..., columns] = torch.from_numpy(x).to(start).reshape(b, q, len(columns))
    end = torch.minimum(torch.maximum(end, bounds[0]), bounds[1])
    end_values = evaluate_in_chunks(value, end, rows)
    better = end_values > start_values
    return torch.where(better.view(-1, 1, 1), end, start), torch.where(better, end_values, start_values)
