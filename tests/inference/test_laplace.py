"""The linearized Laplace posterior against linear regression, against dense formulas, and how it takes up new data."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from seqbdl.inference import laplace
from seqbdl.inference.curvature import STRUCTURES, FunctionSpace, WeightSpace
from seqbdl.inference.gauss_newton import GaussNewtonSettings
from seqbdl.inference.laplace import LaplaceFit, Rows, Tuning
from seqbdl.likelihoods import LIKELIHOODS, get_likelihood
from seqbdl.networks import MLP, LinearHead, Network

SETTINGS = GaussNewtonSettings(max_iterations=300, tolerance=1e-13)
GAUSSIAN = get_likelihood("gaussian")
X_TEST = torch.rand(5, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def dense_jacobian(network: Network, z: Tensor, X: Tensor) -> Tensor:
    rows = torch.autograd.functional.jacobian(lambda w: network.forward(w.unsqueeze(0), X)[0], z[0])
    assert isinstance(rows, Tensor)
    return rows.flatten(0, 1)


def fit(
    network: Network, data: Rows, alpha: float = 1.0, centre: Tensor | None = None, structure: str = "full"
) -> tuple[LaplaceFit, Network]:
    """Under the prior precision ``alpha``, which is a scale of the network."""
    scaled = network.rescaled(torch.full((network.num_groups,), alpha, dtype=torch.float64).rsqrt())
    centre = torch.zeros(1, network.num_params).double() if centre is None else centre * alpha**0.5
    found = laplace.fit_laplace(scaled, data, centre, centre, structure, SETTINGS, Tuning())
    return found, scaled


@pytest.mark.parametrize("alpha", [0.2, 1.0, 7.0])
@pytest.mark.parametrize("m", [1, 2])
@pytest.mark.parametrize("n", [2, 8])
def test_linear_networks_are_exact(n: int, m: int, alpha: float, linear: SimpleNamespace) -> None:
    """In function space (two rows, fewer than weights) and in weight space; every row and output has its own noise."""
    p = linear.problem(m=m, n=n)
    mean, covariance, evidence = linear.conditioned(p.J, p.Y, p.variance, alpha)
    found, network = fit(p.network, Rows(GAUSSIAN, p.X, p.Y, p.variance), alpha)
    assert isinstance(found.posterior.curvature, FunctionSpace if n == 2 else WeightSpace)
    torch.testing.assert_close(found.posterior.z[0] / alpha**0.5, mean, rtol=0, atol=1e-8)
    torch.testing.assert_close(found.posterior.log_evidence, evidence, rtol=0, atol=1e-8)
    joint = laplace.joint(network, found.posterior, X_TEST)
    J = linear.jacobian(p.network, X_TEST)
    torch.testing.assert_close(joint.mean.flatten(), J @ mean, rtol=0, atol=1e-8)
    torch.testing.assert_close(joint.covariance[0], J @ covariance @ J.T, rtol=0, atol=1e-8)


def test_the_centre_of_the_prior_counts(linear: SimpleNamespace) -> None:
    p = linear.problem()
    centre = linear.normals(1, p.network.num_params)
    found, _ = fit(p.network, Rows(GAUSSIAN, p.X, p.Y, p.variance), 2.0, centre)
    residual = p.Y - p.network.forward(centre, p.X)[0]
    mean, _, evidence = linear.conditioned(p.J, residual, p.variance, 2.0)
    torch.testing.assert_close(found.posterior.z / 2**0.5 - centre, mean.unsqueeze(0), rtol=0, atol=1e-8)
    torch.testing.assert_close(found.posterior.log_evidence, evidence, rtol=0, atol=1e-8)


def make_mlp(latents: int, branches: int = 1) -> MLP:
    ones = torch.ones(4).double()
    return MLP((7, 6), 3 * ones[:2], ones[:2], ones[:3], latents, branches=branches)


def data_of(name: str, m: int, n: int = 12, seed: int = 0) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    X = torch.rand(n, 2, generator=generator, dtype=torch.float64)
    noise = torch.full((n, m), 0.1, dtype=torch.float64)
    if name == "categorical":
        Y = torch.randint(m, (n, 1), generator=generator).double()
    elif name in ("bernoulli", "poisson"):
        Y = torch.randint(2, (n, m), generator=generator).double()
    else:
        Y = torch.sin(5 * X.sum(-1, keepdim=True)) + 0.3 * torch.randn(n, m, generator=generator, dtype=torch.float64)
    return Rows(get_likelihood(name), X, Y, noise)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_every_likelihood_against_dense_formulas(name: str, linear: SimpleNamespace) -> None:
    """The mode has no gradient; predictions and evidence are those of the ``P x P`` matrix, assembled from whole Jacobians."""
    m = 3 if name == "categorical" else 2
    # Few rows let the noise of a network collapse around interpolated targets; there the mode is far and flat.
    data, lik = data_of(name, m, 60 if name == "heteroscedastic" else 12), get_likelihood(name)
    network = make_mlp(lik.num_latents(m))
    centre = linear.normals(1, network.num_params, seed=1)
    found, _ = fit(network, data, centre=centre)
    z = found.posterior.z.requires_grad_(True)
    loss = 0.5 * (z - centre).square().sum() - lik.log_prob(network.forward(z, data.X)[0], data.Y, data.noise).sum()
    (gradient,) = torch.autograd.grad(loss, z)
    assert gradient.abs().max() < 1e-3
    z = z.detach()
    f = network.forward(z, data.X)[0]
    root = lik.root(f, data.noise)
    R = torch.block_diag(*(torch.diag_embed(root) if root.dim() == 2 else root))
    rows = R.T @ dense_jacobian(network, z, data.X)
    precision = torch.eye(network.num_params).double() + rows.T @ rows
    joint, J = laplace.joint(network, found.posterior, X_TEST), dense_jacobian(network, z, X_TEST)
    torch.testing.assert_close(joint.mean, network.forward(z, X_TEST)[0])
    torch.testing.assert_close(joint.covariance[0], J @ torch.linalg.solve(precision, J.T), rtol=1e-7, atol=1e-7)
    expected = lik.log_prob(f, data.Y, data.noise).sum() - 0.5 * (z - centre).square().sum() - 0.5 * torch.logdet(precision)
    torch.testing.assert_close(found.posterior.log_evidence, expected, rtol=1e-9, atol=1e-7)


def test_evidence_of_labels_is_near_the_integral() -> None:
    """Logistic regression on two features: the Laplace evidence against a fine grid over both weights."""
    head = LinearHead(lambda X: X, 2, 2, 1, 2.0)
    data = data_of("bernoulli", 1, 30)
    found, _ = fit(head, data)
    axis = torch.linspace(-6, 6, 241).double()
    grid = torch.cartesian_prod(axis, axis)
    values = get_likelihood("bernoulli").log_prob(head.forward(grid, data.X), data.Y, data.noise).sum(-1)
    log_prior = -0.5 * grid.square().sum(-1) - torch.log(torch.tensor(2 * torch.pi)).double()
    exact = torch.logsumexp(values + log_prior, 0) + 2 * torch.log(axis[1] - axis[0])
    # Its relative error is O(1/n); here the posterior is nearly Gaussian.
    assert abs(float(found.posterior.log_evidence - exact)) < 0.05


@pytest.mark.parametrize("structure", STRUCTURES)
def test_batches_of_points(structure: str, linear: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    data, network = data_of("gaussian", 2), make_mlp(2)
    found, _ = fit(network, data, structure=structure)
    X = torch.rand(3, 2, 4, 2, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    monkeypatch.setattr(laplace, "_ENTRIES", 2 * 8 * network.num_params)  # two batch elements in a block
    together = laplace.joint(network, found.posterior, X)
    assert together.covariance.shape == (3, 2, 1, 8, 8)
    for i in range(3):
        for j in range(2):
            alone = laplace.joint(network, found.posterior, X[i, j])
            torch.testing.assert_close(together.mean[i, j], alone.mean)
            torch.testing.assert_close(together.covariance[i, j], alone.covariance, rtol=1e-8, atol=1e-9)


def test_the_prior_answers_before_data(linear: SimpleNamespace) -> None:
    network = make_mlp(1)
    z = linear.normals(1, network.num_params)
    prior = laplace.prior_laplace(network, z)
    J = dense_jacobian(network, z, X_TEST)
    torch.testing.assert_close(laplace.joint(network, prior, X_TEST).covariance[0], J @ J.T)


# ---------------------------------------------------------------------------- posterior as prior


@pytest.mark.parametrize("splits", [(3, 3, 2), (1, 7), (6, 1, 1)])
@pytest.mark.parametrize("m", [1, 2])
def test_online_is_batch_for_linear_networks(m: int, splits: tuple[int, ...], linear: SimpleNamespace) -> None:
    """Mean, covariance and evidence, through both forms: rows first, a matrix once they outnumber the weights."""
    p = linear.problem(m=m)
    mean, covariance, evidence = linear.conditioned(p.J, p.Y, p.variance)
    posterior = laplace.prior_laplace(p.network, torch.zeros(1, p.network.num_params).double())
    for index in torch.arange(8).split(splits):
        rows = Rows(GAUSSIAN, p.X[index], p.Y[index], p.variance[index])
        posterior = laplace.update_laplace(p.network, posterior, rows, "full", SETTINGS)
    assert isinstance(posterior.curvature, WeightSpace)
    torch.testing.assert_close(posterior.z[0], mean, rtol=0, atol=1e-8)
    torch.testing.assert_close(posterior.log_evidence, evidence, rtol=0, atol=1e-8)
    J = linear.jacobian(p.network, X_TEST)
    joint = laplace.joint(p.network, posterior, X_TEST)
    torch.testing.assert_close(joint.covariance[0], J @ covariance @ J.T, rtol=0, atol=1e-8)


@pytest.mark.parametrize("n", [4, 40])
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("name", ["categorical", "poisson"])
def test_an_update_weighs_new_rows_against_the_old_quadratic(name: str, structure: str, n: int, linear: SimpleNamespace) -> None:
    """Of a network linear in its weights: the new mode has no gradient of the new misfit plus ``1/2 (z - z_old)^T Lambda_old (z -
    z_old)``, the precision grows by the new curvature, the evidence by Laplace's formula for the new rows."""
    m = 3
    head = LinearHead(lambda X: torch.cat([X, X.square(), torch.ones_like(X[..., :1])], -1), 2, 5, m)
    lik = get_likelihood(name)
    old, _ = fit(head, data_of(name, m, n), structure=structure)
    news = data_of(name, m, 6, seed=1)
    new = laplace.update_laplace(head, old.posterior, news, structure, SETTINGS)

    def precision(posterior: laplace.LaplacePosterior) -> Tensor:
        if isinstance(posterior.curvature, WeightSpace):
            return posterior.curvature.precision.dense()
        rows = torch.cat(list(laplace_rows(head, posterior)))
        return torch.eye(head.num_params).double() + rows.T @ rows

    before, after = precision(old.posterior), precision(new)
    z = new.z.clone().requires_grad_(True)
    change = z - old.posterior.z
    penalty = 0.5 * (change @ before @ change.T).sum()
    value = lik.log_prob(head.forward(z, news.X)[0], news.Y, news.noise).sum()
    (gradient,) = torch.autograd.grad(penalty - value, z)
    assert gradient.abs().max() < 1e-4
    root = lik.root(head.forward(new.z, news.X)[0], news.noise)
    R = torch.block_diag(*(torch.diag_embed(root) if root.dim() == 2 else root))
    rows = R.T @ dense_jacobian(head, new.z, news.X)
    if structure == "full":
        torch.testing.assert_close(after, before + rows.T @ rows, rtol=1e-8, atol=1e-8)
    elif structure == "diag":
        torch.testing.assert_close(after.diagonal(), before.diagonal() + rows.square().sum(0))
    grown = torch.logdet(before + rows.T @ rows) - torch.logdet(before)
    expected = old.posterior.log_evidence + value - penalty - 0.5 * grown
    torch.testing.assert_close(new.log_evidence, expected.detach(), rtol=1e-8, atol=1e-7)


