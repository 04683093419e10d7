"""More experiments of Bayesian design: preferences between baskets, a drug in the blood, predators that eat their prey."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from seqbdl.envs.base import integer
from seqbdl.envs.design import DesignEnv
from seqbdl.envs.design_models import log_normal, normal


@dataclass(frozen=True)
class Preference:
    """How much better is one basket of three goods than another? A constant-elasticity-of-substitution utility is behind the
    answer.

    `theta` is `rho` (uniform on 0.01 to 1), the first two of three shares (uniform on the simplex), and `log u ~ N(1, 3^2)`.
    A basket
    has utility `U(x) = (sum share_i x_i^rho)^(1/rho)`; the answer on a slider is the logistic of
    `eta ~ N(u (U(x) - U(x')), (0.005 u (1 + |x - x'|))^2)`, cut off at `2^-22` and `1 - 2^-22`. The outcome here is the logit of
    the slider: the same information, and precise at both ends, which are atoms. A. Foster et al., "A unified stochastic gradient
    approach to designing Bayesian-optimal experiments", AISTATS 2020.
    """

    parameter_names: tuple[str, ...] = ("rho", "share1", "share2", "log_u")
    reparametrized: bool = True
    NOISE = 0.005
    END = math.log(2.0**22 - 1)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        u = torch.rand(n, 4, generator=generator, dtype=torch.float64)
        shares = -torch.log1p(-u[:, 1:])
        shares = shares / shares.sum(-1, keepdim=True)
        return torch.cat([0.01 + 0.99 * u[:, :1], shares[:, :2], 1.0 + 3.0 * normal((n, 1), generator)], dim=-1)

    def log_prior(self, theta: Tensor) -> Tensor:
        rho, first, second = theta[..., 0], theta[..., 1], theta[..., 2]
        inside = (rho > 0.01) & (rho < 1) & (first > 0) & (second > 0) & (first + second < 1)
        return torch.where(inside, log_normal(theta[..., 3], 1.0, 3.0), -math.inf)

    def moments(self, theta: Tensor, design: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the logit before it is cut off."""
        rho, u = theta[..., :1], theta[..., 3].exp()
        shares = torch.cat([theta[..., 1:3], 1 - theta[..., 1:2] - theta[..., 2:3]], dim=-1)
        one, two = design[..., :3], design[..., 3:]
        utility = [((shares * x**rho).sum(-1)) ** (1 / rho[..., 0]) for x in (one, two)]
        distance = (one - two).square().sum(-1).clamp_min(1e-24).sqrt()
        return u * (utility[0] - utility[1]), self.NOISE * u * (1 + distance)

    def log_prob(self, y: Tensor, theta: Tensor, design: Tensor) -> Tensor:
        mean, sd = self.moments(theta, design)
        value = y.squeeze(-1)
        low = torch.special.log_ndtr((-self.END - mean) / sd)
        high = torch.special.log_ndtr((mean - self.END) / sd)
        inside = log_normal(value, mean, sd)
        return torch.where(value <= -self.END, low, torch.where(value >= self.END, high, inside))

    def simulate(self, theta: Tensor, design: Tensor, generator: torch.Generator | None = None) -> Tensor:
        mean, sd = self.moments(theta, design)
        return (mean + sd * normal(mean.shape, generator)).clamp(-self.END, self.END).unsqueeze(-1)


class PreferenceEnv(DesignEnv):
    """Offer two baskets of three goods, each 0.01 to 100; see `Preference`."""

    def __init__(self) -> None:
        names = tuple(f"{basket}{i + 1}" for basket in "ab" for i in range(3))
        super().__init__(Preference(), spaces.Box(0.01, 100.0, (6,), np.float64), names, outcome_name="logit_answer")


