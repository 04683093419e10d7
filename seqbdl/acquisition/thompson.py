"""Thompson sampling: query where functions drawn from the posterior are largest.

W. R. Thompson, "On the likelihood that one unknown probability exceeds another", Biometrika 1933. Joint draws over a
million candidates need no covariance matrix: the functions are drawn first and then evaluated chunk by chunk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from botorch.models.model import Model
from torch import Tensor

from seqbdl.acquisition.draws import Encode, function_draws, sample_optima
from seqbdl.acquisition.scores import Constraint, Objective, Scorer
from seqbdl.errors import InvalidDataError, InvalidOptionError, ShapeError

# Function values held at once (draws x candidates); bounds the memory of activations too.
_VALUES_AT_ONCE = 2**17


def thompson_candidates(
    surrogate: Model,
    candidates: Tensor,
    n: int = 1,
    generator: torch.Generator | None = None,
    chunk_size: int | None = None,
    objective: Objective | None = None,
    constraints: Sequence[Constraint] | None = None,
    exclude: Tensor | Sequence[int] | None = None,
    encode: Encode | None = None,
) -> Tensor:
    """Indices of ``n`` different candidates, each the best remaining one under its own function draw.

    Args:
        surrogate: Anything with ``sample_functions``, or a BoTorch model with Matheron paths.
        candidates: ``N x d``; may hold millions of rows.
        n: How many to choose; every one has its own draw.
        generator: Randomness; the surrogate's own when ``None``.
        chunk_size: Candidates evaluated at once; memory grows with ``n * chunk_size``, never with ``N``.
        objective: Which output, or a callable of samples; needed with several outputs.
        constraints: Callables on samples; a draw prefers points that are feasible (<= 0) under that very draw.
        exclude: Indices never to choose, for instance those already measured.
        encode: Maps each chunk of candidates to the surrogate's inputs.

    Returns:
        ``n`` distinct indices into ``candidates``, a ``LongTensor``.

    Raises:
        ShapeError: ``candidates`` is not a matrix.
        InvalidOptionError: Fewer candidates remain than ``n``.
    """
    if candidates.dim() != 2:
        raise ShapeError(f"candidates has shape {tuple(candidates.shape)}; it needs N x d")
    banned = torch.as_tensor(() if exclude is None else exclude, dtype=torch.long, device=candidates.device).unique()
    remaining = candidates.shape[0] - banned.numel()
    if n < 1 or n > remaining:
        raise InvalidOptionError(f"n={n}, but {remaining} candidates can be chosen; ask for 1 to {remaining}")
    if chunk_size is None:
        chunk_size = max(256, min(16384, _VALUES_AT_ONCE // n))
    elif chunk_size < 1:
        raise InvalidOptionError(f"chunk_size={chunk_size}; it needs to be 1 or more")
    scorer = Scorer(surrogate.num_outputs, objective, constraints)
    draws = function_draws(surrogate, n, generator)
    # The n best of each draw are enough: at most n - 1 of them can be taken by other draws.
    top_values = candidates.new_full((n, 0), -torch.inf)
    top = torch.empty(n, 0, dtype=torch.long, device=candidates.device)
    with torch.no_grad():
        for start in range(0, candidates.shape[0], chunk_size):
            part = candidates[start : start + chunk_size]
            inputs = part if encode is None else encode(part)
            scores = scorer.ranked(draws(inputs), inputs)
            if bool(scores.isnan().any()):
                row = start + int(scores.isnan().any(dim=0).nonzero()[0])
                raise InvalidDataError(f"the surrogate's draws are NaN at candidate {row}; check that row's features")
            local = banned[(banned >= start) & (banned < start + part.shape[0])] - start
            scores = scores.index_fill(-1, local, -torch.inf)
            values, index = scores.topk(min(n, part.shape[0]), dim=-1)
            all_values = torch.cat([top_values, values], dim=-1)
            all_index = torch.cat([top, index + start], dim=-1)
            top_values, keep = all_values.topk(min(n, all_values.shape[-1]), dim=-1)
            top = all_index.gather(-1, keep)
    chosen: list[int] = []
    taken: set[int] = set()
    for row in top.tolist():
        first = next(index for index in row if index not in taken)
        chosen.append(first)
        taken.add(first)
    return torch.as_tensor(chosen, dtype=torch.long, device=candidates.device)


def thompson_continuous(
    surrogate: Model,
    bounds: Tensor,
    n: int = 1,
    generator: torch.Generator | None = None,
    num_restarts: int = 4,
    raw_samples: int = 512,
    objective: Objective | None = None,
    constraints: Sequence[Constraint] | None = None,
    discrete_dims: Mapping[int, Sequence[float]] | None = None,
    cat_dims: Mapping[int, Sequence[float]] | None = None,
    encode: Encode | None = None,
    start: Tensor | None = None,
    maxiter: int = 100,
) -> Tensor:
    """``n`` points of a box, each the maximizer of its own function draw.

    Args:
        surrogate: Anything with ``sample_functions``, or a BoTorch model with Matheron paths.
        bounds: ``2 x d``, of the search coordinates.
        n: Number of points.
        generator: Randomness; moves on.
        num_restarts: Gradient ascents for each draw.
        raw_samples: Sobol points that compete to be their starts.
        objective: Which output, or a callable of samples; needed with several outputs.
        constraints: Callables on samples; a draw prefers points that are feasible (<= 0) under that very draw.
        discrete_dims: Allowed values of columns; the result holds only allowed points.
        cat_dims: The same for columns without an order.
        encode: Search coordinates to the surrogate's inputs; differentiable; the identity by default.
        start: Points ``k x d`` worth starting from, for instance those observed.
        maxiter: Steps of each ascent.

    Returns:
        ``n x d``, in search coordinates.
    """
    if n < 1:
        raise InvalidOptionError(f"n={n} points were asked for; ask for one or more")
    optima = sample_optima(
        surrogate,
        n,
        generator,
        bounds,
        Scorer(surrogate.num_outputs, objective, constraints),
        num_restarts=num_restarts,
        raw_samples=raw_samples,
        maxiter=maxiter,
        discrete_dims=discrete_dims,
        cat_dims=cat_dims,
        encode=encode,
        start=start,
    )
    return optima.inputs
