"""Deep kernel machines: their objective, its two ends, and the choice between them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from seqbdl.inference.gram import GramKernel, divergences, gram, identity_roots
from seqbdl.inference.held_out import first_good
from seqbdl.inference.infinite_width import default_scales
from seqbdl.inference.kernel_machine import (
    INFINITE,
    Machine,
    MachineSettings,
    _disturbed,
    choose_nu,
    clearly_better,
    evidence,
    inflated,
    log_hyper_prior,
    predictive,
    train_machine,
)


def data(n: int = 24, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    X = torch.rand(n, 2, generator=generator, dtype=torch.float64)
    Y = torch.sign(X[:, :1] + X[:, 1:] - 1.0) + 0.05 * torch.randn(n, 1, generator=generator, dtype=torch.float64)
    return X, Y


def begin(X: Tensor, depth: int = 2, activation: str = "relu", outputs: int = 1) -> Machine:
    scales = default_scales(2, depth, 1)
    kernel = GramKernel(scales, X.new_zeros(0, X.shape[0], X.shape[0]), X, activation)
    return Machine(kernel, scales.noise.expand(outputs), INFINITE, 0.0)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("outputs", [1, 2])
def test_evidence_is_the_marginal_likelihood_and_the_collapsed_bound_meets_it_at_all_rows(outputs: int) -> None:
    X, Y = data()
    Y = Y.repeat(1, outputs) * torch.arange(1, outputs + 1)
    kernel = begin(X).kernel
    kernel = replace(kernel, roots=1.3 * identity_roots(2, X))
    noise = 0.02 * torch.arange(1, outputs + 1).double().expand(24, -1)
    K = gram(kernel, X, X)
    zero = torch.zeros(24, dtype=torch.float64)
    expected = sum(
        torch.distributions.MultivariateNormal(zero, K + torch.diag(noise[:, i])).log_prob(Y[:, i]) for i in range(outputs)
    )
    for exact, anchored in ((True, False), (True, True), (False, False)):
        torch.testing.assert_close(evidence(kernel, X, Y, noise, exact, anchored), expected, rtol=2e-3, atol=2e-2)
    few = replace(kernel, Z=X[:10], roots=identity_roots(2, X[:10]))
    truth = evidence(few, X, Y, noise, True, False)
    assert evidence(few, X, Y, noise, False, False) < truth + 1e-6  # Titsias' bound is one


def test_the_objective_is_evidence_less_nu_divergences_plus_the_hyper_prior() -> None:
    X, Y = data()
    fit = train_machine(begin(X), X, Y, None, 20.0, rng(), MachineSettings(15))
    value = evidence(fit.kernel, X, Y, fit.noise.expand_as(Y), True, True) - 20.0 * divergences(fit.kernel.roots).sum()
    value = value + log_hyper_prior(fit.kernel.scales, fit.noise)
    assert float(value) == pytest.approx(fit.objective, abs=1e-8)


def test_a_huge_nu_is_the_infinite_one_and_smaller_ones_fit_more() -> None:
    X, Y = data()
    wide = train_machine(begin(X), X, Y, None, INFINITE, rng(), MachineSettings(60))
    held = train_machine(wide, X, Y, None, 1e9, rng(), MachineSettings(30))
    torch.testing.assert_close(gram(held.kernel, X, X), gram(wide.kernel, X, X), rtol=1e-3, atol=1e-3)
    objectives, fits = [], []
    machine = wide
    for nu in (100.0, 10.0, 1.0):
        machine = train_machine(machine, X, Y, None, nu, rng(), MachineSettings(40))
        objectives.append(machine.objective)
        fits.append(float(divergences(machine.kernel.roots).sum()))
    assert wide.objective < objectives[0] < objectives[1] < objectives[2]
    assert fits == sorted(fits)


def test_predictions_are_those_of_the_dense_process() -> None:
    X, Y = data()
    X_test, _ = data(7, 1)
    machine = train_machine(begin(X), X, Y, None, 20.0, rng(), MachineSettings(10))
    K = gram(machine.kernel, X, X) + torch.diag(machine.noise.expand(24))
    cross = gram(machine.kernel, X, X_test)
    mean = cross.T @ torch.linalg.solve(K, Y)
    variance = gram(machine.kernel, X_test, X_test).diagonal() - (cross * torch.linalg.solve(K, cross)).sum(0)
    ours = predictive(machine, X, Y, None, X_test, exact=True)
    torch.testing.assert_close(ours[0], mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours[1][:, 0], variance, rtol=1e-3, atol=1e-4)
    sparse = predictive(machine, X, Y, None, X_test, exact=False)  # the inducing inputs are all rows
    torch.testing.assert_close(sparse[0], mean, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(sparse[1][:, 0], variance, rtol=3e-2, atol=3e-3)


def test_inflation_scales_variances_and_leaves_means() -> None:
    X, Y = data()
    X_test, _ = data(7, 1)
    machine = train_machine(begin(X), X, Y, None, 20.0, rng(), MachineSettings(10))
    larger = inflated(machine, 2.5)
    (mean, variance), (same, more) = (predictive(m, X, Y, None, X_test, True) for m in (machine, larger))
    torch.testing.assert_close(same, mean, rtol=0, atol=1e-5)
    torch.testing.assert_close(more, 2.5 * variance, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(larger.noise, 2.5 * machine.noise)


def test_noise_keeps_the_network_and_steep_growth_leaves_it() -> None:
    """An outcome that grows by orders of magnitude along one input: no fixed kernel has such functions."""
    X, _ = data(60)
    nus = (INFINITE, 30.0, 10.0)
    noise = torch.randn(60, 1, generator=rng(), dtype=torch.float64)
    fitted = train_machine(begin(X), X, noise, None, INFINITE, rng(), MachineSettings(30))
    assert math.isinf(choose_nu(fitted, X, noise, None, nus, rng(), MachineSettings(15)).nu)
    X, _ = data(80)
    X[:, 0] = (14 * X[:, 0]).floor() / 13
    growth = torch.exp(5 * X[:, :1]) * (1 + 0.2 * torch.sin(6 * X[:, 1:]))
    Y = growth / growth.std() + 0.002 * torch.randn(80, 1, generator=rng(), dtype=torch.float64)
    fitted = train_machine(begin(X, activation="erf"), X, Y, None, INFINITE, rng(), MachineSettings(60))
    choice = choose_nu(fitted, X, Y, None, nus, rng(), MachineSettings(40))
    assert choice.nu < INFINITE
    assert choice.inflation >= 1.0


def test_only_sure_gains_leave_the_first_option() -> None:
    base = torch.zeros(50, dtype=torch.float64)
    noise = torch.randn(50, generator=rng(), dtype=torch.float64)
    assert clearly_better(torch.stack([base, base + 0.015])) == 0  # too small
    assert clearly_better(torch.stack([base, base + 0.1 + noise - noise.mean()])) == 0  # too uncertain
    assert clearly_better(torch.stack([base, base + 0.4, base + 0.5])) == 2
    assert clearly_better(torch.stack([base, base - torch.inf])) == 0
    assert first_good(torch.stack([base, base])) == 0


def test_random_gram_matrices_have_the_learned_one_as_mean() -> None:
    """Stochastic kernel regularization: Wishart draws around ``T T^T``, with a tenth of the identity; its mean is what stays."""
    P = 4
    roots = torch.randn(1, P, P, generator=rng(), dtype=torch.float64).tril() + 2 * torch.eye(P).double()
    kept = _disturbed(roots, None)[0]
    mean = roots[0] @ roots[0].T + 0.1 * torch.eye(P).double()
    torch.testing.assert_close(kept @ kept.T, mean, rtol=1e-10, atol=1e-10)
    generator, draws = rng(1), []
    for _ in range(4000):
        root = _disturbed(roots, generator)[0]
        draws.append(root @ root.T)
    values = torch.stack(draws)
    error = (values.mean(0) - mean).abs() / (values.std(0) / 4000**0.5)
    assert float(error.max()) < 4.5


def test_stochastic_training_is_reproducible_and_differs_from_the_plain_one() -> None:
    X, Y = data(20)
    settings = MachineSettings(20, stochastic=True)
    one, two = (train_machine(begin(X), X, Y, None, 10.0, rng(), settings) for _ in range(2))
    plain = train_machine(begin(X), X, Y, None, 10.0, rng(), MachineSettings(20))
    assert torch.equal(one.kernel.roots, two.kernel.roots)
    assert not torch.equal(one.kernel.roots, plain.kernel.roots)
