"""Where to measure next: candidates compared by their expected information gain, and ascent of its lower bound."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from seqbdl.acquisition.eig import Bounds, DesignModel, ThetaSource, expected_information_gain, history_log_likelihood
from seqbdl.acquisition.policies import DesignBox
from seqbdl.errors import InvalidOptionError

_PROPOSALS = 4
"""Draws of a nuisance's prior for each draw of its posterior."""

Propose: TypeAlias = Callable[[ThetaSource, int, torch.Generator], Tensor]
"""``(posterior, n, generator) -> n x d``: candidate designs."""


@dataclass(frozen=True)
class DesignSettings:
    """How designs are searched.

    Attributes:
        num_candidates: Designs that are compared in each ask; finite spaces of up to 4096 designs are compared whole.
        optimizer: ``"candidates"``: the best of them; ``"gradient"``: ascent of the lower bound from the best.
        method: Of :func:`seqbdl.acquisition.eig.expected_information_gain`.
        search_outer: Outcomes for each candidate.
        search_inner: Contrastive draws for each candidate.
        num_refined: Best candidates that are compared again, with more draws.
        num_outer: Outcomes for those.
        num_inner: Contrastive draws for those, and for the bounds that are reported.
        steps: Of the ascent.
        learning_rate: Of Adam, where every entry of a design is scaled to the unit interval.
    """

    num_candidates: int = 128
    optimizer: str = "candidates"
    method: str = "auto"
    search_outer: int = 128
    search_inner: int = 128
    num_refined: int = 4
    num_outer: int = 512
    num_inner: int = 512
    steps: int = 40
    learning_rate: float = 0.02

    def __post_init__(self) -> None:
        if self.optimizer not in ("candidates", "gradient"):
            raise InvalidOptionError(f"optimizer={self.optimizer!r}; use 'candidates' or 'gradient'")
        for name in ("num_candidates", "search_outer", "search_inner", "num_refined", "num_outer", "num_inner", "steps"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InvalidOptionError(f"{name}={value!r}; it is a number of at least 1")
        if not 0 < self.learning_rate < math.inf:
            raise InvalidOptionError(f"learning_rate={self.learning_rate}; it is a positive number")


class WithPending:
    """A model whose outcome is that of one design together with the outcomes of designs that are under way.

    Args:
        model: Of one experiment.
        pending: ``B x d``.
    """

    def __init__(self, model: DesignModel, pending: Tensor) -> None:
        self.model, self.pending = model, pending
        for name in ("goal", "nuisances"):  # what the experiments are about stays the same
            if hasattr(model, name):
                setattr(self, name, getattr(model, name))

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return self.model.sample(n, generator)

    def simulate(self, theta: Tensor, design: Tensor, generator: torch.Generator | None = None) -> Tensor:
        # The others first: their noise is the same whatever the design.
        others = [self.model.simulate(theta, other, generator) for other in self.pending]
        own = self.model.simulate(theta, design, generator)
        return torch.cat([*(other.expand(own.shape) for other in others), own], dim=-1)

    def log_prob(self, y: Tensor, theta: Tensor, design: Tensor) -> Tensor:
        *parts, own = y.chunk(len(self.pending) + 1, dim=-1)
        total = self.model.log_prob(own, theta, design)
        for part, other in zip(parts, self.pending, strict=True):
            total = total + self.model.log_prob(part, theta, other)
        return total


class GivenHistory:
    """A model with nuisances after some outcomes: given the goal, nuisances are drawn from their posterior.

    By resampling draws of their prior with the likelihood of the history; all else is the model's own.

    Args:
        model: With ``nuisances``.
        designs: ``T x d``.
        outcomes: ``T x m``.
    """

    def __init__(self, model: DesignModel, designs: Tensor, outcomes: Tensor) -> None:
        self._model, self._designs, self._outcomes = model, designs, outcomes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def nuisances(self, theta: Tensor, n: int, generator: torch.Generator | None = None) -> Tensor:
        """``n x N x p`` draws given the goal of each of ``N x p``, and the history."""
        proposals = self._model.nuisances(theta, _PROPOSALS * n, generator)  # type: ignore[attr-defined]
        weights = history_log_likelihood(self._model, self._designs, self._outcomes, proposals)
        picks = torch.multinomial(weights.softmax(0).mT, n, replacement=True, generator=generator).mT  # n x N
        return proposals.gather(0, picks.unsqueeze(-1).expand(-1, -1, theta.shape[-1]))


def best_design(
    model: DesignModel,
    posterior: ThetaSource,
    candidates: Tensor,
    settings: DesignSettings,
    generator: torch.Generator,
    box: DesignBox | None = None,
) -> tuple[Tensor, Bounds]:
    """The design with the largest expected information gain, and that gain.

    The reported bounds come from draws that did not choose the design, so that a lucky candidate is not praised for its luck.

    Args:
        model: Of the experiment.
        posterior: Of its parameters.
        candidates: ``D x d``.
        settings: See :class:`DesignSettings`.
        generator: Of all draws.
        box: Of the designs; needed for ascent.
    """

    def gain(designs: Tensor, outer: int, inner: int, source: torch.Generator) -> Bounds:
        return expected_information_gain(
            model,
            designs,
            settings.method,
            num_outer=max(outer, 16),
            num_inner=inner,
            source=posterior,
            generator=source,
        )

    with torch.no_grad():
        rough = _value(gain(candidates, settings.search_outer, settings.search_inner, generator))
    top = candidates[rough.topk(min(settings.num_refined, len(candidates))).indices]
    if settings.optimizer == "gradient":
        assert box is not None
        seed = int(torch.randint(2**31 - 1, (1,), generator=generator))
        u = box.to_unit(top).clone().requires_grad_()
        adam = torch.optim.Adam([u], settings.learning_rate)
        for _ in range(settings.steps):
            adam.zero_grad()
            same = torch.Generator().manual_seed(seed)  # common random numbers
            total = -_value(gain(box.from_unit(u), settings.search_outer, settings.search_inner, same)).sum()
            total.backward()
            if u.grad is None or not bool(u.grad.isfinite().all()):
                raise InvalidOptionError("the information has no finite gradient in the design; use optimizer='candidates'")
            adam.step()
            with torch.no_grad():
                u.clamp_(0.0, 1.0)
        top = torch.cat([top, box.from_unit(u.detach())])
    with torch.no_grad():
        if len(top) > 1:
            fine = _value(gain(top, settings.num_outer, settings.num_inner, generator))
            top = top[fine.argmax()].unsqueeze(0)
        return top[0], gain(top, settings.num_outer, settings.num_inner, generator)[0]


def _value(bounds: Bounds) -> Tensor:
    # The lower bound has the smaller variance; designs are ranked by it.
    return bounds.middle if bounds.lower is None else bounds.lower
