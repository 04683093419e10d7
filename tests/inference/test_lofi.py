"""What is particular to the filter with a low-rank precision."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from seqbdl.errors import InvalidOptionError
from seqbdl.inference import lofi
from seqbdl.inference.recursion import FilterSettings, Linearize, absorb
from seqbdl.likelihoods import get_likelihood
from seqbdl.networks import MLP, DenseRows, JacobianRows, mlp

GAUSSIAN = get_likelihood("gaussian")


def fixed(J: Tensor) -> Linearize:
    """A linear model with ``l`` outputs: ``J: n x l x P``."""
    return lambda w: (J @ w, DenseRows(J.flatten(0, 1)))


def problem(linear: SimpleNamespace, n: int = 9, outputs: int = 2, P: int = 30) -> tuple[Tensor, Tensor, Tensor]:
    noise = 0.1 + torch.rand(n, outputs, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return linear.normals(n, outputs, P), linear.normals(n, outputs, seed=1), noise


def precision(belief: lofi.LowRankBelief) -> Tensor:
    return torch.diag(belief.entries) + belief.factor.T @ belief.factor


@pytest.mark.parametrize("rank", [1, 3, 10, 18, 40])
def test_the_diagonal_of_the_precision_is_exact_for_every_rank(rank: int, linear: SimpleNamespace) -> None:
    J, Y, noise = problem(linear)
    belief = lofi.prior_belief(torch.zeros(30).double(), 0.5, rank)
    for rows in torch.arange(9).split(2):
        belief, _ = absorb(belief, fixed(J[rows]), GAUSSIAN, Y[rows], noise[rows])
        assert belief.factor.shape[0] <= rank
    flat = J.flatten(0, 1)
    exact = 2.0 * torch.eye(30).double() + flat.T @ (flat / noise.reshape(-1, 1))
    torch.testing.assert_close(precision(belief).diagonal(), exact.diagonal(), rtol=1e-12, atol=1e-12)
    if rank >= 18:  # rows times outputs: nothing was dropped
        torch.testing.assert_close(precision(belief), exact, rtol=1e-10, atol=1e-10)
        mean, covariance, _ = linear.conditioned(flat, Y, noise, alpha=2.0)
        torch.testing.assert_close(belief.mean, mean, rtol=0, atol=1e-8)
        torch.testing.assert_close(belief.seen(DenseRows(torch.eye(30).double()))[0], covariance, rtol=0, atol=1e-8)


def test_the_gain_is_that_of_the_untruncated_precision(linear: SimpleNamespace) -> None:
    """``K = u^-1 H^T R^-1 - u^-1 W (I + W^T u^-1 W)^-1 W^T u^-1 H^T R^-1`` with the new rows appended to ``W``."""
    J, Y, noise = problem(linear)
    belief = lofi.prior_belief(linear.normals(30, seed=5), 0.5, 4)
    belief, _ = absorb(belief, fixed(J[:6]), GAUSSIAN, Y[:6], noise[:6])
    H, R = J[6:].flatten(0, 1), noise[6:].flatten()
    W = torch.cat([belief.factor, H / R.sqrt()[:, None]])
    scaled = W / belief.entries
    inner = torch.eye(10).double() + scaled @ W.T
    right = H.T / R
    gain = right / belief.entries[:, None] - scaled.T @ torch.linalg.solve(inner, scaled @ right)
    expected = belief.mean + gain @ (Y[6:].flatten() - H @ belief.mean)
    updated, _ = absorb(belief, fixed(J[6:]), GAUSSIAN, Y[6:], noise[6:])
    torch.testing.assert_close(updated.mean, expected, rtol=1e-10, atol=1e-10)
    # What is kept: the best approximation of its rank to W^T W.
    _, s, V = torch.linalg.svd(W, full_matrices=False)
    torch.testing.assert_close(updated.factor.T @ updated.factor, V[:4].T @ (s[:4, None].square() * V[:4]), rtol=1e-8, atol=1e-8)
    dropped = (V[4:].square() * s[4:, None].square()).sum(0)
    torch.testing.assert_close(updated.entries - belief.entries, dropped, rtol=1e-8, atol=1e-8)


def test_ageing_before_and_after_truncation(linear: SimpleNamespace) -> None:
    J, Y, noise = problem(linear)
    belief = lofi.prior_belief(torch.zeros(30).double(), 0.5, 5)
    for rows in (slice(0, 2), slice(2, 9)):
        belief, _ = absorb(belief, fixed(J[rows]), GAUSSIAN, Y[rows], noise[rows])
        aged = belief.aged(FilterSettings(forgetting=0.95, process_noise=0.01))
        expected = 0.95**2 * torch.linalg.inv(precision(belief)) + 0.01 * torch.eye(30).double()
        torch.testing.assert_close(torch.linalg.inv(precision(aged)), expected, rtol=1e-10, atol=1e-12)


def test_weights_have_the_inverse_precision_as_covariance(linear: SimpleNamespace) -> None:
    J, Y, noise = problem(linear, n=4, outputs=1, P=6)
    belief, _ = absorb(lofi.prior_belief(torch.zeros(6).double(), 2.0, 2), fixed(J), GAUSSIAN, Y, noise)
    samples = belief.weights.sample(20_000, torch.Generator().manual_seed(0))
    linear.assert_samples(samples, belief.mean, torch.linalg.inv(precision(belief)))


def test_single_precision_is_kept(linear: SimpleNamespace) -> None:
    """Half a million weights are filtered in single precision, or the belief would not fit."""
    J, Y, noise = (t.float() for t in problem(linear))
    belief, log_density = absorb(lofi.prior_belief(torch.zeros(30), 0.5, 3), fixed(J), GAUSSIAN, Y, noise)
    exact, _ = absorb(
        lofi.prior_belief(torch.zeros(30).double(), 0.5, 3), fixed(J.double()), GAUSSIAN, Y.double(), noise.double()
    )
    assert belief.mean.dtype == belief.factor.dtype == log_density.dtype == torch.float32
    torch.testing.assert_close(belief.mean.double(), exact.mean, rtol=1e-3, atol=1e-4)


def test_bad_priors_are_refused() -> None:
    with pytest.raises(InvalidOptionError, match="rank=0"):
        lofi.prior_belief(torch.zeros(2), 1.0, 0)
    with pytest.raises(InvalidOptionError, match="positive"):
        lofi.prior_belief(torch.zeros(2), -1.0, 3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_blocks_of_weights_change_nothing(dtype: torch.dtype, linear: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    J, Y, noise = problem(linear)

    def run(kind: torch.dtype) -> lofi.LowRankBelief:
        belief = lofi.prior_belief(linear.normals(30, seed=5).to(kind), 0.5, 4)
        for rows in torch.arange(9).split(3):
            belief, _ = absorb(belief, fixed(J[rows].to(kind)), GAUSSIAN, Y[rows].to(kind), noise[rows].to(kind))
        return belief

    whole = run(torch.float64)
    monkeypatch.setattr(lofi, "_columns", lambda rows: 7)
    parts = run(dtype)
    assert parts.mean.dtype == parts.entries.dtype == parts.factor.dtype == dtype
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4  # rounding of 6e-8, amplified by precisions of a hundred
    torch.testing.assert_close(parts.mean.double(), whole.mean, rtol=0, atol=tolerance)
    torch.testing.assert_close(precision(parts).double(), precision(whole), rtol=tolerance, atol=100 * tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_outer_products_change_nothing(dtype: torch.dtype, linear: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network of three layers, rows one by one: Jacobians as matrices, and as layers."""
    ones = torch.ones(3, dtype=dtype)
    network = MLP((6, 5), 3 * ones[:2], ones[:2], ones, 3, "relu")
    categorical, X = get_likelihood("categorical"), linear.normals(12, 2).to(dtype)
    labels = (torch.arange(12) % 3).unsqueeze(-1).to(dtype)

    def run() -> tuple[lofi.LowRankBelief, float]:
        belief, total = lofi.prior_belief(linear.normals(network.num_params, seed=5).to(dtype), 0.5, 4), 0.0
        for x, y in zip(X.split(1), labels.split(1), strict=True):

            def linearize(w: Tensor, x: Tensor = x) -> tuple[Tensor, JacobianRows]:
                here = network.tangents(w.unsqueeze(0), x)
                return here.values[0], network.rows(here)

            belief, score = absorb(belief, linearize, categorical, y, torch.ones(1, 3, dtype=dtype))
            total += float(score)
        return belief, total

    whole, score = run()
    monkeypatch.setattr(mlp, "_MANY_WEIGHTS", 0)
    layers, same = run()
    tolerance = 1e-10 if dtype == torch.float64 else 1e-3
    assert layers.mean.dtype == layers.factor.dtype == dtype
    torch.testing.assert_close(layers.mean, whole.mean, rtol=0, atol=tolerance)
    torch.testing.assert_close(precision(layers), precision(whole), rtol=tolerance, atol=tolerance)
    assert same == pytest.approx(score, abs=10 * tolerance)


