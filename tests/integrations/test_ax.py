"""Surrogates inside Ax: its client, its modular BoTorch generator, its cross-validation and its files."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from botorch.acquisition import qUpperConfidenceBound

import seqbdl
from seqbdl.errors import InvalidOptionError, UnknownNameError
from seqbdl.surrogates import surrogate_class

if importlib.util.find_spec("ax") is None:
    pytest.skip("Ax is not installed (pip install 'seqbdl[ax]')", allow_module_level=True)

from ax.adapter.cross_validation import cross_validate
from ax.adapter.registry import Generators
from ax.api.client import Client
from ax.api.configs import ChoiceParameterConfig, RangeParameterConfig
from ax.generation_strategy.generation_node import GenerationNode
from ax.generation_strategy.generation_strategy import GenerationStrategy
from ax.generation_strategy.generator_spec import GeneratorSpec
from ax.generators.torch.botorch_modular.surrogate import SurrogateSpec
from ax.generators.torch.botorch_modular.utils import ModelConfig
from ax.utils.common.random import with_rng_seed
from botorch.models.transforms.outcome import Standardize

from seqbdl.integrations.ax import generation_strategy

SMALL: dict[str, dict[str, Any]] = {
    "nngp": {},
    "laplace": {"network": [16, 16]},
    "ensemble": {"network": [16, 16], "num_members": 8},
}


def make_client(objective: str, strategy: GenerationStrategy, mixed: bool = False, seed: int | None = 0) -> Client:
    """Two numbers, one of them on a log scale; ``mixed`` adds an integer and an unordered choice (slower)."""
    client = Client(random_seed=seed)
    parameters: list[Any] = [
        RangeParameterConfig(name="heat", parameter_type="float", bounds=(20.0, 90.0)),
        RangeParameterConfig(name="dose", parameter_type="float", bounds=(1e-3, 1.0), scaling="log"),
    ]
    if mixed:
        parameters += [
            RangeParameterConfig(name="steps", parameter_type="int", bounds=(1, 9)),
            ChoiceParameterConfig(name="salt", parameter_type="str", values=["Na", "K", "Li"], is_ordered=False),
        ]
    client.configure_experiment(parameters=parameters)
    client.configure_optimization(objective=objective)
    client.set_generation_strategy(strategy)
    return client


def outcomes(point: Any) -> dict[str, float]:
    gain = -(((point["heat"] - 60) / 20) ** 2) - (math.log10(point["dose"]) + 1.5) ** 2
    gain -= 0.3 * (point.get("salt") == "Na") + 0.05 * abs(point.get("steps", 4) - 4)
    return {"gain": gain, "cost": point["heat"] / 50 + math.log10(point["dose"])}


def run(client: Client, trials: int, metrics: tuple[str, ...] = ("gain",)) -> None:
    for _ in range(trials):
        for index, point in client.get_next_trials(max_trials=1).items():
            measured = outcomes(point)
            client.complete_trial(index, raw_data={name: measured[name] for name in metrics})


def nodes(client: Client) -> list[str | None]:
    """Which node of the strategy each trial comes from."""
    return [run._generation_node_name for trial in client._experiment.trials.values() for run in trial.generator_runs]


def surrogate_in(client: Client) -> Any:
    adapter = client._generation_strategy.adapter
    assert adapter is not None
    return adapter.generator.surrogate.model


@pytest.mark.parametrize("name", SMALL)
def test_one_objective(name: str) -> None:
    client = make_client("gain", generation_strategy(name, num_initial=4, **SMALL[name]))
    run(client, 8)
    assert nodes(client) == ["Sobol"] * 4 + [name] * 4
    model = surrogate_in(client)
    assert type(model) is surrogate_class(name)
    best, _, _, _ = client.get_best_parameterization()
    assert outcomes(best)["gain"] > -1.0  # the worst is below -12, the best 0


def test_integers_and_choices() -> None:
    client = make_client("gain", generation_strategy("nngp", num_initial=4), mixed=True)
    run(client, 6)
    assert nodes(client) == ["Sobol"] * 4 + ["nngp"] * 2
    assert surrogate_in(client).input_dim == 6  # the choice is three columns
    for trial in client._experiment.trials.values():
        assert trial.arm.parameters["salt"] in ("Na", "K", "Li")
        assert isinstance(trial.arm.parameters["steps"], int)


@pytest.mark.parametrize("name", ["nngp", "ensemble"])
def test_two_objectives(name: str) -> None:
    client = make_client("gain, -cost", generation_strategy(name, num_initial=4, **SMALL[name]))
    run(client, 6, ("gain", "cost"))
    assert nodes(client) == ["Sobol"] * 4 + [name] * 2
    models = surrogate_in(client).models
    assert [type(model) for model in models] == [surrogate_class(name)] * 2
    assert len(client.get_pareto_frontier()) >= 1


def test_outcome_constraints() -> None:
    client = make_client("gain", generation_strategy("nngp", num_initial=4))
    client.configure_optimization(objective="gain", outcome_constraints=["cost <= 0.0"])
    run(client, 8, ("gain", "cost"))
    best, _, _, _ = client.get_best_parameterization()
    assert outcomes(best)["cost"] <= 0.0
    assert nodes(client) == ["Sobol"] * 4 + ["nngp"] * 4


def test_predictions_are_the_surrogates_own() -> None:
    client = make_client("gain", generation_strategy("nngp", num_initial=4))
    run(client, 6)
    model = surrogate_in(client)
    X, Y = model.train_inputs[0], model.train_targets
    alone = model.clone().fit(X, Y)
    query = X[:3] + 0.01
    with torch.no_grad():
        torch.testing.assert_close(alone.posterior(query).mean, model.posterior(query).mean)
        means, covariances = client._generation_strategy.adapter.generator.predict(query)
        torch.testing.assert_close(torch.as_tensor(means), alone.posterior(query).mean)
        variances = torch.as_tensor(covariances).diagonal(dim1=-2, dim2=-1)
        torch.testing.assert_close(variances, alone.posterior(query).variance)
    # In the user's units, at what was measured without noise: near the measurements.
    arms = [trial.arm.parameters for trial in client._experiment.trials.values()]
    predicted = torch.tensor([row["gain"][0] for row in client.predict(arms)])
    measured = torch.tensor([outcomes(arm)["gain"] for arm in arms])
    assert torch.corrcoef(torch.stack([predicted, measured]))[0, 1] > 0.9


def test_saved_and_loaded_clients_continue(tmp_path: Path) -> None:
    """Ax does not store the fitted model: the loaded client fits it again, to the same posterior."""
    path = str(tmp_path / "client.json")
    strategy = generation_strategy("ensemble", num_initial=4, **SMALL["ensemble"])
    client = make_client("gain", strategy, seed=None)  # Ax does not store its seed
    run(client, 6)
    client.save_to_json_file(path)
    again = Client.load_from_json_file(path)
    points = []
    for one in (client, again):
        with with_rng_seed(1):
            points.append(one.get_next_trials(max_trials=1)[6])
        assert type(surrogate_in(one)) is surrogate_class("ensemble")
    assert points[1] == pytest.approx(points[0], rel=1e-4)


def as_it_is(name: str, **configuration: Any) -> GenerationStrategy:
    """The class in Ax's own words, everything else at Ax's defaults (``refit_on_cv=False`` among them)."""
    config = ModelConfig(botorch_model_class=surrogate_class(name), **configuration)
    spec = SurrogateSpec(model_configs=[config])
    generators = [GeneratorSpec(Generators.BOTORCH_MODULAR, generator_kwargs={"surrogate_spec": spec})]
    return GenerationStrategy(name="as it is", nodes=[GenerationNode(name="own", generator_specs=generators)])


@pytest.mark.parametrize("name", SMALL)
def test_cross_validation_refits(name: str) -> None:
    """Held-out errors are those of refits by hand, and the class goes into Ax's generator as it is."""
    client = make_client("gain", as_it_is(name, model_options={"seed": 3, **SMALL[name]}))
    for i in range(8):
        point = {"heat": 25.0 + 8 * i, "dose": 10 ** (-3 + 0.37 * ((3 * i) % 8))}
        index = client.attach_trial(parameters=point)
        client.complete_trial(index, raw_data={"gain": outcomes(point)["gain"] + 0.3 * (-1) ** i})
    run(client, 1)
    adapter = client._generation_strategy.adapter
    assert adapter is not None
    model = surrogate_in(client)
    assert type(model) is surrogate_class(name)
    X, Y = model.train_inputs[0], model.train_targets
    by_hand, in_sample = [], model.posterior(X).mean.detach().flatten()
    for i in range(X.shape[0]):
        kept = torch.arange(X.shape[0]) != i
        refit = model.clone().fit(X[kept], Y[kept])
        by_hand.append(refit.posterior(X[i : i + 1]).mean.item())
    expected = sorted(abs(a - b) for a, b in zip(by_hand, Y.flatten().tolist(), strict=True))
    with torch.no_grad():
        results = cross_validate(adapter, untransform=False)
    found = sorted(abs(r.predicted.means[0] - r.observed.data.means[0]) for r in results)
    assert len(found) == X.shape[0]
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert sum(found) > 1.5 * float((in_sample - Y.flatten()).abs().sum())


