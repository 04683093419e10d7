"""Sequential decision loops: ask, tell, update; and the driver that runs them in environments."""

from seqbdl.loops.bayes_opt import BayesOptLoop
from seqbdl.loops.callbacks import Callback, Checkpoint, EarlyStopping, TensorBoard
from seqbdl.loops.candidates import CandidateSpace
from seqbdl.loops.choices import Categorical, Ordinal
from seqbdl.loops.history import History, Record
from seqbdl.loops.parameters import Integer, Parameter, Real
from seqbdl.loops.proposals import SpaceExhaustedError
from seqbdl.loops.run import Loop, run
from seqbdl.loops.space import Point, Space

__all__ = [
    "BayesOptLoop",
    "Callback",
    "CandidateSpace",
    "Categorical",
    "Checkpoint",
    "EarlyStopping",
    "History",
    "Integer",
    "Loop",
    "Ordinal",
    "Parameter",
    "Point",
    "Real",
    "Record",
    "Space",
    "SpaceExhaustedError",
    "TensorBoard",
    "run",
]
