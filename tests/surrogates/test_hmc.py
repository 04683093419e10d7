"""``hmc``: samples of linear networks are those of the exact posterior; updates re-weight, then move."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import seqbdl
from seqbdl.surrogates import HMCSurrogate

BOUNDS = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
X_TEST = torch.rand(5, 2, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
CHAINS, SAMPLES = 150, 10
ESS = CHAINS * SAMPLES * 0.3


def data(n: int = 20) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    X = torch.rand(n, 2, generator=generator, dtype=torch.float64)
    Y = 5 + X @ torch.tensor([[2.0], [1.0]]).double()
    return X, Y + 0.5 * torch.randn(n, 1, generator=generator, dtype=torch.float64)


def make(**options: Any) -> HMCSurrogate:
    settings = {
        "bounds": BOUNDS,
        "network": nn.Linear(2, 1),
        "num_chains": CHAINS,
        "num_members": CHAINS * SAMPLES,
        "samples": SAMPLES,
        **options,
    }
    surrogate = seqbdl.make_surrogate("hmc", 2, **settings)
    assert isinstance(surrogate, HMCSurrogate)
    return surrogate


def assert_exact(surrogate: HMCSurrogate, X: Tensor, Y: Tensor) -> None:
    scaling = surrogate.save_state()["scaling"]
    mean, std = scaling["y_mean"], scaling["y_std"]

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return std**2 * ((2 * a - 1) @ (2 * b - 1).T / 2 + 1)

    C, cross = kernel(X, X) + 0.25 * torch.eye(X.shape[0]).double(), kernel(X_TEST, X)
    expected = mean + (cross @ torch.linalg.solve(C, Y - mean)).squeeze(-1)
    covariance = kernel(X_TEST, X_TEST) - cross @ torch.linalg.solve(C, cross.T)
    posterior, deviation = surrogate.posterior(X_TEST), covariance.diagonal().sqrt()
    ess = min(ESS, float(surrogate.effective_sample_size) * 0.3)
    assert float(((posterior.mean[:, 0] - expected) / deviation).abs().max()) < 4.5 / ess**0.5
    ours = posterior.distribution.covariance_matrix / torch.outer(deviation, deviation)
    assert float((ours - covariance / torch.outer(deviation, deviation)).abs().max()) < 4.5 * (2 / ess) ** 0.5


def test_a_linear_network_has_its_exact_posterior() -> None:
    X, Y = data()
    surrogate = make(noise=0.25).fit(X, Y)
    assert_exact(surrogate, X, Y)
    assert surrogate.report is not None
    assert surrogate.report.divergences == 0
    assert surrogate.report.values.shape == (SAMPLES, CHAINS, 20, 1)


def test_updates_reweight_and_then_move() -> None:
    X, Y = data()
    surrogate = make(noise=0.25).fit(X[:15], Y[:15])
    particles = surrogate.save_state()["method"]["z"]
    Y[15:16] = surrogate.posterior(X[15:16]).mean + 0.1  # no surprise
    surrogate.update(X[15:16], Y[15:16])
    assert torch.equal(surrogate.save_state()["method"]["z"], particles)  # one row: weights suffice
    assert float(surrogate.effective_sample_size) < CHAINS * SAMPLES
    assert_exact(surrogate, X[:16], Y[:16])
    far = torch.tensor([[1.0, 1.0]]).double().expand(8, 2)
    surrogate.update(far, torch.full((8, 1), 12.0).double())  # eight rows far off: particles move
    assert not torch.equal(surrogate.save_state()["method"]["z"], particles)
    torch.testing.assert_close(surrogate.effective_sample_size, torch.tensor(float(CHAINS * SAMPLES)).double())
    assert_exact(surrogate, torch.cat([X[:16], far]), torch.cat([Y[:16], torch.full((8, 1), 12.0).double()]))


def test_particles_meet_new_rows_with_their_own_noise() -> None:
    X, Y = data()
    surrogate = make().fit(X[:18], Y[:18])
    state = surrogate.save_state()
    z, noise = state["method"]["z"], state["method"]["own"]["member_noise"]
    scaling = state["scaling"]
    x, y = X[18:19], (Y[18:19] - scaling["y_mean"]) / scaling["y_std"]
    weight, bias = z[:, :2] / 2**0.5, z[:, 2:]
    values = (weight * (2 * x - 1)).sum(-1, keepdim=True) + bias
    expected = torch.distributions.Normal(values, noise.sqrt()).log_prob(y).squeeze(-1).softmax(0)
    surrogate.update(X[18:19], Y[18:19])
    ours = surrogate.save_state()["method"]["log_weights"].softmax(0)
    torch.testing.assert_close(ours, expected, rtol=1e-8, atol=1e-12)
    assert float(noise.std()) > 0


def test_sampled_noise_is_near_the_truth() -> None:
    X, Y = data(150)
    surrogate = make(num_chains=20, num_members=200).fit(X, Y)
    # 0.25, a variance from about 147 degrees of freedom
    assert abs(float(surrogate.noise_variance) / 0.25 - 1) < 4 * (2 / 147) ** 0.5
    fixed = make(num_chains=20, num_members=200, sample_noise=False).fit(X, Y)
    assert float(fixed.save_state()["method"]["own"]["member_noise"].std()) < 1e-12


def test_memory_is_capped() -> None:
    X, Y = data(100)
    surrogate = make(network=(8,), num_chains=8, num_members=16, samples=2, memory=25).fit(X[:20], Y[:20])
    for x, y in zip(X[20:].split(20), Y[20:].split(20), strict=True):
        surrogate.update(x, y)
        assert surrogate.save_state()["method"]["memory"][0].shape[0] <= 25
    error = surrogate.posterior(X_TEST).mean - (5 + X_TEST @ torch.tensor([[2.0], [1.0]]).double())
    assert float(error.abs().max()) < 0.75


def test_refits_start_from_the_last_posterior() -> None:
    X, Y = data()
    surrogate = make(network=(8,), num_chains=8, num_members=16, samples=2)
    first = surrogate.fit(X, Y).posterior(X_TEST).mean
    again = surrogate.fit(X, Y).posterior(X_TEST)
    assert float(((again.mean - first) / again.variance.sqrt()).abs().max()) < 3.0
