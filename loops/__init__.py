"""Sequential decision loops: ask, tell, update; and the driver that runs them in environments."""

from seqbdl.loops.active_learning import ActiveLearningLoop
from seqbdl.loops.bandit import BanditLoop
from seqbdl.loops.bandit_history import BanditHistory, Decision
from seqbdl.loops.bayes_opt import BayesOptLoop
from seqbdl.loops.callbacks import Callback, Checkpoint, EarlyStopping, TensorBoard
from seqbdl.loops.candidates import CandidateSpace
from seqbdl.loops.changes import BOCD, AdaptiveForgetting, ChangeRule, Forgetting, SoftReset, TemperedBeam
from seqbdl.loops.choices import Categorical, Ordinal
from seqbdl.loops.continual import ContinualLoop
from seqbdl.loops.design_history import DesignHistory
from seqbdl.loops.design_policy import train_policy
from seqbdl.loops.design_search import DesignSettings
from seqbdl.loops.experiment_design import ExperimentDesignLoop
from seqbdl.loops.history import History, Record
from seqbdl.loops.label_pool import LabelPool
from seqbdl.loops.learning_history import CurvePoint, LearningHistory
from seqbdl.loops.learning_stopping import LearningStop
from seqbdl.loops.parameters import Integer, Parameter, Real
from seqbdl.loops.proposals import SpaceExhaustedError
from seqbdl.loops.run import Loop, run
from seqbdl.loops.space import Point, Space
from seqbdl.loops.transfer import Trust, trust

__all__ = [
    "ActiveLearningLoop",
    "AdaptiveForgetting",
    "BOCD",
    "BanditHistory",
    "BanditLoop",
    "BayesOptLoop",
    "Callback",
    "CandidateSpace",
    "Categorical",
    "ChangeRule",
    "Checkpoint",
    "ContinualLoop",
    "CurvePoint",
    "Decision",
    "DesignHistory",
    "DesignSettings",
    "EarlyStopping",
    "ExperimentDesignLoop",
    "Forgetting",
    "History",
    "Integer",
    "LabelPool",
    "LearningHistory",
    "LearningStop",
    "Loop",
    "Ordinal",
    "Parameter",
    "Point",
    "Real",
    "Record",
    "SoftReset",
    "Space",
    "SpaceExhaustedError",
    "TemperedBeam",
    "TensorBoard",
    "Trust",
    "run",
    "train_policy",
    "trust",
]
