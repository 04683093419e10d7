"""Networks as functions of stacked weight vectors."""

from seqbdl.networks.affine import AffineNetwork, masked
from seqbdl.networks.frozen import FrozenSum
from seqbdl.networks.jacobian_rows import DenseRows, JacobianRows
from seqbdl.networks.linear import LinearHead
from seqbdl.networks.mlp import MLP
from seqbdl.networks.module import HeadedNetwork, ModuleNetwork
from seqbdl.networks.multi_head import MultiHeadMLP
from seqbdl.networks.network import Network, Tangents, WeightBlock
from seqbdl.networks.relative import RelativeNetwork
from seqbdl.networks.tangent import TangentNetwork

__all__ = [
    "AffineNetwork",
    "DenseRows",
    "FrozenSum",
    "HeadedNetwork",
    "JacobianRows",
    "LinearHead",
    "MLP",
    "ModuleNetwork",
    "MultiHeadMLP",
    "Network",
    "RelativeNetwork",
    "TangentNetwork",
    "Tangents",
    "WeightBlock",
    "masked",
]
