"""What inference returns: distributions over functions, and how they change with new observations."""

from seqbdl.posteriors.function_draws import FunctionDraws
from seqbdl.posteriors.gaussian_weights import GaussianWeights
from seqbdl.posteriors.joint_gaussian import JointGaussian
from seqbdl.posteriors.kronecker import Kronecker
from seqbdl.posteriors.operators import Dense, Diagonal, Inverse, LowRank, PositiveOperator
from seqbdl.posteriors.particle_update import ParticleUpdate, condition_particles, reweight_particles
from seqbdl.posteriors.particles import ParticlePosterior
from seqbdl.posteriors.prediction import Prediction

__all__ = [
    "Dense",
    "Diagonal",
    "FunctionDraws",
    "GaussianWeights",
    "Inverse",
    "JointGaussian",
    "Kronecker",
    "LowRank",
    "ParticlePosterior",
    "ParticleUpdate",
    "PositiveOperator",
    "Prediction",
    "condition_particles",
    "reweight_particles",
]
