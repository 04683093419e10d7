"""Some outputs of a surrogate as a model of their own, for methods that fantasize."""

from __future__ import annotations

from typing import Any, cast

import torch
from botorch.acquisition.objective import PosteriorTransform
from botorch.models.model import Model
from botorch.posteriors.posterior import Posterior
from botorch.sampling.base import MCSampler
from botorch.sampling.list_sampler import ListSampler
from torch import Tensor

from seqbdl.acquisition._models import posterior_of
from seqbdl.acquisition.draws import Draws, FunctionSource, SelectedDraws

# Outputs that were not observed are conditioned on with this many times their own variance as noise.
_UNKNOWN = 1e8


class OutputView(Model):
    """Chosen outputs of a surrogate; fantasies are of all outputs jointly, so that correlations between them count.

    Args:
        whole: The surrogate.
        indices: Its outputs that show.
    """

    def __init__(self, whole: Model, indices: list[int]) -> None:
        super().__init__()
        self.whole = whole
        self.indices = list(indices)

    @property
    def num_outputs(self) -> int:
        return len(self.indices)

    @property
    def batch_shape(self) -> torch.Size:
        return self.whole.batch_shape

    @property
    def train_inputs(self) -> Any:
        """The surrogate's own."""
        return getattr(self.whole, "train_inputs", None)

    @property
    def train_targets(self) -> Tensor | None:
        """``n x len(indices)``."""
        targets = getattr(self.whole, "train_targets", None)
        return None if targets is None else cast(Tensor, targets)[..., self.indices]

    def posterior(
        self,
        X: Tensor,
        output_indices: list[int] | None = None,
        observation_noise: bool | Tensor = False,
        posterior_transform: PosteriorTransform | None = None,
        **kwargs: Any,
    ) -> Posterior:
        """BoTorch's ``Model.posterior`` of the chosen outputs."""
        chosen = self.indices if output_indices is None else [self.indices[i] for i in output_indices]
        return self.whole.posterior(
            X, output_indices=chosen, observation_noise=observation_noise, posterior_transform=posterior_transform
        )

    def sample_functions(self, n: int, generator: torch.Generator | None = None) -> Draws:
        """The surrogate's function draws, their chosen outputs."""
        return SelectedDraws(cast(FunctionSource, self.whole).sample_functions(n, generator=generator), self.indices)

    def fantasize(self, X: Tensor, sampler: MCSampler, **kwargs: Any) -> OutputView:
        """Condition on sampled outcomes of all outputs; a list of samplers counts by its first."""
        single = sampler.samplers[0] if isinstance(sampler, ListSampler) else sampler
        return OutputView(cast(Any, self.whole).fantasize(X=X, sampler=single), self.indices)

    def condition_on_observations(self, X: Tensor, Y: Tensor, noise: Tensor | None = None, **kwargs: Any) -> OutputView:
        """Condition on outcomes of the chosen outputs only; the other outputs stay unknown.

        Args:
            X: ``b x n' x d``.
            Y: ``nf x b x n' x len(indices)``.
            noise: Noise variances that broadcast to ``Y``; the learned ones by default.
        """
        with torch.no_grad():
            at_data = posterior_of(self.whole, X, observation_noise=True)
            learned = (at_data.variance - posterior_of(self.whole, X).variance).clamp_min(1e-10)
        shape = (*Y.shape[:-1], self.whole.num_outputs)
        full_Y = at_data.mean.expand(shape).clone()
        full_noise = (_UNKNOWN * at_data.variance).expand(shape).clone()
        full_Y[..., self.indices] = Y
        full_noise[..., self.indices] = (learned[..., self.indices] if noise is None else noise).expand(Y.shape)
        return OutputView(cast(Any, self.whole).condition_on_observations(X, full_Y, noise=full_noise, **kwargs), self.indices)