def laplace_rows(network: Network, posterior: laplace.LaplacePosterior) -> list[Tensor]:
    """``R^T J`` of a posterior in function space, row by row."""
    curvature = posterior.curvature
    assert isinstance(curvature, FunctionSpace)
    J = dense_jacobian(network, posterior.z, curvature.X).unflatten(0, (-1, network.num_outputs))
    full = torch.diag_embed(curvature.root) if curvature.root.dim() == 2 else curvature.root
    return [R.T @ rows for R, rows in zip(full, J, strict=True)]


def test_memory_is_capped_with_enlarged_weights(linear: SimpleNamespace) -> None:
    network, data = make_mlp(1, branches=2), data_of("gaussian", 1, 30)
    old, _ = fit(network, data)
    more = data_of("gaussian", 1, 10, seed=1)
    generator = torch.Generator().manual_seed(0)
    new = laplace.update_laplace(network, old.posterior, more, "full", SETTINGS, 20, generator)
    assert isinstance(new.curvature, FunctionSpace)
    assert new.curvature.X.shape == (20, 2)
    # Noise of variance 0.1; twenty rows speak for forty.
    torch.testing.assert_close(new.curvature.root.square(), torch.full((20, 1), 20.0, dtype=torch.float64))


# ---------------------------------------------------------------------------- hyperparameters


