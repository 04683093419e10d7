"""Expected information gain of many designs at once."""

from __future__ import annotations

import torch
from torch import Tensor

from seqbdl.acquisition.eig.amortized import TrainingSettings
from seqbdl.acquisition.eig.bounds import Bounds
from seqbdl.acquisition.eig.contrastive import contrastive_bounds
from seqbdl.acquisition.eig.critics import BOUNDS
from seqbdl.acquisition.eig.exact import exact_information
from seqbdl.acquisition.eig.laplace import laplace_information
from seqbdl.acquisition.eig.marginal import marginal_bound
from seqbdl.acquisition.eig.model import DesignModel, ThetaSource, check_support, log_likelihood, outcomes_at
from seqbdl.acquisition.eig.nuisance import nuisance_bounds
from seqbdl.acquisition.eig.trained import trained_critic, trained_posterior
from seqbdl.errors import InvalidOptionError, ShapeError

METHODS = ("auto", "exact", "contrastive", "adaptive", "marginal", "posterior", "laplace", "infonce", "nwj")
_CHUNK = 2_000_000
"""Likelihoods that are held in memory at once."""


def expected_information_gain(
    model: DesignModel,
    designs: Tensor,
    method: str = "auto",
    *,
    num_outer: int = 256,
    num_inner: int = 256,
    num_batches: int = 8,
    source: ThetaSource | None = None,
    training: TrainingSettings | None = None,
    generator: torch.Generator | None = None,
) -> Bounds:
    """What an outcome at each design is expected to tell about the parameters, in nats.

    All designs share their draws of the parameters and of the noise: their differences are more precise than their values.
    Differentiable in ``designs`` for ``"exact"`` and ``"laplace"``, and where ``simulate`` is for ``"contrastive"`` and
    ``"marginal"``.

    | method | lower side | upper side | needs |
    | --- | --- | --- | --- |
    | ``"exact"`` | enumeration | the same | ``support`` |
    | ``"contrastive"`` | prior contrastive estimation | nested Monte Carlo | ``log_prob`` |
    | ``"adaptive"`` | adaptive contrastive estimation | variational nested Monte Carlo | ``log_prob``, normalized ``log_prior`` |
    | ``"marginal"`` | | normal distribution of outcomes | ``log_prob`` |
    | ``"posterior"`` | Barber and Agakov, normal ``q`` | | normalized ``log_prior`` |
    | ``"laplace"`` | an estimate, no bound | | ``moments`` |
    | ``"infonce"``, ``"nwj"`` | a trained critic | | a simulator |

    A model with a ``goal`` is asked about the goal alone: by ``"contrastive"`` where it has ``nuisances`` too, else by critics.

    Args:
        model: See :class:`seqbdl.acquisition.eig.DesignModel`.
        designs: ``D x d``.
        method: One of the table; ``"auto"``: the first of ``"exact"``, ``"contrastive"``, ``"infonce"`` that the model allows.
        num_outer: Outcomes for each design (for ``"exact"`` and ``"laplace"``: draws of theta). Critics take
            ``num_batches (num_inner + 1)`` instead.
        num_inner: Contrastive draws ``L``; the lower bound cannot exceed ``log(L + 1)``. Also the draws of nuisances.
        num_batches: Independent sets of contrastive draws, each shared by ``num_outer / num_batches`` outcomes.
        source: The distribution of the parameters, such as a posterior; the model's prior by default. One that has
            ``weighted() -> (theta, weights)`` and ``exact = True`` (a grid) makes exact information free of draws.
        training: Of the methods that train: ``"adaptive"``, ``"posterior"``, ``"infonce"``, ``"nwj"``.
        generator: Of all draws.

    Returns:
        Bounds of shape ``D``.

    Raises:
        ShapeError: Designs that are not ``D x d``; answers of the model with wrong shapes.
        InvalidOptionError: Numbers of draws that are too small, a method that the model does not allow.
    """
    if designs.dim() != 2 or 0 in designs.shape:
        raise ShapeError(f"designs has shape {tuple(designs.shape)}; it needs D x d, for one design 1 x d")
    if num_batches < 2 or num_outer < 2 * num_batches or num_inner < 1:
        raise InvalidOptionError(
            f"num_outer={num_outer}, num_inner={num_inner}, num_batches={num_batches}; there are at least two batches of "
            "two outcomes, and one contrastive draw"
        )
    num_outer -= num_outer % num_batches
    support = check_support(model)
    method = _method(model, method, support, source)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    parameters = model if source is None else source
    if method == "exact":
        assert support is not None
        return _exact(model, designs, support, num_outer, parameters, generator)
    training = TrainingSettings() if training is None else training
    if method in BOUNDS:
        return trained_critic(model, designs, method, training, num_inner + 1, num_batches, parameters, generator)
    if method in ("posterior", "adaptive"):
        inner_draws = num_inner if method == "adaptive" else None
        return trained_posterior(model, designs, training, num_outer, inner_draws, generator)
    outer = parameters.sample(num_outer, generator)
    if method == "laplace":
        return laplace_information(model, outer, designs)
    seed = int(torch.randint(2**31 - 1, (1,), generator=generator))
    if method == "marginal":
        return _joined([_marginal(model, part, outer, seed) for part in _parts(designs, num_outer)])
    inner = parameters.sample(num_batches * num_inner, generator).unflatten(0, (num_batches, num_inner))
    same = _nuisances(model, outer, num_inner, generator)
    return _joined([_contrastive(model, part, outer, inner, same, seed) for part in _parts(designs, num_outer * num_inner)])