def test_the_spherical_variant_forgets_what_it_drops(linear: SimpleNamespace) -> None:
    J, Y, noise = problem(linear)
    kept, spherical = (lofi.prior_belief(torch.zeros(30).double(), 0.5, 5, choice) for choice in (False, True))
    for rows in torch.arange(9).split(3):
        kept, _ = absorb(kept, fixed(J[rows]), GAUSSIAN, Y[rows], noise[rows])
        spherical, _ = absorb(spherical, fixed(J[rows]), GAUSSIAN, Y[rows], noise[rows])
    assert torch.equal(spherical.entries, torch.full((30,), 2.0).double())
    assert bool((precision(spherical).diagonal() < precision(kept).diagonal()).all())


@pytest.mark.parametrize("kind", ["simple", "hybrid", "bayesian"])
def test_inflations_are_their_definitions(kind: str, linear: SimpleNamespace) -> None:
    """In dense algebra: precision over ``1 + alpha``, plus the prior's share; the mean of the power prior."""
    J, Y, noise = problem(linear)
    centre = linear.normals(30, seed=5)
    belief, _ = absorb(lofi.prior_belief(centre, 0.5, 5), fixed(J), GAUSSIAN, Y, noise)
    aged = belief.aged(FilterSettings(inflation=0.25, inflation_kind=kind, prior_variance=0.5), centre)
    old, eye = precision(belief), torch.eye(30).double()
    new = old / 1.25 + (0.0 if kind == "simple" else 0.2 / 0.5) * eye
    torch.testing.assert_close(precision(aged), new, rtol=1e-10, atol=1e-10)
    mean = belief.mean
    if kind == "bayesian":
        mean = torch.linalg.solve(new, old @ belief.mean / 1.25 + 0.2 / 0.5 * centre)
    torch.testing.assert_close(aged.mean, mean, rtol=1e-9, atol=1e-9)
