"""Which points of a pool to label next, several at a time.

Pure functions on tensors, so that anyone's model can use them alone, and :func:`select_batch`, which reads what they need
from any surrogate. All of them respect pending and excluded points and costs, and return a :class:`Batch`.
"""

from seqbdl.acquisition.batches.batch import Batch, BatchStatus
from seqbdl.acquisition.batches.batchbald import batchbald
from seqbdl.acquisition.batches.distances import badge, k_centre, kmeans_plus_plus, lcmd
from seqbdl.acquisition.batches.features import Sketch, make_sketch, posterior_features
from seqbdl.acquisition.batches.gaussian import gaussian_epig_batch, max_det, variance_reduction_batch
from seqbdl.acquisition.batches.kernels import PoolKernel
from seqbdl.acquisition.batches.linear import bait, frank_wolfe
from seqbdl.acquisition.batches.ranking import stochastic_batch, top_batch
from seqbdl.acquisition.batches.registry import (
    BATCH_ACQUISITIONS,
    BatchAcquisition,
    get_batch_acquisition,
    list_batch_acquisitions,
    register_batch_acquisition,
    select_batch,
)

__all__ = [
    "select_batch",
    "list_batch_acquisitions",
    "get_batch_acquisition",
    "register_batch_acquisition",
    "BatchAcquisition",
    "BATCH_ACQUISITIONS",
    "Batch",
    "BatchStatus",
    "batchbald",
    "top_batch",
    "stochastic_batch",
    "badge",
    "k_centre",
    "kmeans_plus_plus",
    "lcmd",
    "max_det",
    "gaussian_epig_batch",
    "variance_reduction_batch",
    "bait",
    "frank_wolfe",
    "PoolKernel",
    "Sketch",
    "make_sketch",
    "posterior_features",
]
