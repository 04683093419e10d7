"""Policies for the design loop: trained by one call, for the space that the loop will ask in."""

from __future__ import annotations

from typing import Any

import torch

from seqbdl.acquisition.policies import DesignPolicy, PolicySettings
from seqbdl.acquisition.policies import train_policy as train_on_box
from seqbdl.errors import InvalidOptionError, InvalidSpaceError
from seqbdl.loops.design_space import design_box, design_space
from seqbdl.loops.space import Space


def train_policy(
    model: Any,
    space: Any,
    horizon: int,
    *,
    seed: int = 0,
    progress: bool = True,
    settings: PolicySettings | None = None,
    **options: Any,
) -> DesignPolicy:
    """A policy that chooses ``horizon`` designs one after the other, for ``ExperimentDesignLoop(..., policy=...)``.

    Deep adaptive design where the model has a likelihood, its implicit-likelihood sibling where it has only a simulator; see
    :class:`seqbdl.acquisition.policies.PolicySettings` for the options.

    Args:
        model: ``sample`` and ``simulate``, and ``log_prob`` where there is a likelihood.
        space: A :class:`Space` of real parameters, or an environment whose actions are such a space.
        horizon: Experiments in a history.
        seed: Of everything random.
        progress: Whether to show a progress bar.
        settings: All options at once; further keywords replace single ones.

    Raises:
        InvalidSpaceError: Designs that are not all real numbers in intervals.
        InvalidOptionError: Settings that the model does not allow.
        DivergedError: A gradient that is not finite.
    """
    box = design_box(design_space(space)[0])
    if box is None:
        raise InvalidSpaceError("a policy answers with real numbers in intervals; lists, steps and integers are for candidates")
    generator = torch.Generator().manual_seed(seed)
    return train_on_box(model, box, horizon, settings, generator=generator, progress=progress, **options)


def check_policy(policy: DesignPolicy, space: Space) -> None:
    """Refuse a policy that was trained for other designs than those of the space."""
    if design_box(space) != policy.box:
        raise InvalidOptionError("policy= was trained for other designs; train one with train_policy(model, space, horizon)")
