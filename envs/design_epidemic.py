"""Two more experiments with diseases: two looks at one population, and an epidemic that can be simulated only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from seqbdl.envs.design import DesignEnv
from seqbdl.envs.design_models import log_normal, normal


@dataclass(frozen=True)
class TwoLookDeathProcess:
    """A disease spreads in a population of ten; at which two times to count?

    `log rate ~ N(0, 1)`. The design is how long to wait for the first count and how long from there to the second; the outcome is
    how many fell ill in each of the two times: `Binomial(10, 1 - exp(-rate wait1))`, then `Binomial(10 - y1, 1 - exp(-rate
    wait2))`. With 66 outcomes its information is enumerated. A. Foster et al., "A unified stochastic gradient approach to
    designing Bayesian-optimal experiments", AISTATS 2020; `DeathProcess` is the version with a fresh group at each time.
    """

    parameter_names: tuple[str, ...] = ("rate",)
    POPULATION = 10

    @cached_property
    def support(self) -> Tensor:
        n = self.POPULATION
        return torch.tensor([[a, b] for a in range(n + 1) for b in range(n + 1 - a)], dtype=torch.float64)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return normal((n, 1), generator).exp()

    def log_prior(self, theta: Tensor) -> Tensor:
        rate = theta[..., 0]
        log_rate = torch.where(rate > 0, rate, 1.0).log()
        return torch.where(rate > 0, log_normal(log_rate, 0.0, 1.0) - log_rate, -math.inf)

    def log_prob(self, y: Tensor, theta: Tensor, design: Tensor) -> Tensor:
        n = torch.full_like(y[..., 0], float(self.POPULATION))
        first = _log_binomial(y[..., 0], n, theta[..., 0] * design[..., 0])
        return first + _log_binomial(y[..., 1], n - y[..., 0], theta[..., 0] * design[..., 1])

    def simulate(self, theta: Tensor, design: Tensor, generator: torch.Generator | None = None) -> Tensor:
        share = -torch.expm1(-theta[..., :1] * design)  # ... x 2
        n = torch.full_like(share[..., 0], float(self.POPULATION))
        first = torch.binomial(n, share[..., 0].contiguous(), generator=generator)
        second = torch.binomial(n - first, share[..., 1].contiguous(), generator=generator)
        return torch.stack([first, second], dim=-1)


def _log_binomial(ill: Tensor, of: Tensor, hazard: Tensor) -> Tensor:
    """The probability that so many of a group fall ill, each with probability `1 - exp(-hazard)`."""
    possible = (ill >= 0) & (ill <= of) & (ill == ill.round())
    count, rest = torch.where(possible, ill, 0.0), torch.where(possible, of - ill, 0.0)
    choose = torch.lgamma(count + rest + 1) - torch.lgamma(count + 1) - torch.lgamma(rest + 1)
    return torch.where(possible, choose + torch.xlogy(count, -torch.expm1(-hazard)) - rest * hazard, -math.inf)


class TwoLookDeathProcessEnv(DesignEnv):
    """Choose two waiting times, 0.01 to 10 each; see `TwoLookDeathProcess`."""

    def __init__(self) -> None:
        box = spaces.Box(0.01, 10.0, (2,), np.float64)
        names = ("first_ill", "second_ill")
        super().__init__(TwoLookDeathProcess(), box, ("wait1", "wait2"), (True, True), names)


_STEPS = 10_000
_KEPT = 10  # every tenth step is stored
_DAYS = 100.0


def epidemic_paths(rates: Tensor, population: float, infected: float, generator: torch.Generator | None) -> Tensor:
    """Numbers of infected at 1001 evenly spaced times from day 0 to day 100, `n x 1001`.

    The stochastic SIR equations `dS = -b S I/N dt - sqrt(b S I/N) dW1`, `dI = (b S I/N - g I) dt + sqrt(b S I/N) dW1 - sqrt(g I)
    dW2`, by 10,000 steps of Euler and Maruyama, with both kept between 0 and N.

    Args:
        rates: `n x 2`, infection rate `b` and recovery rate `g`.
        population: `N`.
        infected: at the beginning.
        generator: of the noise; `None`: without noise, the deterministic equations.
    """
    step = _DAYS / _STEPS
    root = math.sqrt(step)
    spread, recovery = rates.unbind(-1)
    susceptible = torch.full_like(spread, population - infected)
    ill = torch.full_like(spread, infected)
    kept = [ill]
    for i in range(1, _STEPS + 1):
        catching = spread * susceptible * ill / population
        healing = recovery * ill
        flow_in, flow_out = catching * step, healing * step
        if generator is not None:
            noise = root * torch.randn(2, *ill.shape, generator=generator, dtype=torch.float64)
            flow_in = flow_in + catching.sqrt() * noise[0]
            flow_out = flow_out + healing.sqrt() * noise[1]
        susceptible = (susceptible - flow_in).clamp(0.0, population)
        ill = (ill + flow_in - flow_out).clamp(0.0, population)
        if i % _KEPT == 0:
            kept.append(ill)
    return torch.stack(kept, dim=-1)


@lru_cache(maxsize=4)
def _epidemics(size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Log rates `n x 2` and paths `n x 1001` of the simulated epidemics that did not die out at once."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.tensor([0.5, 0.1], dtype=torch.float64).log()
    log_rates = centre + 0.5 * normal((size, 2), generator)
    paths = epidemic_paths(log_rates.exp(), Epidemic.POPULATION, Epidemic.INFECTED, generator)
    lasting = paths.mean(-1) >= 1.0
    return log_rates[lasting], paths[lasting]


@dataclass(frozen=True)
class Epidemic:
    """An epidemic among 500 people; on which days to count the infected?

    The logs of infection and recovery rate are `N(log 0.5, 0.5^2)` and `N(log 0.1, 0.5^2)`. The outcome is the number of infected
    on that day, without further noise: all that is random is the epidemic's path, so that there is no likelihood, only this
    simulator. Several outcomes of one truth are looks at one path. The last entry of `theta` is the number of a path, a nuisance;
    `goal` is the two rates. Epidemics with fewer than one infected on average are left out, which is part of the prior.
    D. Ivanova et al., "Implicit deep adaptive design", NeurIPS 2021. Days may be asked in any order, as of a recorded epidemic.

    Args:
        size: how many epidemics are simulated, once; 100,000 in the paper, and two seconds for 2000.
        seed: of the epidemics.
    """

    size: int = 2000
    seed: int = 0
    parameter_names: tuple[str, ...] = ("log_infection", "log_recovery", "path")
    reparametrized: bool = True
    POPULATION = 500.0
    INFECTED = 2.0

    def __post_init__(self) -> None:
        if self.size < 2:
            raise ValueError(f"size: {self.size}; simulate at least two epidemics.")

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        log_rates, _ = _epidemics(self.size, self.seed)
        which = torch.randint(len(log_rates), (n,), generator=generator)
        return torch.cat([log_rates[which], which.unsqueeze(-1).double()], dim=-1)

    def goal(self, theta: Tensor) -> Tensor:
        """The log rates, `... x 2`."""
        return theta[..., :2]

    def simulate(self, theta: Tensor, design: Tensor, generator: torch.Generator | None = None) -> Tensor:
        paths = _epidemics(self.size, self.seed)[1]
        which, day = torch.broadcast_tensors(theta[..., 2], design[..., 0])
        place = day * (paths.shape[-1] - 1) / _DAYS
        left = place.detach().floor().clamp(0, paths.shape[-1] - 2)
        row, column = which.long(), left.long()
        low, high = paths[row, column], paths[row, column + 1]
        return (low + (place - left) * (high - low)).unsqueeze(-1)


class EpidemicEnv(DesignEnv):
    """Choose the day of a count, 0.01 to 99.99; see `Epidemic`.

    Args:
        size: how many epidemics are simulated.
        seed: of the epidemics.
    """

    def __init__(self, size: int = 2000, seed: int = 0) -> None:
        box = spaces.Box(0.01, 99.99, (1,), np.float64)
        super().__init__(Epidemic(size, seed), box, ("day",), outcome_name="infected")
