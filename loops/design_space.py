"""Where experiments can be made: designs as rows of numbers, and as boxes that gradients can move in."""

from __future__ import annotations

from typing import Any

import gymnasium
import torch

from seqbdl.acquisition.policies import DesignBox
from seqbdl.errors import InvalidSpaceError
from seqbdl.loops.candidates import ROW
from seqbdl.loops.parameters import Real
from seqbdl.loops.space import Space


def design_space(space: Any) -> tuple[Space, tuple[str, ...]]:
    """The space of designs, and the names of its columns in the order of the model's design.

    Args:
        space: A :class:`Space`, an environment, or candidates ``D x d``.

    Raises:
        InvalidSpaceError: Something else, or designs that are not numbers.
    """
    if isinstance(space, gymnasium.Env):
        space = Space.from_gymnasium(space.action_space, space)
    elif not isinstance(space, Space):
        rows = torch.as_tensor(space)
        if rows.dim() != 2:
            raise InvalidSpaceError(f"space has shape {tuple(rows.shape)}; give a Space, an environment, or candidates D x d")
        space = Space.from_candidates(rows.numpy())
    names = tuple(map(str, space.frame.columns)) if space.listed else space.names
    kinds = [p.name for p in space.parameters if p.categorical]
    if kinds or ROW in names:
        raise InvalidSpaceError(f"designs are numbers; encode {', '.join(kinds) or ROW} as columns of numbers")
    return space, names


def design_box(space: Space) -> DesignBox | None:
    """The box of a space of real parameters without steps; ``None`` for other spaces."""
    if space.listed:
        return None
    reals = [p for p in space.parameters if isinstance(p, Real) and p.step is None]
    if len(reals) < len(space.parameters):
        return None
    low, high = (torch.tensor(ends, dtype=torch.float64) for ends in zip(*[(p.low, p.high) for p in reals], strict=True))
    return DesignBox(low, high, torch.tensor([p.log for p in reals]))
