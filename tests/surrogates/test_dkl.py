"""``dkl``: better than the plain process where a network helps, never worse elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.datasets import load_diabetes
from torch import Tensor, nn

import seqbdl
from seqbdl.surrogates import DKLSurrogate

BOUNDS = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)


def make(name: str = "dkl", **options: Any) -> seqbdl.Surrogate:
    return seqbdl.make_surrogate(name, 2, **{"bounds": BOUNDS, **options})


def steps(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """A step across the diagonal: no stationary kernel along the axes expresses it."""
    generator = torch.Generator().manual_seed(seed)
    X = torch.rand(n, 2, generator=generator, dtype=torch.float64)
    Y = torch.sign(X.sum(-1, keepdim=True) - 1.0)
    return X, Y + 0.05 * torch.randn(n, 1, generator=generator, dtype=torch.float64)


def log_density(surrogate: seqbdl.Surrogate, X: Tensor, Y: Tensor) -> float:
    """Mean test log density of single observations."""
    prediction = surrogate.predict(X)
    return float(torch.distributions.Normal(prediction.mean, prediction.std).log_prob(Y).mean())


def learned(surrogate: seqbdl.Surrogate) -> bool:
    """Whether the network takes part: otherwise the kernel is the plain one."""
    state = surrogate.save_state()["method"]["hyper"]
    return bool(state["gate"] > 0)


def test_a_step_is_learned_where_the_network_helps() -> None:
    X, Y = steps(80, 0)
    X_test, Y_test = steps(400, 1)
    dkl, gp = make().fit(X, Y), make("gp").fit(X, Y)
    assert learned(dkl)
    assert log_density(dkl, X_test, Y_test) > log_density(gp, X_test, Y_test) + 0.1


@pytest.mark.parametrize("case", ["few rows", "no steps", "noise"])
def test_where_it_does_not_help_it_is_gp_exactly(case: str) -> None:
    X, Y = steps(7 if case == "few rows" else 24, 0)
    if case == "noise":
        Y = torch.randn(Y.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    dkl = make(max_steps=0 if case == "no steps" else 200).fit(X, Y)
    if case == "noise" and learned(dkl):
        pytest.fail("a network was found in pure noise")
    gp, X_test = make("gp").fit(X, Y), steps(10, 1)[0]
    ours, theirs = dkl.posterior(X_test), gp.posterior(X_test)
    torch.testing.assert_close(ours.mean, theirs.mean, rtol=0, atol=1e-9)
    torch.testing.assert_close(ours.distribution.covariance_matrix, theirs.distribution.covariance_matrix, rtol=0, atol=1e-9)
    assert dkl.log_evidence() == pytest.approx(gp.log_evidence(), abs=1e-6)


@pytest.mark.parametrize("seed", [0, 1])
def test_no_worse_than_gp_on_measured_data(seed: int) -> None:
    """Diabetes progression, 442 patients, ten measurements: 200 rows to learn from, the rest to test."""
    inputs, outcomes = load_diabetes(return_X_y=True)
    X, Y = torch.from_numpy(inputs).double(), torch.from_numpy(outcomes).double().unsqueeze(-1)
    order = torch.randperm(442, generator=torch.Generator().manual_seed(seed))
    train, test = order[:200], order[200:]
    scores = {
        name: log_density(seqbdl.make_surrogate(name, 10).fit(X[train], Y[train]), X[test], Y[test]) for name in ("gp", "dkl")
    }
    assert scores["dkl"] > scores["gp"] - 0.1


class Extractor(nn.Module):
    """A small convolution over the inputs: reshapes inside."""

    def __init__(self, num_features: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 4, 2)
        self.head = nn.Linear(4, num_features)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(3 * self.conv(x.unsqueeze(1))).flatten(1))
        return out


@pytest.mark.parametrize("factory", [False, True])
def test_a_module_as_extractor(factory: bool, tmp_path: Path) -> None:
    X, Y = steps(60, 0)
    module = Extractor().train()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    surrogate = make(network=(lambda: module) if factory else module, num_features=3, max_steps=60).fit(X, Y)
    assert isinstance(surrogate, DKLSurrogate)
    assert learned(surrogate)
    assert surrogate.features(X).shape == (1, 60, 2 + 3)
    assert module.training
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())
    assert list(surrogate.parameters()) == []  # the module is not a part of the surrogate
    X_test, Y_test = steps(200, 1)
    assert log_density(surrogate, X_test, Y_test) > log_density(make("gp").fit(X, Y), X_test, Y_test)
    seqbdl.save(tmp_path / "s", surrogate)
    loaded = seqbdl.load(tmp_path / "s", network=Extractor())
    assert torch.equal(loaded.posterior(X_test).mean, surrogate.posterior(X_test).mean)


def test_extractors_with_another_number_of_features_are_refused() -> None:
    with pytest.raises(ValueError, match="must map N x d to N x 4"):
        make(network=Extractor())


def test_it_trains_inside_no_grad_and_from_its_own_randomness() -> None:
    X, Y = steps(40, 0)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = make(max_steps=30, seed=3).fit(X, Y)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(2)
    second = make(max_steps=30, seed=3).fit(X, Y)
    assert torch.equal(first.posterior(X).mean, second.posterior(X).mean)


def test_two_outputs_share_the_warp_and_have_lengthscales_of_their_own() -> None:
    X, Y = steps(50, 0)
    both = seqbdl.make_surrogate("dkl", 2, 2, bounds=BOUNDS, max_steps=60).fit(X, torch.cat([Y, X[:, :1]], 1))
    hyper = both.save_state()["method"]["hyper"]
    assert hyper["lengthscale"].shape == (2, 2)
    assert hyper["weights"].dim() == 1
    draws = both.sample_functions(400, torch.Generator().manual_seed(0))(X[:5])
    posterior = both.posterior(X[:5])
    deviation = posterior.variance.sqrt()
    assert float(((draws.mean(0) - posterior.mean) / deviation).abs().max()) < 4.5 / 400**0.5


def test_updates_are_exact_under_the_learned_kernel() -> None:
    X, Y = steps(50, 0)
    surrogate = make(max_steps=60).fit(X[:40], Y[:40])
    conditioned = surrogate.condition_on_observations(X[40:], Y[40:])
    X_test = steps(10, 1)[0]
    expected = conditioned.posterior(X_test)
    updated = surrogate.update(X[40:45], Y[40:45]).update(X[45:], Y[45:]).posterior(X_test)
    torch.testing.assert_close(updated.mean, expected.mean, rtol=0, atol=1e-7)
    torch.testing.assert_close(updated.variance, expected.variance, rtol=0, atol=1e-7)
