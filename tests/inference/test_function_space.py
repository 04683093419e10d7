"""The posterior over function values: scores, metrics, the dimension in which functions vary, and the steps of particles."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from seqbdl.inference.adam import AdamSettings
from seqbdl.inference.function_prior import KernelPrior, Moments, SampledPrior
from seqbdl.inference.function_space import FunctionPosterior, move_functions
from seqbdl.inference.infinite_width import default_scales, kernel
from seqbdl.likelihoods import get_likelihood
from seqbdl.networks import MLP
from seqbdl.priors import get_prior

GAUSSIAN = get_likelihood("gaussian")
SCALES = default_scales(2, 2, 1)


def uniform(n: int, seed: int = 0) -> Tensor:
    return torch.rand(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def wide(width: int = 16, outputs: int = 1) -> MLP:
    return MLP((width, width), SCALES.inputs[0], SCALES.weights[0], SCALES.biases[0], outputs)


def test_the_dimension_is_the_trace_that_it_stands_for() -> None:
    root = normals(2, 6, 4)  # singular: rank 4 of 6
    K = root @ root.transpose(-1, -2)
    W = torch.rand(2, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 30
    W[:, 4:] = 0.0
    moments = Moments.of(K, 1e-2)
    eye = torch.eye(6).double()
    A = torch.linalg.inv(K + moments.nugget[:, None, None] * eye) + torch.diag_embed(W)
    C = torch.linalg.solve(eye + K @ torch.diag_embed(W), K)
    expected = (A @ C).diagonal(dim1=-2, dim2=-1).sum(-1)
    torch.testing.assert_close(moments.posterior_dimension(W), expected)
    torch.testing.assert_close(Moments.of(K, 1e-9).posterior_dimension(W), torch.full((2,), 4.0).double(), rtol=1e-5, atol=0)


def test_one_covariance_serves_all_latent_functions() -> None:
    root = normals(1, 5, 5)
    moments = Moments.of(root @ root.transpose(-1, -2), 1e-3)
    W = torch.rand(3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    each = torch.stack([moments.posterior_dimension(w[None])[0] for w in W])
    torch.testing.assert_close(moments.posterior_dimension(W), each)


@pytest.mark.parametrize(
    ("name", "latents"), [("gaussian", 2), ("bernoulli", 2), ("categorical", 3), ("poisson", 1), ("heteroscedastic", 2)]
)
def test_scores_are_gradients_of_the_log_density(name: str, latents: int) -> None:
    likelihood, X = get_likelihood(name), uniform(5)
    targets = {"gaussian": 2, "bernoulli": 2}.get(name, 1)
    Y = normals(5, targets) if name in ("gaussian", "heteroscedastic") else (normals(5, targets) > 0).double()
    noise = torch.full((5, latents if name == "gaussian" else 1), 0.3).double()
    prior, inputs = KernelPrior(SCALES, "erf"), torch.cat([X, uniform(3, 1)])
    weights = torch.tensor([1.0, 1.0, 2.0, 1.0, 3.0]).double()
    posterior = FunctionPosterior(wide(outputs=latents), likelihood, prior, X, Y, noise, weights)
    f = normals(4, latents, 8)
    score, times, dimension = posterior.at(f, inputs, torch.arange(5))
    precision = Moments.of(kernel(SCALES, inputs, inputs), 1e-6).precision[0]

    def log_density(f: Tensor) -> Tensor:
        data = (weights * likelihood.log_prob(f[..., :5].transpose(1, 2), Y, noise)).sum()
        return data - 0.5 * ((f @ precision) * f).sum()

    gradient = torch.autograd.functional.jacobian(log_density, f)
    torch.testing.assert_close(score, gradient, rtol=1e-7, atol=1e-6 * float(gradient.abs().max()))
    assert times.shape == f.shape
    assert bool(((times * f).sum((-1, -2)) > 0).all())
    assert 0 < float(dimension) <= 8 * latents + 1e-6


def test_batches_speak_for_all_rows() -> None:
    """The likelihood's part of the score, averaged over all batches of two, is that of all rows."""
    X, Y = uniform(6), normals(6, 1)
    noise = torch.full((6, 1), 0.5).double()
    posterior = FunctionPosterior(wide(), GAUSSIAN, KernelPrior(SCALES, "erf"), X, Y, noise, torch.ones(6).double())
    f = normals(1, 1, 6)
    total = torch.zeros(6).double()
    for first in range(0, 6, 2):
        rows = torch.tensor([first, first + 1])
        prior, _ = posterior.prior.at(X[rows], f[..., rows])
        total[rows] += (posterior.at(f[..., rows], X[rows], rows)[0] - prior)[0, 0] / 3
    torch.testing.assert_close(total, ((Y[:, 0] - f[0, 0]) / 0.5))


def test_the_sampled_prior_is_near_that_of_the_wide_network() -> None:
    """Scores and metrics from 400 wide networks against the Gaussian process that they nearly are, at three inputs."""
    network, X = wide(64), torch.tensor([[0.1, 0.2], [0.5, 0.9], [0.9, 0.4]]).double()
    sampled = SampledPrior.of(network, get_prior("gaussian"), 400, torch.Generator().manual_seed(0), X)
    f = network.forward(normals(50, network.num_params, seed=5), X).transpose(1, 2)
    score, moments = sampled.at(X, f)
    exact, truth = KernelPrior(SCALES, "erf").at(X, f)
    assert float((score - exact).square().mean().sqrt() / exact.square().mean().sqrt()) < 0.5
    K, C = truth.covariance[0], moments.covariance[0]
    error = (C - K).abs() / ((K.diagonal()[:, None] * K.diagonal() + K.square()) / 400).sqrt()
    assert float(error.max()) < 4.5  # Monte Carlo errors of a Gaussian's second moments


def test_particles_go_where_they_are_sent(linear: SimpleNamespace) -> None:
    """Along the score alone every particle reaches the posterior's mode."""
    problem = linear.problem(9)

    class Exact:
        def at(self, X: Tensor, f: Tensor) -> tuple[Tensor, Moments]:
            J = linear.jacobian(problem.network, X)
            moments = Moments.of((J @ J.T)[None], 1e-6)
            return -(f @ moments.precision), moments

    posterior = FunctionPosterior(
        problem.network, GAUSSIAN, Exact(), problem.X, problem.Y, problem.variance, torch.ones(9).double()
    )
    settings = AdamSettings(steps=600, learning_rate=0.2)

    def move(settings: AdamSettings) -> Tensor:
        start, generator = normals(3, 3), torch.Generator().manual_seed(0)
        return move_functions(posterior, start, lambda x, score, Ax, dimension: score, settings, 4, generator)

    error = (move(settings) - problem.mean) / problem.covariance.diagonal().sqrt()
    assert float(error.abs().max()) < 0.02
    batches = AdamSettings(steps=20, batch_size=3)
    assert torch.equal(move(batches), move(batches))