def test_tuned_precision_maximizes_the_evidence(linear: SimpleNamespace) -> None:
    """Of a linear network, under the hyper-prior N(0, 3^2) on log alpha: a fine scan agrees."""
    p = linear.problem(n=20, level=0.1)
    zeros = torch.zeros(1, p.network.num_params).double()
    data = Rows(GAUSSIAN, p.X, p.Y, p.variance)
    found = laplace.fit_laplace(_one_group(p.network), data, zeros, zeros, "full", SETTINGS, Tuning("one", rounds=50))

    def score(log_alpha: float) -> float:
        return (
            float(linear.conditioned(p.J, p.Y, p.variance, float(torch.tensor(log_alpha).exp()))[2]) - 0.5 * (log_alpha / 3) ** 2
        )

    best = max(score(i * 0.02 - 6) for i in range(600))
    tuned = float(found.log_precisions[0])
    # Alternation stops when log alpha moves by less than 0.1.
    assert score(tuned) > best - 0.02
    torch.testing.assert_close(found.posterior.log_evidence, torch.tensor(score(tuned) + 0.5 * (tuned / 3) ** 2).double())


def _one_group(network: Network) -> Network:
    """The same network as a linear head on its own features: one group of weights."""
    features = lambda X: torch.cat([(2 * X - 1) / 2**0.5, torch.ones_like(X[..., :1])], -1)  # noqa: E731
    head = LinearHead(features, 2, 3, 1)
    eye = torch.eye(3).double()
    assert torch.allclose(head.forward(eye, X_TEST), network.forward(eye, X_TEST))
    return head


