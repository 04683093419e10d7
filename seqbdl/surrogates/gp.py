"""``gp``: BoTorch's default Gaussian process behind the contract, the honest baseline."""

from __future__ import annotations

import math

import torch
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from gpytorch.mlls import ExactMarginalLogLikelihood
from torch import Tensor

from seqbdl.inference.features import fourier_draw
from seqbdl.surrogates.base import Evaluate
from seqbdl.surrogates.kernel import KernelSurrogate


class GPSurrogate(KernelSurrogate):
    """Squared-exponential kernel with one lengthscale per input, dimension-scaled log-normal priors, constant mean.

    Hyperparameters are those that ``fit_gpytorch_mll`` finds for ``SingleTaskGP``; predictions are equal to that model's. Function
    draws use random Fourier features, one set per draw, corrected with the exact kernel by Matheron's rule (Wilson et al. 2020).

    Args:
        num_features: Fourier features per draw.
    """

    name = "gp"

    def __init__(self, *args: object, num_features: int = 512, **kwargs: object) -> None:
        self.num_features = num_features
        super().__init__(*args, **kwargs)

    def _initial_hyperparameters(self) -> dict[str, Tensor]:
        like = torch.zeros(1, dtype=torch.float64)
        # Mode of the lengthscale prior of BoTorch's SingleTaskGP (Hvarfner et al. 2024).
        mode = math.exp(math.sqrt(2.0) + 0.5 * math.log(self.input_dim) - 3.0)
        return {
            "lengthscale": like.new_full((self.output_dim, self.input_dim), mode),
            "mean": like.new_zeros(self.output_dim),
        }

    def _learn(self, X: Tensor, Y: Tensor, noise: Tensor | None) -> tuple[dict[str, Tensor], Tensor]:
        known = None if noise is None else noise.expand_as(Y).clamp_min(1e-9)
        model = SingleTaskGP(X, Y, known, outcome_transform=None)
        fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
        model.eval()
        m = self.output_dim
        lengthscale = model.covar_module.lengthscale.reshape(m, -1)
        mean = model.mean_module.constant.reshape(-1).expand(m)
        variance = model.likelihood.noise.reshape(m, -1).T if known is None else known
        return {"lengthscale": lengthscale, "mean": mean}, variance

    def _kernel(self, X1: Tensor, X2: Tensor) -> Tensor:
        scale = self._hyper["lengthscale"].unsqueeze(-2)  # m x 1 x d
        a, b = X1.unsqueeze(-3) / scale, X2.unsqueeze(-3) / scale
        cross = a @ b.transpose(-1, -2)
        distance = a.square().sum(-1, keepdim=True) + b.square().sum(-1).unsqueeze(-2) - 2 * cross
        return torch.exp(-0.5 * distance.clamp_min(0.0))

    def _prior_draw(self, n: int, generator: torch.Generator) -> Evaluate:
        return fourier_draw(self._hyper["lengthscale"], n, self.num_features, generator)
