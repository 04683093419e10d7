"""What an estimator of information answers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Bounds:
    """Information in nats, from below and from above; all tensors have the shape of the designs that were asked about.

    Attributes:
        lower: Its expectation is at most the information; ``None`` where the estimator has no lower side.
        upper: Its expectation is at least the information; ``None`` where it has no upper side. Equal to ``lower`` where the
            value is exact up to the draws of theta.
        standard_error: Of the noisier side, from the spread of its Monte Carlo terms.
        saturated: Whether the lower side is within one nat of the most it could say, ``log(L + 1)`` with ``L`` contrastive
            draws: then the information may be much larger, and more draws are needed.
        estimate: A value that bounds neither way (the Laplace approximation); ``None`` for all other estimators.
    """

    lower: Tensor | None
    upper: Tensor | None
    standard_error: Tensor
    saturated: Tensor
    estimate: Tensor | None = None

    @property
    def middle(self) -> Tensor:
        """The estimate, half way between both sides, or the one side that there is: for ranking designs, not for reporting."""
        if self.estimate is not None:
            return self.estimate
        if self.lower is None or self.upper is None:
            side = self.upper if self.lower is None else self.lower
            assert side is not None
            return side
        return torch.where(self.upper.isfinite(), (self.lower + self.upper) / 2, self.lower)

    def __getitem__(self, index: int) -> Bounds:
        """The bounds of one design."""

        def side(value: Tensor | None) -> Tensor | None:
            return None if value is None else value[index]

        return Bounds(side(self.lower), side(self.upper), self.standard_error[index], self.saturated[index], side(self.estimate))

    def __str__(self) -> str:
        if self.standard_error.dim():
            return f"Bounds of {tuple(self.standard_error.shape)} designs"
        if self.estimate is not None:
            return f"about {float(self.estimate):.4g} nats (standard error {float(self.standard_error):.2g}, no bound)"
        low = "-" if self.lower is None else f"{float(self.lower):.4g}"
        high = "-" if self.upper is None else f"{float(self.upper):.4g}"
        note = ", saturated: use more contrastive draws" if bool(self.saturated) else ""
        return f"{low} to {high} nats (standard error {float(self.standard_error):.2g}{note})"
