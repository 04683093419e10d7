"""What ensembles whose members are fitted one objective each have in common."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from seqbdl.errors import InvalidOptionError
from seqbdl.inference.adam import AdamSettings
from seqbdl.inference.gauss_newton import GaussNewtonSettings
from seqbdl.inference.members import FitSettings, Held
from seqbdl.surrogates.particle import ParticleSurrogate

_HELD_VALUES = 512  # rows times latent functions that hold a member while it absorbs new rows


class FittedEnsemble(ParticleSurrogate):
    """``S`` networks, each the minimizer of its own objective.

    Args:
        fit: How members are fitted: ``"gauss-newton"``, ``"adam"`` (mini-batches), or ``"auto"``: Gauss-Newton up to 400 rows
            times latent functions, Adam beyond.
        max_iterations: Gauss-Newton steps per fit.
        steps: Adam steps per fit.
        learning_rate: Of Adam's first step; it falls to zero along a half cosine.
        batch_size: Rows per step of Adam.
    """

    carries = "every member, and the function values it had at up to `memory` old rows"
    update_tolerance = 1.0

    def __init__(
        self,
        *args: Any,
        num_members: int = 16,
        fit: str = "auto",
        max_iterations: int = 15,
        steps: int = 2000,
        learning_rate: float = 0.03,
        batch_size: int = 64,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, num_members=num_members, **kwargs)
        if max_iterations < 1 or steps < 1 or batch_size < 1:
            raise InvalidOptionError(
                f"max_iterations={max_iterations}, steps={steps} and batch_size={batch_size} must be at least 1"
            )
        if not learning_rate > 0:
            raise InvalidOptionError(f"learning_rate={learning_rate} must be positive")
        adam = AdamSettings(steps=steps, learning_rate=learning_rate, batch_size=batch_size)
        self.settings = FitSettings(fit, GaussNewtonSettings(max_iterations=max_iterations), adam)

    def _held(self, z: Tensor) -> Held:
        """The members' values at the distinct remembered rows (at an even sample of them where they are many, each for several)
        and the curvature there."""
        X, remembered = self._remembered(z).distinct(self._memory[0])
        return Held(*remembered.sample(X, max(1, _HELD_VALUES // self.num_latents), self.generator))
