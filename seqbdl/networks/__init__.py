"""Networks as functions of stacked weight vectors."""

from seqbdl.networks.mlp import MLP
from seqbdl.networks.module import HeadedNetwork, ModuleNetwork
from seqbdl.networks.network import Network, Tangents
from seqbdl.networks.relative import RelativeNetwork

__all__ = ["MLP", "HeadedNetwork", "ModuleNetwork", "Network", "RelativeNetwork", "Tangents"]
