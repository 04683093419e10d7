"""A trained normal distribution of the parameters given an outcome, and the bounds that it makes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from seqbdl.acquisition.eig.bounds import Bounds
from seqbdl.acquisition.eig.contrastive import standard_error
from seqbdl.acquisition.eig.perceptron import Perceptron
from seqbdl.errors import InvalidDataError, InvalidOptionError, ShapeError

_EXACT = 1e-7  # of the prior's standard deviation: nothing is left of it


@dataclass(frozen=True)
class TrainingSettings:
    """How critics and approximate posteriors of single experiments are trained; one for each design, side by side.

    Attributes:
        num_train: Pairs of parameters and outcomes, simulated once for each design.
        updates: Of Adam; 0 leaves a normal approximation at its linear fit.
        batch_size: Pairs in each.
        learning_rate: Of the first update; it falls to zero along a cosine.
        hidden: Width of the hidden layers.
        code: Entries of the codes of a separable critic.
    """

    num_train: int = 4096
    updates: int = 300
    batch_size: int = 256
    learning_rate: float = 2e-3
    hidden: int = 64
    code: int = 16

    def __post_init__(self) -> None:
        least = {"num_train": 16, "updates": 0, "batch_size": 2, "hidden": 1, "code": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise InvalidOptionError(f"{name}={value!r}; it is a number of at least {low}")
        if not 0 < self.learning_rate < math.inf:
            raise InvalidOptionError(f"learning_rate={self.learning_rate}; it is a positive number")


def posterior_bound(log_posterior: Tensor, log_prior: Tensor) -> Bounds:
    """The lower bound ``E[log q(theta|y) - log p(theta)]``, off by the mean divergence of ``q`` from the posterior.

    D. Barber and F. Agakov, "The IM algorithm: a variational approach to information maximization", NeurIPS 2003. It needs no
    likelihood, only the normalized prior density.

    Args:
        log_posterior: ``... x N``, ``log q(theta_n | y_n)`` of pairs that ``q`` was not fitted to.
        log_prior: ``... x N``, ``log p(theta_n)``, normalized; dimensions in front may be missing.

    Returns:
        Bounds of shape ``...`` without an upper side.
    """
    if log_posterior.dim() < 1 or log_prior.dim() < 1 or log_prior.shape[-1] != log_posterior.shape[-1]:
        raise ShapeError(
            f"log_posterior has shape {tuple(log_posterior.shape)}, log_prior {tuple(log_prior.shape)}; they need (... x) N"
        )
    terms = log_posterior.double() - log_prior.double()
    if not bool(terms.isfinite().all()):
        raise InvalidDataError("log_posterior - log_prior is NaN or infinite; draws of the prior have a positive density")
    lower = terms.mean(-1)
    return Bounds(lower, None, standard_error(terms, None), torch.zeros_like(lower, dtype=torch.bool))


class NormalPosteriors(torch.nn.Module):
    """``q(theta | y)`` for ``D`` designs: normal, with mean and precision from a network of the outcome.

    Training starts at the linear regression of theta on y, which is the posterior of a linear normal model.

    Args:
        theta: ``N x p``.
        outcomes: ``D x N x m`` that came of them.
        hidden: Width of the hidden layers.
        generator: Of the first weights.
    """

    def __init__(self, theta: Tensor, outcomes: Tensor, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        n, p = theta.shape
        if n < p + outcomes.shape[-1] + 2:
            raise ShapeError(f"{n} draws for {p} parameters and {outcomes.shape[-1]} outcomes; give num_train more")
        self.dim = p
        y_sd = outcomes.std(-2, keepdim=True)
        self.y_mean, self.y_sd = outcomes.mean(-2, keepdim=True), torch.where(y_sd > 0, y_sd, 1.0)
        y = (outcomes - self.y_mean) / self.y_sd
        one = torch.ones(*y.shape[:-1], 1, dtype=torch.float64)
        rows = torch.cat([one, y], dim=-1)
        ridge = 1e-9 * n * torch.eye(rows.shape[-1], dtype=torch.float64)
        fit = torch.linalg.solve(rows.mT @ rows + ridge, rows.mT @ theta)  # D x (1 + m) x p
        rest = theta - rows @ fit
        covariance = rest.mT @ rest / n
        factor, info = torch.linalg.cholesky_ex(covariance)
        known = (factor.diagonal(dim1=-2, dim2=-1) < _EXACT * theta.std(0)).any(-1) | (info > 0)
        if bool(known.any()):
            raise InvalidDataError(
                f"given the outcome at design {int(known.nonzero()[0])} some parameter is known exactly; no density exists"
            )
        start = torch.linalg.solve_triangular(factor, torch.eye(p, dtype=torch.float64), upper=False)
        self.constant = torch.nn.Parameter(fit[..., :1, :])
        self.slope = torch.nn.Parameter(fit[..., 1:, :])
        self.scale = torch.nn.Parameter(start.tril(-1))
        self.log_diagonal = torch.nn.Parameter(start.diagonal(dim1=-2, dim2=-1).log())
        sizes = (outcomes.shape[-1], hidden, hidden, p + p + p * p)
        self.net = Perceptron(sizes, generator, outcomes.shape[0], zero_output=True)

    def parts(self, outcomes: Tensor) -> tuple[Tensor, Tensor]:
        """Means ``D x n x p`` and lower factors ``D x n x p x p`` of the precision, ``L^T L``, for outcomes ``D x n x m``."""
        p = self.dim
        y = (outcomes - self.y_mean) / self.y_sd
        shift, log_diagonal, lower = self.net(y).split([p, p, p * p], dim=-1)
        # Shifts and shears count in standard deviations of the linear fit.
        factor = (self.scale.tril(-1) + torch.diag_embed(self.log_diagonal.exp())).unsqueeze(-3)
        relative = lower.unflatten(-1, (p, p)).tril(-1) + torch.diag_embed(log_diagonal.exp())
        factor = relative @ factor
        spread = torch.linalg.solve_triangular(factor, shift.unsqueeze(-1), upper=False).squeeze(-1)
        return self.constant + y @ self.slope + spread, factor

    def log_prob(self, theta: Tensor, outcomes: Tensor) -> Tensor:
        """``D x n (x L)``: of parameters ``n x p``, or ``D x n x L x p``, given the outcomes ``D x n x m``."""
        mean, factor = self.parts(outcomes)
        if theta.dim() > mean.dim():
            mean, factor = mean.unsqueeze(-2), factor.unsqueeze(-3)
        z = (factor @ (theta - mean).unsqueeze(-1)).squeeze(-1)
        log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return log_det - 0.5 * z.square().sum(-1) - 0.5 * self.dim * math.log(2 * math.pi)

    def sample(self, outcomes: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """``D x N x n x p`` draws given each of the outcomes ``D x N x m``."""
        mean, factor = self.parts(outcomes)
        noise = torch.randn(*mean.shape[:-1], n, self.dim, 1, generator=generator, dtype=torch.float64)
        return mean.unsqueeze(-2) + torch.linalg.solve_triangular(factor.unsqueeze(-3), noise, upper=False).squeeze(-1)
