"""``subnetwork-laplace``: which weights, and the full curvature of these alone, against dense algebra."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import seqbdl
from seqbdl.errors import InvalidOptionError, UnknownNameError
from seqbdl.networks import ModuleNetwork

BOUNDS = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
X_TEST = torch.rand(6, 2, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def data(n: int = 30, m: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    X = torch.rand(n, 2, generator=generator, dtype=torch.float64)
    Y = 5 + torch.sin(4 * X @ torch.tensor([[2.0, -1.0], [1.0, 3.0]]).double()[:, :m])
    return X, Y + 0.2 * torch.randn(n, m, generator=generator, dtype=torch.float64)


def make(m: int = 1, name: str = "subnetwork-laplace", **options: object) -> seqbdl.Surrogate:
    settings = {"bounds": BOUNDS, "network": (8, 8), "noise": 0.04, **options}
    return seqbdl.make_surrogate(name, 2, m, **settings)


def index_of(surrogate: seqbdl.Surrogate) -> Tensor:
    index: Tensor = surrogate.save_state()["method"]["index"]
    return index


@pytest.mark.parametrize("m", [1, 2])
def test_all_weights_make_the_whole_posterior(m: int) -> None:
    X, Y = data(30, m)
    ours, whole = make(m).fit(X, Y), make(m, "laplace", num_branches=1).fit(X, Y)
    a, b = ours.posterior(X_TEST), whole.posterior(X_TEST)
    torch.testing.assert_close(a.mean, b.mean)
    torch.testing.assert_close(a.distribution.covariance_matrix, b.distribution.covariance_matrix, rtol=1e-6, atol=1e-8)
    evidence, expected = ours.log_evidence(), whole.log_evidence()
    assert evidence is not None
    assert expected is not None
    assert abs(evidence - expected) < 1e-6


@pytest.mark.parametrize("k", [12, 80])
@pytest.mark.parametrize("m", [1, 2])
def test_the_covariance_is_that_of_the_chosen_weights(m: int, k: int) -> None:
    """``J_S (I + J_S^T J_S / s2)^{-1} J_S^T`` with the columns of the whole Jacobian, rows outnumbering weights and not."""
    X, Y = data(30, m)
    ours, whole = make(m, num_weights=k).fit(X, Y), make(m, "laplace", num_branches=1).fit(X, Y)
    index = index_of(ours)
    assert index.shape == (k,)
    J, J_test = (getattr(whole, "features")(x)[:, index] for x in (X, X_TEST))  # noqa: B009
    scale = whole.save_state()["scaling"]["y_std"].repeat(6)
    s2 = (0.04 / whole.save_state()["scaling"]["y_std"] ** 2).repeat(30)
    precision = torch.eye(k).double() + J.T @ (J / s2[:, None])
    expected = scale[:, None] * (J_test @ torch.linalg.solve(precision, J_test.T)) * scale
    posterior = ours.posterior(X_TEST)
    torch.testing.assert_close(posterior.mean, whole.posterior(X_TEST).mean)
    torch.testing.assert_close(posterior.distribution.covariance_matrix, expected, rtol=1e-5, atol=1e-8)
    assert bool((posterior.variance < whole.posterior(X_TEST).variance + 1e-9).all())


def test_which_weights_are_chosen() -> None:
    X, Y = data(30)
    whole = make(1, "laplace", num_branches=1).fit(X, Y)
    J = getattr(whole, "features")(X)  # noqa: B009
    s2 = 0.04 / float(whole.save_state()["scaling"]["y_std"]) ** 2
    variance = 1 / (1 + J.square().sum(0) / s2)
    scores = {
        "variance": variance,
        "influence": variance * J.square().sum(0),
        "magnitude": whole.save_state()["method"]["laplace"]["z"][0].abs(),
    }
    for subset, score in scores.items():
        chosen = index_of(make(subset=subset, num_weights=20).fit(X, Y))
        assert chosen.tolist() == sorted(score.topk(20).indices.tolist()), subset
    first, second = (index_of(make(subset="random", num_weights=20, seed=s).fit(X, Y)) for s in (0, 0))
    assert first.tolist() == second.tolist()
    assert first.tolist() != index_of(make(subset="random", num_weights=20, seed=1).fit(X, Y)).tolist()


def test_influence_keeps_more_of_the_spread_than_chance() -> None:
    X, Y = data(30)
    whole = make(1, "laplace", num_branches=1).fit(X, Y).posterior(X_TEST).variance.mean()
    share = {
        s: make(subset=s, num_weights=30).fit(X, Y).posterior(X_TEST).variance.mean() / whole for s in ("influence", "random")
    }
    assert share["influence"] > share["random"]
    assert share["influence"] > 0.5


def test_masks_and_names() -> None:
    X, Y = data(30)
    module = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1))
    by_name = make(network=module, prior_precision=1.0, subset=["2"]).fit(X, Y)
    mask = ModuleNetwork(module, 2, 1).mask(["2"])
    by_mask = make(network=module, prior_precision=1.0, subset=mask).fit(X, Y)
    assert index_of(by_name).tolist() == list(range(18, 25))
    torch.testing.assert_close(by_mask.posterior(X_TEST).variance, by_name.posterior(X_TEST).variance)
    with pytest.raises(InvalidOptionError, match="of a module have names"):
        make(subset=["2"])
    with pytest.raises(UnknownNameError, match=r"0\.weight"):
        make(network=module, subset=["head"])


def test_updates_of_the_subnetwork_are_exact_where_it_is_linear() -> None:
    """The last layer of a module: fit, then update in parts, is the regression on all rows around the fixed rest."""
    X, Y = data(30)
    module = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1))
    options = {"network": module, "prior_precision": 1.0, "subset": ["2"], "centre": "zero", "max_iterations": 200}
    surrogate = make(**options).fit(X[:10], Y[:10])
    state = surrogate.save_state()
    shift, scale = state["scaling"]["y_mean"], state["scaling"]["y_std"]
    phi, phi_test = (getattr(surrogate, "features")(x) for x in (X, X_TEST))  # noqa: B009 - linear: the same anywhere
    old = state["method"]["laplace"]["z"][0]
    before = torch.eye(7).double() + phi[:10].T @ phi[:10] * scale**2 / 0.04
    after = before + phi[10:].T @ phi[10:] * scale**2 / 0.04
    residual = (Y[10:, 0] - shift) / scale - phi[10:] @ old
    new = old + torch.linalg.solve(after, phi[10:].T @ residual * scale**2 / 0.04)
    for rows in torch.arange(10, 30).split((3, 17)):
        surrogate.update(X[rows], Y[rows])
    posterior = surrogate.posterior(X_TEST)
    torch.testing.assert_close(posterior.mean.squeeze(-1), shift + scale * phi_test @ new, rtol=0, atol=1e-6)
    expected = scale**2 * phi_test @ torch.linalg.solve(after, phi_test.T)
    torch.testing.assert_close(posterior.distribution.covariance_matrix, expected, rtol=1e-6, atol=1e-8)


def test_saved_with_its_mask(tmp_path: Path) -> None:
    X, Y = data(20)
    mask = torch.zeros(105, dtype=torch.bool)
    mask[::3] = True
    surrogate = make(subset=mask).fit(X, Y)
    seqbdl.save(tmp_path / "s", surrogate)
    loaded = seqbdl.load(tmp_path / "s")
    torch.testing.assert_close(loaded.posterior(X_TEST).variance, surrogate.posterior(X_TEST).variance, rtol=0, atol=0)
    loaded.fit(X, Y)
    surrogate.fit(X, Y)
    torch.testing.assert_close(loaded.posterior(X_TEST).variance, surrogate.posterior(X_TEST).variance, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_weights": 0}, "at least 1"),
        ({"subset": "largest"}, "influence"),
        ({"subset": torch.ones(3, dtype=torch.bool)}, "105 booleans"),
        ({"subset": torch.zeros(105, dtype=torch.bool)}, "at least one"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidOptionError, match=message):
        make(**options)
