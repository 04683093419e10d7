"""L-BFGS on functions whose minima are known."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from seqbdl.inference.lbfgs import LBFGSSettings, lbfgs


def quadratic(A: Tensor, b: Tensor):  # type: ignore[no-untyped-def]
    """``1/2 x^T A x - b^T x`` of matrices ``x: P x k``."""

    def objective(x: Tensor) -> tuple[Tensor, Tensor]:
        return 0.5 * (x * (A @ x)).sum() - (b * x).sum(), A @ x - b

    return objective


def rosenbrock(x: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        leaf = x.detach().requires_grad_(True)
        loss = ((1 - leaf[:-1]).square() + 100 * (leaf[1:] - leaf[:-1].square()).square()).sum()
        (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), gradient


def problem(P: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    half = torch.randn(P, P, generator=generator, dtype=torch.float64)
    return half @ half.T + 0.1 * torch.eye(P), torch.randn(P, 3, generator=generator, dtype=torch.float64)


def test_with_the_inverse_hessian_one_step_is_enough() -> None:
    A, b = problem()
    result = lbfgs(quadratic(A, b), torch.zeros_like(b), LBFGSSettings(max_iterations=1), lambda v: torch.linalg.solve(A, v))
    torch.testing.assert_close(result.x, torch.linalg.solve(A, b), rtol=1e-9, atol=1e-9)
    assert result.iterations == 1


def test_quadratics_without_a_preconditioner() -> None:
    A, b = problem()
    result = lbfgs(quadratic(A, b), torch.zeros_like(b), LBFGSSettings(max_iterations=500, tolerance=1e-15, history=30))
    torch.testing.assert_close(result.x, torch.linalg.solve(A, b), rtol=1e-4, atol=1e-4)


def test_rosenbrock() -> None:
    result = lbfgs(rosenbrock, torch.full((6,), -1.0).double(), LBFGSSettings(max_iterations=300, tolerance=1e-14))
    assert float((result.x - 1).abs().max()) < 1e-4
    assert float(result.loss) < 1e-8


def test_a_bad_preconditioner_slows_but_does_not_mislead() -> None:
    A, b = problem(6)
    settings = LBFGSSettings(max_iterations=500, tolerance=1e-15)
    result = lbfgs(quadratic(A, b), torch.zeros_like(b), settings, lambda v: 1e3 * v)
    torch.testing.assert_close(result.x, torch.linalg.solve(A, b), rtol=1e-3, atol=1e-3)


def test_losses_never_rise_and_limits_hold() -> None:
    start = torch.full((6,), -1.0).double()
    losses = [float(lbfgs(rosenbrock, start, LBFGSSettings(max_iterations=n, tolerance=0.0)).loss) for n in range(8)]
    assert all(b < a for a, b in itertools.pairwise(losses))
    loose = lbfgs(rosenbrock, start, LBFGSSettings(max_iterations=300, tolerance=0.5))
    assert loose.iterations < 10


def test_at_the_minimum_nothing_moves() -> None:
    A, b = problem()
    x = torch.linalg.solve(A, b)
    result = lbfgs(quadratic(A, b), x)
    torch.testing.assert_close(result.x, x, rtol=1e-6, atol=1e-6)


def test_values_that_are_not_finite_shorten_the_step() -> None:
    def objective(x: Tensor) -> tuple[Tensor, Tensor]:  # -log x + x, whose whole first step leaves the domain
        return (x - x.log()).sum(), 1 - 1 / x

    result = lbfgs(objective, torch.full((1,), 5.0).double(), LBFGSSettings(tolerance=1e-12), lambda v: 50 * v)
    assert abs(float(result.x) - 1) < 1e-4
