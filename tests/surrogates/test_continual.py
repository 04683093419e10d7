"""The surrogate of tasks: every method through it, heads, tempering, and state in the middle of a sequence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import seqbdl
from seqbdl.errors import InvalidOptionError, UnknownNameError
from seqbdl.surrogates.continual import METHODS

SETTINGS: dict[str, dict[str, Any]] = {
    "vcl": {"coreset": 4, "coreset_steps": 30},
    "sfsvi": {"coreset": 8, "strength": 0.1},
    "fromp": {"coreset": 8},
}
POINTS = ("ewc", "si", "fromp", "fine-tune", "refit")


def blobs(task: int, n: int = 60, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two classes on the two sides of a line, whose direction is the task's; the last input is the task."""
    generator = torch.Generator().manual_seed(10 * seed + task)
    X = 2 * torch.rand(n, 2, generator=generator, dtype=torch.float64) - 1
    angle = torch.tensor(2.0 * task)
    labels = (X @ torch.stack([angle.cos(), angle.sin()]).double() > 0).double().unsqueeze(-1)
    return torch.cat([X, torch.full((n, 1), float(task), dtype=torch.float64)], 1), labels


def make(method: str, **options: Any) -> seqbdl.Surrogate:
    given = {
        "network": {"widths": (24,), "heads": 3},
        "bounds": torch.tensor([[-1.0, -1.0, 0.0], [1.0, 1.0, 2.0]]),
        "scales": {"inputs": 2.0, "weights": 4.0},
        "settings": SETTINGS.get(method, {}),
        "num_members": 8,
        "steps": 150,
        "learning_rate": 0.05,
        **options,
    }
    return seqbdl.make_surrogate("continual", 3, 2, "categorical", method=method, **given)


def accuracy(model: seqbdl.Surrogate, task: int) -> float:
    X, Y = blobs(task, 200, seed=1)
    probs = model.predict(X).probs
    assert probs is not None
    return float((probs.argmax(-1) == Y[:, 0]).double().mean())


@pytest.mark.parametrize("method", list(METHODS))
def test_three_tasks_and_back_from_disk(method: str, tmp_path: Path) -> None:
    model = make(method)
    for task in (0, 1):
        model.update(*blobs(task))
        assert accuracy(model, task) > 0.88
    assert not model.has_fantasies
    assert model._memory[0].shape[0] == 0  # rows are kept by the method alone
    seqbdl.save(tmp_path / "m", model)
    twin = seqbdl.load(tmp_path / "m")
    for one in (model, twin):
        one.update(*blobs(2))
    X, _ = blobs(0)
    assert torch.equal(model.predict(X).probs, twin.predict(X).probs)  # type: ignore[arg-type]
    spread = model.posterior(X).values.std(0).max()
    assert (float(spread) == 0.0) == (method in POINTS)
    if method == "refit":
        assert min(accuracy(model, task) for task in range(3)) > 0.88


def test_heads_that_are_to_come_keep_the_first_prior() -> None:
    model = make("vcl", settings={})
    model.fit(*blobs(0)).update(*blobs(1))
    alone = model._network.active_weights(torch.tensor([[0.0, 0.0, 1.0]])) & ~model._network.active_weights(
        torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 0.5]])
    )
    prior = model._carried.prior
    assert int(alone.sum()) == 2 * 25
    assert bool((prior.mean[alone] == 0).all())
    assert bool((prior.precision.diagonal[alone] == 1).all())


@pytest.mark.parametrize("method", ["vcl", "online-laplace", "ewc", "si", "sfsvi", "fromp"])
def test_tempering(method: str) -> None:
    model = make(method).fit(*blobs(0))
    old = model._carried.prior
    half, none = seqbdl.prior_from(model, temper=0.5), seqbdl.prior_from(model, temper=0.0)
    first = 0.0 if method in ("ewc", "si") else 1.0  # of penalties the first prior is no part
    torch.testing.assert_close(half._carried.prior.precision.diagonal, 0.5 * old.precision.diagonal + 0.5 * first)
    assert bool((none._carried.prior.precision.diagonal == first).all())
    pull = half._carried.prior.precision.matmul(half._carried.prior.mean)
    torch.testing.assert_close(pull, 0.5 * old.precision.matmul(old.mean))
    none.update(*blobs(1))  # from nothing, as well as ever
    assert accuracy(none, 1) > 0.88
    wide = seqbdl.prior_from(model, inflate=1.0)
    torch.testing.assert_close(wide._carried.prior.precision.diagonal, 0.5 * old.precision.diagonal)


def test_options() -> None:
    with pytest.raises(UnknownNameError, match="method"):
        make("vlc")
    with pytest.raises(UnknownNameError, match="setting"):
        make("ewc", settings={"lambda": 3.0})
    with pytest.raises(InvalidOptionError):
        make("ewc", steps=0)
    with pytest.raises(InvalidOptionError, match="carries no posterior"):
        seqbdl.prior_from(make("fine-tune").fit(*blobs(0)), temper=0.5)
