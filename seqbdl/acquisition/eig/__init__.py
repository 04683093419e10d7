"""Expected information gain of experiments: estimators as pure functions, each answering with bounds."""

from seqbdl.acquisition.eig.bounds import Bounds
from seqbdl.acquisition.eig.contrastive import contrastive_bounds
from seqbdl.acquisition.eig.exact import exact_information
from seqbdl.acquisition.eig.expected import expected_information_gain
from seqbdl.acquisition.eig.marginal import marginal_bound
from seqbdl.acquisition.eig.model import DesignModel, ThetaSource, check_support, log_likelihood, simulate_outcomes
from seqbdl.acquisition.eig.sequences import history_log_likelihood, information_of_history, sequence_bounds

__all__ = [
    "Bounds",
    "DesignModel",
    "ThetaSource",
    "check_support",
    "contrastive_bounds",
    "exact_information",
    "expected_information_gain",
    "history_log_likelihood",
    "information_of_history",
    "log_likelihood",
    "marginal_bound",
    "sequence_bounds",
    "simulate_outcomes",
]
