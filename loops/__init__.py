"""Sequential decision loops: ask, tell, update; and the driver that runs them in environments."""

from seqbdl.loops.bayes_opt import BayesOptLoop
from seqbdl.loops.candidates import CandidateSpace
from seqbdl.loops.history import History, Record
from seqbdl.loops.parameters import Categorical, Integer, Ordinal, Parameter, Real
from seqbdl.loops.proposals import SpaceExhaustedError
from seqbdl.loops.space import Point, Space

__all__ = [
    "BayesOptLoop",
    "CandidateSpace",
    "Categorical",
    "History",
    "Integer",
    "Ordinal",
    "Parameter",
    "Point",
    "Real",
    "Record",
    "Space",
    "SpaceExhaustedError",
]
