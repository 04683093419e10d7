"""Search spaces with integer and categorical columns: snapping, neighbours, and alternating local search.

Gradients move the continuous columns; between the ascents every row tries all its neighbours that differ in one
discrete column and moves to the best. Nothing is ever rounded after the optimization.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from seqbdl.acquisition.ascent import RowValue, ascend, evaluate_in_chunks
from seqbdl.errors import InvalidOptionError

# Above this many values an ordered column offers only its nearest neighbours and a few far ones.
_MANY_VALUES = 12


class Columns:
    """Which columns of the search coordinates are continuous, ordered-discrete or categorical.

    Args:
        bounds: ``2 x d``.
        discrete: Column index to its allowed, ordered values (integers, ordinals).
        categorical: Column index to its codes, which have no order.

    Raises:
        InvalidOptionError: Reversed bounds, a column out of range or in both, or a column without values.
    """

    def __init__(
        self,
        bounds: Tensor,
        discrete: Mapping[int, Sequence[float]] | None = None,
        categorical: Mapping[int, Sequence[float]] | None = None,
    ) -> None:
        self.bounds = check_bounds(bounds)
        d = bounds.shape[-1]
        self.values: dict[int, Tensor] = {}
        self.ordered: dict[int, bool] = {}
        for name, given, ordered in (("discrete_dims", discrete, True), ("cat_dims", categorical, False)):
            for column, values in (given or {}).items():
                if not 0 <= column < d:
                    raise InvalidOptionError(f"{name} names column {column}; the columns are 0 to {d - 1}")
                if column in self.values:
                    raise InvalidOptionError(f"column {column} is both in discrete_dims and in cat_dims; keep one")
                if len(values) == 0:
                    raise InvalidOptionError(f"{name}[{column}] has no values; list those the column may take")
                self.values[column] = torch.as_tensor(sorted(values), dtype=bounds.dtype, device=bounds.device)
                self.ordered[column] = ordered
        self.continuous = [i for i in range(d) if i not in self.values]

    def snap(self, X: Tensor) -> Tensor:
        """The nearest allowed point: ``... x d`` to ``... x d``.

        Categorical columns are read as positions between the bounds, so that every category is hit equally often.
        """
        if not self.values:
            return X
        result = X.clone()
        for column, values in self.values.items():
            if self.ordered[column]:
                nearest = (X[..., column].unsqueeze(-1) - values).abs().argmin(dim=-1)
            else:
                allowed = (X[..., column].unsqueeze(-1) == values).any(dim=-1)
                low, high = self.bounds[0, column], self.bounds[1, column]
                share = (X[..., column] - low) / (high - low).clamp_min(1e-12)
                slot = (share * len(values)).floor().long().clamp(0, len(values) - 1)
                nearest = torch.where(allowed, (X[..., column].unsqueeze(-1) - values).abs().argmin(dim=-1), slot)
            result[..., column] = values[nearest]
        return result

    def neighbours(self, x: Tensor, fixed: frozenset[int] = frozenset()) -> Tensor:
        """All points that differ from ``x`` (``q x d``) in one discrete entry: ``k x q x d``."""
        found: list[Tensor] = []
        for column, values in self.values.items():
            if column in fixed:
                continue
            for row in range(x.shape[0]):
                here = int((values - x[row, column]).abs().argmin())
                for index in _other_positions(here, len(values), self.ordered[column]):
                    moved = x.clone()
                    moved[row, column] = values[index]
                    found.append(moved)
        return torch.stack(found) if found else x.new_empty(0, *x.shape)


def check_bounds(bounds: Tensor) -> Tensor:
    """The bounds themselves when they are ``2 x d``, finite and not reversed."""
    if bounds.dim() != 2 or bounds.shape[0] != 2:
        raise InvalidOptionError(f"bounds has shape {tuple(bounds.shape)}; it needs 2 x d (lower row, upper row)")
    if not bool(bounds.isfinite().all()):
        raise InvalidOptionError("bounds has NaN or infinite entries; give every column a finite lower and upper bound")
    if bool((bounds[0] > bounds[1]).any()):
        column = int((bounds[0] > bounds[1]).nonzero()[0])
        raise InvalidOptionError(f"bounds are reversed in column {column}; the first row is the lower bound")
    return bounds


def _other_positions(here: int, count: int, ordered: bool) -> list[int]:
    if not ordered or count <= _MANY_VALUES:
        return [i for i in range(count) if i != here]
    steps = {here - 1, here + 1, here - 2, here + 2, here - count // 8, here + count // 8, 0, count - 1}
    return sorted(i for i in steps if 0 <= i < count and i != here)


def alternate(
    value: RowValue,
    X0: Tensor,
    columns: Columns,
    maxiter: int = 200,
    rounds: int = 12,
    fixed: frozenset[int] = frozenset(),
    chunk_size: int = 512,
) -> tuple[Tensor, Tensor]:
    """Alternate gradient ascent in the continuous columns with best-neighbour moves in the discrete ones.

    Args:
        value: See :data:`seqbdl.acquisition.ascent.RowValue`.
        X0: Starting points ``b x q x d``, already allowed points.
        columns: What each column is.
        maxiter: Steps of each ascent.
        rounds: Alternations at most; ends earlier when no row moves.
        fixed: Columns that must not move at all.
        chunk_size: Rows evaluated at once.

    Returns:
        End points ``b x q x d`` and values ``b``; no row ends lower than it began.
    """
    free = [i for i in columns.continuous if i not in fixed]
    X, values = ascend(value, X0, columns.bounds, free=free, maxiter=maxiter)
    if not any(column not in fixed for column in columns.values):
        return X, values
    active = list(range(X.shape[0]))
    for _ in range(rounds):
        moved = []
        batches = [columns.neighbours(X[i], fixed) for i in active]
        owners = torch.as_tensor([i for i, batch in zip(active, batches, strict=True) for _ in range(batch.shape[0])])
        if owners.numel() == 0:
            break
        everyone = torch.cat(batches)
        owners = owners.to(X.device)
        scores = evaluate_in_chunks(value, everyone, owners, chunk_size)
        offset = 0
        for i, batch in zip(active, batches, strict=True):
            here = scores[offset : offset + batch.shape[0]]
            best = int(here.argmax())
            # A relative margin keeps rounding noise from driving endless moves.
            if float(here[best]) > float(values[i]) + 1e-9 * abs(float(values[i])):
                X[i], values[i] = batch[best], here[best]
                moved.append(i)
            offset += batch.shape[0]
        if not moved:
            break
        rows = torch.as_tensor(moved, device=X.device)
        X[rows], values[rows] = ascend(value, X[rows], columns.bounds, rows=rows, free=free, maxiter=maxiter)
        active = moved
    return X, values
