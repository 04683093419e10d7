"""``gp`` is BoTorch's SingleTaskGP."""

from __future__ import annotations

import pytest
import torch
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.models.transforms import Normalize, Standardize
from botorch.sampling.normal import SobolQMCNormalSampler
from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal
from gpytorch.mlls import ExactMarginalLogLikelihood
from torch import Tensor

import seqbdl

X_TEST = torch.rand(3, 4, 2, generator=torch.Generator().manual_seed(7), dtype=torch.float64) * 4 - 2


def data(m: int, n: int = 20, seed: int = 0, frequency: float = 2.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    X = torch.rand(n, 2, generator=generator, dtype=torch.float64) * 4 - 2
    Y = (
        10
        + 3 * torch.sin(frequency * X.sum(-1, keepdim=True) + torch.arange(m))
        + 0.2 * torch.randn(n, m, generator=generator).double()
    )
    return X, Y


def botorch_model(X: Tensor, Y: Tensor, Yvar: Tensor | None = None) -> SingleTaskGP:
    model = SingleTaskGP(X, Y, Yvar, outcome_transform=Standardize(m=Y.shape[1]), input_transform=Normalize(d=2))
    fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
    return model


def joint_covariance(distribution: MultivariateNormal) -> Tensor:
    """``batch x q x m x q x m``, whichever of the two orders of rows the distribution has."""
    covariance = distribution.covariance_matrix
    if not isinstance(distribution, MultitaskMultivariateNormal):
        return covariance[..., :, None, :, None]
    q, m = distribution.event_shape
    if distribution._interleaved:
        return covariance.reshape(*covariance.shape[:-2], q, m, q, m)
    return covariance.reshape(*covariance.shape[:-2], m, q, m, q).transpose(-4, -3).transpose(-2, -1)


@pytest.mark.parametrize("known_noise", [False, True])
@pytest.mark.parametrize("m", [1, 2])
def test_it_equals_botorchs_model(m: int, known_noise: bool) -> None:
    X, Y = data(m)
    Yvar = torch.full_like(Y, 0.04) if known_noise else None
    ours = seqbdl.make_surrogate("gp", 2, m).fit(X, Y, Yvar).posterior(X_TEST)
    theirs = botorch_model(X, Y, Yvar).posterior(X_TEST)
    scale = float(Y.std())
    torch.testing.assert_close(ours.mean, theirs.mean, rtol=0, atol=1e-6 * scale)
    torch.testing.assert_close(ours.variance, theirs.variance, rtol=1e-6, atol=1e-6 * scale**2)
    a, b = joint_covariance(ours.distribution), joint_covariance(theirs.distribution)
    torch.testing.assert_close(a, b, rtol=0, atol=1e-6 * scale**2)


@pytest.mark.parametrize("m", [1, 2])
def test_the_same_base_samples_give_the_same_joint_samples(m: int) -> None:
    X, Y = data(m)
    ours = seqbdl.make_surrogate("gp", 2, m).fit(X, Y).posterior(X_TEST)
    theirs = botorch_model(X, Y).posterior(X_TEST)
    a = SobolQMCNormalSampler(torch.Size([16]), seed=0)(ours)
    b = SobolQMCNormalSampler(torch.Size([16]), seed=0)(theirs)
    # Roots of covariances are a little less exact than covariances.
    torch.testing.assert_close(a, b, rtol=0, atol=1e-4 * float(Y.std()))


def test_learned_noise_and_observations() -> None:
    X, Y = data(1, n=40)
    surrogate, model = seqbdl.make_surrogate("gp", 2).fit(X, Y), botorch_model(X, Y)
    ours, theirs = surrogate.posterior(X_TEST, observation_noise=True), model.posterior(X_TEST, observation_noise=True)
    torch.testing.assert_close(ours.variance, theirs.variance, rtol=1e-5, atol=1e-6)
    prediction = surrogate.predict(X_TEST)
    torch.testing.assert_close(prediction.std.square(), theirs.variance, rtol=1e-5, atol=1e-6)


def test_conditioning_equals_botorchs() -> None:
    X, Y = data(1)
    surrogate, model = seqbdl.make_surrogate("gp", 2).fit(X, Y), botorch_model(X, Y)
    X_new, Y_new = data(1, n=3, seed=5)
    model.posterior(X_TEST)  # BoTorch's cache
    theirs = model.condition_on_observations(X_new, Y_new).posterior(X_TEST)
    for ours in (surrogate.condition_on_observations(X_new, Y_new), surrogate.update(X_new, Y_new)):
        torch.testing.assert_close(ours.posterior(X_TEST).mean, theirs.mean, rtol=0, atol=1e-5)
        torch.testing.assert_close(ours.posterior(X_TEST).variance, theirs.variance, rtol=0, atol=1e-5)


def test_log_evidence_is_the_marginal_likelihood_in_the_users_units() -> None:
    X, Y = data(1)
    surrogate = seqbdl.make_surrogate("gp", 2).fit(X, Y)
    model = botorch_model(X, Y)
    model.train()
    marginal = model.likelihood(model(*model.train_inputs))
    standardized = float(marginal.log_prob(model.train_targets))
    expected = standardized - 20 * float(Y.std().log())
    evidence = surrogate.log_evidence()
    assert evidence is not None
    assert abs(evidence - expected) < 1e-4


def chunked(sizes: tuple[int, ...], max_rows: int, frequency: float = 2.0) -> seqbdl.Surrogate:
    X, Y = data(1, n=60, frequency=frequency)
    surrogate = seqbdl.make_surrogate("gp", 2, max_rows=max_rows, noise=0.04, bounds=torch.tensor([[-2.0, -2.0], [2.0, 2.0]]))
    surrogate.fit(X[: sizes[0]], Y[: sizes[0]])
    done = sizes[0]
    for size in sizes[1:]:
        surrogate.update(X[done : done + size], Y[done : done + size])
        done += size
    return surrogate


def test_beyond_max_rows_chunks_do_not_matter() -> None:
    """One large update after a small fit fills the basis like many small ones."""
    once, many = chunked((15, 45), 30), chunked((15, 3, 7, 10, 5, 20), 30)
    for surrogate in (once, many):
        assert surrogate.save_state()["method"]["basis"].shape == (30, 2)
    a, b = once.posterior(X_TEST), many.posterior(X_TEST)
    torch.testing.assert_close(a.mean, b.mean, rtol=0, atol=1e-4)
    torch.testing.assert_close(a.variance, b.variance, rtol=0, atol=1e-4)


def test_memory_is_bounded_and_rows_beyond_the_basis_teach() -> None:
    """For a function that the basis can express; what it cannot is lost (Nystroem error)."""
    sparse, small, exact = chunked((15, 45), 40, 0.7), chunked((15, 25), 40, 0.7), chunked((15, 45), 1024, 0.7)
    assert exact.save_state()["method"]["basis"].shape == (60, 2)
    X = torch.rand(200, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 4 - 2
    truth = 10 + 3 * torch.sin(0.7 * X.sum(-1, keepdim=True))
    error = {
        name: float((model.posterior(X).mean - truth).square().mean().sqrt())
        for name, model in (("sparse", sparse), ("small", small), ("exact", exact))
    }
    assert error["sparse"] < error["small"]
    assert error["sparse"] < 1.1 * error["exact"]
    posterior = sparse.posterior(X_TEST)
    draws = sparse.sample_functions(2000, torch.Generator().manual_seed(0))(X_TEST[0])[..., 0]
    mean, deviation = posterior.mean[0, :, 0], posterior.variance[0, :, 0].sqrt()
    assert float(((draws.mean(0) - mean) / deviation).abs().max()) < 4.5 / 2000**0.5
    assert float((draws.std(0) / deviation - 1).abs().max()) < 5 / 2000**0.5
