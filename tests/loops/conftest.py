"""What the tests of loops share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from seqbdl.loops import BanditLoop, Real, Space


def branin(point: Mapping[str, Any]) -> float:
    """The Branin function; its minimum is 0.397887."""
    x, y = float(point["x"]), float(point["y"])
    a = y - 5.1 / (4 * math.pi**2) * x * x + 5 / math.pi * x - 6
    return a * a + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x) + 10


class NoisyBowl(gymnasium.Env[Any, Any]):
    """-(x - 0.3)^2 - (y + 0.2)^2 plus noise; with a constraint and a second outcome where asked."""

    def __init__(self, noise: float = 0.05, constraints: int = 0, outcomes: int = 1, fail_above: float = 2.0) -> None:
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float64)
        self.observation_space = spaces.Box(-np.inf, np.inf, (outcomes,), np.float64)
        self.noise, self.num_constraints, self.num_outcomes, self.fail_above = noise, constraints, outcomes, fail_above
        self.optimal_value = 0.0
        self.parameter_names = ("x", "y")
        self.outcome_names = tuple(f"objective_{i}" for i in range(outcomes))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(self.num_outcomes), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        x, y = action
        if x > self.fail_above:
            return np.zeros(self.num_outcomes), -9.0, False, False, {"failed": True, "reason": "x is too high"}
        true = np.array([-((x - 0.3) ** 2) - (y + 0.2) ** 2, -((x + 0.5) ** 2) - y**2])[: self.num_outcomes]
        values = true + self.noise * self.np_random.normal(size=self.num_outcomes)
        info: dict[str, Any] = {"outcomes": values, "true_value": float(true[0]), "failed": False}
        info["noise_variance"] = np.full(self.num_outcomes, self.noise**2)
        if self.num_constraints:
            info["constraints"] = np.array([x - 0.1])
        return values, float(values[0]), False, False, info


@pytest.fixture
def branin_space() -> Space:
    return Space([Real("x", -5, 10), Real("y", 0, 15)])


@pytest.fixture
def branin_function() -> Any:
    return branin


@pytest.fixture
def bowl() -> type[NoisyBowl]:
    return NoisyBowl


@pytest.fixture
def fast() -> dict[str, Any]:
    """Options that make a loop quick and a little careless."""
    return {"acquisition_options": {"mc_samples": 16}, "optimizer_options": {"num_restarts": 2, "raw_samples": 32}}


def played(loop: BanditLoop, n: int = 30, seed: int = 0) -> list[Any]:
    """Decisions in random contexts, and rewards that are linear in them."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(n):
        x = rng.uniform(-1, 1, loop.space.context_dim)
        decision = loop.ask(x)
        out.append((decision, float(x.sum() * (decision.arm - 1) + 0.1 * rng.standard_normal())))
    return out
