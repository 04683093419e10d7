"""The deep kernel machine inside GPyTorch and BoTorch: its own objective, exact and variational models, batches."""

from __future__ import annotations

import math
import unittest
from typing import Any

import gpytorch
import pytest
import torch
from botorch.acquisition import qLogNoisyExpectedImprovement
from botorch.acquisition.thompson_sampling import PathwiseThompsonSampling
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP, SingleTaskVariationalGP
from botorch.optim import optimize_acqf
from botorch.optim.utils import sample_all_priors
from botorch.sampling.pathwise import draw_matheron_paths
from botorch.utils.sampling import manual_seed
from gpytorch.distributions import MultivariateNormal
from gpytorch.likelihoods import GaussianLikelihood
from gpytorch.mlls import ExactMarginalLogLikelihood, VariationalELBO
from gpytorch.test.base_kernel_test_case import BaseKernelTestCase
from torch import Tensor

import seqbdl
from seqbdl.errors import InvalidOptionError, ShapeError, UnknownNameError
from seqbdl.inference import infinite_width
from seqbdl.inference.gram import divergences, gram
from seqbdl.inference.kernel_machine import LOG_SD, evidence, log_hyper_prior
from seqbdl.integrations.gpytorch import DKMKernel

BOUNDS = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)


def data(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    X = torch.rand(n, 2, generator=generator, dtype=torch.float64)
    Y = torch.sin(5 * X[:, :1]) * X[:, 1:] + 0.05 * torch.randn(n, 1, generator=generator, dtype=torch.float64)
    return X, (Y - Y.mean()) / Y.std()


def moved(kernel: DKMKernel, size: float = 0.3) -> DKMKernel:
    """Away from the start."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in kernel.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter))
    return kernel


class ExactModel(gpytorch.models.ExactGP):
    def __init__(self, X: Tensor, y: Tensor, likelihood: GaussianLikelihood, kernel: DKMKernel) -> None:
        super().__init__(X, y, likelihood)
        self.mean_module, self.covar_module = gpytorch.means.ZeroMean(), kernel

    def forward(self, X: Tensor) -> MultivariateNormal:
        return MultivariateNormal(self.mean_module(X), self.covar_module(X))


class VariationalModel(gpytorch.models.ApproximateGP):
    def __init__(self, Z: Tensor, kernel: DKMKernel) -> None:
        q = gpytorch.variational.CholeskyVariationalDistribution(Z.shape[0])
        super().__init__(gpytorch.variational.VariationalStrategy(self, Z, q, learn_inducing_locations=True))
        self.mean_module, self.covar_module = gpytorch.means.ZeroMean(), kernel

    def forward(self, X: Tensor) -> MultivariateNormal:
        return MultivariateNormal(self.mean_module(X), self.covar_module(X))


@pytest.mark.parametrize("activation", ["erf", "relu", "leaky_relu"])
@pytest.mark.parametrize("depth", [1, 3])
def test_an_infinite_nu_is_the_infinitely_wide_network(activation: str, depth: int) -> None:
    X, _ = data(6)
    kernel = moved(DKMKernel(X, nu=math.inf, depth=depth, activation=activation))
    expected = infinite_width.kernel(kernel.gram_kernel.scales, X, X[:4], activation)[0]
    torch.testing.assert_close(kernel(X, X[:4]).to_dense(), expected, rtol=1e-10, atol=1e-10)
    assert float(kernel.divergences()) == 0.0
    start = DKMKernel(X, nu=10.0, depth=depth, activation=activation)  # learned Gram matrices begin there
    wide = DKMKernel(X, nu=math.inf, depth=depth, activation=activation)
    torch.testing.assert_close(start(X).to_dense(), wide(X).to_dense(), rtol=1e-5, atol=1e-5)


def test_the_exact_objective_is_our_own() -> None:
    X, Y = data(20)
    kernel, likelihood = moved(DKMKernel(X[:8], nu=12.0, depth=3)), GaussianLikelihood().double()
    likelihood.noise = 0.07
    model = ExactModel(X, Y.squeeze(-1), likelihood, kernel)
    objective = ExactMarginalLogLikelihood(likelihood, model)
    inner = kernel.gram_kernel
    own = evidence(inner, X, Y, torch.full_like(Y, 0.07), exact=True, anchored=False) - kernel.divergences()
    # Our hyper-prior leaves out the constants of its normal densities.
    own = own + log_hyper_prior(inner.scales, None)
    for name in ("inputs", "weights", "biases"):
        own = own - getattr(inner.scales, name).numel() * math.log(LOG_SD[name] * math.sqrt(2 * math.pi))
    value = objective(model(X), Y.squeeze(-1))
    assert value.item() == pytest.approx(own.item() / 20, abs=1e-6)
    divergence = 12.0 * divergences(inner.roots).sum()
    torch.testing.assert_close(kernel.divergences(), divergence)
    value.backward()
    for name, parameter in kernel.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all())
        assert float(parameter.grad.abs().max()) > 0, name


def test_the_variational_objective_subtracts_the_divergences_of_all_rows_once() -> None:
    X, Y = data(20)
    kernel, likelihood = moved(DKMKernel(X[:8], nu=12.0, num_data=20)), GaussianLikelihood().double()
    model = VariationalModel(X[:10].clone(), kernel).double()
    objective = VariationalELBO(likelihood, model, num_data=20)
    output = model(X)
    whole = objective(output, Y.squeeze(-1)).item()
    kernel.nu = 24.0
    assert whole - objective(output, Y.squeeze(-1)).item() == pytest.approx(kernel.divergences().item() / 2 / 20, rel=1e-6)


def test_a_variational_model_trains_in_batches() -> None:
    X, Y = data(120)
    (X, X_test), (Y, Y_test) = X.split((80, 40)), Y.split((80, 40))
    likelihood = GaussianLikelihood().double()
    model = VariationalModel(X[:15].clone(), DKMKernel(X[:15], nu=30.0, num_data=80)).double()
    objective = VariationalELBO(likelihood, model, num_data=80)
    optimizer = torch.optim.Adam([*model.parameters(), *likelihood.parameters()], lr=0.05)
    generator, losses = torch.Generator().manual_seed(0), []
    for _ in range(120):
        rows = torch.randint(80, (40,), generator=generator)
        optimizer.zero_grad()
        loss = -objective(model(X[rows]), Y[rows].squeeze(-1))
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.3
    model.eval()
    with torch.no_grad():
        assert float((model(X_test).mean - Y_test.squeeze(-1)).square().mean().sqrt()) < 0.4  # of their standard deviation
    assert model.covar_module.divergences().item() > 0


def test_single_task_gp_fits_predicts_fantasizes_and_decides() -> None:
    X, Y = data(30)
    model = SingleTaskGP(X, Y, covar_module=DKMKernel(X[:12], nu=30.0))
    objective = ExactMarginalLogLikelihood(model.likelihood, model)
    before = float(objective(model(X), model.train_targets).detach())
    with manual_seed(0):
        sample_all_priors(model)  # what the fit does when it starts again
    fit_gpytorch_mll(objective, optimizer_kwargs={"options": {"maxiter": 40}})
    model.train()
    assert float(objective(model(X), model.train_targets).detach()) > before + 0.2
    model.eval()
    X_test, Y_test = data(200, 1)
    posterior = model.posterior(X_test)
    assert float((posterior.mean - Y_test).square().mean().sqrt()) < 0.5
    covariance = posterior.distribution.covariance_matrix
    assert torch.linalg.eigvalsh(covariance).min() > -1e-8 * covariance.diagonal().max()
    fantasy = model.condition_on_observations(X_test[:2].unsqueeze(0), Y_test[:2].unsqueeze(0))
    assert float(fantasy.posterior(X_test[:2]).variance.max()) < float(posterior.variance[:2].max())
    acquisition = qLogNoisyExpectedImprovement(model, X_baseline=X, prune_baseline=False)
    query = X_test[:6].reshape(3, 2, 2).requires_grad_(True)
    (gradient,) = torch.autograd.grad(acquisition(query).sum(), query)
    assert bool(gradient.isfinite().all())


def test_two_outcomes_are_a_batch_of_kernels() -> None:
    X, Y = data(20)
    kernel = DKMKernel(X[:6], nu=30.0, batch_shape=torch.Size([2]))
    model = SingleTaskGP(X, torch.cat([Y, Y.square()], -1), covar_module=kernel)
    objective = ExactMarginalLogLikelihood(model.likelihood, model)
    value = objective(model(*model.train_inputs), model.train_targets)
    assert value.shape == (2,)
    value.sum().backward()
    model.eval()
    assert model.posterior(X[:3]).mean.shape == (3, 2)


def test_botorchs_variational_model_takes_it() -> None:
    X, Y = data(30)
    model = SingleTaskVariationalGP(X, Y, covar_module=DKMKernel(X[:8], num_data=30), inducing_points=X[:8])
    objective = VariationalELBO(model.likelihood, model.model, num_data=30)
    objective(model(X), Y.squeeze(-1)).backward()
    gradient = model.model.covar_module.raw_roots.grad
    assert gradient is not None
    assert float(gradient.abs().max()) > 0


def test_what_a_surrogate_has_learned_goes_into_a_model() -> None:
    X, Y = data(30)
    surrogate = seqbdl.make_surrogate("dkm", 2, bounds=BOUNDS, nu=20.0, steps=10, num_inducing=10).fit(X, Y)
    kernel = DKMKernel.of(surrogate)
    assert kernel.nu == 20.0
    torch.testing.assert_close(kernel(X).to_dense(), gram(surrogate.kernel, X, X))
    images = seqbdl.make_surrogate("dkm", 4, image_shape=(1, 2, 2))
    with pytest.raises(InvalidOptionError, match="images"):
        DKMKernel.of(images)


def test_botorchs_pathwise_draws_know_it() -> None:
    X, Y = data(20)
    model = SingleTaskGP(X, Y, covar_module=moved(DKMKernel(X[:8], nu=30.0)))
    model.likelihood.noise = 0.05
    model.eval()
    query, n = data(30, 1)[0], 512
    with manual_seed(0), torch.no_grad():
        values = draw_matheron_paths(model, sample_shape=torch.Size([n]))(query).reshape(n, 30, 1)
        posterior = model.posterior(query)
        acquisition = PathwiseThompsonSampling(model)
    candidate, _ = optimize_acqf(acquisition, BOUNDS, q=1, num_restarts=2, raw_samples=4, options={"maxiter": 3})
    assert bool(((candidate >= 0) & (candidate <= 1)).all())
    sd = posterior.variance.sqrt()
    assert float(((values.mean(0) - posterior.mean) / sd).abs().max()) < 4.0 / n**0.5  # exact at any number of features
    # One set of a thousand features for all draws.
    assert float((values.std(0) / sd - 1).abs().max()) < 4.0 / (2 * n) ** 0.5 + 4.0 / 1024**0.5
    batched = SingleTaskGP(X, torch.cat([Y, Y], -1), covar_module=DKMKernel(X[:8], batch_shape=torch.Size([2])))
    with pytest.raises(InvalidOptionError, match="one model per outcome"):
        draw_matheron_paths(batched, sample_shape=torch.Size([2]))


def test_pairs_of_different_inputs_and_gradients() -> None:
    X, _ = data(5)
    for kernel in (moved(DKMKernel(X[:3])), moved(DKMKernel(X[:3], batch_shape=torch.Size([4])))):
        pairs = kernel(X, X.flip(0), diag=True)
        torch.testing.assert_close(pairs, kernel(X, X.flip(0)).to_dense().diagonal(dim1=-2, dim2=-1))
        assert torch.autograd.gradcheck(lambda x, k=kernel: k(x, X).to_dense(), (X[:2] + 0.01).requires_grad_(True))


def test_options_are_checked() -> None:
    X, _ = data(3)
    with pytest.raises(UnknownNameError):
        DKMKernel(X, activation="tanh")
    with pytest.raises(ShapeError, match="P x d"):
        DKMKernel(X[0])
    for options in ({"nu": 0.0}, {"depth": 0}, {"num_data": 0}):
        with pytest.raises(InvalidOptionError):
            DKMKernel(X, **options)


class TestAsEveryKernelOfGPyTorch(BaseKernelTestCase, unittest.TestCase):
    """GPyTorch's own test of a kernel: batches of inputs, batches of kernels, indexing, types, pickles."""

    def create_kernel_no_ard(self, **kwargs: Any) -> DKMKernel:
        dims = len(kwargs["active_dims"]) if "active_dims" in kwargs else self._dims
        generator = torch.Generator().manual_seed(0)
        return DKMKernel(torch.rand(5, dims, generator=generator), **kwargs)

    @property
    def _dims(self) -> int:
        """Columns of the inputs that the running test makes."""
        return {"test_active_dims_list": 4, "test_active_dims_range": 6}.get(self._testMethodName, 2)