def test_an_acquisition_function_of_choice(tmp_path: Path) -> None:
    strategy = generation_strategy("nngp", num_initial=2, acquisition=qUpperConfidenceBound)
    client = make_client("gain", strategy)
    run(client, 3)
    assert nodes(client)[-1] == "nngp"
    client.save_to_json_file(str(tmp_path / "client.json"))
    Client.load_from_json_file(str(tmp_path / "client.json"))


def test_bad_requests_are_refused_in_words() -> None:
    with pytest.raises(UnknownNameError, match=r"known ones are: .*nngp"):
        generation_strategy("no-such-surrogate")
    with pytest.raises(UnknownNameError, match="option of 'nngp'"):
        generation_strategy("nngp", widths=3)
    with pytest.raises(InvalidOptionError, match="num_initial=0"):
        generation_strategy("nngp", num_initial=0)


def test_transforms_of_ax_are_refused_rather_than_ignored() -> None:
    client = make_client("gain", as_it_is("nngp", outcome_transform_classes=[Standardize]))
    for i in range(3):
        point = {"heat": 30.0 + 8 * i, "dose": 0.01}
        client.complete_trial(client.attach_trial(parameters=point), raw_data={"gain": outcomes(point)["gain"]})
    with pytest.raises(InvalidOptionError, match="outcome_transform_classes"):
        client.get_next_trials(max_trials=1)


def test_without_ax_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ax.adapter.registry", None)
    path = Path(seqbdl.__file__).parent / "integrations" / "ax.py"
    spec = importlib.util.spec_from_file_location("without_ax", path)
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(ImportError, match=r"seqbdl\[ax\]"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
