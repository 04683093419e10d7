"""Formulas: BoTorch's values and optima, noise, orientation, and the published network draw."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from botorch import test_functions
from botorch.test_functions import synthetic as single_objective

import seqbdl.envs
from seqbdl.envs.synthetic import EmbeddedHartmannEnv, NetworkDrawEnv, SyntheticEnv, TestFunctionEnv

SYNTHETIC = [
    info.id
    for info in seqbdl.envs.list_envs()
    if str(gymnasium.spec(info.id).entry_point) == "seqbdl.envs.synthetic:SyntheticEnv"
]


def make(env_id: str, **options: Any) -> Any:
    env = gymnasium.make(env_id, **options).unwrapped
    env.reset(seed=0)
    return env


def problem_of(env_id: str) -> Any:
    options = dict(gymnasium.spec(env_id).kwargs)
    name = options.pop("function")
    return (getattr(test_functions, name, None) or getattr(single_objective, name))(**options)


@pytest.mark.parametrize("env_id", SYNTHETIC)
def test_values_are_botorchs(env_id: str) -> None:
    env, problem = make(env_id), problem_of(env_id)
    env.action_space.seed(1)
    action = env.action_space.sample()
    values = [float(v) for v in (action.values() if isinstance(action, dict) else action)]
    x = torch.tensor([values], dtype=torch.float64)
    sign = -1.0 if problem._is_minimization_by_default else 1.0
    info = env.step(action)[4]
    expected = sign * problem.evaluate_true(x).reshape(-1).numpy()
    np.testing.assert_allclose(info["outcomes"], expected, rtol=1e-12)
    if env.num_constraints:
        np.testing.assert_allclose(info["constraints"], -problem.evaluate_slack_true(x)[0].numpy(), rtol=1e-12)


@pytest.mark.parametrize("env_id", [i for i in SYNTHETIC if getattr(problem_of(i), "_optimizers", None)])
def test_the_known_optimizer_reaches_the_optimal_value(env_id: str) -> None:
    env, problem = make(env_id), problem_of(env_id)
    if env.optimal_value is None:
        assert problem._optimal_value is None
        return
    sign = -1.0 if problem._is_minimization_by_default else 1.0
    assert env.optimal_value == sign * problem.optimal_value
    if isinstance(env.action_space, gymnasium.spaces.Box):
        value = env.step(np.asarray(problem._optimizers[0]))[4]["true_value"]
        assert value == pytest.approx(env.optimal_value, rel=2e-3, abs=2e-3)


def test_maximization_where_botorch_maximizes() -> None:
    env = make("seqbdl/Cosine8-v0")
    assert env.optimal_value == 0.8
    assert env.step(np.zeros(8))[1] == pytest.approx(0.8)


def test_noise_has_the_declared_spread() -> None:
    env = make("seqbdl/Hartmann6-v0", noise_std=0.3)
    action = np.full(6, 0.5)
    steps = [env.step(action) for _ in range(2000)]
    noise = np.array([reward - info["true_value"] for _, reward, _, _, info in steps])
    assert abs(noise.mean()) < 4 * 0.3 / np.sqrt(2000)
    assert noise.std() == pytest.approx(0.3, rel=0.07)
    assert steps[0][4]["noise_variance"] == pytest.approx([0.09])


def test_each_objective_and_constraint_has_its_own_noise() -> None:
    env = make("seqbdl/ConstrainedBraninCurrin-v0", noise_std=[0.0, 2.0], constraint_noise_std=0.5)
    action = np.array([0.3, 0.4])
    infos = [env.step(action)[4] for _ in range(500)]
    outcomes = np.array([info["outcomes"] for info in infos])
    assert outcomes[:, 0].std() < 1e-12
    assert outcomes[:, 1].std() == pytest.approx(2.0, rel=0.15)
    assert np.std([info["constraints"][0] for info in infos]) == pytest.approx(0.5, rel=0.15)


def test_the_same_seed_gives_the_same_noise() -> None:
    env = make("seqbdl/Branin-v0", noise_std=1.0)
    action = np.array([0.0, 5.0])
    runs = []
    for seed in (3, 3, 4):
        env.reset(seed=seed)
        runs.append([env.step(action)[1] for _ in range(3)])
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_reference_point_is_turned_with_the_objectives() -> None:
    env = make("seqbdl/BraninCurrin-v0")
    assert env.ref_point.tolist() == [-18.0, -6.0]
    assert env.max_hypervolume == pytest.approx(59.36011874867746)
    assert env.optimal_value is None
    noisy = make("seqbdl/BraninCurrin-v0", noise_std=1.0)
    action = np.array([0.5, 0.5])
    assert np.array_equal(noisy.step(action)[4]["true_outcomes"], env.step(action)[4]["outcomes"])


def test_any_botorch_problem_can_be_wrapped() -> None:
    env = TestFunctionEnv(test_functions.Hartmann(dim=4), noise_std=0.1)
    env.reset(seed=0)
    assert env.action_space.shape == (4,)
    with pytest.raises(ValueError, match="negate"):
        TestFunctionEnv(test_functions.Branin(negate=True))
    with pytest.raises(ValueError, match="noise_std"):
        TestFunctionEnv(test_functions.Branin(noise_std=0.1))
    with pytest.raises(ValueError, match="instance"):
        TestFunctionEnv("Branin")  # type: ignore[arg-type]


@pytest.mark.parametrize("noise_std", [-1.0, float("nan"), [0.1, 0.2], [[0.1]]])
def test_bad_noise_is_refused(noise_std: Any) -> None:
    with pytest.raises(ValueError, match="noise_std"):
        SyntheticEnv("Branin", noise_std=noise_std)


def test_unknown_functions_are_refused() -> None:
    with pytest.raises(ValueError, match="no test problem"):
        SyntheticEnv("Brannin")


def test_network_draw_is_the_published_one() -> None:
    env = NetworkDrawEnv()
    env.reset(seed=0)
    # The recipe of the publication, which works on the global generator.
    with torch.random.fork_rng():
        torch.manual_seed(2)
        layers = [torch.nn.Linear(a, b, dtype=torch.float64) for a, b in ((400, 256), (256, 256), (256, 1))]
        theta = torch.randn(168_705, dtype=torch.float64)
    network = torch.nn.Sequential(layers[0], torch.nn.Tanh(), layers[1], torch.nn.Tanh(), layers[2])
    torch.nn.utils.vector_to_parameters(theta, network.parameters())
    x = np.random.default_rng(0).uniform(size=(2000, 400))
    with torch.no_grad():
        expected = network(torch.as_tensor(x)).squeeze(-1).numpy()
    np.testing.assert_allclose([env.step(row)[1] for row in x[:50]], expected[:50], rtol=1e-9)
    # Reported for random points: mean 4.9, standard deviation 12.2.
    assert expected.mean() == pytest.approx(4.9, abs=1.0)
    assert expected.std() == pytest.approx(12.2, abs=0.7)


def test_network_draw_takes_a_dimension_and_a_seed() -> None:
    values = []
    for seed in (0, 0, 1):
        env = NetworkDrawEnv(dim=7, seed=seed)
        env.reset(seed=0)
        values.append(env.step(np.full(7, 0.3))[1])
    assert values[0] == values[1] != values[2]
    with pytest.raises(ValueError, match="dim"):
        NetworkDrawEnv(dim=0)


def test_embedded_hartmann_depends_on_six_inputs_only() -> None:
    env = EmbeddedHartmannEnv()
    env.reset(seed=0)
    assert env.active == (0, 10, 20, 30, 40, 50)
    x = np.random.default_rng(0).uniform(size=60)
    x[list(env.active)] = test_functions.Hartmann(dim=6).optimizers[0].numpy()
    assert env.step(x)[1] == pytest.approx(3.32237, abs=1e-4)
    assert env.optimal_value == pytest.approx(3.32237)
    y = x.copy()
    y[[1, 2, 59]] = 0.0
    assert env.step(y)[1] == env.step(x)[1]
    with pytest.raises(ValueError, match="active"):
        EmbeddedHartmannEnv(active=[0, 1, 2, 3, 4, 4])
    with pytest.raises(ValueError, match="dim"):
        EmbeddedHartmannEnv(dim=5)
