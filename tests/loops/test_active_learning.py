"""The active-learning loop: every surrogate, late labels, resuming, what it refuses, and that choosing pays."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import seqbdl
import seqbdl.envs
from seqbdl.acquisition import list_batch_acquisitions
from seqbdl.acquisition.batches import get_batch_acquisition
from seqbdl.errors import InvalidDataError, InvalidOptionError, InvalidSpaceError, ShapeError, StateError, UnknownNameError
from seqbdl.loops import ActiveLearningLoop, SpaceExhaustedError, run
from seqbdl.serialization import load_tree, save_tree
from seqbdl.surrogates import surrogate_class

_spec = importlib.util.spec_from_file_location("surrogate_settings", Path(__file__).parents[1] / "surrogates" / "conftest.py")
assert _spec is not None
assert _spec.loader is not None
_settings = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_settings)
SMALL = _settings.SMALL

NAMES = seqbdl.list_surrogates()
OF_CLASSES = [name for name in NAMES if "categorical" in surrogate_class(name).likelihoods]
LAPLACE = {"network": (8,)}


def points(n: int = 60, seed: int = 0) -> Tensor:
    return torch.rand(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def value(X: Tensor) -> Tensor:
    return torch.sin(5.0 * X[:, 0]) + X[:, 1]


def kind(X: Tensor) -> Tensor:
    """Three classes in stripes."""
    return (X[:, 0] * 2.999).floor().long()


POOL, TEST = points(), points(40, 1)
CLASSES = ("left", "middle", "right")


def of_values(surrogate: Any = "gp", acquisition: str = "auto", **options: Any) -> ActiveLearningLoop:
    settings_ = {"initial": 6, "num_draws": 20, "test": (TEST, value(TEST)), **options}
    return ActiveLearningLoop(POOL, surrogate, acquisition, **settings_)


def of_classes(surrogate: Any = "laplace", acquisition: str = "auto", **options: Any) -> ActiveLearningLoop:
    defaults: dict[str, Any] = {"initial": 6, "num_draws": 20, "test": (TEST, kind(TEST)), "classes": CLASSES}
    if surrogate == "laplace":
        defaults["surrogate_options"] = LAPLACE
    return ActiveLearningLoop(POOL, surrogate, acquisition, **{**defaults, **options})


def answer(loop: ActiveLearningLoop, asked: Any) -> Any:
    truth = kind(POOL) if loop.labels.num_classes else value(POOL)
    return truth[asked].tolist()


def go(loop: ActiveLearningLoop, rounds: int, n: int = 2) -> list[Any]:
    """Ask and tell; what was asked."""
    asked = []
    for _ in range(rounds):
        asked.append(loop.ask(n=n))
        loop.tell(asked[-1], answer(loop, asked[-1]))
    return asked


@pytest.mark.parametrize("name", NAMES)
def test_values_with_every_surrogate(name: str) -> None:
    loop = of_values(name, "BALD", surrogate_options=SMALL.get(name, {}), initial=8)
    loop.tell(range(8), value(POOL[:8]))
    asked = [index for batch in go(loop, 2) for index in batch]
    assert len({*asked, *range(8)}) == 12
    assert [p.labels for p in loop.history.curve] == [8, 10, 12]
    last = loop.history.curve[-1].metrics
    assert set(last) == {"rmse", "nll", "coverage"}
    assert 0 <= last["coverage"] <= 1
    assert np.isfinite(last["rmse"])


@pytest.mark.parametrize("name", OF_CLASSES)
def test_classes_with_every_surrogate(name: str) -> None:
    loop = of_classes(name, "BALD", surrogate_options=SMALL.get(name, {}), initial=8)
    loop.tell(range(8), kind(POOL[:8]))
    asked = [index for batch in go(loop, 2) for index in batch]
    assert len({*asked, *range(8)}) == 12
    last = loop.history.curve[-1].metrics
    assert set(last) == {"accuracy", "nll", "ece", "agreement"}
    assert loop.predict(TEST).probs is not None
    assert last["nll"] > 0


@pytest.mark.parametrize("name", list_batch_acquisitions())
def test_every_acquisition(name: str) -> None:
    entry = get_batch_acquisition(name)
    for loop, select in ((of_classes, entry.for_classes), (of_values, entry.for_values)):
        if select is not None:
            made = loop("laplace", name, targets=TEST[:10], surrogate_options=LAPLACE)
            asked = go(made, 5)
            assert len({index for batch in asked for index in batch}) == 10


def test_the_driver_runs_it_in_an_environment() -> None:
    env = gymnasium.make("seqbdl/LabelWine-v0")
    about: Any = env.unwrapped
    loop = ActiveLearningLoop(
        about.pool, classes=about.class_names, test=(about.test_inputs, about.test_labels), surrogate_options=LAPLACE
    )
    history = run(loop, env, 21, batch_size=4, progress=False)
    assert history is loop.history
    assert loop.labelled == history.frame()["index"].tolist()
    assert [p.labels for p in loop.history.curve] == [8, 12, 16, 20, 21]
    assert loop.history.curve[-1].metrics["accuracy"] > 0.8  # the largest class is 40 %
    env.reset(seed=0)
    assert [env.step(index)[1] for index in loop.labelled] == history.frame()["label"].tolist()


def test_choosing_pays_where_information_is_rare() -> None:
    """Of 200 points 190 are copies of one: chance finds few others, a model looks for them."""
    pool = torch.cat([points(1).expand(190, 2), points(10, 3)])
    errors = {}
    for name in ("Random", "BatchBALD"):
        loop = ActiveLearningLoop(pool, "gp", name, test=(points(10, 3), value(points(10, 3))), initial=2, seed=1)
        for _ in range(8):
            index = loop.ask()
            loop.tell(index, float(value(pool[[index]])))
        errors[name] = loop.measure().metrics["rmse"]
    assert errors["BatchBALD"] < 0.5 * errors["Random"]


@pytest.mark.parametrize(
    ("likelihood", "acquisition", "classes"),
    [
        ("bernoulli", "BatchBALD", 2),
        ("heteroscedastic", "BatchBALD", None),
        ("poisson", "auto", None),
        ("poisson", "EpistemicVariance", None),
    ],
)
def test_other_likelihoods(likelihood: str, acquisition: str, classes: int | None) -> None:
    y = kind(POOL) if classes is None else (POOL[:, 0] > 0.5).long()
    options: dict[str, Any] = {"likelihood": likelihood, "classes": classes, "test": (POOL, y), "surrogate_options": LAPLACE}
    loop = ActiveLearningLoop(POOL, "laplace", acquisition, initial=6, num_draws=20, **options)
    for _ in range(4):
        asked = loop.ask(n=3)
        loop.tell(asked, y[asked])
    assert loop.history.curve[-1].labels == 12
    assert np.isfinite(loop.history.curve[-1].metrics["nll"])


# -- labels late and in part


def test_labels_may_come_late_and_in_part() -> None:
    loop = of_values()
    loop.tell(range(6), value(POOL[:6]))
    first = loop.ask(n=3)
    second = loop.ask(n=3)
    assert not set(first) & set(second)
    assert loop.pending == [*first, *second]
    loop.tell(second, [float(value(POOL[[second[0]]])), None, None])  # only one is in
    assert loop.pending == [*first, *second[1:]]
    assert loop.history.curve[-1].labels == 6  # the curve waits for what was asked
    loop.tell([second[2], *first], answer(loop, [second[2], *first]))
    loop.tell(second[1], answer(loop, second[1]))
    assert loop.pending == []
    assert loop.labelled == [*range(6), *first, *second]  # in the order in which they entered
    assert loop.history.curve[-1].labels == 12


def test_pending_points_count_as_chosen() -> None:
    """A copy of a pending point is not worth asking."""
    pool = torch.cat([POOL, POOL])
    loop = ActiveLearningLoop(pool, "gp", "BatchBALD", initial=6, noise=1e-4)
    loop.tell(range(6), value(POOL[:6]))
    asked = [loop.ask() for _ in range(8)]
    assert len({index % 60 for index in asked}) == 8


def test_a_label_that_cannot_be_given_is_not_asked_again() -> None:
    loop = of_classes()
    index = loop.ask()
    loop.tell(index, failed=True, reason="blurred")
    loop.tell((index + 1) % 60, float("nan"))
    assert [record.reason for record in loop.history.failed] == ["blurred", "the label is nan"]
    everything = loop.ask(n=loop.remaining)
    assert not {index, (index + 1) % 60} & set(everything)
    with pytest.raises(SpaceExhaustedError, match="0 of the pool are left"):
        loop.ask()


def test_forbidden_points_and_costs() -> None:
    cost = torch.where(POOL[:, 1] > 0.5, 100.0, 1.0)
    loop = of_values("gp", cost=cost, forbidden=range(50, 60))
    loop.tell(range(6), value(POOL[:6]))
    asked = [index for batch in go(loop, 3) for index in batch]
    assert all(index < 50 and cost[index] == 1.0 for index in asked)
    assert loop.spent == float(cost[loop.labelled].sum())
    assert loop.history.curve[-1].cost == loop.spent
    with pytest.raises(InvalidDataError, match="index 55 is forbidden"):
        loop.tell(55, 1.0)


def test_class_names_and_numbers_are_the_same() -> None:
    loop = of_classes()
    loop.tell([0, 1, 2], ["left", 1, torch.tensor(2.0)])
    assert loop.history.frame()["class"].tolist() == list(CLASSES)
    assert loop.history.frame()["label"].tolist() == [0.0, 1.0, 2.0]


def test_known_noise_reaches_the_surrogate() -> None:
    loop = of_values("gp")
    loop.tell(range(6), value(POOL[:6]), Yvar=0.04)
    assert loop.fitted().train_targets is not None
    with pytest.raises(InvalidDataError, match="for all labels or for none"):
        loop.tell(7, 1.0)


# -- resuming


@pytest.mark.parametrize("refit", ["every", 5, "update"])
@pytest.mark.parametrize("make", [of_values, of_classes])
def test_resuming_is_exact(make: Any, refit: Any, tmp_path: Path) -> None:
    options = {"refit": refit, "subsample": 30}
    whole = make(**options)
    expected = go(whole, 7)
    half = make(**options)
    go(half, 4)
    asked = half.ask(n=2)  # stopped while labels are in flight
    save_tree(tmp_path / "state", half.state_dict())
    again = make(**options)
    again.load_state_dict(load_tree(tmp_path / "state"))
    assert asked == again.pending == expected[4]
    again.tell(asked, answer(again, asked))
    assert go(again, 2) == expected[5:]
    assert again.history.curve == whole.history.curve
    assert again.history.frame()["score"].equals(whole.history.frame()["score"])


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    def label(index: int) -> float:
        assert isinstance(index, int)
        return float(value(POOL[[index]]))

    whole = run(of_values(), label, 14, batch_size=4, progress=False)

    def dies(index: int) -> float:
        if len(calls) == 9:
            raise KeyboardInterrupt
        calls.append(index)
        return label(index)

    calls: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        run(of_values(), dies, 14, batch_size=4, progress=False, checkpoint=tmp_path / "run")
    loop = of_values()
    history = run(loop, label, 14, batch_size=4, progress=False, checkpoint=tmp_path / "run")
    assert history.frame()["index"].tolist() == whole.frame()["index"].tolist()
    assert loop.history.curve == whole.curve  # type: ignore[attr-defined]  # the history of this loop


def test_a_state_of_another_loop_is_refused() -> None:
    state = of_values().state_dict()
    with pytest.raises(StateError, match="another acquisition"):
        of_values(acquisition="BALD").load_state_dict(state)
    with pytest.raises(StateError, match="another classes"):
        of_classes("laplace").load_state_dict(of_classes(classes=3).state_dict())
    with pytest.raises(StateError, match="another pool"):
        ActiveLearningLoop(POOL + 1.0, "gp").load_state_dict(state)
    with pytest.raises(StateError, match="version"):
        of_values().load_state_dict({**state, "version": 99})


# -- own networks, images


def test_a_network_of_the_user_on_images() -> None:
    images = torch.rand(30, 1, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    network = torch.nn.Sequential(
        torch.nn.Unflatten(-1, (1, 6, 6)), torch.nn.Conv2d(1, 2, 3), torch.nn.Tanh(), torch.nn.Flatten(), torch.nn.Linear(32, 2)
    )
    before = [parameter.clone() for parameter in network.parameters()]
    loop = ActiveLearningLoop(images, "ensemble", "BADGE", classes=2, initial=4, surrogate_options={"network": network})
    for _ in range(3):
        asked = loop.ask(n=4)
        loop.tell(asked, (images[asked].mean((1, 2, 3)) > 0.5).long())
    assert loop.predict(images[:5]).probs.shape == (5, 2)  # type: ignore[union-attr]  # of classes there are
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


def test_an_instance_is_a_surrogate_too() -> None:
    surrogate = seqbdl.make_surrogate("laplace", 2, 3, "categorical", network=(8,), seed=3)
    loop = of_classes(surrogate, classes=3)
    go(loop, 4)
    assert loop.fitted() is surrogate


# -- what is refused


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"acquisition": "BLAD"}, UnknownNameError, "unknown batch acquisition 'BLAD'"),
        ({"acquisition": "MaxDet", "classes": 3}, InvalidOptionError, "MaxDet is for real values"),
        ({"acquisition": "Margin"}, InvalidOptionError, "Margin is for classes"),
        ({"acquisition": "EPIG"}, InvalidOptionError, "needs targets"),
        ({"acquisition": "BALD", "acquisition_options": {"bta": 1}}, UnknownNameError, "unknown option of BALD 'bta'"),
        ({"surrogate": "gp", "classes": 3}, InvalidOptionError, "knows no classes"),
        ({"classes": 1}, InvalidOptionError, "at least two"),
        ({"classes": ["a", "a"]}, InvalidOptionError, "different names"),
        ({"cost": torch.ones(3)}, ShapeError, "cost has 3 entries"),
        ({"cost": torch.zeros(60)}, InvalidDataError, "not positive at index 0"),
        ({"forbidden": [60]}, InvalidSpaceError, "index 60 is out of range"),
        ({"initial": -1}, InvalidOptionError, "initial=-1"),
        ({"refit": "never"}, InvalidOptionError, "refit='never'"),
        ({"subsample": 0}, InvalidOptionError, "subsample=0"),
        ({"targets": torch.rand(5, 3)}, ShapeError, "rows have shape"),
        ({"target_weights": torch.ones(5)}, InvalidOptionError, "without targets"),
        ({"test": (TEST, value(TEST)[:3])}, ShapeError, "test labels has 3 entries"),
        ({"test": (TEST, kind(TEST) + 5), "classes": 3}, InvalidDataError, "not one of the classes"),
        ({"test": (TEST, TEST[:, 0] / 0)}, InvalidDataError, "test label in row 0 is not finite"),
        ({"likelihood": "categorical"}, InvalidOptionError, "classes= belongs"),
        ({"likelihood": "bernoulli", "classes": 3}, InvalidOptionError, "for 2 classes"),
        ({"surrogate": seqbdl.make_surrogate("gp", 3)}, InvalidOptionError, "input_dim=3, the pool 2"),
        ({"surrogate": seqbdl.make_surrogate("gp", 2), "classes": 3}, InvalidOptionError, "1 real values"),
        ({"surrogate": seqbdl.make_surrogate("gp", 2, 2)}, InvalidOptionError, "2 real values"),
        ({"surrogate": seqbdl.make_surrogate("gp", 2), "noise": 0.1}, InvalidOptionError, "belong to a surrogate given by name"),
        ({"surrogate": 3}, InvalidOptionError, "surrogate is a int"),
    ],
)
def test_bad_settings_are_refused(options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        ActiveLearningLoop(POOL, **options)


@pytest.mark.parametrize(
    ("action", "outcome", "options", "error", "text"),
    [
        (0, 1, {}, InvalidDataError, "index 0 is labelled already"),
        ([5, 5], [1, 1], {}, InvalidDataError, "index 5 stands twice"),
        (60, 1, {}, InvalidSpaceError, "index 60 is out of range"),
        (-1, 1, {}, InvalidSpaceError, "out of range"),
        (1.5, 1, {}, InvalidSpaceError, "not an index"),
        (True, 1, {}, InvalidSpaceError, "out of range"),
        ([5, 6], [1], {}, ShapeError, "1 labels for 2 indices"),
        ([5, 6], "left", {}, ShapeError, "several indices"),
        (5, 3, {}, InvalidDataError, "label 3 of index 5 is not one of the classes left, middle, right"),
        (5, 0.5, {}, InvalidDataError, "not one of the classes"),
        (5, "up", {}, InvalidDataError, "'up' of index 5"),
        (5, [1, 2], {}, InvalidDataError, "of index 5"),
        ([5, 6], [1, 9], {}, InvalidDataError, "label 9 of index 6"),
        (5, 1, {"constraints": [0.0]}, InvalidOptionError, "no constraints"),
        ([5, 6], [1, 1], {"failed": [True]}, ShapeError, "failed has 1"),
    ],
)
def test_bad_labels_are_refused(action: Any, outcome: Any, options: Any, error: type[Exception], text: str) -> None:
    loop = of_classes()
    loop.tell(0, 1)
    before = loop.state_dict()["history"]
    with pytest.raises(error, match=text):
        loop.tell(action, outcome, **options)
    assert str(loop.state_dict()["history"]) == str(before)  # nothing was recorded


@given(st.lists(st.integers(-3, 12), min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_exactly_new_different_indices_are_accepted(indices: list[int]) -> None:
    loop = ActiveLearningLoop(POOL[:10], "gp", forbidden=[9])
    loop.tell([0, 1], [0.0, 1.0])
    good = len(set(indices)) == len(indices) and all(2 <= index < 9 for index in indices)
    if good:
        loop.tell(indices, [0.5] * len(indices))
        assert loop.labelled == [0, 1, *indices]
    else:
        with pytest.raises((InvalidDataError, InvalidSpaceError)):
            loop.tell(indices, [0.5] * len(indices))
        assert loop.labelled == [0, 1]


def test_asking_for_nothing_or_too_much() -> None:
    loop = of_values()
    with pytest.raises(InvalidOptionError, match="n=0"):
        loop.ask(n=0)
    with pytest.raises(SpaceExhaustedError, match="61 points were asked, 60"):
        loop.ask(n=61)
    with pytest.raises(InvalidDataError, match="no trial is complete"):
        loop.predict()


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    go(of_classes(), 4)
    assert torch.equal(torch.get_rng_state(), before)
