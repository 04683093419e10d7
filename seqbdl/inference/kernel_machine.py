"""Deep kernel machines for regression: Gram matrices, scales and noise together.

The objective is the Bayesian representation-learning limit of a deep Gaussian process (Yang et al. 2023)::

    log P(Y | K_top) - nu sum_l KL(N(0, G_l) || N(0, K_l))

plus the log hyper-prior of the infinitely wide network's scales. ``nu = inf`` is that network. In whitened coordinates (see
:mod:`seqbdl.inference.gram`) the divergence needs no inverse, nothing can become indefinite, and the start ``T = I`` is the
network. The objective rises as ``nu`` falls and cannot choose it; held-out rows do (:func:`choose_nu`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from seqbdl.errors import NotPositiveDefiniteError
from seqbdl.inference.gram import (
    GramKernel,
    divergences,
    gram,
    identity_roots,
    inducing_blocks,
    inducing_gram,
    lower_logs,
    lower_root,
)
from seqbdl.inference.gram_layout import Vectors
from seqbdl.inference.held_out import first_good, folds
from seqbdl.inference.infinite_width import WidthScales, default_scales
from seqbdl.posteriors.inducing import add_gaussian, no_rows, project
from seqbdl.posteriors.joint_gaussian import jittered_cholesky, safe_cholesky

_FLOOR = 1e-7
LOG_SD = {"inputs": 1.7, "weights": 1.5, "biases": 1.5, "noise": 1.0}
"""Standard deviations of the logarithms of scales in the hyper-prior, as of the infinitely wide network."""
INFINITE = math.inf
MARGIN = 0.02
"""Nats per held-out row that learned Gram matrices must gain beyond two standard errors."""


@dataclass(frozen=True)
class MachineSettings:
    """Attributes:
    max_iterations: L-BFGS iterations per value of ``nu``; with ``stochastic`` Adam steps.
    exact_rows: Up to so many rows the top is an exact Gaussian process, beyond the collapsed bound.
    learn_inputs: Whether the inducing inputs move too.
    stochastic: Train under Wishart draws around the Gram matrices (stochastic kernel regularization, Milsom et al. 2024).
    learning_rate: Of Adam.
    """

    max_iterations: int = 40
    exact_rows: int = 512
    learn_inputs: bool = False
    stochastic: bool = False
    learning_rate: float = 0.02


@dataclass(frozen=True)
class Machine:
    """Attributes:
    kernel: The deep kernel.
    noise: ``m`` noise variances.
    nu: What it was trained with.
    objective: Where the training ended.
    """

    kernel: GramKernel
    noise: Tensor
    nu: float
    objective: float


def _pack(machine: Machine, learn_noise: bool, learn_inputs: bool) -> tuple[Tensor, list[tuple[str, torch.Size]]]:
    """Parameters as one vector: logarithms of scales, ``T`` with the logarithms of its diagonal, inducing inputs."""
    scales, kernel = machine.kernel.scales, machine.kernel
    parts = {name: getattr(scales, name).log() for name in ("inputs", "weights", "biases")}
    if learn_noise:
        parts["noise"] = machine.noise.log()
    if kernel.learned:
        parts["roots"] = lower_logs(kernel.roots)[:, *_lower(kernel.roots)]
    if learn_inputs and kernel.learned:
        parts["Z"] = kernel.Z
    layout = [(name, part.shape) for name, part in parts.items()]
    return torch.cat([part.reshape(-1) for part in parts.values()]), layout


def _unpack(theta: Tensor, layout: list[tuple[str, torch.Size]], like: Machine) -> tuple[GramKernel, Tensor]:
    parts, offset = {}, 0
    for name, shape in layout:
        parts[name] = theta[offset : offset + shape.numel()].reshape(shape)
        offset += shape.numel()
    noise = parts["noise"].exp() if "noise" in parts else like.noise
    scales = replace(like.kernel.scales, **{name: parts[name].exp() for name in ("inputs", "weights", "biases")})
    roots = like.kernel.roots
    if "roots" in parts:
        logs = torch.zeros_like(roots).index_put((torch.arange(len(roots))[:, None], *_lower(roots)), parts["roots"])
        roots = lower_root(logs)
    return replace(like.kernel, scales=scales, roots=roots, Z=parts.get("Z", like.kernel.Z)), noise


def _lower(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of a lower triangle."""
    rows, columns = torch.tril_indices(matrix.shape[-1], matrix.shape[-1], device=matrix.device)
    return rows, columns


