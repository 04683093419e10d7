"""What a person reads: predictions in observation space."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Prediction:
    """A predictive distribution of an observation per row, in the units of ``Y``.

    Of classes, the mean is the probability and the two deviations are those of the 0-1 indicator of the class.

    Attributes:
        mean: ``batch x q x m``.
        std: ``batch x q x m``, of an observation: the two parts below, in quadrature.
        epistemic_std: ``batch x q x m``, of the latent function: what more data would remove.
        aleatoric_std: ``batch x q x m``, of the noise: what more data would not remove.
        probs: Class probabilities ``batch x q x C``, of classes only (Bernoulli: ``C = 2``; with several outputs ``batch x
            q x m x 2``).
    """

    mean: Tensor
    std: Tensor
    epistemic_std: Tensor
    aleatoric_std: Tensor
    _quantile: Callable[[Tensor], Tensor] = field(repr=False, compare=False)
    probs: Tensor | None = None

    def quantile(self, p: float) -> Tensor:
        """The ``p``-quantile of an observation, ``batch x q x m``.

        Raises:
            ValueError: ``p`` is not strictly between 0 and 1.
        """
        if not 0.0 < p < 1.0:
            raise ValueError(f"p is {p}; a quantile level lies strictly between 0 and 1")
        return self._quantile(torch.tensor(p, dtype=self.mean.dtype, device=self.mean.device))

    def interval(self, coverage: float = 0.95) -> tuple[Tensor, Tensor]:
        """The central interval that holds an observation with the given probability."""
        return self.quantile(0.5 - coverage / 2), self.quantile(0.5 + coverage / 2)
