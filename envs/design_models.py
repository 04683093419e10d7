"""Standard experiments of Bayesian design: a line with a closed form, hidden sources, choices between rewards, a disease."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from seqbdl.envs.design import DesignEnv

LOG_ROOT = 0.5 * math.log(2 * math.pi)


def log_normal(value: Tensor, mean: Tensor | float, sd: Tensor | float) -> Tensor:
    """The log density of a normal distribution."""
    scale = torch.as_tensor(sd, dtype=torch.float64)
    return -0.5 * ((value - mean) / scale).square() - scale.log() - LOG_ROOT


def normal(shape: torch.Size | tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    """Standard normal draws in float64."""
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@dataclass(frozen=True)
class LinearGaussian:
    """`y ~ N(theta . x, noise^2)` with `theta ~ N(0, scale^2 I)`: all answers are known.

    Args:
        dim: entries of theta and of a design.
        scale: prior standard deviation.
        noise: standard deviation of the noise.
    """

    dim: int = 2
    scale: float = 1.0
    noise: float = 0.5
    reparametrized: bool = True

    def __post_init__(self) -> None:
        if self.dim < 1 or not self.scale > 0 or not self.noise > 0:
            raise ValueError(f"dim, scale, noise: {self.dim}, {self.scale}, {self.noise}; give positive numbers.")

    @property
    def parameter_names(self) -> tuple[str, ...]:
        return tuple(f"theta{i + 1}" for i in range(self.dim))

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return self.scale * normal((n, self.dim), generator)

    def log_prior(self, theta: Tensor) -> Tensor:
        return log_normal(theta, 0.0, self.scale).sum(-1)

    def moments(self, theta: Tensor, design: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of an outcome."""
        mean = (theta * design).sum(-1)
        return mean, torch.full_like(mean, self.noise)

    def log_prob(self, y: Tensor, theta: Tensor, design: Tensor) -> Tensor:
        return log_normal(y.squeeze(-1), (theta * design).sum(-1), self.noise)

    def simulate(self, theta: Tensor, design: Tensor, generator: torch.Generator | None = None) -> Tensor:
        mean = (theta * design).sum(-1, keepdim=True)
        return mean + self.noise * normal(mean.shape, generator)

    def information(self, designs: Tensor) -> Tensor:
        """The expected information gain of the `T` designs in `... x T x d` together, in nats."""
        eye = torch.eye(designs.shape[-2], dtype=torch.float64)
        return 0.5 * torch.logdet(eye + (self.scale / self.noise) ** 2 * designs @ designs.mT)

    def posterior(self, designs: Tensor, outcomes: Tensor) -> tuple[Tensor, Tensor]:
        """Mean `d` and covariance `d x d` after designs `T x d` and outcomes `T x 1`."""
        precision = torch.eye(self.dim, dtype=torch.float64) / self.scale**2 + designs.mT @ designs / self.noise**2
        covariance = torch.linalg.inv(precision)
        return (covariance @ designs.mT @ outcomes / self.noise**2).squeeze(-1), covariance


class LinearGaussianEnv(DesignEnv):
    """Find the coefficients of a linear function; designs are in `[-1, 1]^d`."""

    def __init__(self, dim: int = 2, scale: float = 1.0, noise: float = 0.5) -> None:
        model = LinearGaussian(dim, scale, noise)
        names = tuple(f"x{i + 1}" for i in range(dim))
        super().__init__(model, spaces.Box(-1.0, 1.0, (dim,), np.float64), names)