def test_evidence_prefers_the_scale_that_made_the_data(linear: SimpleNamespace) -> None:
    """Data from weights of variance 1 / 25: tuning ends near alpha = 25, not near 1."""
    p = linear.problem(n=60, d=8, level=1e-3)
    weights = linear.normals(1, p.network.num_params, seed=4) / 5
    Y = p.network.forward(weights, p.X)[0] + p.variance.sqrt() * linear.normals(60, 1, seed=5)
    zeros, data = torch.zeros_like(weights), Rows(GAUSSIAN, p.X, Y, p.variance)
    found = laplace.fit_laplace(p.network, data, zeros, zeros, "full", SETTINGS, Tuning("one", rounds=20))
    # Nine weights estimate a variance to within a factor of about 2.
    assert 8.0 < float(found.log_precisions[0].exp()) < 80.0


def test_layers_get_precisions_of_their_own(linear: SimpleNamespace) -> None:
    """Weights of variance 1 / 25, a bias of 9: one precision for both would lie between."""
    p = linear.problem(n=60, d=8, level=1e-3)
    weights = linear.normals(1, 9, seed=4) / 5
    weights[:, 8] = 3.0
    Y = p.network.forward(weights, p.X)[0] + p.variance.sqrt() * linear.normals(60, 1, seed=5)
    zeros, data = torch.zeros_like(weights), Rows(GAUSSIAN, p.X, Y, p.variance)
    tuned = {}
    for kind in ("one", "layers"):
        found = laplace.fit_laplace(p.network, data, zeros, zeros, "full", SETTINGS, Tuning(kind, rounds=20))
        tuned[kind] = found
        J = p.J * (-0.5 * found.log_precisions[p.network.group_of_weights(p.J)]).exp()
        evidence = linear.conditioned(J, Y, p.variance)[2]
        torch.testing.assert_close(found.posterior.log_evidence, evidence, rtol=0, atol=1e-6)
    weight, bias = tuned["layers"].log_precisions.exp()
    assert 8.0 < float(weight) < 80.0
    assert float(bias) < 1.0
    assert tuned["layers"].posterior.log_evidence > tuned["one"].posterior.log_evidence + 1.0


def test_the_noise_is_found_with_the_precision(linear: SimpleNamespace) -> None:
    """A thousand rows of noise variance 0.04 from weights of variance 1 / 25; both start at 1."""
    p = linear.problem(n=1000, d=8, level=1e-3)
    weights = linear.normals(1, 9, seed=4) / 5
    Y = p.network.forward(weights, p.X)[0] + 0.2 * linear.normals(1000, 1, seed=5)
    zeros, data = torch.zeros_like(weights), Rows(GAUSSIAN, p.X, Y, torch.ones_like(Y))
    found = laplace.fit_laplace(p.network, data, zeros, zeros, "full", SETTINGS, Tuning("one", noise=True, rounds=20))
    # A thousand squares: the variance to within 4.5 * sqrt(2 / 1000), a fifth; nine weights as above.
    assert abs(float(found.noise_factor) / 0.04 - 1) < 0.2
    assert 8.0 < float(found.log_precisions[0].exp()) < 80.0
    _, _, evidence = linear.conditioned(p.J, Y, found.noise_factor.expand_as(Y), float(found.log_precisions[0].exp()))
    torch.testing.assert_close(found.posterior.log_evidence, evidence, rtol=0, atol=1e-5)


def test_noise_alone(linear: SimpleNamespace) -> None:
    p = linear.problem(n=1000, d=8, level=1e-3)
    Y = p.network.forward(linear.normals(1, 9, seed=4), p.X)[0] + 0.2 * linear.normals(1000, 1, seed=5)
    zeros, data = torch.zeros(1, 9).double(), Rows(GAUSSIAN, p.X, Y, torch.ones_like(Y))
    found = laplace.fit_laplace(p.network, data, zeros, zeros, "full", SETTINGS, Tuning(noise=True, rounds=20))
    assert float(found.log_precisions.abs().max()) == 0.0
    assert abs(float(found.noise_factor) / 0.04 - 1) < 0.2
