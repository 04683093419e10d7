"""``last-layer-laplace`` against Bayesian linear regression on its own features, and on labels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import seqbdl
from seqbdl.errors import InvalidOptionError
from seqbdl.likelihoods import get_likelihood

BOUNDS = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
X_TEST = torch.rand(6, 2, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def data(n: int = 30, m: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    X = torch.rand(n, 2, generator=generator, dtype=torch.float64)
    Y = 5 + torch.sin(4 * X @ torch.tensor([[2.0, -1.0], [1.0, 3.0]]).double()[:, :m])
    return X, Y + 0.2 * torch.randn(n, m, generator=generator, dtype=torch.float64)


def make(m: int = 1, likelihood: str = "gaussian", **options: object) -> seqbdl.Surrogate:
    settings = {"bounds": BOUNDS, "network": (8,), "num_networks": 2, **options}
    return seqbdl.make_surrogate("last-layer-laplace", 2, m, likelihood, **settings)


def features(surrogate: seqbdl.Surrogate, X: Tensor) -> Tensor:
    values: Tensor = getattr(surrogate, "features")(X)  # noqa: B009 - not in the base class
    return values * surrogate.save_state()["method"]["scale"]


def regression(surrogate: seqbdl.Surrogate, X: Tensor, Y: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of every output: mean and covariance at ``X_TEST`` and the log marginal likelihood, in the units of ``Y``; as a Gaussian
    process with the kernel of the features. ``variance: n x m`` in squared units of ``Y``."""
    scaling = surrogate.save_state()["scaling"]
    shift, scale = scaling["y_mean"], scaling["y_std"]
    phi, phi_test = features(surrogate, X), features(surrogate, X_TEST)
    means, covariances, evidence = [], [], torch.zeros(()).double()
    for o in range(Y.shape[1]):
        C = scale[o] ** 2 * phi @ phi.T + torch.diag(variance[:, o])
        cross = scale[o] ** 2 * phi_test @ phi.T
        means.append(shift[o] + cross @ torch.linalg.solve(C, Y[:, o] - shift[o]))
        covariances.append(scale[o] ** 2 * phi_test @ phi_test.T - cross @ torch.linalg.solve(C, cross.T))
        evidence += torch.distributions.MultivariateNormal(shift[o].expand(X.shape[0]), C).log_prob(Y[:, o])
    return torch.stack(means, -1), torch.stack(covariances), evidence


def assert_regression(surrogate: seqbdl.Surrogate, X: Tensor, Y: Tensor, variance: Tensor) -> None:
    mean, covariance, evidence = regression(surrogate, X, Y, variance)
    posterior = surrogate.posterior(X_TEST)
    torch.testing.assert_close(posterior.mean, mean, rtol=0, atol=1e-6)
    dense = posterior.distribution.covariance_matrix
    if Y.shape[1] > 1:  # point-major
        dense = torch.stack([dense[o :: Y.shape[1], o :: Y.shape[1]] for o in range(Y.shape[1])])
    torch.testing.assert_close(dense.reshape(covariance.shape), covariance, rtol=0, atol=1e-6)
    ours = surrogate.log_evidence()
    assert ours is not None
    assert abs(ours - float(evidence)) < 1e-5


@pytest.mark.parametrize("n", [10, 60])
@pytest.mark.parametrize("m", [1, 2])
def test_it_is_bayesian_linear_regression_on_its_features(m: int, n: int) -> None:
    """Fewer rows than features, and more; learned noise and precision."""
    X, Y = data(n, m)
    surrogate = make(m).fit(X, Y)
    assert_regression(surrogate, X, Y, surrogate.noise_variance.expand_as(Y))


