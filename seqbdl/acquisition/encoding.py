"""Acquisition functions seen through search coordinates."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from botorch.acquisition.acquisition import AcquisitionFunction, OneShotAcquisitionFunction
from torch import Tensor

from seqbdl.acquisition.draws import Encode


class SearchView:
    """An acquisition function as a function of search coordinates.

    Args:
        acqf: In the surrogate's coordinates.
        encode: ``... x d`` search coordinates to the surrogate's inputs; the identity by default.
    """

    def __init__(self, acqf: AcquisitionFunction, encode: Encode | None = None) -> None:
        self.acqf = acqf
        self.encode = encode

    def __call__(self, X: Tensor) -> Tensor:
        """Values ``b`` of ``b x q x d``."""
        return cast(Tensor, self.acqf(X if self.encode is None else self.encode(X)))

    def rows(self, X: Tensor, rows: Tensor) -> Tensor:
        """The same, as a :data:`seqbdl.acquisition.ascent.RowValue`."""
        return self(X)

    @property
    def one_shot(self) -> bool:
        """Whether look-ahead solutions are optimized together with the query."""
        return isinstance(self.acqf, OneShotAcquisitionFunction)

    def augmented(self, q: int) -> int:
        """Points that are optimized for a batch of ``q``."""
        return int(cast(Any, self.acqf).get_augmented_q_batch_size(q)) if self.one_shot else q

    def extract(self, X: Tensor) -> Tensor:
        """The batch itself out of all points that were optimized."""
        return cast(Tensor, cast(Any, self.acqf).extract_candidates(X)) if self.one_shot else X

    @contextmanager
    def adding_pending(self) -> Iterator[Any]:
        """Gives a function that adds points (search coordinates, ``k x d``) to the pending ones; undone at the end.

        BoTorch's qLogNEHVI keeps them in a cache even then: build a new one for the next batch.
        """
        acqf = cast(Any, self.acqf)
        before = pending_points(self.acqf)
        added: list[Tensor] = []

        def add(points: Tensor) -> None:
            added.append(points if self.encode is None else self.encode(points))
            acqf.set_X_pending(torch.cat(([] if before is None else [before]) + added).detach())

        try:
            yield add
        finally:
            if added:
                acqf.set_X_pending(before)


def pending_points(acqf: AcquisitionFunction) -> Tensor | None:
    """The points ``k x d`` an acquisition function takes as pending, or ``None``.

    BoTorch's incremental noisy expected improvement keeps them among its baseline and reports none, so that building a
    batch on top of pending points would forget them.
    """
    known: Tensor | None = getattr(acqf, "X_pending", None)
    if known is not None:
        return known
    observed, everything = getattr(acqf, "_X_baseline", None), getattr(acqf, "_full_X_baseline", None)
    if observed is None or everything is None or everything.shape[-2] == observed.shape[-2]:
        return None
    return cast(Tensor, everything[..., observed.shape[-2] :, :])


class EncodedAcquisition(AcquisitionFunction):
    """A module around :class:`SearchView`, for BoTorch's own optimizers."""

    def __init__(self, view: SearchView) -> None:
        super().__init__(model=view.acqf.model)
        self._view = view

    def forward(self, X: Tensor) -> Tensor:
        """Values ``b`` of ``b x q x d``."""
        return self._view(X)
