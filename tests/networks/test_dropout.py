"""Units switched off: as factors on weights, and row by row."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from seqbdl.errors import InvalidOptionError
from seqbdl.networks import MLP, LinearHead, ModuleNetwork, Network
from seqbdl.networks.activations import activate, centred
from seqbdl.networks.dropout import dropout_forward, weight_factors


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def points(n: int, d: int = 4) -> Tensor:
    return torch.rand(n, d, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def mlp(branches: int = 1) -> MLP:
    return MLP((5, 3), torch.linspace(0.5, 2, 4).double(), torch.ones(2).double(), torch.ones(3).double(), 2, "erf", branches)


class Convolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 3, 2)
        self.second = nn.Conv1d(3, 2, 2)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.second(torch.tanh(self.conv(x.unsqueeze(1)))))
        out: Tensor = self.head(self.norm(h.flatten(1)))
        return out


NETWORKS: dict[str, Network] = {
    "mlp": mlp(),
    "branches": mlp(2),
    "module": ModuleNetwork(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)), 4, 2),
    "convolution": ModuleNetwork(Convolution(), 4, 2),
}
UNITS = {"mlp": 8, "branches": 16, "module": 6, "convolution": 3 + 4}


@pytest.mark.parametrize("name", NETWORKS)
def test_one_mask_for_all_rows_is_a_network_with_zeroed_weights(name: str) -> None:
    network = NETWORKS[name]
    assert network.num_units == UNITS[name]
    z, X = normals(3, network.num_params), points(5)
    keep = (normals(3, network.num_units, seed=2) > 0).double() * 1.7
    rows = dropout_forward(network, z, X, keep.unsqueeze(1).expand(-1, 5, -1))
    torch.testing.assert_close(rows, network.forward(z * weight_factors(network, keep), X))
    ones = torch.ones_like(keep)
    torch.testing.assert_close(weight_factors(network, ones), torch.ones_like(z))


@pytest.mark.parametrize("name", NETWORKS)
def test_rows_have_masks_of_their_own(name: str) -> None:
    network = NETWORKS[name]
    z, X = normals(2, network.num_params), points(4)
    keep = (normals(2, 4, network.num_units, seed=2) > 0).double()
    together = dropout_forward(network, z, X, keep)
    for row in range(4):
        alone = network.forward(z * weight_factors(network, keep[:, row]), X[row : row + 1])
        torch.testing.assert_close(together[:, row : row + 1], alone)


def test_a_unit_of_an_mlp_that_is_off_sends_nothing() -> None:
    """Written out layer by layer, without the network's own forward pass."""
    network = mlp()
    z, X = normals(1, network.num_params), points(6)
    keep = torch.tensor([[0.0, 1, 1, 0, 1, 1, 0, 1]]).double()
    layers = network.layers(z)
    h = centred(X) * torch.linspace(0.5, 2, 4).double().sqrt()
    for (w, b), mask in zip(layers[:-1], keep[0].split([5, 3]), strict=True):
        h = activate(h @ w[0, 0] + b[0, 0], "erf") * mask
    expected = h @ layers[-1][0][0, 0] + layers[-1][1][0, 0]
    torch.testing.assert_close(network.forward(z * weight_factors(network, keep), X)[0], expected)


@pytest.mark.parametrize("name", ["mlp", "branches", "module"])
def test_inputs_that_are_off_count_for_nothing(name: str) -> None:
    """An input is off when it stands in the middle of its range, where networks see zero."""
    network = NETWORKS[name]
    z, X = normals(2, network.num_params), points(5)
    inputs = torch.tensor([[1.0, 0, 1, 1], [0, 1, 1, 0]]).double()
    keep = torch.ones(2, network.num_units).double()
    values = network.forward(z * weight_factors(network, keep, inputs), X)
    for member in range(2):
        middle = torch.where(inputs[member] == 0, 0.5, X)
        torch.testing.assert_close(values[member], network.forward(z[member : member + 1], middle)[0])
    per_row = dropout_forward(network, z, X, keep.unsqueeze(1).expand(-1, 5, -1), inputs.unsqueeze(1).expand(-1, 5, -1))
    torch.testing.assert_close(per_row, values)


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_reach_the_weights(name: str) -> None:
    network = NETWORKS[name]
    z = normals(2, network.num_params).requires_grad_(True)
    keep = (normals(2, 3, network.num_units, seed=2) > 0).double()
    assert torch.autograd.gradcheck(lambda w: dropout_forward(network, w, points(3), keep), (z,), fast_mode=True)


def test_networks_without_units_are_refused() -> None:
    head = LinearHead(lambda X: X, 4, 4, 1)
    with pytest.raises(InvalidOptionError, match="LinearHead"):
        dropout_forward(head, normals(1, 4), points(2), torch.ones(1, 2, 0).double())
    assert ModuleNetwork(nn.Linear(4, 1), 4).num_units == 0
    with pytest.raises(InvalidOptionError, match="input_rate"):
        weight_factors(NETWORKS["convolution"], torch.ones(1, 7).double(), torch.ones(1, 4).double())
