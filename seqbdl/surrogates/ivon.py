"""``ivon``: mean-field variational inference by a second-order optimizer."""

from __future__ import annotations

from typing import Any

from seqbdl.inference.ivon import IVONSettings, ivon
from seqbdl.inference.log_joint import LogJoint
from seqbdl.posteriors.mean_field import MeanField
from seqbdl.surrogates.network_prior import NetworkSpec
from seqbdl.surrogates.variational import VariationalSurrogate


class IVONSurrogate(VariationalSurrogate):
    """The posterior of ``mfvi``, learned by the improved variational online Newton method (Shen et al. 2024).

    Steps need gradients at weight draws only, of any network, and no rate per weight.

    Args:
        network: Hidden widths, a module, or a factory.
        steps: Per fit or update.
        learning_rate: Share of a Newton step.
        batch_size: Rows per step; ``None``: all.
        num_samples: Pairs of weight draws per step.
        beta2: Memory of the Hessian; ``None``: a tenth of the steps.
    """

    name = "ivon"

    def __init__(
        self,
        *args: Any,
        network: NetworkSpec = (16,),
        steps: int = 300,
        learning_rate: float = 0.1,
        batch_size: int | None = None,
        num_samples: int = 1,
        beta2: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, network=network, **kwargs)
        self.optimizer = IVONSettings(steps, learning_rate, batch_size, num_samples, beta2=beta2, temperature=self.temperature)

    def _learn(self, joint: LogJoint, start: MeanField) -> MeanField:
        return ivon(joint, start, self.generator, self.optimizer)
