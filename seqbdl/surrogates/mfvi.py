"""``mfvi``: mean-field variational inference over all weights."""

from __future__ import annotations

from typing import Any

from seqbdl.inference.log_joint import LogJoint
from seqbdl.inference.mfvi import MFVISettings, mfvi
from seqbdl.networks import MLP
from seqbdl.posteriors.mean_field import MeanField
from seqbdl.priors import PRIORS
from seqbdl.surrogates.network_prior import NetworkSpec
from seqbdl.surrogates.variational import VariationalSurrogate


class MFVISurrogate(VariationalSurrogate):
    """Independent Gaussians over the weights, fitted to the evidence lower bound by Adam.

    The fit of a mean-field Gaussian worsens as weights outnumber the data: each weight must be sharp for the function to be,
    at a cost in the bound for every single one, so that wide networks underfit. Hence the small default network; take wider
    ones for thousands of rows.

    Args:
        network: Hidden widths, a module, or a factory.
        steps: Adam steps per fit or update.
        learning_rate: Of the first step, in standard deviations of the prior.
        batch_size: Rows per step; ``None``: all.
        estimator: ``"local"``, ``"flipout"`` (both for widths) or ``"weights"``; ``None``: ``"local"`` where it can be.
        num_samples: Noise draws per step.
    """

    name = "mfvi"
    priors = PRIORS

    def __init__(
        self,
        *args: Any,
        network: NetworkSpec = (16,),
        steps: int = 200,
        learning_rate: float = 0.08,
        batch_size: int | None = None,
        estimator: str | None = None,
        num_samples: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, network=network, **kwargs)
        if estimator is None:
            estimator = "local" if isinstance(self._network, MLP) else "weights"
        self.descent = MFVISettings(steps, learning_rate, batch_size, estimator, num_samples, self.temperature)

    def _learn(self, joint: LogJoint, start: MeanField) -> MeanField:
        return mfvi(joint, start, self.generator, self.descent)