@dataclass(frozen=True)
class Pharmacokinetic:
    """A drug enters the blood and leaves it; when to draw blood?

    The logs of the absorption rate, elimination rate and volume are `N(log(1, 0.1, 20), 0.05 I)`. After a dose of 400 the
    concentration
    at hour `t` is `m = 400/V k_a/(k_a - k_e) (exp(-k_e t) - exp(-k_a t))`, measured as `N(m, 0.01 m^2 + 0.1)`. D. Ivanova et al.,
    "Implicit deep adaptive design", NeurIPS 2021. Absorption is faster than elimination: the other case is outside the prior.
    """

    parameter_names: tuple[str, ...] = ("log_absorption", "log_elimination", "log_volume")
    reparametrized: bool = True
    DOSE = 400.0

    @cached_property
    def centre(self) -> Tensor:
        return torch.tensor([1.0, 0.1, 20.0], dtype=torch.float64).log()

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return self.centre + math.sqrt(0.05) * normal((n, 3), generator)

    def log_prior(self, theta: Tensor) -> Tensor:
        value = log_normal(theta, self.centre, math.sqrt(0.05)).sum(-1)
        return torch.where(theta[..., 0] > theta[..., 1], value, -math.inf)

    def moments(self, theta: Tensor, design: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the measured concentration."""
        absorb, leave, volume = theta.exp().unbind(-1)
        t = design[..., 0]
        mean = self.DOSE / volume * absorb / (absorb - leave) * ((-leave * t).exp() - (-absorb * t).exp())
        return mean, (0.01 * mean.square() + 0.1).sqrt()

    def log_prob(self, y: Tensor, theta: Tensor, design: Tensor) -> Tensor:
        return log_normal(y.squeeze(-1), *self.moments(theta, design))

    def simulate(self, theta: Tensor, design: Tensor, generator: torch.Generator | None = None) -> Tensor:
        mean, sd = self.moments(theta, design)
        return (mean + sd * normal(mean.shape, generator)).unsqueeze(-1)


class PharmacokineticEnv(DesignEnv):
    """Choose the hour of a blood sample, 0 to 24; see `Pharmacokinetic`."""

    def __init__(self) -> None:
        box = spaces.Box(0.0, 24.0, (1,), np.float64)
        super().__init__(Pharmacokinetic(), box, ("hour",), outcome_name="concentration")


@dataclass(frozen=True)
class PreyPopulation:
    """How many prey to put before a predator, to learn how it hunts?

    `log a` and `log T_h` (attack rate and handling time) are `N(-1.4, 1.35^2)`. Prey decline as `dN/dt = -a N^2 / (1 + a T_h
    N^2)` for
    24 hours; the outcome is how many of `N_0` were eaten, `Binomial(N_0, 1 - N(24)/N_0)`. T. Blau et al., "Optimizing sequential
    experimental design with deep reinforcement learning", ICML 2022. The equation is solved in closed form: `1/(a N) - T_h
    N` grows
    by one in an hour, and `N` is the positive root of a quadratic.
    """

    parameter_names: tuple[str, ...] = ("log_attack", "log_handling")
    HOURS = 24.0
    MOST = 300

    @cached_property
    def support(self) -> Tensor:
        return torch.arange(self.MOST + 1, dtype=torch.float64).unsqueeze(-1)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return -1.4 + 1.35 * normal((n, 2), generator)

    def log_prior(self, theta: Tensor) -> Tensor:
        return log_normal(theta, -1.4, 1.35).sum(-1)

    def survivors(self, theta: Tensor, design: Tensor) -> Tensor:
        """The share of the prey that is left after 24 hours, in (0, 1)."""
        attack, handling = theta.exp().unbind(-1)
        start = design[..., 0]
        linear = 1 / (attack * start) - handling * start + self.HOURS
        root = (linear.square() + 4 * handling / attack).sqrt()
        # Two forms of the same root; each is free of cancellation on its side.
        ahead = 2 / (attack * (linear.clamp_min(0.0) + root))
        behind = (root - linear.clamp_max(0.0)) / (2 * handling)
        return (torch.where(linear > 0, ahead, behind) / start).clamp(1e-12, 1 - 1e-12)

    def log_prob(self, y: Tensor, theta: Tensor, design: Tensor) -> Tensor:
        left, eaten, start = self.survivors(theta, design), y.squeeze(-1), design[..., 0]
        possible = (eaten >= 0) & (eaten <= start) & (eaten == eaten.round())
        count = torch.where(possible, eaten, 0.0)
        choose = torch.lgamma(start + 1) - torch.lgamma(count + 1) - torch.lgamma(start - count + 1)
        value = choose + count * torch.log1p(-left) + (start - count) * left.log()
        return torch.where(possible, value, -math.inf)

    def simulate(self, theta: Tensor, design: Tensor, generator: torch.Generator | None = None) -> Tensor:
        share = 1 - self.survivors(theta, design).unsqueeze(-1)
        return torch.binomial(design[..., :1].expand_as(share).contiguous(), share, generator=generator)


class PreyPopulationEnv(DesignEnv):
    """Choose how many prey there are at first, 1 to 300; see `PreyPopulation`."""

    def __init__(self) -> None:
        space = spaces.Dict(OrderedDict(prey=integer(1, PreyPopulation.MOST)))
        super().__init__(PreyPopulation(), space, outcome_name="eaten")
