"""``swag`` and ``multiswag``: Gaussians over weights from paths of stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from seqbdl.errors import InvalidOptionError
from seqbdl.inference.held_out import first_good, folds, mixture_log_density
from seqbdl.inference.swag import SCALE, SwagPosterior
from seqbdl.surrogates.trajectory import TrajectorySurrogate

SCALES = tuple(SCALE * 2.0**k for k in range(11))


class SwagSurrogate(TrajectorySurrogate):
    """Weights drawn from the Gaussian that the iterates of SGD around the mode make (Maddox et al. 2019).

    One basin: SGD explores the directions that the data determine, at the scale of the posterior, and hardly those that they
    leave open. With the paper's factor of one half that is overconfident away from few data; so, unless it is given, the
    factor is the one under which draws around modes of the other folds predict held-out rows best. ``multiswag`` adds
    basins.

    Args:
        num_members: Weight vectors drawn at ``fit`` and kept.
        scale: The factor on the covariance: the paper's is 0.5; ``None``: by held-out density, that or more.
    """

    name = "swag"
    carries = "the modes with their curvature, and up to `memory` old rows on which the paths are walked again"

    def __init__(self, *args: Any, num_members: int = 64, scale: float | None = None, **kwargs: Any) -> None:
        super().__init__(*args, num_members=num_members, **kwargs)
        if scale is not None and not scale > 0.0:
            raise InvalidOptionError(f"scale={scale} must be positive, or None to choose it on held-out rows")
        self.scale = scale
        self._scale = SCALE if scale is None else scale
        self._gaussians: SwagPosterior | None = None

    @property
    def posterior_scale(self) -> float:
        """The factor on the covariance that the last fit used."""
        return self._scale

    def _infer(self, X: Tensor, Y: Tensor, variance: Tensor, warm: bool) -> tuple[Tensor, Tensor]:
        modes = self._modes(X, Y, variance)
        found = self._walk(X, Y, variance, modes)
        if self.scale is None:
            self._scale = self._choose_scale(X, Y, variance, found)
        return self._draw_members(found, X)

    def _draw_members(self, found: SwagPosterior, X: Tensor) -> tuple[Tensor, Tensor]:
        self._gaussians, self._centres = found, found.mean
        z = found.sample(self.num_members // self.num_starts, self.generator, self._scale)
        return z, X.new_zeros(self.num_members)

    def _choose_scale(self, X: Tensor, Y: Tensor, variance: Tensor, found: SwagPosterior) -> float:
        """The covariance is that of all data, moved to modes that have not seen the held-out rows."""
        directions = found.directions(max(1, 32 // self.num_starts), self.generator)
        densities = []
        for train, held in folds(X.shape[0], self.generator):
            modes = self._modes(X[train], Y[train], variance[train])
            functions = [self._network.forward((modes + s**0.5 * directions).flatten(0, 1), X[held]) for s in SCALES]
            densities.append(mixture_log_density(self._lik, torch.stack(functions), Y[held], variance[held]))
        return SCALES[first_good(torch.cat(densities, -1))] if densities else SCALE

    def _absorb(self, X: Tensor, Y: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        modes = self._pull_centres(X, Y, variance)
        return self._draw_members(self._walk(*self._all_rows(X, Y, variance), modes), X)

    def _own_state(self) -> dict[str, Any]:
        found = self._gaussians
        return {
            **super()._own_state(),
            "scale": self._scale,
            "gaussians": None if found is None else dict(found.__dict__),
        }

    def _set_own_state(self, state: Mapping[str, Any]) -> None:
        super()._set_own_state(state)
        self._scale = state["scale"]
        found = state["gaussians"]
        self._gaussians = None if found is None else SwagPosterior(**found)


class MultiSwagSurrogate(SwagSurrogate):
    """A mixture of the Gaussians around several modes (Wilson and Izmailov 2020): what one basin leaves open, the spread of
    basins shows.

    Args:
        num_starts: Modes, each nearest its own random start.
    """

    name = "multiswag"

    def __init__(self, *args: Any, num_starts: int = 4, **kwargs: Any) -> None:
        if num_starts < 2:
            raise InvalidOptionError(f"num_starts={num_starts}: multiswag needs at least 2 starts; swag has one")
        super().__init__(*args, num_starts=num_starts, **kwargs)
