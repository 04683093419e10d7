"""Information of an experiment whose outcome is normal and whose model is nearly linear in the parameters."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from seqbdl.acquisition.eig.bounds import Bounds
from seqbdl.errors import InvalidDataError, InvalidOptionError, ShapeError

_BLOCKS = 20


def laplace_information(model: Any, theta: Tensor, designs: Tensor, covariance: Tensor | None = None) -> Bounds:
    """``E_theta[log det(I + C F(theta)) / 2]``, with ``C`` the covariance of theta and ``F`` the Fisher information.

    Exact for a linear normal model, an approximation otherwise and no bound (K. Chaloner and I. Verdinelli, "Bayesian
    experimental design: a review", Statistical Science 1995; Q. Long et al., "Fast estimation of expected information gains for
    Bayesian experimental designs based on Laplace approximations", CMAME 2013). It needs no outcomes, so that it is smooth in
    the designs.

    Args:
        model: With ``moments(theta, design)``, mean and standard deviation of a normal outcome, differentiable in theta.
        theta: ``N x p``, draws at which the model is linearized.
        designs: ``D x d``.
        covariance: ``p x p``; that of the draws by default.

    Returns:
        Bounds of shape ``D`` with an ``estimate`` and no sides.

    Raises:
        InvalidOptionError: The model has no ``moments``.
        ShapeError: Shapes that do not fit.
        InvalidDataError: Moments that are not finite, or a standard deviation that is not positive.
    """
    if not callable(getattr(model, "moments", None)):
        raise InvalidOptionError("method='laplace' needs a model with moments(theta, design), mean and standard deviation")
    n, p = theta.shape
    if n < 4:
        raise ShapeError(f"theta has shape {tuple(theta.shape)}; it needs at least four draws")
    if covariance is not None and covariance.shape != (p, p):
        raise ShapeError(f"covariance has shape {tuple(covariance.shape)}; it needs {p} x {p}")

    def moments(values: Tensor) -> tuple[Tensor, Tensor]:
        mean, sd = model.moments(values, designs.unsqueeze(1))
        shape = (designs.shape[0], n)
        return mean.expand(shape), torch.as_tensor(sd, dtype=torch.float64).expand(shape).log()

    columns = []
    for i in range(p):  # forward mode, one entry of theta at a time
        direction = torch.zeros_like(theta)
        direction[:, i] = 1.0
        pushed: Any = torch.func.jvp(moments, (theta,), (direction,))  # its type allows for a third, auxiliary value
        (_, log_sd), slopes = pushed
        columns.append(torch.stack([slopes[0] * (-log_sd).exp(), math.sqrt(2.0) * slopes[1]], dim=-1))
    roots = torch.stack(columns, dim=-2)  # D x N x p x 2, F = roots roots^T
    if not bool(roots.isfinite().all()):
        where = tuple(int(i) for i in (~roots.isfinite()).nonzero()[0][:2])
        raise InvalidDataError(f"moments has no finite derivative at design {where[0]}, draw {where[1]}")

    def value(rows: Tensor) -> Tensor:
        spread = _covariance(theta[rows]) if covariance is None else covariance
        some = roots[:, rows]
        return 0.5 * torch.logdet(torch.eye(2, dtype=torch.float64) + some.mT @ spread @ some).mean(-1)

    every = torch.arange(n)
    estimate = value(every)
    with torch.no_grad():  # the jackknife over blocks: the covariance errs with the draws too
        blocks = every.tensor_split(min(_BLOCKS, n))
        without = torch.stack([value(torch.cat([b for b in blocks if b is not block])) for block in blocks])
        error = without.std(0, correction=0) * math.sqrt(len(blocks) - 1)
    return Bounds(None, None, error, torch.zeros_like(estimate, dtype=torch.bool), estimate)


def _covariance(theta: Tensor) -> Tensor:
    return torch.cov(theta.mT.double()).reshape(theta.shape[-1], theta.shape[-1])