@dataclass(frozen=True)
class LocationFinding:
    """Hidden sources send out a signal that fades with the squared distance; where are they?

    `theta_k ~ N(0, I)`, the log of the intensity `0.1 + sum_k 1 / (1e-4 + |theta_k - x|^2)` is measured with standard deviation
    0.5. A. Foster, D. Ivanova, I. Malik and T. Rainforth, "Deep adaptive design", ICML 2021. Sources are exchangeable, so
    that the posterior has `sources!` copies of every mode.

    Args:
        sources: how many.
        dim: of the space that they are in.
    """

    sources: int = 2
    dim: int = 2
    reparametrized: bool = True

    BACKGROUND = 0.1
    CLOSEST = 1e-4
    NOISE = 0.5

    def __post_init__(self) -> None:
        if self.sources < 1 or self.dim < 1:
            raise ValueError(f"sources, dim: {self.sources}, {self.dim}; give positive numbers.")

    @property
    def parameter_names(self) -> tuple[str, ...]:
        return tuple(f"source{k + 1}_{i + 1}" for k in range(self.sources) for i in range(self.dim))

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return normal((n, self.sources * self.dim), generator)

    def log_prior(self, theta: Tensor) -> Tensor:
        return log_normal(theta, 0.0, 1.0).sum(-1)

    def mean(self, theta: Tensor, design: Tensor) -> Tensor:
        """The log intensity."""
        total: Tensor | float = self.BACKGROUND
        for k in range(self.sources):
            distance = torch.zeros((), dtype=torch.float64)
            for i in range(self.dim):  # two products beat a reduction over a trailing dimension of two
                distance = distance + (theta[..., k * self.dim + i] - design[..., i]).square()
            total = total + (distance + self.CLOSEST).reciprocal()
        assert isinstance(total, Tensor)
        return total.log()

    def moments(self, theta: Tensor, design: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the log intensity."""
        mean = self.mean(theta, design)
        return mean, torch.full_like(mean, self.NOISE)

    def log_prob(self, y: Tensor, theta: Tensor, design: Tensor) -> Tensor:
        return log_normal(y.squeeze(-1), self.mean(theta, design), self.NOISE)

    def simulate(self, theta: Tensor, design: Tensor, generator: torch.Generator | None = None) -> Tensor:
        mean = self.mean(theta, design).unsqueeze(-1)
        return mean + self.NOISE * normal(mean.shape, generator)


class LocationFindingEnv(DesignEnv):
    """Choose where to measure, in `[-4, 4]^dim`; see `LocationFinding`."""

    def __init__(self, sources: int = 2, dim: int = 2) -> None:
        names = tuple(f"x{i + 1}" for i in range(dim))
        box = spaces.Box(-4.0, 4.0, (dim,), np.float64)
        super().__init__(LocationFinding(sources, dim), box, names, outcome_name="log_intensity")


@dataclass(frozen=True)
class HyperbolicDiscounting:
    """Some money now, or 100 later? What people answer tells how fast they discount the future.

    `theta` is `log k ~ N(-4.25, 1.5^2)` and `a`, half-normal with scale 2, of the slope `alpha = 0.001 + a`. The design is the
    reward now and the delay in days; the later reward is worth `100 / (1 + k delay)`. The outcome is 1 for "now", with
    probability
    `0.01 + 0.98 Phi(sqrt(2) (reward - later) / alpha)`: the square root of two is that of the code published with Deep adaptive
    design (A. Foster et al., ICML 2021), and kept so that its numbers can be compared. After D. Vincent, "Hierarchical Bayesian
    estimation and hypothesis testing for delay discounting tasks", Behavior Research Methods 2016.
    """

    parameter_names: tuple[str, ...] = ("log_k", "slope")
    CENTRE = -4.25
    SPREAD = 1.5
    SLOPE = 2.0
    LAPSE = 0.01

    @cached_property
    def support(self) -> Tensor:
        return torch.tensor([[0.0], [1.0]], dtype=torch.float64)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        z = normal((n, 2), generator)
        return torch.stack([self.CENTRE + self.SPREAD * z[:, 0], self.SLOPE * z[:, 1].abs()], dim=-1)

    def log_prior(self, theta: Tensor) -> Tensor:
        value = log_normal(theta[..., 0], self.CENTRE, self.SPREAD) + log_normal(theta[..., 1], 0.0, self.SLOPE)
        return torch.where(theta[..., 1] >= 0, value, -math.inf)

    def probability(self, theta: Tensor, design: Tensor) -> Tensor:
        """Of choosing the reward now."""
        later = 100.0 / (1.0 + theta[..., 0].exp() * design[..., 1])
        margin = (design[..., 0] - later) / (1e-3 + theta[..., 1])
        return self.LAPSE + (1 - 2 * self.LAPSE) * (0.5 + 0.5 * torch.erf(margin))

    def log_prob(self, y: Tensor, theta: Tensor, design: Tensor) -> Tensor:
        now, chosen = self.probability(theta, design), y.squeeze(-1)
        return torch.where(chosen == 1, now, torch.where(chosen == 0, 1 - now, 0.0)).log()

    def simulate(self, theta: Tensor, design: Tensor, generator: torch.Generator | None = None) -> Tensor:
        now = self.probability(theta, design).unsqueeze(-1)
        return (torch.rand(now.shape, generator=generator, dtype=torch.float64) < now).double()


class HyperbolicDiscountingEnv(DesignEnv):
    """Offer a reward now (0.01 to 99.99) against 100 after a delay (0.01 to 100,000 days); see `HyperbolicDiscounting`."""

    def __init__(self) -> None:
        box = spaces.Box(np.array([0.01, 0.01]), np.array([99.99, 1e5]), dtype=np.float64)
        super().__init__(HyperbolicDiscounting(), box, ("reward_now", "delay"), (False, True), "chose_now")


@dataclass(frozen=True)
class DeathProcess:
    """A disease spreads at an unknown rate; when to count the infected?

    `rate ~ N(1, 1)`, truncated to positive values; at time `t` a fresh group of 50 has `Binomial(50, 1 - exp(-rate t))` infected.
    This is the version with independent groups of A. Foster et al., "Deep adaptive design", ICML 2021, not the one with two looks
    at one population.
    """

    parameter_names: tuple[str, ...] = ("rate",)
    GROUP = 50

    @cached_property
    def support(self) -> Tensor:
        return torch.arange(self.GROUP + 1, dtype=torch.float64).unsqueeze(-1)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        below = torch.special.ndtr(torch.tensor(-1.0, dtype=torch.float64))
        u = torch.rand(n, 1, generator=generator, dtype=torch.float64)
        return (1.0 + torch.special.ndtri(below + (1 - below) * u)).clamp_min(torch.finfo(torch.float64).tiny)

    def log_prior(self, theta: Tensor) -> Tensor:
        rate = theta[..., 0]
        return torch.where(rate > 0, log_normal(rate, 1.0, 1.0), -math.inf)

    def log_prob(self, y: Tensor, theta: Tensor, design: Tensor) -> Tensor:
        hazard, infected, n = theta[..., 0] * design[..., 0], y.squeeze(-1), float(self.GROUP)
        possible = (infected >= 0) & (infected <= n) & (infected == infected.round())
        count = torch.where(possible, infected, 0.0)
        choose = math.lgamma(n + 1) - torch.lgamma(count + 1) - torch.lgamma(n - count + 1)
        value = choose + torch.xlogy(count, -torch.expm1(-hazard)) - (n - count) * hazard
        return torch.where(possible, value, -math.inf)

    def simulate(self, theta: Tensor, design: Tensor, generator: torch.Generator | None = None) -> Tensor:
        share = -torch.expm1(-theta[..., :1] * design[..., :1])
        return torch.binomial(torch.full_like(share, float(self.GROUP)), share, generator=generator)


class DeathProcessEnv(DesignEnv):
    """Choose when to count the infected, from 0.01 to 20; see `DeathProcess`."""

    def __init__(self) -> None:
        box = spaces.Box(0.01, 20.0, (1,), np.float64)
        super().__init__(DeathProcess(), box, ("time",), (True,), "infected")
