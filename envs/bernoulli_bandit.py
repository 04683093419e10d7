"""Arms that are won or lost with probabilities that walk at random."""

from __future__ import annotations

import numpy as np

from seqbdl.envs.bandit import Array, BanditEnv


class DriftingBernoulliBanditEnv(BanditEnv):
    """`p` of every arm begins uniform in [0, 1]; before every round it takes a normal step and is clipped to [0, 1]
    (Duran-Martin et al. 2025). There is no context: it is always 0.

    Published regrets compare with the best DRAWN reward of a round, `info["hindsight_regret"]`, which even a policy that knows
    all `p` does not avoid.

    Args:
        num_arms: `K`.
        drift: variance of a step.
    """

    def __init__(self, num_arms: int = 10, drift: float = 0.003) -> None:
        if not drift >= 0.0:
            raise ValueError(f"drift={drift} is a variance; it is not negative.")
        super().__init__(1, num_arms)
        self.drift = drift

    def _start(self) -> None:
        self.problem["p"] = self.np_random.uniform(size=self.num_arms)
        self._evolve()

    def _evolve(self) -> None:
        step = self.drift**0.5 * self.np_random.standard_normal(self.num_arms)
        self.problem["p"] = np.clip(self.problem["p"] + step, 0.0, 1.0)

    def _context(self) -> Array:
        return np.zeros(1)

    def _means(self, context: Array) -> Array:
        return self.problem["p"].copy()

    def _rewards(self, context: Array, means: Array) -> Array:
        return (self.np_random.uniform(size=self.num_arms) < means).astype(np.float64)
