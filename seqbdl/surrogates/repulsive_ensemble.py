"""``repulsive-ensemble``: ensembles whose members push one another apart."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from seqbdl.errors import UnknownNameError
from seqbdl.inference.repulsion import ESTIMATORS
from seqbdl.inference.repulsive import repulsive_functions, repulsive_weights
from seqbdl.surrogates.interacting import InteractingSurrogate


class RepulsiveEnsembleSurrogate(InteractingSurrogate):
    """``S`` networks along the gradient flow of the Kullback-Leibler divergence from their own density to the posterior
    (D'Angelo and Fortuin 2021): the posterior's score draws them, minus the score of their density keeps them apart.

    In function space (the default) members are compared by their values at a batch of rows and at random inputs. In the space
    of weights a density of a few members in thousands of dimensions says next to nothing: they drift towards modes, more the
    longer they move.

    Args:
        space: ``"function"`` or ``"weight"``.
        estimator: Of the members' own score: ``"kde"``, ``"sge"`` or ``"ssge"`` (see :mod:`seqbdl.inference.repulsion`).
    """

    name = "repulsive-ensemble"

    def __init__(self, *args: Any, estimator: str = "kde", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if estimator not in ESTIMATORS:
            raise UnknownNameError("estimator", estimator, list(ESTIMATORS))
        self.estimator = estimator

    def _move(self, X: Tensor, Y: Tensor, variance: Tensor, z: Tensor) -> Tensor:
        if self.space == "weight":
            return repulsive_weights(self._log_joint(X, Y, variance), z, self.generator, self.moves, self.estimator)
        posterior = self._function_posterior(X, Y, variance)
        return repulsive_functions(posterior, z, self.generator, self.moves, self.num_inputs, self.estimator, self.normalize)
