"""Loops in the environments that come with the library."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest

import seqbdl.envs
from seqbdl.loops import BayesOptLoop, Space, run

QUICK: dict[str, Any] = {
    "initial": 4,
    "acquisition_options": {"mc_samples": 16},
    "optimizer_options": {"num_restarts": 2, "raw_samples": 32},
}


def test_branin_has_a_regret() -> None:
    env = gymnasium.make("seqbdl/Branin-v0")
    loop = BayesOptLoop(Space.from_gymnasium(env.action_space, env), seed=1)
    history = run(loop, env, 25, progress=False)
    assert history.optimal_value == pytest.approx(-0.397887, abs=1e-5)
    regret = history.regret()
    assert (np.diff(regret) <= 0).all()
    assert 0 <= regret[-1] < 0.2


# some cannot be made without a table of the user's
READY = [info for info in seqbdl.envs.list_envs("points") if info.available and not info.arguments]


@pytest.mark.parametrize("info", READY, ids=lambda info: info.id)
def test_every_environment_can_be_searched(info: Any) -> None:
    env = gymnasium.make(info.id)
    about: Any = env.unwrapped
    space = Space.from_gymnasium(env.action_space, env)
    loop = BayesOptLoop(
        space,
        acquisition="random" if space.dim > 30 else "auto",
        num_outcomes=about.num_outcomes,
        outcome_names=about.outcome_names,
        constraints=about.num_constraints,
        ref_point=about.ref_point if about.num_outcomes > 1 else None,
        **QUICK,
    )
    history = run(loop, env, 5, progress=False, seed=0)
    assert len(history) == 5
    assert history.complete or history.failed
    assert list(history.frame()[list(space.names)].columns) == list(space.names)
    assert not history.pending
    env.close()
