"""What to ask next: acquisition functions by name, their optimization, Thompson sampling, and batches from pools."""

from seqbdl.acquisition.batches import (
    Batch,
    BatchAcquisition,
    BatchStatus,
    get_batch_acquisition,
    list_batch_acquisitions,
    register_batch_acquisition,
    select_batch,
)
from seqbdl.acquisition.context import AcquisitionContext
from seqbdl.acquisition.draw_entropy import DrawEntropySearch
from seqbdl.acquisition.draws import Optima, optimal_samples
from seqbdl.acquisition.lookahead import DiscreteKnowledgeGradient, NegIntegratedPosteriorVariance
from seqbdl.acquisition.optimize import optimize_acquisition
from seqbdl.acquisition.pool import optimize_over_candidates
from seqbdl.acquisition.registry import ACQUISITIONS, list_acquisitions, make_acquisition, register_acquisition
from seqbdl.acquisition.thompson import thompson_candidates, thompson_continuous

__all__ = [
    "make_acquisition",
    "list_acquisitions",
    "register_acquisition",
    "ACQUISITIONS",
    "AcquisitionContext",
    "optimize_acquisition",
    "optimize_over_candidates",
    "select_batch",
    "list_batch_acquisitions",
    "get_batch_acquisition",
    "register_batch_acquisition",
    "BatchAcquisition",
    "Batch",
    "BatchStatus",
    "thompson_candidates",
    "thompson_continuous",
    "optimal_samples",
    "Optima",
    "DiscreteKnowledgeGradient",
    "DrawEntropySearch",
    "NegIntegratedPosteriorVariance",
]
