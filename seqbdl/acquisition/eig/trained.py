"""Estimators that train something first, for many designs side by side, and are then judged on new pairs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from seqbdl.acquisition.eig.amortized import NormalPosteriors, TrainingSettings, posterior_bound
from seqbdl.acquisition.eig.bounds import Bounds
from seqbdl.acquisition.eig.contrastive import contrastive_bounds
from seqbdl.acquisition.eig.critics import BOUNDS, SeparableCritic
from seqbdl.acquisition.eig.model import DesignModel, ThetaSource, goal_of, log_likelihood, outcomes_at, outcomes_for
from seqbdl.errors import DivergedError, InvalidOptionError


def trained_critic(
    model: DesignModel,
    designs: Tensor,
    objective: str,
    settings: TrainingSettings,
    set_size: int,
    num_sets: int,
    source: ThetaSource,
    generator: torch.Generator,
) -> Bounds:
    """The lower bound of a separable critic, trained for each design, on new pairs.

    Args:
        model: A simulator; its ``goal`` is what the information is about.
        designs: ``D x d``.
        objective: ``"infonce"`` or ``"nwj"``.
        settings: Of the training.
        set_size: Pairs in a set of the evaluation, at least 2.
        num_sets: Of them.
        source: Of the parameters.
        generator: Of all draws.
    """
    if set_size < 2:
        raise InvalidOptionError(f"num_inner={set_size - 1}; a critic tells pairs from at least one stranger")
    goals, outcomes = _pairs(model, designs, settings.num_train, source, generator)
    (goals, of_goals), (outcomes, of_outcomes) = _scaled(goals), _scaled(outcomes)
    critic = SeparableCritic(
        outcomes.shape[-1], goals.shape[-1], settings.hidden, settings.code, generator, stack=designs.shape[0]
    )

    def loss(rows: Tensor) -> Tensor:
        value = BOUNDS[objective](critic(outcomes[:, rows], goals[rows]).unsqueeze(1)).lower
        assert value is not None
        return -value.sum()

    _train(critic, loss, settings, generator)
    with torch.no_grad():
        # Any fixed function bounds; one that claims no more than it saw among true pairs has a tame exponential.
        seen = (critic.of_outcome(outcomes) * critic.of_theta(goals)).sum(-1).amax(-1)
        most = (1 + seen)[:, None, None]
        sets = []
        for _ in range(num_sets):
            theta, y = _pairs(model, designs, set_size, source, generator)
            sets.append(torch.minimum(critic(of_outcomes(y), of_goals(theta)), most))
        return BOUNDS[objective](torch.stack(sets, dim=1))


def trained_posterior(
    model: DesignModel,
    designs: Tensor,
    settings: TrainingSettings,
    num_outer: int,
    num_inner: int | None,
    generator: torch.Generator,
) -> Bounds:
    """The bounds of a normal approximation of the posterior, trained for each design, on new pairs.

    Args:
        model: With a normalized ``log_prior``.
        designs: ``D x d``.
        settings: Of the training.
        num_outer: New outcomes for each design.
        num_inner: Contrastive draws from the approximation (adaptive contrastive estimation from below and variational nested
            Monte Carlo from above, which need ``log_prob``); ``None``: the bound of Barber and Agakov.
        generator: Of all draws.
    """
    theta, outcomes = _pairs(model, designs, settings.num_train, model, generator, whole=True)
    normal = NormalPosteriors(theta, outcomes, settings.hidden, generator)

    def loss(rows: Tensor) -> Tensor:
        return -normal.log_prob(theta[rows], outcomes[:, rows]).mean(-1).sum()

    _train(normal, loss, settings, generator)
    with torch.no_grad():
        outer = model.sample(num_outer, generator).double()
        seed = int(torch.randint(2**31 - 1, (1,), generator=generator))
        prior = _log_prior(model, outer)
        if num_inner is None:
            y = outcomes_for(model, designs, outer, seed).double()
            return posterior_bound(normal.log_prob(outer, y), prior)
        y, own = outcomes_at(model, designs, outer, seed)
        draws = normal.sample(y.double(), num_inner, generator)
        weights = _log_prior(model, draws) - normal.log_prob(draws, y.double())
        # Where the prior excludes a draw its likelihood is not asked for: the draw counts nothing.
        inside = torch.where((weights > -torch.inf).unsqueeze(-1), draws, outer.unsqueeze(-2))
        other = log_likelihood(model, y.unsqueeze(-2), inside, designs[:, None, None])
        return contrastive_bounds(own, other, prior - normal.log_prob(outer, y.double()), weights)


def _log_prior(model: DesignModel, theta: Tensor) -> Tensor:
    value: Tensor = model.log_prior(theta)  # type: ignore[attr-defined]
    return value.double()


def _pairs(
    model: DesignModel, designs: Tensor, n: int, source: ThetaSource, generator: torch.Generator, whole: bool = False
) -> tuple[Tensor, Tensor]:
    """Goals ``n x g`` (``whole``: parameters ``n x p``) and outcomes ``D x n x m`` that came of them."""
    with torch.no_grad():
        theta = source.sample(n, generator)
        seed = int(torch.randint(2**31 - 1, (1,), generator=generator))
        y = outcomes_for(model, designs, theta, seed).double()
        return (theta if whole else goal_of(model, theta)).double(), y


def _scaled(rows: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Rows with mean 0 and standard deviation 1, and what scales others alike."""
    mean, sd = rows.mean(-2, keepdim=True), rows.std(-2, keepdim=True)
    sd = torch.where(sd > 0, sd, 1.0)

    def scale(values: Tensor) -> Tensor:
        return (values - mean) / sd

    return scale(rows), scale


def _train(
    module: torch.nn.Module, loss: Callable[[Tensor], Tensor], settings: TrainingSettings, generator: torch.Generator
) -> None:
    """Adam on mini-batches of the training pairs; the designs' parts of the loss do not touch one another."""
    if settings.updates == 0:
        return
    adam = torch.optim.Adam(module.parameters(), settings.learning_rate)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(adam, settings.updates)
    with torch.enable_grad():
        for _ in range(settings.updates):
            rows = torch.randint(settings.num_train, (settings.batch_size,), generator=generator)
            value = loss(rows)
            if not bool(value.isfinite()):
                raise DivergedError("training of the estimator diverged; lower learning_rate, or use another method")
            adam.zero_grad()
            value.backward()
            adam.step()
            decay.step()
