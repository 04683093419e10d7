"""What the quadratic penalties that hold weights where old tasks need them are made of.

:mod:`seqbdl.inference.ewc` takes the diagonal of the Fisher information, SUMMED over the old data, as importances of weights,
:mod:`seqbdl.inference.synaptic_intelligence` path integrals of the loss.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqbdl.errors import InvalidOptionError
from seqbdl.likelihoods import Likelihood
from seqbdl.networks import Network
from seqbdl.posteriors.gaussian_weights import GaussianWeights
from seqbdl.posteriors.operators import Diagonal

FISHERS = ("all", "sample", "pred", "true")
_ENTRIES = 4_000_000  # of a linearized block of rows: 32 MB


def fisher_diagonal(
    network: Network,
    likelihood: Likelihood,
    z: Tensor,
    X: Tensor,
    noise: Tensor,
    kind: str = "all",
    Y: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Squared gradients of the log likelihood of every row by itself, summed over rows, ``P``.

    Args:
        network: Over whitened weights.
        likelihood: Of an observation.
        z: ``1 x P``, where.
        X: ``n x d``.
        noise: ``n x m`` noise variances.
        kind: Whose outcomes: ``"all"``: their expectation under the model, exactly; ``"sample"``: one draw from it per row;
            ``"pred"``: the most probable label; ``"true"``: those of the data (the "empirical Fisher").
        Y: ``n x t``, for ``"true"``.
        generator: For ``"sample"``.

    Raises:
        InvalidOptionError: There is no such kind, or what it needs is missing.
    """
    if kind not in FISHERS:
        raise InvalidOptionError(f"kind={kind!r} must be one of {', '.join(FISHERS)}")
    if kind == "true" and Y is None:
        raise InvalidOptionError('kind="true" needs the outcomes Y')
    if kind == "sample" and generator is None:
        raise InvalidOptionError('kind="sample" needs a generator')
    if kind == "pred" and likelihood.name != "categorical":
        raise InvalidOptionError(f'kind="pred" is for the categorical likelihood, not for {likelihood.name}')
    total = torch.zeros_like(z[0])
    size = max(1, _ENTRIES // network.tangent_size)
    for start in range(0, X.shape[0], size):
        rows = slice(start, start + size)
        here = network.tangents(z, X[rows])
        f = here.values[0]  # n x l
        if kind == "all":
            total = total + network.row_squares(here, likelihood.root(f, noise[rows]))
            continue
        if kind == "true":
            assert Y is not None
            outcomes = Y[rows]
        elif kind == "sample":
            assert generator is not None
            outcomes = likelihood.sample(f, noise[rows], generator)
        else:
            outcomes = f.argmax(-1, keepdim=True).to(f)
        score = likelihood.score(f, outcomes, noise[rows])
        total = total + network.row_squares(here, score.unsqueeze(-1))
    return total


class PathIntegral:
    """How much every weight lowered a loss on the way, ``-sum_t g_t dz_t``; with gradients of mini-batches, and with steps that
    are not small, approximately so.

    Args:
        start: ``P``.
    """

    def __init__(self, start: Tensor) -> None:
        self._start, self._here, self._gradient = start, start, torch.zeros_like(start)
        self._lowered = torch.zeros_like(start)

    def at(self, z: Tensor, gradient: Tensor) -> None:
        """The path reached ``z: P``, where the loss has this gradient; of the end of a path the gradient is not used."""
        self._lowered = self._lowered - self._gradient * (z - self._here)
        self._here, self._gradient = z, gradient

    def importance(self, xi: float = 0.1) -> Tensor:
        """Synaptic intelligence's ``Omega`` of one task, ``max(0, lowered) / ((z_end - z_start)^2 + xi)``, ``P``.

        Args:
            xi: Damping, positive.
        """
        if not xi > 0:
            raise InvalidOptionError(f"xi={xi} must be positive")
        return self._lowered.clamp_min(0.0) / ((self._here - self._start).square() + xi)


def held_by(penalty: GaussianWeights, strength: float) -> GaussianWeights:
    """The Gaussian in proportion to ``exp(-1/2 |z|^2 - c/2 sum_i F_i (z_i - a_i)^2)``: the first prior and a penalty as one.

    Args:
        penalty: ``a``, and ``F`` as a diagonal precision; not negative.
        strength: ``c``.
    """
    importance = strength * penalty.precision.diagonal
    return GaussianWeights(importance * penalty.mean / (1.0 + importance), Diagonal(1.0 + importance))
