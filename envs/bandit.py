"""Contextual bandits: a context is shown, an arm is played, its reward is seen; an episode is one decision.

`reset()` yields the next context and `reset(seed=s)` begins the problem anew; `step(arm)` returns the same context, the reward
and `terminated=True`. Rewards of ALL arms are drawn in every round, whatever is played, so that two policies under one seed meet
the same contexts and the same noise. `info` holds, for judging only, `regret` (expected: best mean minus the played arm's),
`realised_regret` (the drawn reward of the best arm minus the one received), `hindsight_regret` (the largest drawn reward minus
the one received), `optimal_arm`, `mean_rewards` and `true_value` (the played arm's mean).
"""

from __future__ import annotations

import operator
from abc import abstractmethod
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

Array = npt.NDArray[np.float64]


class BanditEnv(gymnasium.Env[Array, Any]):
    """A bandit: a subclass draws the problem (`_start`), contexts (`_context`), mean rewards (`_means`) and rewards (`_rewards`).

    Everything that is drawn and kept lives in `self.problem`, by name. What changes from round to round changes in `_evolve`.

    Args:
        context_dim: `d`.
        num_arms: `K`.
    """

    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(self, context_dim: int, num_arms: int) -> None:
        if context_dim < 1 or num_arms < 2:
            raise ValueError(f"context_dim={context_dim}, num_arms={num_arms}: a bandit needs a context and at least two arms.")
        self.context_dim, self.num_arms = context_dim, num_arms
        self.render_mode: str | None = None
        self.observation_space = spaces.Box(-np.inf, np.inf, (context_dim,), np.float64)
        self.action_space = spaces.Discrete(num_arms)
        self.problem: dict[str, Array] = {}
        self.round = -1
        self._shown: Array | None = None

    @abstractmethod
    def _start(self) -> None:
        """Draw the problem into `self.problem`."""

    @abstractmethod
    def _context(self) -> Array:
        """The next context, `(d,)`."""

    @abstractmethod
    def _means(self, context: Array) -> Array:
        """Expected rewards of all arms, `(K,)`."""

    @abstractmethod
    def _rewards(self, context: Array, means: Array) -> Array:
        """One reward of every arm, `(K,)`."""

    def _evolve(self) -> None:
        """What changes before a round, the first one left out; nothing by default."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Show the next context; with a seed, of the problem begun anew."""
        super().reset(seed=seed)
        if seed is not None or self.round < 0:
            self.round, self.problem = 0, {}
            self._start()
        else:
            self.round += 1
            self._evolve()
        self._shown = self._context()
        return self._shown.copy(), {}

    def step(self, action: Any) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Play an arm in the context that was shown.

        Raises:
            ValueError: no context was shown since the last arm was played, or the action is no arm.
        """
        if self._shown is None:
            raise ValueError("step: no context is shown; call reset, which shows the next one.")
        try:
            arm = operator.index(action)
        except TypeError as error:
            raise ValueError(f"action: {action!r}; give the index of an arm, an integer below {self.num_arms}.") from error
        if not 0 <= arm < self.num_arms:
            raise ValueError(f"action: {arm}; give the index of an arm, an integer from 0 to {self.num_arms - 1}.")
        context, self._shown = self._shown, None
        means = self._means(context)
        rewards = self._rewards(context, means)
        best = int(means.argmax())
        info = {
            "regret": float(means[best] - means[arm]),
            "realised_regret": float(rewards[best] - rewards[arm]),
            "hindsight_regret": float(rewards.max() - rewards[arm]),
            "optimal_arm": best,
            "mean_rewards": means,
            "true_value": float(means[arm]),
            "round": self.round,
        }
        return context.copy(), float(rewards[arm]), True, False, info

    def get_position(self) -> dict[str, Any]:
        """Where the bandit is: plain values from which `set_position` continues."""
        return {
            "np_random": self.np_random.bit_generator.state,
            "problem": {name: value.tolist() for name, value in self.problem.items()},
            "round": self.round,
            "shown": None if self._shown is None else self._shown.tolist(),
        }

    def set_position(self, position: dict[str, Any]) -> Array:
        """Go on from `get_position` of a bandit made with the same arguments; returns the context that is shown there."""
        self.np_random.bit_generator.state = position["np_random"]
        self.problem = {name: np.asarray(value, dtype=np.float64) for name, value in position["problem"].items()}
        self.round = int(position["round"])
        self._shown = None if position["shown"] is None else np.asarray(position["shown"], dtype=np.float64)
        return np.zeros(self.context_dim) if self._shown is None else self._shown.copy()


class WheelBanditEnv(BanditEnv):
    """The wheel (Riquelme, Tucker and Snoek 2018): four arms that pay off rarely, one that is safe, five in all.

    Contexts are uniform in the unit disc. Mean rewards are `(1, 1, 1, 1, 1.2)`, noise `std`; where `|x| >= delta`, one arm pays
    `N(50, 0.01^2)` instead: arm 0 for `x0 > 0, x1 > 0`; 1 for `x0 > 0, x1 <= 0`; 2 for `x0 <= 0, x1 > 0`; 3 else. The nearer
    `delta` is to 1, the rarer that is. The expected regret of uniform play per round is `39.16 (1 - delta^2) + 0.16 delta^2`.

    Args:
        delta: the inner radius, in `[0, 1)`.
        std: of the noise.
        change_every: rounds after which the four quadrants are dealt anew to arms 0 to 3; `None`: never.
    """

    MEANS = (1.0, 1.0, 1.0, 1.0, 1.2)
    HIGH, HIGH_STD = 50.0, 0.01

    def __init__(self, delta: float = 0.5, std: float = 0.05, change_every: int | None = None) -> None:
        if not 0.0 <= delta < 1.0 or not std >= 0.0:
            raise ValueError(f"delta={delta}, std={std}: delta lies in [0, 1), std is not negative.")
        super().__init__(2, 5)
        self.delta, self.std, self.change_every = delta, std, _period(change_every)
        self.observation_space = spaces.Box(-1.0, 1.0, (2,), np.float64)

    @property
    def uniform_regret(self) -> float:
        """Expected regret per round of playing every arm equally often."""
        outside, safe = 1.0 - self.delta**2, 1.2 - np.mean(self.MEANS)
        rest = (sum(self.MEANS) - self.MEANS[0] + self.HIGH) / 5
        return float(outside * (self.HIGH - rest) + self.delta**2 * safe)

    def _start(self) -> None:
        self.problem["arms"] = np.arange(4.0)

    def _evolve(self) -> None:
        if self.change_every is not None and self.round % self.change_every == 0:
            self.problem["arms"] = self.np_random.permutation(4).astype(np.float64)

    def _context(self) -> Array:
        while True:
            x = self.np_random.uniform(-1.0, 1.0, 2)
            if x @ x <= 1.0:
                return np.asarray(x)

    def _winner(self, x: Array) -> int | None:
        if np.sqrt(x @ x) < self.delta:
            return None
        quadrant = (0 if x[1] > 0 else 1) if x[0] > 0 else (2 if x[1] > 0 else 3)
        return int(self.problem["arms"][quadrant])

    def _means(self, context: Array) -> Array:
        means = np.array(self.MEANS)
        winner = self._winner(context)
        if winner is not None:
            means[winner] = self.HIGH
        return means

    def _rewards(self, context: Array, means: Array) -> Array:
        std = np.full(5, self.std)
        winner = self._winner(context)
        if winner is not None:
            std[winner] = self.HIGH_STD
        return np.asarray(means + std * self.np_random.standard_normal(5))


class LinearBanditEnv(BanditEnv):
    """Rewards linear in the context: `x ~ N(0, I)`, arm `a` pays `x @ beta_a` with noise of sd `noise * (a + 1)`.

    Coefficients are uniform on `(-1, 1)` and scaled to norm 1 (Riquelme, Tucker and Snoek 2018).

    Args:
        context_dim: `d`.
        num_arms: `K`.
        nonzero: how many coefficients of an arm are not zero, at random places; `None`: all.
        noise: see above.
        drift: sd of the step that every nonzero coefficient takes per round; the norm is brought back to 1.
        change_every: rounds after which all coefficients are drawn anew; `None`: never.
    """

    def __init__(
        self,
        context_dim: int = 10,
        num_arms: int = 8,
        nonzero: int | None = None,
        noise: float = 0.01,
        drift: float = 0.0,
        change_every: int | None = None,
    ) -> None:
        super().__init__(context_dim, num_arms)
        if nonzero is not None and not 1 <= nonzero <= context_dim:
            raise ValueError(f"nonzero={nonzero}: give a number from 1 to context_dim={context_dim}.")
        if not noise >= 0.0 or not drift >= 0.0:
            raise ValueError(f"noise={noise}, drift={drift}: neither is negative.")
        self.nonzero, self.noise, self.drift, self.change_every = nonzero, noise, drift, _period(change_every)

    def _start(self) -> None:
        beta = self.np_random.uniform(-1.0, 1.0, (self.num_arms, self.context_dim))
        if self.nonzero is not None:
            order = self.np_random.permuted(np.tile(np.arange(self.context_dim), (self.num_arms, 1)), axis=1)
            beta = np.where(order < self.nonzero, beta, 0.0)
        self.problem["beta"] = beta / np.linalg.norm(beta, axis=1, keepdims=True)

    def _evolve(self) -> None:
        if self.change_every is not None and self.round % self.change_every == 0:
            self._start()
        elif self.drift > 0.0:
            beta = self.problem["beta"]
            beta = beta + self.drift * self.np_random.standard_normal(beta.shape) * (beta != 0)
            self.problem["beta"] = beta / np.linalg.norm(beta, axis=1, keepdims=True)

    def _context(self) -> Array:
        return self.np_random.standard_normal(self.context_dim)

    def _means(self, context: Array) -> Array:
        return np.asarray(self.problem["beta"] @ context)

    def _rewards(self, context: Array, means: Array) -> Array:
        std = self.noise * np.arange(1.0, self.num_arms + 1)
        return np.asarray(means + std * self.np_random.standard_normal(self.num_arms))


class NeuralTestbedBanditEnv(BanditEnv):
    """The bandit of the neural testbed (Osband et al. 2022): a fixed set of actions, rewards 0 or 1, a random network behind.

    `num_arms` actions are drawn once from `N(0, I_d)`; a ReLU network `d-50-50-2` with truncated normal weights (cut at 2 sd) of
    sd `1/sqrt(fan_in)`, first-layer biases `N(0, 1/d)` and no others gives logits, and `p_a = softmax(f(a) / temperature)[1]` is
    the chance of reward 1. There is no context: the observation is a constant. The arms' features are `arm_features`.

    Args:
        input_dim: `d` of an action.
        num_arms: 50 `d` by default.
        temperature: of the softmax.
    """

    def __init__(self, input_dim: int = 2, num_arms: int | None = None, temperature: float = 0.1) -> None:
        if input_dim < 1 or not temperature > 0.0:
            raise ValueError(f"input_dim={input_dim}, temperature={temperature}: both are positive.")
        super().__init__(1, 50 * input_dim if num_arms is None else num_arms)
        self.input_dim, self.temperature = input_dim, temperature
        self.observation_space = spaces.Box(0.0, 1.0, (1,), np.float64)

    @property
    def arm_features(self) -> Array:
        """`(K, d)`, what a policy may know of the arms; drawn by the first `reset`."""
        if "actions" not in self.problem:
            raise ValueError("arm_features: the problem is not drawn yet; call reset first.")
        return self.problem["actions"].copy()

    def _truncated(self, fan_in: int, fan_out: int) -> Array:
        weights = self.np_random.standard_normal((fan_in, fan_out))
        while (outside := np.abs(weights) > 2.0).any():
            weights[outside] = self.np_random.standard_normal(int(outside.sum()))
        return np.asarray(weights / np.sqrt(fan_in))

    def _start(self) -> None:
        d = self.input_dim
        actions = self.np_random.standard_normal((self.num_arms, d))
        first = actions @ self._truncated(d, 50) + self.np_random.standard_normal(50) / np.sqrt(d)
        second = np.maximum(first, 0.0) @ self._truncated(50, 50)
        logits = np.maximum(second, 0.0) @ self._truncated(50, 2)
        gap = (logits[:, 1] - logits[:, 0]) / self.temperature
        self.problem = {"actions": actions, "p": 0.5 * (1.0 + np.tanh(0.5 * gap))}

    def _context(self) -> Array:
        return np.ones(1)

    def _means(self, context: Array) -> Array:
        return self.problem["p"].copy()

    def _rewards(self, context: Array, means: Array) -> Array:
        return (self.np_random.random(self.num_arms) < means).astype(np.float64)


def _period(change_every: int | None) -> int | None:
    if change_every is not None and change_every < 1:
        raise ValueError(f"change_every={change_every}: give a number of rounds of at least 1, or None.")
    return change_every
