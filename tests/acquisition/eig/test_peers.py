"""The same information as Pyro's estimators, where Pyro is installed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from seqbdl.acquisition.eig import expected_information_gain
from seqbdl.envs.design_models import LinearGaussian

DESIGNS = torch.tensor([[0.5], [1.0], [3.0]], dtype=torch.float64)
LINE = LinearGaussian(dim=1, scale=2.0, noise=1.0)


def test_nested_monte_carlo_of_pyro() -> None:
    """Both are the same upper bound with 400 inner draws, from draws of their own; at 3 it has a bias above the truth."""
    pyro = pytest.importorskip("pyro")
    eig = pytest.importorskip("pyro.contrib.oed.eig")
    normal = pyro.distributions.Normal

    def model(design: Any) -> Any:
        with pyro.plate_stack("designs", design.shape[:-1]):
            theta = pyro.sample("theta", normal(torch.zeros(design.shape[:-1], dtype=torch.float64), LINE.scale))
            return pyro.sample("y", normal(design[..., 0] * theta, LINE.noise))

    with torch.random.fork_rng(), pyro.validation_enabled(True):
        torch.manual_seed(0)
        theirs = torch.stack([eig.nmc_eig(model, DESIGNS, "y", "theta", N=1000, M=400) for _ in range(10)])
    ours = expected_information_gain(
        LINE,
        DESIGNS,
        method="contrastive",
        num_outer=10_000,
        num_inner=400,
        num_batches=20,
        generator=torch.Generator().manual_seed(0),
    )
    assert ours.upper is not None
    error = (theirs.var(0) / len(theirs) + ours.standard_error**2).sqrt()
    assert bool(((ours.upper - theirs.mean(0)).abs() < 4 * error).all())
    truth = torch.stack([LINE.information(design.unsqueeze(0)) for design in DESIGNS])
    assert bool((theirs.mean(0) > truth - 4 * error).all())
