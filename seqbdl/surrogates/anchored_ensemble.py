"""``anchored-ensemble``: posterior samples of a network by randomize-then-optimize."""

from __future__ import annotations

from typing import Any

from seqbdl.surrogates.ensemble import AnchoredMembers


class AnchoredEnsembleSurrogate(AnchoredMembers):
    """``S`` networks, each anchored at its own draw from the prior and fitted to its own noisy version of the targets (Pearce et
    al. 2018, 2020; Bardsley et al. 2014): exact posterior samples for linear networks and Gaussian noise.

    Scales of the prior and the noise come from the evidence of the infinite-width limit.

    Args:
        randomize_targets: Noise on the targets of every member; for labels and counts, its counterpart (see
            :mod:`seqbdl.inference.randomize`). Without it the spread is too small where data are.
    """

    name = "anchored-ensemble"

    def __init__(self, *args: Any, randomize_targets: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, randomize_targets=randomize_targets, **kwargs)
