"""Expected information gain of many designs at once."""

from __future__ import annotations

import torch
from torch import Tensor

from seqbdl.acquisition.eig.bounds import Bounds
from seqbdl.acquisition.eig.contrastive import contrastive_bounds
from seqbdl.acquisition.eig.exact import exact_information
from seqbdl.acquisition.eig.marginal import marginal_bound
from seqbdl.acquisition.eig.model import DesignModel, ThetaSource, check_support, log_likelihood, simulate_outcomes
from seqbdl.errors import InvalidOptionError, ShapeError

METHODS = ("auto", "exact", "contrastive", "marginal")
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
    generator: torch.Generator | None = None,
) -> Bounds:
    """What an outcome at each design is expected to tell about the parameters, in nats.

    All designs share their draws of the parameters and of the noise: their differences are more precise than their values.
    Differentiable in ``designs`` for exact information, and for the others where
    ``simulate`` is.

    Args:
        model: See :class:`seqbdl.acquisition.eig.DesignModel`.
        designs: ``D x d``.
        method: ``"exact"`` for models with a ``support``; ``"contrastive"``, nested Monte Carlo from above and contrastive
            estimation from below; ``"marginal"``, from above only; ``"auto"``: the first that the model allows.
        num_outer: Outcomes for each design (for exact information: draws of theta).
        num_inner: Contrastive draws ``L``; the lower bound cannot exceed ``log(L + 1)``.
        num_batches: Independent sets of contrastive draws, each shared by ``num_outer / num_batches`` outcomes.
        source: The distribution of the parameters, such as a posterior; the model's prior by default. One that has
            ``weighted() -> (theta, weights)`` and ``exact = True`` (a grid) makes exact information free of draws.
        generator: Of all draws.

    Returns:
        Bounds of shape ``D``.

    Raises:
        ShapeError: Designs that are not ``D x d``; answers of the model with wrong shapes.
        InvalidOptionError: Numbers of draws that are too small, a method that the model does not allow.
    """
    if designs.dim() != 2 or 0 in designs.shape:
        raise ShapeError(f"designs has shape {tuple(designs.shape)}; it needs D x d, for one design 1 x d")
    if method not in METHODS:
        raise InvalidOptionError(f"method={method!r} is not one of {', '.join(map(repr, METHODS))}")
    if num_batches < 2 or num_outer < 2 * num_batches or num_inner < 1:
        raise InvalidOptionError(
            f"num_outer={num_outer}, num_inner={num_inner}, num_batches={num_batches}; there are at least two batches of "
            "two outcomes, and one contrastive draw"
        )
    num_outer -= num_outer % num_batches
    support = check_support(model)
    if method == "exact" and support is None:
        raise InvalidOptionError("method='exact' needs a model with a finite support; use 'contrastive'")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    parameters = model if source is None else source
    if support is not None and method in ("auto", "exact"):
        return _exact(model, designs, support, num_outer, parameters, generator)
    outer = parameters.sample(num_outer, generator)
    seed = int(torch.randint(2**31 - 1, (1,), generator=generator))
    if method == "marginal":
        return _joined([_marginal(model, part, outer, seed) for part in _parts(designs, num_outer)])
    inner = parameters.sample(num_batches * num_inner, generator).unflatten(0, (num_batches, num_inner))
    return _joined([_contrastive(model, part, outer, inner, seed) for part in _parts(designs, num_outer * num_inner)])


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


def _contrastive(model: DesignModel, designs: Tensor, outer: Tensor, inner: Tensor, seed: int) -> Bounds:
    batches = inner.shape[0]
    y, own = _outcomes(model, designs, outer, seed)
    # y: D x B x n x 1 x m, theta: B x 1 x L x p, design: D x 1 x 1 x 1 x d
    grouped = y.unflatten(1, (batches, -1)).unsqueeze(-2)
    other = log_likelihood(model, grouped, inner.unsqueeze(1), designs[:, None, None, None])
    return contrastive_bounds(own, other.flatten(1, 2), num_batches=batches)


def _marginal(model: DesignModel, designs: Tensor, outer: Tensor, seed: int) -> Bounds:
    y, own = _outcomes(model, designs, outer, seed)
    return marginal_bound(own, y)


def _outcomes(model: DesignModel, designs: Tensor, outer: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Outcomes ``D x N x m`` of the parameters ``N x p``, and their log-likelihoods ``D x N``."""
    # One design at a time from the same generator state: all designs meet the same noise, whatever the model.
    y = torch.stack([simulate_outcomes(model, outer, design, torch.Generator().manual_seed(seed)) for design in designs])
    return y, log_likelihood(model, y, outer, designs.unsqueeze(1))


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
