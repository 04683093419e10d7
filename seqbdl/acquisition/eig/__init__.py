"""Expected information gain of experiments: estimators as pure functions, each answering with bounds."""

from seqbdl.acquisition.eig.amortized import TrainingSettings, posterior_bound
from seqbdl.acquisition.eig.bounds import Bounds
from seqbdl.acquisition.eig.contrastive import contrastive_bounds
from seqbdl.acquisition.eig.critics import infonce_bound, nwj_bound
from seqbdl.acquisition.eig.exact import exact_information
from seqbdl.acquisition.eig.expected import expected_information_gain
from seqbdl.acquisition.eig.laplace import laplace_information
from seqbdl.acquisition.eig.marginal import marginal_bound
from seqbdl.acquisition.eig.model import DesignModel, ThetaSource, check_support, goal_of, log_likelihood, simulate_outcomes
from seqbdl.acquisition.eig.nuisance import nuisance_bounds
from seqbdl.acquisition.eig.sequences import history_log_likelihood, information_of_history, sequence_bounds
from seqbdl.acquisition.eig.surrogate_models import DiscrepancyModel, EmulatorModel, FunctionModel

__all__ = [
    "Bounds",
    "DesignModel",
    "DiscrepancyModel",
    "EmulatorModel",
    "FunctionModel",
    "ThetaSource",
    "TrainingSettings",
    "check_support",
    "contrastive_bounds",
    "exact_information",
    "expected_information_gain",
    "goal_of",
    "history_log_likelihood",
    "information_of_history",
    "infonce_bound",
    "laplace_information",
    "log_likelihood",
    "marginal_bound",
    "nuisance_bounds",
    "nwj_bound",
    "posterior_bound",
    "sequence_bounds",
    "simulate_outcomes",
]
