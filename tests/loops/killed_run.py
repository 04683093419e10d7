"""Runs a loop in child processes, kills them at random moments, and lets the last one finish.

Usage: python killed_run.py FOLDER KILLS. Prints, as JSON, how many trials were told when each child was killed. The
children are forked, so that the imports are paid for once.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from seqbdl.loops import BayesOptLoop, Integer, Real, Space, run
from seqbdl.serialization import load_tree

STEPS = 12


class Bowl(gymnasium.Env[Any, Any]):
    """A noisy bowl over a number and an integer; its noise comes from ``np_random``."""

    action_space = spaces.Dict({"x": spaces.Box(-1.0, 1.0, (), np.float64), "n": spaces.Discrete(9)})
    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float64)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(1), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        value = -((float(action["x"]) - 0.3) ** 2) - 0.01 * (int(action["n"]) - 6) ** 2 + 0.05 * self.np_random.normal()
        time.sleep(0.05)
        return np.array([value]), float(value), False, False, {}


def play(checkpoint: Path | None) -> Any:
    """The whole run, from its checkpoint if there is one."""
    env = Bowl()
    space = Space.from_gymnasium(env.action_space, env)
    assert {type(parameter) for parameter in space.parameters} == {Real, Integer}
    loop = BayesOptLoop(
        space,
        initial=4,
        seed=7,
        acquisition_options={"mc_samples": 16},
        optimizer_options={"num_restarts": 2, "raw_samples": 16},
    )
    return run(loop, env, STEPS, checkpoint=checkpoint, progress=False, batch_size=2, seed=11)


def trials(history: Any) -> list[Any]:
    """What must not depend on kills: queries, outcomes, predictions."""
    return [[record.step, record.batch, record.point, record.outcomes, record.predicted_mean] for record in history]


def told(checkpoint: Path) -> int:
    """How many trials the checkpoint holds as told."""
    return int(load_tree(checkpoint)["done"]) if checkpoint.exists() else 0


def main(folder: Path, kills: int) -> None:
    chance = random.Random(int(time.time_ns()))  # other moments every time: that is the point
    checkpoint = folder / "run"
    when: list[int] = []
    stuck = 0
    while len(when) < kills and told(checkpoint) < STEPS:
        child = os.fork()
        if child == 0:
            play(checkpoint)
            os._exit(0)
        # the first model call of a process is slow: wait longer while nothing moves
        time.sleep(chance.uniform(0.02, 0.4 + 0.4 * stuck))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        stuck = 0 if not when or told(checkpoint) > when[-1] else stuck + 1
        when.append(told(checkpoint))
    for name, path in (("killed", checkpoint), ("whole", None)):
        child = os.fork()
        if child == 0:
            (folder / f"{name}.json").write_text(json.dumps(trials(play(path))))
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        if status != 0:
            sys.exit(f"the {name} run ended with status {status}")
    sys.stdout.write(json.dumps(when))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
