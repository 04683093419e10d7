"""Simulators from other packages: their physics, their constraints and their failures; and pest control."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import gymnasium
import numpy as np
import pytest

from seqbdl.envs.pest import OPTIONS, STAGES, PestControlEnv


def make(env_id: str, package: str, **options: Any) -> Any:
    pytest.importorskip(package, reason=f"needs: pip install {package}")
    env = gymnasium.make(env_id, **options).unwrapped
    env.reset(seed=0)
    return env


@pytest.mark.parametrize(("env_id", "package"), [("seqbdl/AirfoilDrag-v0", "neuralfoil"), ("seqbdl/LowNoxBurner-v0", "cantera")])
def test_a_missing_package_is_named_with_its_command(env_id: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=f"pip install {package}=="):
        gymnasium.make(env_id)


# --- airfoil

# Close to NACA 0012.
SYMMETRIC = np.array([0.1729, 0.1516, 0.1738, 0.1277, 0.1648, 0.1264, 0.1459, 0.1392])


def airfoil(angle: float, thickness: float = 1.0) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.concatenate([thickness * SYMMETRIC, -thickness * SYMMETRIC, [0.0, angle]])


def test_airfoil_has_the_lift_and_drag_of_a_known_section() -> None:
    env = make("seqbdl/AirfoilDrag-v0", "neuralfoil")
    level = env.step(airfoil(0.0))[4]
    assert abs(level["lift"]) < 0.02
    assert 40 < -level["outcomes"][0] < 80  # XFoil: about 54 counts at a Reynolds number of a million
    lifting = env.step(airfoil(4.0))[4]
    assert lifting["lift"] == pytest.approx(0.44, abs=0.05)
    assert lifting["drag"] > level["drag"]


def test_airfoil_constraints() -> None:
    env = make("seqbdl/AirfoilDrag-v0", "neuralfoil", min_lift=0.4)
    lift, moment, thickness, confidence = env.step(airfoil(4.0, 1.05))[4]["constraints"]
    assert (np.array([lift, moment, thickness, confidence]) <= 0).all()
    assert env.step(airfoil(0.0, 1.05))[4]["constraints"][0] == pytest.approx(0.4, abs=0.02)
    assert env.step(airfoil(4.0, 0.7))[4]["constraints"][2] == pytest.approx(0.12 - 0.7 * 0.12, abs=0.003)


def test_airfoil_surfaces_that_cross_fail() -> None:
    env = make("seqbdl/AirfoilDrag-v0", "neuralfoil")
    x = airfoil(0.0)
    x[:8], x[8:16] = 0.05, 0.2
    _, reward, _, _, info = env.step(x)
    assert info["failed"]
    assert "crosses" in info["reason"]
    assert reward == env.failure_reward
    assert np.isnan(info["constraints"]).all()


def test_airfoil_noise_and_arguments() -> None:
    env = make("seqbdl/AirfoilDrag-v0", "neuralfoil", noise_std=2.0)
    x = airfoil(2.0)
    rewards = np.array([env.step(x)[1] for _ in range(300)])
    assert rewards.std() == pytest.approx(2.0, rel=0.2)
    for options in ({"model_size": "huge"}, {"reynolds": 0.0}, {"noise_std": -1.0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            gymnasium.make("seqbdl/AirfoilDrag-v0", **options)


# --- burner


def test_burner_follows_the_chemistry() -> None:
    env = make("seqbdl/LowNoxBurner-v0", "cantera")
    lean, rich = ([phi, 600.0, 10.0, 0.02] for phi in (0.55, 0.95))
    a, b = env.step(lean)[4], env.step(rich)[4]
    assert a["temperature"] < b["temperature"]
    assert a["no_ppm"] < b["no_ppm"] / 10  # thermal NO rises steeply with temperature
    assert a["outcomes"][0] == pytest.approx(-np.log10(a["no_ppm"]))
    longer = env.step([0.55, 600.0, 10.0, 0.04])[4]
    assert longer["co_ppm"] < a["co_ppm"]
    assert (longer["constraints"] <= 0).all()


def test_burner_is_exactly_repeatable_whatever_came_before() -> None:
    env = make("seqbdl/LowNoxBurner-v0", "cantera")
    first = env.step([0.6, 400.0, 10.0, 0.02])[1]
    env.step([0.9, 700.0, 3.0, 0.005])
    assert env.step([0.6, 400.0, 10.0, 0.02])[1] == first


def test_burner_blows_out_when_the_gas_is_cold_and_quick() -> None:
    env = make("seqbdl/LowNoxBurner-v0", "cantera")
    _, reward, _, _, info = env.step([0.4, 300.0, 1.0, 5e-4])
    assert info["failed"]
    assert "blew out" in info["reason"]
    assert reward == -5.0


def test_burner_arguments() -> None:
    pytest.importorskip("cantera", reason="needs: pip install cantera")
    with pytest.raises(ValueError, match="max_co"):
        gymnasium.make("seqbdl/LowNoxBurner-v0", max_co=0.0)


# --- pest control


def pests(choices: Any) -> float:
    env = PestControlEnv()
    env.reset(seed=0)
    return env.step({f"stage{i + 1}": int(c) for i, c in enumerate(choices)})[1]


def test_pest_control_agrees_with_a_plain_simulation() -> None:
    choices = np.random.default_rng(3).integers(0, len(OPTIONS), STAGES)
    discount, tolerance = {1: 0.2, 2: 0.3, 3: 0.3, 4: 0.0}, {1: 1 / 7, 2: 2.5 / 7, 3: 2 / 7, 4: 0.5 / 7}
    price, beta = {1: 1.0, 2: 0.8, 3: 0.7, 4: 0.5}, {1: 2 / 7, 2: 3 / 7, 3: 3 / 7, 4: 5 / 7}
    level = list(np.random.RandomState(1).beta(1.0, 30.0, size=100))
    cost = 0.0
    for c in choices.tolist():
        cost += sum(p > 0.1 for p in level) / 100
        if c == 0:
            spread = np.random.RandomState(1).beta(1.0, 17 / 3, size=100)
            level = [s * (1 - p) + p for p, s in zip(level, spread, strict=True)]
        else:
            killed = np.random.RandomState(1).beta(1.0, beta[c], size=100)
            level = [p * (1 - k) for p, k in zip(level, killed, strict=True)]
            beta[c] += tolerance[c] / STAGES
            cost += price[c] * (1 - discount[c] * choices.tolist().count(c) / STAGES)
    assert pests(choices) == pytest.approx(-cost)


def test_pest_control_is_in_the_published_range() -> None:
    rng = np.random.default_rng(0)
    values = [pests(rng.integers(0, 5, STAGES)) for _ in range(100)]
    assert np.mean(values) == pytest.approx(-18.7, abs=0.5)
    assert pests([4] * STAGES) > pests([0] * STAGES)


def test_pest_control_noise() -> None:
    env = PestControlEnv(noise_std=0.5)
    env.reset(seed=0)
    action = dict.fromkeys(env.parameter_names, 4)
    rewards = [env.step(action)[1] for _ in range(200)]
    assert np.std(rewards) == pytest.approx(0.5, rel=0.2)
    with pytest.raises(ValueError, match="noise_std"):
        PestControlEnv(noise_std=-1.0)


def test_modules_load_without_the_simulators() -> None:
    for module in ("airfoil", "burner"):
        assert importlib.import_module(f"seqbdl.envs.{module}").INSTALL.startswith("pip install")
