"""The full Laplace posterior against that of laplace-torch, where it is installed: evidence, means and variances."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from seqbdl.inference import laplace as ours
from seqbdl.inference.gauss_newton import GaussNewtonSettings
from seqbdl.inference.laplace import Rows, Tuning
from seqbdl.likelihoods import get_likelihood
from seqbdl.networks import ModuleNetwork

theirs = pytest.importorskip("laplace", reason="laplace-torch is an optional peer")


@pytest.mark.parametrize("likelihood", ["gaussian", "categorical"])
def test_same_evidence_and_predictions(likelihood: str) -> None:
    generator = torch.Generator().manual_seed(0)
    m = 1 if likelihood == "gaussian" else 3
    X = torch.rand(40, 2, generator=generator, dtype=torch.float64)
    Y = torch.sin(5 * X[:, :1]) if m == 1 else (X[:, :1] * 2.999).floor()
    model = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, m)).double()
    network = ModuleNetwork(model, 2, m)
    start = torch.randn(1, network.num_params, generator=generator, dtype=torch.float64)
    data = Rows(get_likelihood(likelihood), X, Y, torch.full((40, m), 0.01, dtype=torch.float64))
    zero, settings = torch.zeros_like(start), GaussNewtonSettings(max_iterations=50)
    found = ours.fit_laplace(network, data, zero, start, "full", settings, Tuning()).posterior
    with torch.no_grad():
        values = (network._scale * found.z[0]).split([p.numel() for p in model.parameters()])
        for parameter, value in zip(model.parameters(), values, strict=True):
            parameter.copy_(value.reshape(parameter.shape))
    options = {"sigma_noise": torch.tensor(0.1, dtype=torch.float64)} if m == 1 else {}
    peer = theirs.Laplace(
        model,
        "regression" if m == 1 else "classification",
        subset_of_weights="all",
        hessian_structure="full",
        prior_precision=1 / network._scale**2,
        **options,
    )
    peer.fit(DataLoader(TensorDataset(2 * X - 1, Y if m == 1 else Y.squeeze(-1).long()), batch_size=40))
    assert abs(float(peer.log_marginal_likelihood()) - float(found.log_evidence)) < 1e-4
    query = torch.rand(10, 2, generator=generator, dtype=torch.float64)
    mean, covariance = peer._glm_predictive_distribution(2 * query - 1)
    joint = ours.joint(network, found, query.unsqueeze(-2))
    torch.testing.assert_close(mean, joint.mean.squeeze(-2), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(covariance, joint.covariance.squeeze(-3), rtol=1e-4, atol=1e-8)