def test_every_row_and_output_has_its_own_noise() -> None:
    X, Y = data(30, 2)
    variance = 0.05 + torch.rand(30, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert_regression(make(2).fit(X, Y, variance), X, Y, variance)


@pytest.mark.parametrize("chunks", [(1, 1, 18), (20,), (7, 13)])
def test_online_is_batch(chunks: tuple[int, ...]) -> None:
    """Under features, noise and precision of the first fit: mean, covariance and evidence, through both forms of the
    curvature (eighteen weights)."""
    X, Y = data(30, 2)
    surrogate = make(2, noise=0.04).fit(X[:10], Y[:10])
    for rows in torch.arange(10, 30).split(chunks):
        surrogate.update(X[rows], Y[rows])
    assert_regression(surrogate, X, Y, torch.full((30, 2), 0.04).double())


def test_a_second_fit_forgets_the_first() -> None:
    X, Y = data(30)
    twice, once = make().fit(X, -Y), make().fit(X[:20], Y[:20])
    twice.fit(X[:20], Y[:20])
    torch.testing.assert_close(twice.posterior(X_TEST).mean, once.posterior(X_TEST).mean, rtol=0.05, atol=0.05)
    assert twice.train_targets is not None
    assert twice.train_targets.shape == (20, 1)


@pytest.mark.parametrize(("likelihood", "m"), [("bernoulli", 1), ("categorical", 3), ("poisson", 1), ("heteroscedastic", 1)])
def test_the_head_is_at_its_mode(likelihood: str, m: int) -> None:
    """Of the log-likelihood plus the prior of its weights: no gradient is left, whatever the features."""
    generator = torch.Generator().manual_seed(0)
    X = torch.rand(40, 2, generator=generator, dtype=torch.float64)
    Y = (X[:, :1] * 2.999).floor() if likelihood == "categorical" else (X[:, :1] > 0.5).double()
    if likelihood == "heteroscedastic":
        Y = Y + (0.1 + X[:, :1]) * torch.randn(40, 1, generator=generator, dtype=torch.float64)
    surrogate = make(m, likelihood).fit(X, Y)
    state, lik = surrogate.save_state(), get_likelihood(likelihood)
    w = state["method"]["laplace"]["z"].reshape(-1, lik.num_latents(m)).requires_grad_(True)
    inner = (Y - state["scaling"]["y_mean"]) / state["scaling"]["y_std"] if lik.has_noise else Y
    f = features(surrogate, X) @ w
    value = lik.log_prob(f, inner, state["method"]["prior"]["noise"]).sum() - 0.5 * w.square().sum()
    (gradient,) = torch.autograd.grad(value, w)
    # The search stops when a step gains less than 1e-3 of the loss.
    assert gradient.abs().max() < 0.3
    torch.testing.assert_close(surrogate._latent(X).mean, f.detach())  # type: ignore[attr-defined]


def test_how_far_the_networks_go() -> None:
    X, Y = data(30)
    random, fitted, chosen = make(adaptation=0.0).fit(X, Y), make(adaptation=1.0).fit(X, Y), make().fit(X, Y)
    start = random.save_state()["method"]
    torch.testing.assert_close(start["z"], start["start"], rtol=0, atol=0)
    moved = (fitted.save_state()["method"]["z"] - start["start"]).norm()
    assert float(moved) > 0.1
    share = (chosen.save_state()["method"]["z"] - start["start"]).norm() / moved
    assert min(abs(float(share) - s) for s in (0.0, 0.125, 0.25, 0.5, 1.0)) < 1e-6
    few = make().fit(X[:9], Y[:9]).save_state()["method"]
    torch.testing.assert_close(few["z"], few["start"], rtol=0, atol=0)


def test_the_choice_guards_against_overconfident_features() -> None:
    """Forty rows in six dimensions: fitted features have seen the targets, and their 95 % intervals are far too short."""
    generator = torch.Generator().manual_seed(0)
    X = torch.rand(440, 6, generator=generator, dtype=torch.float64)
    Y = torch.sin(3 * X.sum(-1, keepdim=True)) + 0.1 * torch.randn(440, 1, generator=generator, dtype=torch.float64)
    bounds = torch.stack([torch.zeros(6), torch.ones(6)])

    def coverage(adaptation: float | None) -> float:
        surrogate = seqbdl.make_surrogate("last-layer-laplace", 6, bounds=bounds, network=(32, 32), adaptation=adaptation)
        low, high = surrogate.fit(X[:40], Y[:40]).predict(X[40:]).interval(0.95)
        return float(((low < Y[40:]) & (Y[40:] < high)).double().mean())

    assert coverage(None) > 0.75
    assert coverage(None) >= coverage(1.0) - 0.02


def test_any_module_is_a_feature_map() -> None:
    X, Y = data(30)
    module = nn.Sequential(nn.Linear(2, 12), nn.Tanh())
    before = [p.detach().clone() for p in module.parameters()]
    surrogate = make(network=module).fit(X, Y)
    assert features(surrogate, X_TEST).shape == (6, 2 * 13)
    assert all(torch.equal(p, q) for p, q in zip(module.parameters(), before, strict=True))
    assert_regression(surrogate, X, Y, surrogate.noise_variance.expand_as(Y))


@pytest.mark.parametrize("structure", ["kron", "diag"])
def test_other_structures(structure: str) -> None:
    """The Kronecker product is exact for one layer and one noise; the diagonal is not, but has the same mean."""
    X, Y = data(30, 2)
    full = make(2, noise=0.04, prior_precision=1.0, adaptation=0.0).fit(X, Y).posterior(X_TEST)
    other = make(2, noise=0.04, prior_precision=1.0, adaptation=0.0, structure=structure).fit(X, Y).posterior(X_TEST)
    torch.testing.assert_close(other.mean, full.mean, rtol=0, atol=1e-7)
    if structure == "kron":
        torch.testing.assert_close(other.variance, full.variance, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prior_precision": "layerwise"}, "evidence"),
        ({"prior_precision": 0.0}, "positive"),
        ({"num_networks": 0}, "at least 1"),
        ({"adaptation": 1.5}, "share"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidOptionError, match=message):
        make(**options)
