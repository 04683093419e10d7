"""Variational processes of GPyTorch that take up rows: against dense conditioning, on a published example, in acquisitions."""

from __future__ import annotations

from typing import Any

import gpytorch
import pytest
import torch
from botorch.acquisition import LogExpectedImprovement, qKnowledgeGradient
from botorch.sampling import SobolQMCNormalSampler
from gpytorch.likelihoods import GaussianLikelihood
from torch import Tensor

from seqbdl.errors import InvalidDataError, InvalidOptionError, ShapeError
from seqbdl.integrations.variational import VariationalModel


class SparseGP(gpytorch.models.ApproximateGP):
    """A scaled Matern process with a lengthscale per input, on learned inducing inputs."""

    def __init__(self, inducing: Tensor, likelihood: GaussianLikelihood) -> None:
        law = gpytorch.variational.CholeskyVariationalDistribution(len(inducing))
        super().__init__(gpytorch.variational.VariationalStrategy(self, inducing, law, learn_inducing_locations=True))
        self.mean_module = gpytorch.means.ConstantMean()
        self.covar_module = gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(2.5, ard_num_dims=2))
        self.likelihood = likelihood

    def forward(self, x: Tensor) -> gpytorch.distributions.MultivariateNormal:
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


def f(X: Tensor) -> Tensor:
    return torch.sin(6 * X[..., :1])


def uniform(generator: torch.Generator, *size: int) -> Tensor:
    return torch.rand(*size, generator=generator, dtype=torch.float64)


@pytest.fixture(scope="module")
def trained() -> tuple[SparseGP, torch.Generator]:
    generator = torch.Generator().manual_seed(0)
    X = uniform(generator, 60, 2)
    Y = f(X) + 0.05 * torch.randn(60, 1, generator=generator, dtype=torch.float64)
    model = SparseGP(uniform(generator, 20, 2), GaussianLikelihood()).double()
    objective = gpytorch.mlls.VariationalELBO(model.likelihood, model, 60)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    model.train()
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(0)
        for _ in range(1000):
            optimizer.zero_grad()
            (-objective(model(X), Y[:, 0])).backward()
            optimizer.step()
    return model.eval(), generator


def test_correct_rows_lower_the_error(trained: tuple[SparseGP, torch.Generator]) -> None:
    """Noise-free rows, 5 and then 20: the error falls with both, where GPyTorch's own fantasies raise it."""
    model, _ = trained
    wrapped = VariationalModel(model, model.likelihood)
    for seed in range(3):
        generator = torch.Generator().manual_seed(100 + seed)
        X_test, X_new = uniform(generator, 200, 2), uniform(generator, 20, 2)

        def error(mean: Tensor, X_test: Tensor = X_test) -> float:
            return float((mean.reshape(-1, 1) - f(X_test)).square().mean().sqrt())

        with torch.no_grad():
            errors = [error(wrapped.posterior(X_test).mean)]
            some = wrapped.condition_on_observations(X_new[:5], f(X_new[:5]))
            errors.append(error(some.posterior(X_test).mean))
            errors.append(error(some.condition_on_observations(X_new[5:], f(X_new[5:])).posterior(X_test).mean))
            theirs = error(model.get_fantasy_model(X_new, f(X_new)[:, 0])(X_test).mean)
        assert errors[2] < errors[1] < errors[0] < 0.03
        assert errors[2] < theirs


def test_conditioning_is_that_of_the_joint(trained: tuple[SparseGP, torch.Generator]) -> None:
    model, _ = trained
    generator = torch.Generator().manual_seed(1)
    X, X_new = uniform(generator, 3, 2), uniform(generator, 4, 2)
    Y, noise = f(X_new) + 0.1, 0.01 + uniform(generator, 4, 1)
    wrapped = VariationalModel(model, model.likelihood)
    with torch.no_grad():
        joint = model(torch.cat([X, X_new]))
        K, m = joint.covariance_matrix, joint.mean
        C = K[3:, 3:] + torch.diag(noise[:, 0])
        mean = m[:3] + K[:3, 3:] @ torch.linalg.solve(C, Y[:, 0] - m[3:])
        covariance = K[:3, :3] - K[:3, 3:] @ torch.linalg.solve(C, K[3:, :3])
        at_once = wrapped.condition_on_observations(X_new, Y, noise)
        split = wrapped.condition_on_observations(X_new[2:], Y[2:], noise[2:]).condition_on_observations(
            X_new[:2], Y[:2], noise[:2]
        )
        for new in (at_once, split):
            torch.testing.assert_close(new.posterior(X).mean[:, 0], mean, rtol=0, atol=1e-8)
            torch.testing.assert_close(new.posterior(X).distribution.covariance_matrix, covariance, rtol=0, atol=1e-8)
        noisy = at_once.posterior(X, observation_noise=True).variance[:, 0]
        torch.testing.assert_close(noisy, covariance.diagonal() + model.likelihood.noise, rtol=0, atol=1e-8)
        before = wrapped.posterior(X)
    torch.testing.assert_close(before.mean[:, 0], m[:3])
    model.train()
    VariationalModel(model, model.likelihood)
    assert model.training  # the user's own is not touched
    model.eval()
    assert wrapped.batch_shape == torch.Size([])


def test_fantasies_and_acquisitions(trained: tuple[SparseGP, torch.Generator]) -> None:
    model, _ = trained
    wrapped = VariationalModel(model, model.likelihood)
    generator = torch.Generator().manual_seed(2)
    X, X_new = uniform(generator, 5, 2), uniform(generator, 6, 3, 2)
    fantasies = wrapped.fantasize(X_new, SobolQMCNormalSampler(torch.Size([4]), seed=0))
    assert fantasies.batch_shape == torch.Size([4, 6])
    posterior = fantasies.posterior(X)
    assert posterior.mean.shape == (4, 6, 5, 1)
    again = fantasies.condition_on_observations(X[:2], f(X[:2])[None, None].expand(4, 6, -1, -1))
    with torch.no_grad():
        assert bool((again.posterior(X).variance < posterior.variance + 1e-9).all())
    point = uniform(generator, 2, 1, 2).requires_grad_()
    LogExpectedImprovement(wrapped, best_f=0.5)(point).sum().backward()
    assert point.grad is not None
    assert bool(point.grad.isfinite().all())
    gain = qKnowledgeGradient(wrapped, num_fantasies=4)
    assert bool(gain(uniform(generator, 2, 5, 2)).isfinite().all())


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"X": torch.rand(3, 2)}, ShapeError),
        ({"Y": torch.zeros(4, 2)}, ShapeError),
        ({"Y": torch.tensor([[0.0], [1.0], [float("nan")], [0.0]])}, InvalidDataError),
        ({"noise": torch.full((4, 1), -1.0)}, InvalidDataError),
    ],
)
def test_bad_rows(change: dict[str, Any], error: type[Exception], trained: tuple[SparseGP, torch.Generator]) -> None:
    model, _ = trained
    rows: dict[str, Any] = {"X": torch.zeros(4, 2), "Y": torch.zeros(4, 1), **change}
    with pytest.raises(error):
        VariationalModel(model, model.likelihood).condition_on_observations(**{k: v.double() for k, v in rows.items()})


def test_bad_use(trained: tuple[SparseGP, torch.Generator]) -> None:
    model, _ = trained
    with pytest.raises(InvalidOptionError, match="likelihood"):
        VariationalModel(model, gpytorch.likelihoods.BernoulliLikelihood())
    with pytest.raises(InvalidOptionError, match="output_indices"):
        VariationalModel(model, model.likelihood).posterior(torch.zeros(1, 2).double(), output_indices=[1])