def log_hyper_prior(scales: WidthScales, noise: Tensor | None) -> Tensor:
    """Log-normal, around the defaults of the infinitely wide network, up to a constant."""
    centre = default_scales(scales.inputs.shape[-1], scales.depth, 1).to(scales.inputs)
    total = scales.inputs.new_zeros(())
    for name in ("inputs", "weights", "biases"):
        deviation = (getattr(scales, name).log() - getattr(centre, name).log()) / LOG_SD[name]
        total = total - 0.5 * deviation.square().sum()
    if noise is not None:
        total = total - 0.5 * ((noise.log() - centre.noise.log()) / LOG_SD["noise"]).square().sum()
    return total


def evidence(kernel: GramKernel, X: Tensor, Y: Tensor, noise: Tensor, exact: bool, anchored: bool) -> Tensor:
    """Log marginal likelihood (or the collapsed bound), summed over outputs, with its constant.

    Args:
        kernel: The kernel.
        X: ``n x d``.
        Y: ``n x m``.
        noise: ``n x m`` variances.
        exact: An exact top.
        anchored: Whether ``X`` are the inducing inputs themselves.
    """
    if exact:
        K = inducing_gram(kernel) if anchored else gram(kernel, X, X)
        variances = noise.T + _FLOOR
        same = bool((variances == variances[:1]).all())
        factor = safe_cholesky(K + torch.diag_embed(variances[:1] if same else variances))
        targets = Y.unsqueeze(0) if same else Y.T.unsqueeze(-1)
        white = torch.linalg.solve_triangular(factor, targets, upper=False)
        log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum() * targets.shape[-1]
        return -0.5 * white.square().sum() - log_det - 0.5 * math.log(2 * math.pi) * Y.numel()
    K_ii, cross, diagonal = inducing_blocks(kernel, X)
    factor = jittered_cholesky(K_ii)
    sums = add_gaussian(no_rows(factor[None], Y.shape[1]), project(factor, cross)[None], diagonal[None], Y.T, noise.T)
    return sums.bound.sum()


def train_machine(
    start: Machine,
    X: Tensor,
    Y: Tensor,
    noise: Tensor | None,
    nu: float,
    generator: torch.Generator,
    settings: MachineSettings = MachineSettings(),
) -> Machine:
    """Maximize the objective of one ``nu`` from where another machine ended.

    Args:
        start: Its kernel has roots (``T``) unless ``nu`` is infinite.
        X: ``n x d`` in the unit cube.
        Y: ``n x m`` standardized.
        noise: Known variances, ``n x m`` or ``1 x m``; ``None``: learned.
        nu: Width of the layers relative to the data: the weight of the divergences.
        generator: Of stochastic kernel regularization.
        settings: Of the training.
    """
    if not math.isinf(nu) and not start.kernel.learned:
        kernel = start.kernel
        start = replace(start, kernel=replace(kernel, roots=identity_roots(kernel.scales.depth, kernel.Z)))
    theta0, layout = _pack(start, noise is None, settings.learn_inputs)
    exact = X.shape[0] <= settings.exact_rows
    anchored = not settings.learn_inputs and start.kernel.Z.shape == X.shape and torch.equal(start.kernel.Z, X)

    def objective(theta: Tensor, disturb: bool) -> Tensor:
        kernel, own = _unpack(theta, layout, start)
        value = log_hyper_prior(kernel.scales, own if noise is None else None)
        if kernel.learned:
            value = value - nu * divergences(kernel.roots).sum()
            if settings.stochastic:
                kernel = replace(kernel, roots=_disturbed(kernel.roots, generator if disturb else None))
        variances = own.expand_as(Y) if noise is None else noise.expand_as(Y)
        return value + evidence(kernel, X, Y, variances, exact, anchored)

    if settings.stochastic and start.kernel.learned:
        theta = _ascend(objective, theta0, settings)
    else:
        theta = _climb(objective, theta0, settings.max_iterations)
    with torch.no_grad():
        kernel, own = _unpack(theta, layout, start)
        if settings.stochastic and kernel.learned:
            kernel = replace(kernel, roots=_disturbed(kernel.roots, None))
        return Machine(kernel, own, nu, float(objective(theta, False)))


