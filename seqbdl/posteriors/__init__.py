"""What inference returns: distributions over functions, and how they change with new observations."""

from seqbdl.posteriors.function_draws import FunctionDraws
from seqbdl.posteriors.joint_gaussian import JointGaussian
from seqbdl.posteriors.particle_update import ParticleUpdate, condition_particles, reweight_particles
from seqbdl.posteriors.particles import ParticlePosterior
from seqbdl.posteriors.prediction import Prediction

__all__ = [
    "FunctionDraws",
    "JointGaussian",
    "ParticlePosterior",
    "ParticleUpdate",
    "Prediction",
    "condition_particles",
    "reweight_particles",
]
