"""What is known about the parameters of an experiment: a grid, or particles that move; each outcome makes a new one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from seqbdl.acquisition.eig import Bounds, DesignModel, goal_of, history_log_likelihood, log_likelihood
from seqbdl.acquisition.policies import HistoryCritic
from seqbdl.errors import InvalidDataError, InvalidOptionError, ShapeError, StateError

_BISECTIONS = 40
_SMALLEST_STEP = 1e-6


@dataclass(frozen=True)
class GridPosterior:
    """Weights of fixed parameters. On a fine grid over the prior it is exact; on prior draws it is importance sampling.

    Attributes:
        theta: ``G x p``.
        log_weights: ``G``, normalized.
        log_prior: ``G``, the normalized log-weights before any outcome.
        exact: Whether the points cover the prior as a grid, so that sums over them are integrals.
    """

    theta: Tensor
    log_weights: Tensor
    log_prior: Tensor
    exact: bool = True

    @staticmethod
    def from_axes(model: DesignModel, axes: Sequence[Tensor]) -> GridPosterior:
        """The product of one increasing axis for each parameter; cells are weighted by their size and the prior density.

        Raises:
            InvalidOptionError: The model has no ``log_prior``.
            ShapeError: An axis that is not one-dimensional and increasing.
        """
        if not hasattr(model, "log_prior"):
            raise InvalidOptionError("a grid needs the model's prior density; give the model log_prior(theta)")
        widths = []
        for i, axis in enumerate(axes):
            if axis.dim() != 1 or axis.shape[0] < 2 or not bool((axis.diff() > 0).all()):
                raise ShapeError(f"axis {i} of the grid has shape {tuple(axis.shape)}; it needs increasing numbers, two or more")
            gaps = axis.double().diff()
            zero = torch.zeros(1, dtype=torch.float64)
            widths.append((torch.cat([zero, gaps]) + torch.cat([gaps, zero])) / 2)
        theta = torch.cartesian_prod(*[axis.double() for axis in axes]).reshape(-1, len(axes))
        volume = torch.cartesian_prod(*widths).reshape(-1, len(axes)).prod(-1)
        weights = (model.log_prior(theta).double() + volume.log()).log_softmax(-1)
        if not bool(weights.isfinite().any()):
            raise InvalidOptionError("the prior density is zero on the whole grid; move the grid to where the prior is")
        return GridPosterior(theta, weights, weights)

    @staticmethod
    def from_draws(theta: Tensor) -> GridPosterior:
        """Equally weighted draws ``G x p`` of the prior."""
        weights = torch.full((theta.shape[0],), -math.log(theta.shape[0]), dtype=torch.float64)
        return GridPosterior(theta.double(), weights, weights, exact=False)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """``n x p`` independent draws."""
        return self.theta[torch.multinomial(self.log_weights.exp(), n, replacement=True, generator=generator)]

    def weighted(self) -> tuple[Tensor, Tensor]:
        """All parameters ``G x p`` and their weights ``G``, which sum to one."""
        return self.theta, self.log_weights.exp()

    def update(
        self, model: DesignModel, designs: Tensor, outcomes: Tensor, generator: torch.Generator | None = None
    ) -> GridPosterior:
        """The posterior after the last of ``T`` outcomes; the earlier ones are known already.

        Args:
            model: With the likelihood.
            designs: ``T x d``.
            outcomes: ``T x m``.
            generator: Not used.

        Raises:
            InvalidDataError: The outcome is impossible under every parameter.
        """
        value = self.log_weights + log_likelihood(model, outcomes[-1], self.theta, designs[-1])
        _check_possible(value, outcomes[-1])
        return replace(self, log_weights=value.log_softmax(-1))

    @property
    def effective(self) -> float:
        """The effective number of parameters, ``1 / sum w^2``."""
        return _effective(self.log_weights)

    def divergence(self) -> float:
        """``KL(posterior || prior)`` in nats."""
        weights = self.log_weights.exp()
        return float(torch.where(weights > 0, weights * (self.log_weights - self.log_prior), 0.0).sum())

    def to_tree(self) -> dict[str, Any]:
        """Everything, for :func:`seqbdl.serialization.save_tree`."""
        return {
            "kind": "grid",
            "theta": self.theta,
            "log_weights": self.log_weights,
            "log_prior": self.log_prior,
            "exact": self.exact,
        }


@dataclass(frozen=True)
class ParticlePosterior:
    """Weighted particles that are resampled and moved when their weights degenerate.

    Sequential Monte Carlo (P. Del Moral, A. Doucet and A. Jasra, JRSS B 2006): a new outcome enters with a growing exponent,
    each step
    as large as leaves half of the particles effective; between steps particles are resampled systematically and moved by
    random-walk Metropolis on the prior and the whole history. Designs that are chosen to be informative make tempering within
    one outcome necessary.

    Attributes:
        theta: ``P x p``.
        log_weights: ``P``, normalized.
        moves: Metropolis steps after each resampling.
        threshold: The share of particles that stays effective.
        acceptance: Of the last moves; NaN before any.
    """

    theta: Tensor
    log_weights: Tensor
    moves: int = 10
    threshold: float = 0.5
    acceptance: float = math.nan

    exact = False

    def __post_init__(self) -> None:
        if self.moves < 1 or not 0 < self.threshold < 1:
            raise InvalidOptionError(f"moves={self.moves}, threshold={self.threshold}; at least one move, a share below 1")

    @staticmethod
    def from_prior(model: DesignModel, n: int, generator: torch.Generator | None, moves: int = 10) -> ParticlePosterior:
        """``n`` draws of the prior.

        Raises:
            InvalidOptionError: The model has no ``log_prior``, without which particles cannot be moved.
        """
        if not hasattr(model, "log_prior"):
            raise InvalidOptionError(
                "particles are moved under the model's prior density; give the model log_prior(theta), or use 'importance'"
            )
        theta = model.sample(n, generator).double()
        return ParticlePosterior(theta, torch.full((n,), -math.log(n), dtype=torch.float64), moves)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """``n x p`` draws of the particles, with replacement."""
        return self.theta[torch.multinomial(self.log_weights.exp(), n, replacement=True, generator=generator)]

    def weighted(self) -> tuple[Tensor, Tensor]:
        """All particles ``P x p`` and their weights ``P``, which sum to one."""
        return self.theta, self.log_weights.exp()

    @property
    def effective(self) -> float:
        """The effective number of particles, ``1 / sum w^2``."""
        return _effective(self.log_weights)

    def update(
        self, model: DesignModel, designs: Tensor, outcomes: Tensor, generator: torch.Generator | None = None
    ) -> ParticlePosterior:
        """The posterior after the last of ``T`` outcomes; see :meth:`GridPosterior.update`."""
        now, exponent = self, 0.0
        last = log_likelihood(model, outcomes[-1], now.theta, designs[-1])
        _check_possible(now.log_weights + last, outcomes[-1])
        while exponent < 1:
            step = _largest_step(now.log_weights, last, 1 - exponent, self.threshold * len(self.log_weights))
            exponent = min(exponent + step, 1.0)
            now = replace(now, log_weights=(now.log_weights + step * last).log_softmax(-1))
            if exponent < 1:
                now, last = now._moved(model, designs, outcomes, exponent, generator)
        return now

    def _moved(
        self, model: DesignModel, designs: Tensor, outcomes: Tensor, exponent: float, generator: torch.Generator | None
    ) -> tuple[ParticlePosterior, Tensor]:
        """Resampled and moved under the history whose last outcome is tempered; with its log-likelihood, ``P``."""
        n, p = self.theta.shape
        weights = self.log_weights.exp().unsqueeze(-1)
        centred = self.theta - (weights * self.theta).sum(0)
        covariance = (weights * centred).mT @ centred
        spread = covariance.diagonal().clamp_min(1e-300)
        factor = torch.linalg.cholesky(covariance + torch.diag(1e-9 * spread))
        theta = self.theta[_systematic(self.log_weights, generator)]

        def target(values: Tensor) -> tuple[Tensor, Tensor]:
            prior = model.log_prior(values).double()  # type: ignore[attr-defined]
            # The likelihood is never asked about parameters that the prior excludes.
            inside = torch.where((prior > -math.inf).unsqueeze(-1), values, theta)
            early = history_log_likelihood(model, designs[:-1], outcomes[:-1], inside)
            last = log_likelihood(model, outcomes[-1], inside, designs[-1])
            return prior + early + exponent * last, last

        density, last = target(theta)
        accepted = 0.0
        for _ in range(self.moves):
            # Step sizes of every order: large ones jump between modes, small ones move within them.
            size = 2.38 / math.sqrt(p) * 10 ** (-2 * torch.rand(n, 1, generator=generator, dtype=torch.float64))
            proposal = theta + size * (torch.randn(n, p, generator=generator, dtype=torch.float64) @ factor.mT)
            proposed, proposed_last = target(proposal)
            accept = torch.rand(n, generator=generator, dtype=torch.float64).log() < proposed - density
            theta = torch.where(accept.unsqueeze(-1), proposal, theta)
            density, last = torch.where(accept, proposed, density), torch.where(accept, proposed_last, last)
            accepted += float(accept.double().mean()) / self.moves
        even = torch.full((n,), -math.log(n), dtype=torch.float64)
        return replace(self, theta=theta, log_weights=even, acceptance=accepted), last

    def to_tree(self) -> dict[str, Any]:
        """Everything, for :func:`seqbdl.serialization.save_tree`."""
        return {
            "kind": "particles",
            "theta": self.theta,
            "log_weights": self.log_weights,
            "moves": self.moves,
            "threshold": self.threshold,
            "acceptance": self.acceptance,
        }


@dataclass(frozen=True)
class AmortizedPosterior:
    """Prior draws weighted by a critic that was trained with a policy: no likelihood is evaluated.

    The best critic of a contrastive bound is ``log p(h | theta)`` up to a function of ``h`` (B. Poole et al., "On variational
    bounds of mutual information", ICML 2019), so that its exponential weights draws of the prior as the posterior would; as good
    as its training. Where the model has a ``goal``, only the goal's distribution means something.

    Attributes:
        theta: ``S x p``.
        log_weights: ``S``, normalized.
        critic: Of histories and parameters.
    """

    theta: Tensor
    log_weights: Tensor
    critic: HistoryCritic

    exact = False

    @staticmethod
    def from_draws(theta: Tensor, critic: HistoryCritic) -> AmortizedPosterior:
        """Equally weighted draws ``S x p`` of the prior."""
        even = torch.full((theta.shape[0],), -math.log(theta.shape[0]), dtype=torch.float64)
        return AmortizedPosterior(theta.double(), even, critic)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """``n x p`` draws, with replacement."""
        return self.theta[torch.multinomial(self.log_weights.exp(), n, replacement=True, generator=generator)]

    def weighted(self) -> tuple[Tensor, Tensor]:
        """All draws ``S x p`` and their weights ``S``, which sum to one."""
        return self.theta, self.log_weights.exp()

    @property
    def effective(self) -> float:
        """The effective number of draws, ``1 / sum w^2``."""
        return _effective(self.log_weights)

    def update(
        self, model: DesignModel, designs: Tensor, outcomes: Tensor, generator: torch.Generator | None = None
    ) -> AmortizedPosterior:
        """The posterior after all ``T`` outcomes; see :meth:`GridPosterior.update`."""
        with torch.no_grad():
            scores = self.critic(designs.unsqueeze(0), outcomes.unsqueeze(0), goal_of(model, self.theta))[0]
        return replace(self, log_weights=scores.log_softmax(-1))

    def information(self) -> Bounds:
        """``KL(posterior || prior)`` of the weights: an estimate, no bound, and of unknown error."""
        value = (self.log_weights.exp() * self.log_weights).sum() + math.log(len(self.log_weights))
        unknown = torch.tensor(math.nan, dtype=torch.float64)
        return Bounds(None, None, unknown, value > math.log(len(self.log_weights)) - 1, value)

    def to_tree(self) -> dict[str, Any]:
        """Everything but the critic, for :func:`seqbdl.serialization.save_tree`."""
        return {"kind": "amortized", "theta": self.theta, "log_weights": self.log_weights}


DesignPosterior: TypeAlias = GridPosterior | ParticlePosterior | AmortizedPosterior
_KINDS = {"grid": GridPosterior, "particles": ParticlePosterior, "amortized": AmortizedPosterior}


def posterior_from_tree(tree: Mapping[str, Any], critic: HistoryCritic | None = None) -> DesignPosterior:
    """The posterior that ``to_tree`` described.

    Args:
        tree: What it answered.
        critic: Of an amortized posterior.

    Raises:
        StateError: The tree is not one.
    """
    try:
        fields = {key: value for key, value in tree.items() if key != "kind"}
        if tree["kind"] == "amortized":
            fields["critic"] = critic
        return _KINDS[tree["kind"]](**fields)
    except (KeyError, TypeError, AttributeError) as error:
        raise StateError(f"the state holds no posterior: {error}") from error


def moments(posterior: DesignPosterior) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every parameter, ``p`` each."""
    theta, weights = posterior.weighted()
    mean = weights @ theta
    return mean, (weights @ (theta - mean).square()).sqrt()


def quantiles(posterior: DesignPosterior, levels: Sequence[float]) -> Tensor:
    """Quantiles of every parameter, ``len(levels) x p``: the smallest value whose share is at least the level."""
    theta, weights = posterior.weighted()
    rows = []
    for column in theta.unbind(-1):
        order = column.argsort()
        shares = weights[order].cumsum(0)
        places = torch.searchsorted(shares, torch.tensor(levels, dtype=shares.dtype)).clamp_max(len(order) - 1)
        rows.append(column[order][places])
    return torch.stack(rows, dim=-1)


def _effective(log_weights: Tensor) -> float:
    return float((-(2 * log_weights).logsumexp(-1)).exp())


def _check_possible(values: Tensor, outcome: Tensor) -> None:
    if not bool((values > -math.inf).any()):
        raise InvalidDataError(f"the outcome {outcome.tolist()} is impossible under every parameter; check it, and the model")


def _largest_step(log_weights: Tensor, last: Tensor, most: float, wanted: float) -> float:
    """The largest power of the likelihood that leaves so many particles effective, by bisection."""

    def enough(step: float) -> bool:
        return _effective((log_weights + step * last).log_softmax(-1)) >= wanted

    if enough(most):
        return most
    low, high = 0.0, most
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if enough(middle) else (low, middle)
    return max(low, min(_SMALLEST_STEP, most))


def _systematic(log_weights: Tensor, generator: torch.Generator | None) -> Tensor:
    n = log_weights.shape[0]
    places = (torch.arange(n, dtype=torch.float64) + torch.rand(1, generator=generator, dtype=torch.float64)) / n
    return torch.searchsorted(log_weights.exp().cumsum(0), places).clamp_max(n - 1)