def _method(model: DesignModel, method: str, support: Tensor | None, source: ThetaSource | None) -> str:
    """What ``method`` stands for, and whether the model allows it."""
    if method not in METHODS:
        raise InvalidOptionError(f"method={method!r} is not one of {', '.join(map(repr, METHODS))}")
    goal = hasattr(model, "goal")
    explicit = callable(getattr(model, "log_prob", None)) and (not goal or hasattr(model, "nuisances"))
    if method == "auto":
        return "exact" if support is not None and not goal else "contrastive" if explicit else "infonce"
    if method == "exact" and support is None:
        raise InvalidOptionError("method='exact' needs a model with a finite support; use 'contrastive'")
    if method in ("contrastive", "adaptive", "marginal") and not explicit:
        raise InvalidOptionError(
            f"method={method!r} needs a model with log_prob, and with nuisances where it has a goal; use 'infonce'"
        )
    if goal and method not in ("contrastive", *BOUNDS):
        raise InvalidOptionError(
            f"method={method!r} is about all parameters, and the model has a goal; use 'contrastive' or a critic"
        )
    if method in ("posterior", "adaptive") and (source is not None or not hasattr(model, "log_prior")):
        raise InvalidOptionError(
            f"method={method!r} needs the normalized log_prior of a model, and no other source; use 'contrastive'"
        )
    return method


def _exact(
    model: DesignModel, designs: Tensor, support: Tensor, n: int, source: ThetaSource, generator: torch.Generator
) -> Bounds:
    weights: Tensor | None = None
    if getattr(source, "exact", False) and hasattr(source, "weighted"):
        theta, weights = source.weighted()
    else:
        theta = source.sample(n, generator)
    y = support.to(designs.device)

    def one(part: Tensor) -> Bounds:
        # y: K x m, theta: N x 1 x p, design: D x 1 x 1 x d
        return exact_information(log_likelihood(model, y, theta.unsqueeze(-2), part[:, None, None]), weights)

    return _joined([one(part) for part in _parts(designs, theta.shape[0] * y.shape[0])])


def _contrastive(model: DesignModel, designs: Tensor, outer: Tensor, inner: Tensor, same: Tensor | None, seed: int) -> Bounds:
    batches = inner.shape[0]
    y, own = outcomes_at(model, designs, outer, seed)
    # y: D x B x n x 1 x m, theta: B x 1 x L x p, design: D x 1 x 1 x 1 x d
    grouped = y.unflatten(1, (batches, -1)).unsqueeze(-2)
    other = log_likelihood(model, grouped, inner.unsqueeze(1), designs[:, None, None, None]).flatten(1, 2)
    if same is None:
        return contrastive_bounds(own, other, num_batches=batches)
    given = log_likelihood(model, y.unsqueeze(-2), same, designs[:, None, None])
    return nuisance_bounds(own, given, other, num_batches=batches)


def _nuisances(model: DesignModel, outer: Tensor, n: int, generator: torch.Generator) -> Tensor | None:
    """Draws ``N x n x p`` with the goal of each of the parameters ``N x p``; ``None`` for models without a goal."""
    if not hasattr(model, "goal"):
        return None
    draws = model.nuisances(outer, n, generator)  # type: ignore[attr-defined]
    if draws.shape != (n, *outer.shape):
        raise ShapeError(f"nuisances answered {tuple(draws.shape)}; it needs {(n, *outer.shape)}")
    return draws.transpose(0, 1)


def _marginal(model: DesignModel, designs: Tensor, outer: Tensor, seed: int) -> Bounds:
    y, own = outcomes_at(model, designs, outer, seed)
    return marginal_bound(own, y)


def _parts(designs: Tensor, cost: int) -> tuple[Tensor, ...]:
    return designs.split(max(1, _CHUNK // max(cost, 1)))


def _joined(parts: list[Bounds]) -> Bounds:
    def side(values: list[Tensor | None]) -> Tensor | None:
        known = [value for value in values if value is not None]
        return torch.cat(known) if known else None

    return Bounds(
        side([part.lower for part in parts]),
        side([part.upper for part in parts]),
        torch.cat([part.standard_error for part in parts]),
        torch.cat([part.saturated for part in parts]),
    )
