"""Pest control: a pesticide, or none, at each of 25 stages; 25 categorical choices of five.

The definition is that of Oh et al. (2019), "Combinatorial Bayesian optimization using the graph Cartesian product",
written anew: pests spread from stage to stage; a pesticide kills a random share of them, is paid for, gets cheaper when
it is bought often, and loses strength with every use. One hundred simulated fields share their random numbers between
stages and between evaluations, so that the cost is deterministic.
"""

from __future__ import annotations

import numpy as np

from seqbdl.envs.base import Array, DecisionEnv, Evaluation, integer, mapping

STAGES = 25
OPTIONS = ("none", "pesticide 1", "pesticide 2", "pesticide 3", "pesticide 4")
# One entry per option; "none" is free.
PRICE = np.array([0.0, 1.0, 0.8, 0.7, 0.5])
MAX_DISCOUNT = np.array([0.0, 0.2, 0.3, 0.3, 0.0])
# The share killed is Beta(1, b); b starts here and grows with every use, which is the pests' tolerance.
KILL_BETA = np.array([0.0, 2.0, 3.0, 3.0, 5.0]) / 7
TOLERANCE = np.array([0.0, 1.0, 2.5, 2.0, 0.5]) / 7
THRESHOLD = 0.1
FIELDS = 100


class PestControlEnv(DecisionEnv):
    """The negative cost of 25 pest control decisions, deterministic; the optimum is not known.

    Args:
        seed: of the simulated fields; the literature's problem has seed 1.
        noise_std: standard deviation of Gaussian noise added to the reward.
    """

    def __init__(self, seed: int = 1, noise_std: float = 0.0) -> None:
        if not (np.isfinite(noise_std) and noise_std >= 0):
            raise ValueError(f"noise_std: {noise_std!r}; give a finite number that is not negative.")
        self._seed = seed
        self.noise_std = noise_std
        names = [f"stage{i + 1}" for i in range(STAGES)]
        super().__init__(
            mapping({name: integer(0, len(OPTIONS) - 1) for name in names}),
            categories=dict.fromkeys(names, OPTIONS),
            outcome_names=("negative cost",),
        )

    def _evaluate(self, point: dict[str, float | int]) -> Evaluation:
        value = -self._cost(np.array(list(point.values()), dtype=np.int64))
        noise = self.noise_std * float(self.np_random.standard_normal()) if self.noise_std > 0 else 0.0
        return Evaluation(np.array([value + noise]), value, None, np.array([self.noise_std**2]))

    def _draw(self, b: float) -> Array:
        """Beta(1, b) for all fields; every draw restarts the stream, as the published problem does."""
        return np.random.RandomState(self._seed).beta(1.0, b, size=FIELDS)

    def _cost(self, choices: np.ndarray[tuple[int], np.dtype[np.int64]]) -> float:
        uses = np.bincount(choices, minlength=len(OPTIONS))
        cost = float((uses * PRICE * (1 - MAX_DISCOUNT * uses / STAGES)).sum())
        kill_beta = KILL_BETA.copy()
        pests, spread = self._draw(30.0), self._draw(17 / 3)
        for choice in choices:
            cost += float(np.mean(pests > THRESHOLD))
            if choice == 0:
                pests = pests + spread * (1 - pests)
            else:
                pests = pests * (1 - self._draw(float(kill_beta[choice])))
                kill_beta[choice] += TOLERANCE[choice] / STAGES
        return cost
