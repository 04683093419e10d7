"""One posterior, every decision: Bayesian deep-learning surrogates behind one interface, for sequential decisions."""

from seqbdl.posteriors import FunctionDraws, Prediction
from seqbdl.surrogates import Surrogate, list_surrogates, load, make_surrogate, save

__version__ = "0.1.0"

__all__ = [
    "FunctionDraws",
    "Prediction",
    "Surrogate",
    "__version__",
    "list_surrogates",
    "load",
    "make_surrogate",
    "save",
]
