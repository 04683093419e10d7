"""``gp``: BoTorch's default Gaussian process behind the contract, the honest baseline."""

from __future__ import annotations

import math
from typing import Any

import torch
from botorch import settings
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from gpytorch.mlls import ExactMarginalLogLikelihood
from torch import Tensor

from seqbdl.inference.features import fourier_draw, squared_exponential
from seqbdl.surrogates.base import Evaluate
from seqbdl.surrogates.kernel import KernelSurrogate


class GPSurrogate(KernelSurrogate):
    """Squared-exponential kernel with one lengthscale per input, dimension-scaled log-normal priors, constant mean.

    Hyperparameters are those that ``fit_gpytorch_mll`` finds for ``SingleTaskGP``; predictions are equal to that
    model's. Function draws use random Fourier features, one set per draw, corrected with the exact kernel by
    Matheron's rule (Wilson et al. 2020).

    Args:
        num_frequencies: Of the Fourier features, per draw.
    """

    name = "gp"

    def __init__(self, *args: Any, num_frequencies: int = 512, **kwargs: Any) -> None:
        self.num_frequencies = num_frequencies
        super().__init__(*args, **kwargs)

    def _initial_hyperparameters(self) -> dict[str, Tensor]:
        like = torch.zeros(1, dtype=torch.float64)
        # Mode of the lengthscale prior of BoTorch's SingleTaskGP (Hvarfner et al. 2024).
        mode = math.exp(math.sqrt(2.0) + 0.5 * math.log(self.input_dim) - 3.0)
        return {
            "lengthscale": like.new_full((self.output_dim, self.input_dim), mode),
            "mean": like.new_zeros(self.output_dim),
        }

    def _input_bounds(self, X: Tensor) -> Tensor:
        """Without bounds the range of the data, as BoTorch's ``Normalize`` has it: the baseline is that model."""
        return torch.stack([X.amin(0), X.amax(0)]) if self._bounds is None else self._bounds

    def _learn(self, X: Tensor, Y: Tensor, noise: Tensor | None) -> tuple[dict[str, Tensor], Tensor]:
        lengthscale, mean, variance = fit_single_task_gp(X, Y, noise)
        return {"lengthscale": lengthscale, "mean": mean}, variance

    def _features(self, X: Tensor) -> Tensor:
        """Inputs in units of the lengthscales, ``batch x q x d -> batch x m x q x d``."""
        return X.unsqueeze(-3) / self._hyper["lengthscale"].unsqueeze(-2)

    def _kernel(self, X1: Tensor, X2: Tensor) -> Tensor:
        return squared_exponential(self._features(X1), self._features(X2))

    def _prior_draw(self, n: int, generator: torch.Generator) -> Evaluate:
        return fourier_draw(
            self._features, self.output_dim, self.input_dim, n, self.num_frequencies, generator, self._hyper["mean"]
        )


def fit_single_task_gp(X: Tensor, Y: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Hyperparameters of BoTorch's default Gaussian process.

    Args:
        X: ``n x d`` in the unit cube.
        Y: ``n x m`` standardized.
        noise: ``n x m`` or ``1 x m`` known variances, or ``None``.

    Returns:
        Lengthscales ``m x d``, constant means ``m``, noise variances ``1 x m`` (``n x m`` if known).
    """
    m = Y.shape[1]
    known = None if noise is None else noise.expand_as(Y).clamp_min(1e-9)
    with settings.validate_input_scaling(False):  # the surrogate has scaled them; constant outcomes are no mistake
        model = SingleTaskGP(X, Y, known, outcome_transform=None)
    fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
    lengthscale = model.covar_module.lengthscale.reshape(m, -1).detach()
    mean = model.mean_module.constant.reshape(-1).expand(m).detach()
    variance = model.likelihood.noise.reshape(m, -1).T.detach() if known is None else known
    return lengthscale, mean, variance
