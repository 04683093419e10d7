"""``hypermodel``: weights that are linear in an index."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from seqbdl.errors import InvalidOptionError
from seqbdl.inference.hypermodel import fit_hypermodel, generated_weights, train_hypermodel
from seqbdl.inference.indexed import IndexedFunction, PriorNetwork, draw_mixing
from seqbdl.inference.observations import Observations
from seqbdl.surrogates.indexed import IndexedSurrogate
from seqbdl.surrogates.network_prior import NetworkSpec

PRIOR_FORMS = ("functions", "network")


class HypermodelSurrogate(IndexedSurrogate):
    """``theta(z) = b + A z`` (Dwaracherla et al. 2020) plus prior functions: as many networks as wanted from ``index_dim + 1``
    weight vectors.

    Args:
        prior_form: The prior functions: ``"functions"``, ``index_dim`` random networks mixed by the index; or ``"network"``, one
            network whose layers have weights linear in slices of the index, as in the paper.
    """

    name = "hypermodel"
    carries = "the hypermodel's parameters, and the function values it had at up to `memory` old rows"

    def __init__(
        self,
        *args: Any,
        network: NetworkSpec = (32, 32),
        num_members: int = 64,
        index_dim: int = 20,
        num_branches: int = 2,
        max_iterations: int = 120,
        prior_form: str = "functions",
        index_samples: int = 16,
        **kwargs: Any,
    ) -> None:
        if prior_form not in PRIOR_FORMS:
            raise InvalidOptionError(f"prior_form={prior_form!r} must be one of {', '.join(PRIOR_FORMS)}")
        super().__init__(
            *args,
            network=network,
            num_members=num_members,
            index_dim=index_dim,
            num_branches=num_branches,
            max_iterations=max_iterations,
            index_samples=index_samples,
            **kwargs,
        )
        self.prior_form = prior_form
        if prior_form == "network":
            network_of_prior = self._prior_builder.build(self._function_prior)
            self._prior_weights = draw_mixing(network_of_prior, index_dim, self.generator, self._prior.noise)
        self._theta = self._anchor()

    def _anchor(self) -> Tensor:
        """``(1 + D) x P``: the start, and no dependence on the index."""
        assert self._start is not None
        return torch.cat([self._start, self._start.new_zeros(self.index_dim, self._start.shape[1])])

    def _prior_function(self) -> IndexedFunction:
        if self.prior_form == "functions":
            return super()._prior_function()
        return PriorNetwork(self._prior_builder.build(self._function_prior), self._prior_weights, self.prior_scale)

    def _members(self, X: Tensor, picks: Tensor | None = None) -> Tensor:
        indices = self._z if picks is None else self._z[picks]
        values = self._network.forward(generated_weights(self._theta, indices).to(X), X)
        return values if self.prior_scale == 0.0 else values + self._prior_function()(X, indices)

    def _solve(self, X: Tensor, observations: Observations, indices: Tensor, mode: Tensor) -> None:
        anchor = self._anchor().to(X.device)
        begin = torch.cat([mode, anchor[1:]])
        offset = self._prior_function()(X, indices)
        self._theta = fit_hypermodel(self._network, X, observations, indices, offset, anchor, begin, self.settings)

    def _train(self, X: Tensor, Y: Tensor, variance: Tensor, signals: Tensor | None) -> None:
        anchor, prior = self._anchor().to(X.device), self._prior_function()
        self._theta = train_hypermodel(
            self._network,
            X,
            Y,
            variance,
            self._lik,
            signals,
            prior,
            anchor,
            anchor,
            self.index_samples,
            self.generator,
            self.adam_settings,
        )

    def _pull_parameters(self, X: Tensor, observations: Observations, indices: Tensor) -> None:
        old, offset = self._theta, self._prior_function()(X, indices)
        self._theta = fit_hypermodel(self._network, X, observations, indices, offset, old, old, self.settings)

    def _parameters_tree(self) -> dict[str, Tensor]:
        return {"theta": self._theta}

    def _set_parameters(self, tree: Mapping[str, Tensor]) -> None:
        self._theta = tree["theta"]
