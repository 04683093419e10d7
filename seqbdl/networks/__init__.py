"""Networks as functions of stacked weight vectors."""

from seqbdl.networks.mlp import MLP
from seqbdl.networks.module import ModuleNetwork
from seqbdl.networks.network import Network, Tangents

__all__ = ["MLP", "ModuleNetwork", "Network", "Tangents"]
