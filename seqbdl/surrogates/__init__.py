"""What plugs into loops: BoTorch models that share one contract."""

from seqbdl.surrogates import dispatch as dispatch
from seqbdl.surrogates.anchored_ensemble import AnchoredEnsembleSurrogate
from seqbdl.surrogates.base import Surrogate
from seqbdl.surrogates.bayesian_last_layer import BayesianLastLayerSurrogate
from seqbdl.surrogates.carry import prior_from
from seqbdl.surrogates.continual import ContinualSurrogate
from seqbdl.surrogates.csghmc import CSGHMCSurrogate
from seqbdl.surrogates.dkl import DKLSurrogate
from seqbdl.surrogates.dkm import DKMSurrogate
from seqbdl.surrogates.due import DUESurrogate
from seqbdl.surrogates.dwp import DWPSurrogate
from seqbdl.surrogates.ekf import EKFSurrogate
from seqbdl.surrogates.ensemble import EnsembleSurrogate
from seqbdl.surrogates.ensemble_plus import EnsemblePlusSurrogate
from seqbdl.surrogates.epinet import EpinetSurrogate
from seqbdl.surrogates.fsvi import FSVISurrogate
from seqbdl.surrogates.gp import GPSurrogate
from seqbdl.surrogates.hmc import HMCSurrogate
from seqbdl.surrogates.hypermodel import HypermodelSurrogate
from seqbdl.surrogates.ivon import IVONSurrogate
from seqbdl.surrogates.laplace import LaplaceSurrogate
from seqbdl.surrogates.last_layer_laplace import LastLayerLaplaceSurrogate
from seqbdl.surrogates.lofi import LoFiSurrogate
from seqbdl.surrogates.mc_dropout import MCDropoutSurrogate
from seqbdl.surrogates.mfvi import MFVISurrogate
from seqbdl.surrogates.nngp import NNGPSurrogate
from seqbdl.surrogates.registry import (
    list_surrogates,
    load,
    make_surrogate,
    register,
    save,
    surrogate_class,
    surrogate_options,
)
from seqbdl.surrogates.repulsive_ensemble import RepulsiveEnsembleSurrogate
from seqbdl.surrogates.sghmc import SGHMCSurrogate
from seqbdl.surrogates.sgld import SGLDSurrogate
from seqbdl.surrogates.subnetwork_laplace import SubnetworkLaplaceSurrogate
from seqbdl.surrogates.subspace import SubspaceSurrogate
from seqbdl.surrogates.svgd import SVGDSurrogate
from seqbdl.surrogates.swag import MultiSwagSurrogate, SwagSurrogate
from seqbdl.surrogates.vbll import VBLLSurrogate

for _cls in (
    GPSurrogate,
    NNGPSurrogate,
    EnsembleSurrogate,
    AnchoredEnsembleSurrogate,
    EnsemblePlusSurrogate,
    RepulsiveEnsembleSurrogate,
    SVGDSurrogate,
    LaplaceSurrogate,
    LastLayerLaplaceSurrogate,
    SubnetworkLaplaceSurrogate,
    BayesianLastLayerSurrogate,
    HMCSurrogate,
    SGLDSurrogate,
    SGHMCSurrogate,
    CSGHMCSurrogate,
    DKLSurrogate,
    DKMSurrogate,
    DUESurrogate,
    DWPSurrogate,
    EKFSurrogate,
    LoFiSurrogate,
    MFVISurrogate,
    IVONSurrogate,
    FSVISurrogate,
    VBLLSurrogate,
    SwagSurrogate,
    MultiSwagSurrogate,
    SubspaceSurrogate,
    MCDropoutSurrogate,
    EpinetSurrogate,
    HypermodelSurrogate,
    ContinualSurrogate,
):
    register(_cls)

__all__ = [
    "ContinualSurrogate",
    "HypermodelSurrogate",
    "EpinetSurrogate",
    "CSGHMCSurrogate",
    "SGHMCSurrogate",
    "SGLDSurrogate",
    "MCDropoutSurrogate",
    "MultiSwagSurrogate",
    "SubspaceSurrogate",
    "SwagSurrogate",
    "FSVISurrogate",
    "VBLLSurrogate",
    "IVONSurrogate",
    "MFVISurrogate",
    "AnchoredEnsembleSurrogate",
    "EnsemblePlusSurrogate",
    "RepulsiveEnsembleSurrogate",
    "SVGDSurrogate",
    "LoFiSurrogate",
    "EKFSurrogate",
    "BayesianLastLayerSurrogate",
    "DKLSurrogate",
    "DKMSurrogate",
    "DUESurrogate",
    "DWPSurrogate",
    "HMCSurrogate",
    "LaplaceSurrogate",
    "LastLayerLaplaceSurrogate",
    "SubnetworkLaplaceSurrogate",
    "EnsembleSurrogate",
    "GPSurrogate",
    "NNGPSurrogate",
    "Surrogate",
    "list_surrogates",
    "load",
    "make_surrogate",
    "prior_from",
    "register",
    "save",
    "surrogate_class",
    "surrogate_options",
]
