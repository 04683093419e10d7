"""``fsvi``: mean-field variational inference under a prior over functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from seqbdl.errors import InvalidOptionError
from seqbdl.inference import infinite_width
from seqbdl.inference.fsvi import FSVISettings, FunctionPrior, fsvi, fsvi_bound, function_moments
from seqbdl.inference.log_joint import LogJoint
from seqbdl.posteriors.mean_field import MeanField
from seqbdl.surrogates.network_prior import NetworkSpec
from seqbdl.surrogates.variational import VariationalSurrogate


class FSVISurrogate(VariationalSurrogate):
    """Mean-field Gaussians whose FUNCTIONS are held near a prior at context points (Rudner et al. 2022).

    The prior over functions is the Gaussian process of the infinitely wide network, whose scales the evidence has set: it
    knows nothing of the width, so that a wide network is not pressed to switch weights off, as in weight space. Context
    points are the rows, and points spread over the unit cube. Components are anchored in function space: of the prior
    covariance ``K`` each takes the share ``anchor_share`` by a random network as its prior mean, and keeps the rest.

    ``update``: the old posterior's moments at the stored context points and at the new rows become the prior.

    Args:
        network: Hidden widths, a module, or a factory.
        num_components: ``K``.
        num_context: Context points over the unit cube.
        max_context: Rows among the context points, at most: beyond, a random sample of them, and there is no bound on the
            evidence.
        nugget: Variance through which functions are compared, relative to the prior's.
        linearized: Draws are of the linearized network, whose moments the method has fitted; ``False``: of the network with
            the same weights, whose spread may be far from them.
        rounds: Turns of means and variances.
        steps: Adam steps for the means per round.
        learning_rate: Of a round's first step.
        batch_size: Rows per step; ``None``: all.
    """

    name = "fsvi"
    carries = "the mean-field Gaussian of every component; its function moments at stored points and the new rows are the prior"
    default_share = 0.5

    def __init__(
        self,
        *args: Any,
        network: NetworkSpec = (32,),
        num_components: int = 16,
        num_context: int = 32,
        max_context: int = 256,
        nugget: float = 1e-4,
        linearized: bool = True,
        rounds: int = 2,
        steps: int = 100,
        learning_rate: float = 0.01,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, network=network, num_components=num_components, **kwargs)
        if num_context < 1 or max_context < 1:
            raise InvalidOptionError(f"num_context={num_context} and max_context={max_context} must be at least 1")
        if not nugget > 0:
            raise InvalidOptionError(f"nugget={nugget} must be positive: without it functions cannot be compared")
        self.num_context, self.max_context, self.nugget = num_context, max_context, nugget
        self.linearized = linearized
        self.ascent = FSVISettings(rounds, steps, learning_rate, batch_size, temperature=self.temperature)
        self._context = self._starts.new_zeros(0, self.input_dim)

    def _modes(self, X: Tensor, Y: Tensor, variance: Tensor) -> Tensor:
        # Nearest to a random network of full size, whose function is that component's share of the prior.
        return self._nearest(X, Y, variance, self._starts, 1.0)

    def _learn(self, joint: LogJoint, start: MeanField) -> MeanField:
        spread = torch.rand(self.num_context, self.input_dim, generator=self.generator, dtype=torch.float64)
        self._context = torch.cat([spread.to(joint.X), joint.X[self._some(joint.num_rows, self.max_context)]])
        return fsvi(joint, self._function_prior(), start, self.generator, self.ascent)

    def _function_prior(self) -> FunctionPrior:
        points = self._context
        kernel = infinite_width.kernel(self._prior.scales.to(points), points, points, self._builder.activation)  # 1 x C x C
        share = self.anchor_share
        mean = share**0.5 * self._network.forward(self._starts, points)
        return FunctionPrior.of(points, mean, (1.0 - share) * kernel.unsqueeze(0), self._nugget_at(points))

    def _nugget_at(self, points: Tensor) -> Tensor:
        variance = infinite_width.kernel(
            self._prior.scales.to(points), points[:, None, :], points[:, None, :], self._builder.activation
        )
        return self.nugget * (1.0 - self.anchor_share) * variance.mean()

    def _bound(self, joint: LogJoint) -> Tensor | None:
        if joint.num_rows > self.max_context:
            return None
        return fsvi_bound(joint, self._function_prior(), self._q).mean()

    def _absorb(self, X: Tensor, Y: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        self._elbo = None
        old, limit = self._q, self.num_context + self.max_context
        spread, rows = self._context[: self.num_context], torch.cat([self._context[self.num_context :], X])
        self._context = torch.cat([spread, rows[self._some(rows.shape[0], limit - self.num_context)]])
        points = self._context
        prior = FunctionPrior.of(points, *function_moments(self._network, old, points), self._nugget_at(points))
        joint = LogJoint(self._network, self._lik, self._weight_prior, X, Y, variance)
        self._q = fsvi(joint, prior, old, self.generator, self.ascent)
        return self._particles()

    def _some(self, n: int, limit: int) -> Tensor:
        """At most ``limit`` of ``n`` rows, in order."""
        if n <= limit:
            return torch.arange(n)
        return torch.randperm(n, generator=self.generator)[:limit].sort().values

    def _members(self, X: Tensor, picks: Tensor | None = None) -> Tensor:
        if not self.linearized or self._context.shape[0] == 0:
            return super()._members(X, picks)
        if picks is not None and picks.shape[0] >= self.num_members:
            return self._members(X)[picks]
        chosen = torch.arange(self.num_members, device=X.device) if picks is None else picks.to(X.device)
        mean = self._q.mean[self._q.owners(self.num_members)[chosen]]
        tangents = self._network.tangents(mean.to(X), X)
        change = self._network.jvp(tangents, (self._z[chosen] - mean).to(X))
        return (tangents.values + change).unflatten(1, X.shape[:-1])

    def _own_state(self) -> dict[str, Any]:
        return {**super()._own_state(), "context": self._context}

    def _set_own_state(self, state: Mapping[str, Any]) -> None:
        super()._set_own_state(state)
        self._context = state["context"]
