"""Choosing from a list of candidates by evaluating every one of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from botorch.acquisition.acquisition import AcquisitionFunction
from botorch.acquisition.analytic import AnalyticAcquisitionFunction
from torch import Tensor

from seqbdl.acquisition._random import isolated_rng
from seqbdl.acquisition.ascent import evaluate_in_chunks
from seqbdl.acquisition.draws import Encode
from seqbdl.acquisition.encoding import SearchView
from seqbdl.errors import InvalidOptionError, ShapeError


def optimize_over_candidates(
    acqf: AcquisitionFunction,
    candidates: Tensor,
    q: int = 1,
    exclude: Tensor | Sequence[int] | None = None,
    encode: Encode | None = None,
    chunk_size: int = 512,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """The best ``q`` different rows, greedily: each next one with those before it pending.

    Args:
        acqf: Of the surrogate's inputs; not one-shot.
        candidates: ``N x d``.
        q: How many.
        exclude: Indices never to choose, for instance those measured already.
        encode: Candidates to the surrogate's inputs; identity by default.
        chunk_size: Rows evaluated at once.
        seed: For acquisition functions that fix their base samples while they are evaluated.

    Returns:
        Indices ``q`` and values ``q``; each value is given the rows chosen before.

    Raises:
        ShapeError: ``candidates`` is not a matrix.
        InvalidOptionError: Too few candidates, a one-shot method, or a batch from a method without pending points.
    """
    if candidates.dim() != 2:
        raise ShapeError(f"candidates has shape {tuple(candidates.shape)}; it needs N x d")
    view = SearchView(acqf, encode)
    if view.one_shot:
        raise InvalidOptionError(
            f'{type(acqf).__name__} is one-shot and cannot be enumerated; build it with make_acquisition("qKG", '
            "candidates=...), whose inner maximum is over candidates"
        )
    if q > 1 and isinstance(acqf, AnalyticAcquisitionFunction):
        raise InvalidOptionError(
            f"{type(acqf).__name__} cannot build batches (it ignores pending points); use a q* method such as qLogNEI"
        )
    allowed = torch.ones(candidates.shape[0], dtype=torch.bool, device=candidates.device)
    if exclude is not None:
        allowed[torch.as_tensor(exclude, dtype=torch.long, device=candidates.device)] = False
    if q < 1 or int(allowed.sum()) < q:
        raise InvalidOptionError(f"q={q}, but {int(allowed.sum())} candidates can be chosen")
    chosen: list[int] = []
    gains: list[Tensor] = []
    # Some acquisition functions fix base samples at the first call or with new pending points.
    with isolated_rng(seed), view.adding_pending() as add:
        for i in range(q):
            index = allowed.nonzero().squeeze(-1)
            values = evaluate_in_chunks(view.rows, candidates[index].unsqueeze(-2), chunk_size=chunk_size)
            best = int(values.argmax())
            row = int(index[best])
            chosen.append(row)
            gains.append(values[best])
            allowed[row] = False
            if i + 1 < q:
                add(candidates[row : row + 1])
    return torch.as_tensor(chosen, device=candidates.device), torch.stack(gains)
