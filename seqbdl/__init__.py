"""One posterior, every decision: Bayesian deep-learning surrogates behind one interface, for sequential decisions."""

import seqbdl.envs  # noqa: F401  (registers the environments with Gymnasium)
from seqbdl.optimize import OptimizeResult, optimize
from seqbdl.posteriors import FunctionDraws, Prediction
from seqbdl.surrogates import Surrogate, list_surrogates, load, make_surrogate, prior_from, register, save

__version__ = "0.1.0"

__all__ = [
    "FunctionDraws",
    "OptimizeResult",
    "Prediction",
    "Surrogate",
    "__version__",
    "list_surrogates",
    "load",
    "make_surrogate",
    "optimize",
    "prior_from",
    "register",
    "save",
]