def _climb(objective: Callable[[Tensor, bool], Tensor], theta0: Tensor, max_iterations: int) -> Tensor:
    """L-BFGS."""

    def value_and_gradient(x: np.ndarray) -> tuple[float, np.ndarray]:
        theta = torch.from_numpy(x).to(theta0).requires_grad_(True)
        try:
            with torch.enable_grad():
                value = objective(theta, False)
                (gradient,) = torch.autograd.grad(value, theta)
        except NotPositiveDefiniteError:  # a step too far: the line search comes back
            return 1e30, np.zeros_like(x)
        if not bool(gradient.isfinite().all()) or not bool(value.isfinite()):
            return 1e30, np.zeros_like(x)
        return -float(value.detach()), -gradient.cpu().numpy().astype(np.float64)

    bounds = [(-16.0, 12.0)] * theta0.numel()
    options = {"maxiter": max_iterations, "maxcor": 20}
    start = theta0.clamp(-15.9, 11.9).cpu().numpy()
    result = minimize(value_and_gradient, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return torch.from_numpy(result.x).to(theta0)


def _ascend(objective: Callable[[Tensor, bool], Tensor], theta0: Tensor, settings: MachineSettings) -> Tensor:
    """Adam, for noisy objectives."""
    theta = theta0.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([theta], lr=settings.learning_rate, betas=(0.8, 0.9))
    for _ in range(settings.max_iterations):
        optimizer.zero_grad()
        with torch.enable_grad():
            loss = -objective(theta, True)
        loss.backward()
        if theta.grad is not None and bool(theta.grad.isfinite().all()):
            optimizer.step()
    return theta.detach()


def _disturbed(roots: Tensor, generator: torch.Generator | None) -> Tensor:
    """``chol(T W T^T + I / 10)``, ``W`` a Wishart draw of mean ``I`` with as many degrees of freedom as rows; without a
    generator ``W = I``."""
    P = roots.shape[-1]
    image = roots
    if generator is not None:
        xi = torch.randn(roots.shape, generator=generator, dtype=torch.float64).to(roots)
        image = roots @ xi / math.sqrt(P)
    return safe_cholesky(image @ image.transpose(-1, -2) + 0.1 * torch.eye(P).to(roots))


def predictive(
    machine: Machine, X: Tensor, Y: Tensor, noise: Tensor | None, X_test: Tensor, exact: bool
) -> tuple[Tensor, Tensor]:
    """Mean and variance of the latent functions at test rows given training rows, ``n_test x m`` both."""
    kernel = machine.kernel
    variances = (machine.noise if noise is None else noise).expand_as(Y)
    K_ii, cross, diagonal = inducing_blocks(kernel, X_test)
    if not exact:
        factor = jittered_cholesky(K_ii)
        _, rows, own = inducing_blocks(kernel, X)
        empty = no_rows(factor[None], Y.shape[1])
        sums = add_gaussian(empty, project(factor, rows)[None], own[None], Y.T, variances.T)
        A, precision = project(factor, cross), sums.precision_factor
        white = torch.linalg.solve_triangular(precision, A.expand(Y.shape[1], -1, -1), upper=False)
        mean = A.T @ sums.mean(precision).T
        return mean, (diagonal - A.square().sum(0)).clamp_min(0.0).unsqueeze(-1) + white.square().sum(1).T
    K = gram(kernel, X, X)
    factor = safe_cholesky(K + torch.diag_embed(variances.T + _FLOOR))  # m x n x n
    B = torch.linalg.solve_triangular(factor, gram(kernel, X, X_test).expand(Y.shape[1], -1, -1), upper=False)
    white = torch.linalg.solve_triangular(factor, Y.T.unsqueeze(-1), upper=False)
    mean = (B.transpose(-1, -2) @ white).squeeze(-1).T
    return mean, (diagonal - B.square().sum(1)).clamp_min(0.0).T


def train_path(
    start: Machine,
    X: Tensor,
    Y: Tensor,
    noise: Tensor | None,
    nus: Sequence[float],
    generator: torch.Generator,
    settings: MachineSettings,
) -> list[Machine]:
    """Machines along falling ``nu``, each begun where the one before ended."""
    machines = []
    for nu in nus:
        start = start if math.isinf(nu) and start.nu == nu else train_machine(start, X, Y, noise, nu, generator, settings)
        machines.append(start)
    return machines


@dataclass(frozen=True)
class Choice:
    """Attributes:
    nu: The chosen one.
    inflation: Of the predictive variances, at least 1: the mean square of the held-out rows' standardized errors.
    """

    nu: float
    inflation: float


def choose_nu(
    start: Machine,
    X: Tensor,
    Y: Tensor,
    noise: Tensor | None,
    nus: Sequence[float],
    generator: torch.Generator,
    settings: MachineSettings = MachineSettings(),
) -> Choice:
    """The ``nu`` by the log density of held-out rows; the infinite one stays unless it is clearly beaten.

    What learned Gram matrices lose first is calibration: errors still fall while the noise has collapsed. So every finite
    ``nu`` is judged, and later used, with variances inflated by its held-out errors. The search ends after two values of
    ``nu`` in a row that are worse than the best.

    Args:
        start: The infinitely wide network, fitted to all rows: where the folds begin.
        X: ``n x d``.
        Y: ``n x m``.
        noise: Known variances or ``None``.
        nus: Candidates, falling, the infinite one first.
        generator: Deals the rows.
        settings: Of the training.
    """
    dealt = folds(X.shape[0], generator, share=0.25, most=3, least=2)
    pairs = [(train.to(X.device), held.to(X.device)) for train, held in dealt]
    if not pairs:
        return Choice(nus[0], 1.0)
    machines: list[Machine] = []
    for train, _ in pairs:
        kernel = start.kernel
        if isinstance(kernel.layout, Vectors) and kernel.Z.shape == X.shape and torch.equal(kernel.Z, X):
            kernel = replace(kernel, Z=X[train])
        machines.append(replace(start, kernel=kernel, nu=math.nan))
    densities: list[Tensor] = []
    inflations: list[float] = []
    for nu in nus:
        errors, variances = [], []
        for fold, (train, held) in enumerate(pairs):
            known = noise if noise is None or noise.shape[0] == 1 else noise[train]
            machine = train_machine(machines[fold], X[train], Y[train], known, nu, generator, settings)
            machines[fold] = machine
            mean, variance = predictive(machine, X[train], Y[train], known, X[held], train.shape[0] <= settings.exact_rows)
            noise_held = machine.noise if noise is None else noise if noise.shape[0] == 1 else noise[held]
            errors.append(Y[held] - mean)
            variances.append(variance + noise_held)
        error, total = torch.cat(errors), torch.cat(variances)
        inflation = 1.0 if math.isinf(nu) else max(1.0, float((error.square() / total).mean()))
        density = torch.distributions.Normal(torch.zeros_like(error), (inflation * total).sqrt()).log_prob(error).sum(-1)
        densities.append(torch.where(density.isnan(), torch.full_like(density, -torch.inf), density))
        inflations.append(inflation)
        sums = [float(value.sum()) for value in densities]
        if len(sums) - 1 - sums.index(max(sums)) >= 2:
            break
    best = clearly_better(torch.stack(densities))
    return Choice(nus[best], inflations[best])


def clearly_better(densities: Tensor) -> int:
    """The first option, unless another beats it by :data:`MARGIN` nats per row and two standard errors more; then the best of
    the others (see :func:`seqbdl.inference.held_out.first_good`).

    Args:
        densities: ``options x rows`` held-out log densities, from the safest option on.
    """
    if densities.shape[0] == 1 or densities.shape[1] < 2:  # one row says nothing about its own error
        return 0
    other = 1 + first_good(densities[1:])
    gain = densities[other] - densities[0]
    sure = float(gain.mean()) - 2.0 * float(gain.std()) / math.sqrt(gain.shape[0]) > MARGIN
    return other if sure or not bool(densities[0].isfinite().all()) else 0


def inflated(machine: Machine, inflation: float) -> Machine:
    """The machine with all predictive variances multiplied: the top layer's scales and the noise."""
    scales = machine.kernel.scales
    last = torch.ones_like(scales.weights)
    last[..., -1] = inflation
    last_bias = torch.ones_like(scales.biases)
    last_bias[..., -1] = inflation
    scales = replace(scales, weights=scales.weights * last, biases=scales.biases * last_bias, noise=scales.noise * inflation)
    return replace(machine, kernel=replace(machine.kernel, scales=scales), noise=machine.noise * inflation)
