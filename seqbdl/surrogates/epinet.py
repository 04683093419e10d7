"""``epinet``: a base network and a small network of its features and an index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from seqbdl.errors import InvalidOptionError
from seqbdl.inference.epinet import Epinet, fit_epinet, train_epinet
from seqbdl.inference.observations import Observations
from seqbdl.surrogates.indexed import IndexedSurrogate
from seqbdl.surrogates.network_prior import NetworkSpec


class EpinetSurrogate(IndexedSurrogate):
    """A base network, an epinet on its last hidden layer, and prior functions (Osband et al. 2023): one network's cost, as many
    functions as indices.

    ``fit`` finds the base network first, by Gauss-Newton, then the epinet on its features; by mini-batches both together, as in
    the paper. ``update`` leaves the base network and its features as they are, and moves the head of the mean and the
    epinet.

    Args:
        network: Hidden widths; or a module or factory that ends before its linear head (any number of outputs is a
            feature map).
        epinet: Hidden widths of the epinet's MLP, such as ``(15, 15)``; ``()``: its skip connection alone, which is linear in the
            index, has its best weights in closed form where noise is Gaussian, and is as good on small data.
        skip: Whether the features also reach the epinet's last layer directly; not so in the paper.
    """

    name = "epinet"
    carries = "the epinet's weights, and the function values it had at up to `memory` old rows"
    _headed: ClassVar[bool] = True

    def __init__(
        self,
        *args: Any,
        network: NetworkSpec = (64, 64),
        num_branches: int = 4,
        epinet: Sequence[int] = (),
        skip: bool = True,
        **kwargs: Any,
    ) -> None:
        widths = tuple(epinet)
        if not all(isinstance(w, int) and w > 0 for w in widths):
            raise InvalidOptionError(f"epinet={epinet!r}: widths are positive integers")
        if not widths and not skip:
            raise InvalidOptionError("skip=False leaves an epinet without hidden layers empty; give epinet=(15, 15), say")
        super().__init__(*args, network=network, num_branches=num_branches, **kwargs)
        assert self._start is not None
        num_features = self._network.hidden(self._start, torch.zeros(1, self.input_dim, dtype=torch.float64)).shape[-1]
        self._epinet = Epinet(
            self.input_dim, num_features, self.num_latents, self.index_dim, widths, skip, self._builder.activation
        )
        self._epinet_start = self._epinet.initial(self.generator, self._start)
        self._base, self._params = self._start, self._epinet_start

    def features(self, X: Tensor) -> Tensor:
        """The base network's last hidden layer and a constant, ``X: batch x q x d -> batch x q x F``."""
        return self._features(self._scaling.inputs(X)).to(X.dtype)

    def _features(self, X: Tensor) -> Tensor:
        return self._network.hidden(self._base.to(X), X)[0].to(X)

    def _members(self, X: Tensor, picks: Tensor | None = None) -> Tensor:
        indices = (self._z if picks is None else self._z[picks]).to(X)
        points = X.reshape(-1, self.input_dim)
        epinet = self._epinet(self._params.to(X), points, self._features(points), indices)
        values = self._network.forward(self._base.to(X), points) + epinet
        if self.prior_scale > 0.0:
            values = values + self._prior_function()(points, indices)
        return values.unflatten(1, X.shape[:-1])

    def _offset(self, X: Tensor, indices: Tensor) -> Tensor:
        """Base network and prior functions, ``S x n x l``."""
        return self._network.forward(self._base, X) + self._prior_function()(X, indices)

    def _solve(self, X: Tensor, observations: Observations, indices: Tensor, mode: Tensor) -> None:
        self._base = mode
        start = self._epinet_start.to(X.device)
        features, offset = self._features(X), self._offset(X, indices)
        self._params = fit_epinet(self._epinet, X, features, observations, indices, offset, start, start, self.settings)

    def _train(self, X: Tensor, Y: Tensor, variance: Tensor, signals: Tensor | None) -> None:
        assert self._start is not None
        base, start, prior = self._start.to(X.device), self._epinet_start.to(X.device), self._prior_function()
        self._base, self._params = train_epinet(
            self._epinet,
            self._network,
            X,
            Y,
            variance,
            self._lik,
            signals,
            prior,
            base,
            start,
            self.index_samples,
            self.generator,
            self.adam_settings,
        )

    def _pull_parameters(self, X: Tensor, observations: Observations, indices: Tensor) -> None:
        old, features, offset = self._params, self._features(X), self._offset(X, indices)
        self._params = fit_epinet(
            self._epinet, X, features, observations, indices, offset, old, old, self.settings, move_mean=True
        )

    def _parameters_tree(self) -> dict[str, Tensor]:
        return {"base": self._base, "epinet": self._params, "epinet_start": self._epinet_start}

    def _set_parameters(self, tree: Mapping[str, Tensor]) -> None:
        self._base, self._params, self._epinet_start = tree["base"], tree["epinet"], tree["epinet_start"]
