"""The continual loop: order of a step, scores and matrices, failures that change nothing, resuming in mid-stream."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gymnasium
import matplotlib as mpl
import numpy as np
import pytest
import torch

import seqbdl
from seqbdl.diagnostics import log_predictive
from seqbdl.errors import InvalidDataError, InvalidOptionError, StateError
from seqbdl.loops import BOCD, AdaptiveForgetting, ContinualLoop, Forgetting, run
from seqbdl.loops.stream_predictions import mixture
from seqbdl.serialization import load_tree, save_tree

mpl.use("Agg")
SMALL: dict[str, Any] = {"network": (16,), "num_networks": 1, "adaptation": 0.0}


def curve(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    X = 2 * torch.rand(n, 1, generator=generator, dtype=torch.float64) - 1
    return X, torch.sin(3 * X) + 0.1 * torch.randn(n, 1, generator=generator, dtype=torch.float64)


def last_layer(**options: Any) -> seqbdl.Surrogate:
    return seqbdl.make_surrogate("bayesian-last-layer", 1, bounds=torch.tensor([[-1.0], [1.0]]), **{**SMALL, **options})


def test_scores_come_before_learning_and_add_up() -> None:
    X, Y = curve(40)
    loop = ContinualLoop(None, last_layer(), warmup=20)
    for i in range(20):
        loop.ask(X[i : i + 1])
        loop.tell(None, Y[i : i + 1])
    known = loop.surrogate
    assert loop.history.records[0].log_score is None
    joint = float(log_predictive(seqbdl.prior_from(known), X[20:21], Y[20:21]))
    said = loop.ask(X[20:21])
    torch.testing.assert_close(said.mean, known.predict(X[20:21]).mean)
    record = loop.tell(said, Y[20:21])
    assert record.log_score == pytest.approx(joint)
    for i in range(21, 40):
        loop.ask(X[i])
        loop.tell(None, float(Y[i]))
    batch = last_layer()
    batch.fit(X[:20], Y[:20])
    batch.update(X[20:], Y[20:])
    torch.testing.assert_close(loop.surrogate.predict(X).mean, batch.predict(X).mean, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(loop.surrogate.predict(X).std, batch.predict(X).std, rtol=1e-8, atol=1e-8)
    assert loop.surrogate.train_inputs[0].shape[0] == 1  # type: ignore[index]  # no old row is held
    assert len(loop.history.losses) == 39
    assert len({record.state_bytes for record in loop.history.records[20:]}) == 1


@pytest.mark.parametrize("bad", [float("nan"), None])
def test_a_failed_update_changes_nothing_and_says_so(bad: float | None) -> None:
    X, Y = curve(12)
    loop = ContinualLoop(None, last_layer().fit(X[:10], Y[:10]), on_failure="record")
    before = loop.ask(X[10:11]).mean
    record = loop.tell(None, bad)
    assert not record.learned
    assert record.reason
    assert torch.equal(loop.ask(X[10:11]).mean, before)
    assert loop.tell(None, Y[10:11]).learned
    strict = ContinualLoop(None, last_layer().fit(X[:10], Y[:10]))
    strict.ask(X[10:11])
    with pytest.raises(InvalidDataError):
        strict.tell(None, bad)
    assert torch.equal(strict.ask(X[10:11]).mean, before)


class Exploding(type(last_layer())):  # type: ignore[misc]
    """A surrogate whose update meets a singular matrix."""

    name = "exploding"

    def _update(self, X: torch.Tensor, Y: torch.Tensor, noise: torch.Tensor | None) -> None:
        super()._update(X, Y, noise)
        torch.linalg.cholesky(-torch.eye(2))


def test_a_singular_matrix_leaves_the_posterior() -> None:
    X, Y = curve(12)
    loop = ContinualLoop(None, Exploding(1, **SMALL).fit(X[:10], Y[:10]), on_failure="record")
    before = loop.ask(X).mean
    assert "LinAlgError" in loop.tell(None, Y).reason
    assert torch.equal(loop.ask(X).mean, before)


def test_split_digits_matrix_and_picture() -> None:
    env = gymnasium.make("seqbdl/SplitDigits-v0", num_tasks=3, per_task=60, per_test=40, chunk=20)
    options = {"network": (16,), "num_branches": 1, "covariance": "diagonal-variational"}
    loop = ContinualLoop(env, "ekf", warmup=20, surrogate_options=options)
    history = run(loop, env, steps=9, progress=False)  # type: ignore[arg-type]
    R = history.task_matrix("accuracy")  # type: ignore[attr-defined]
    assert R.shape == (3, 3)
    assert R[0, 0] > 0.9
    assert ((R >= 0) & (R <= 1)).all()
    assert np.isfinite(history.task_matrix("nll")).all()  # type: ignore[attr-defined]
    summary: dict[str, float] = history.summary()  # type: ignore[assignment]
    assert summary["average_accuracy"] == pytest.approx(R[-1].mean())
    assert summary["backward_transfer"] == pytest.approx((R[-1] - R.diagonal())[:-1].mean())
    assert {"average_ece", "forward_transfer", "forgetting", "learning_accuracy"} <= set(summary)
    assert len(history.plot().axes) >= 4
    assert history.frame().shape[0] == 9
    assert np.exp(env.unwrapped.step(np.full((20, 10), 0.1))[1]) == pytest.approx(0.1)  # type: ignore[attr-defined]


@pytest.mark.parametrize("change", [None, BOCD(0.05, 3), Forgetting(0.98), AdaptiveForgetting()])
def test_a_run_that_was_interrupted_goes_on_the_same(change: Any, tmp_path: Path) -> None:
    def make() -> tuple[Any, ContinualLoop]:
        env = gymnasium.make("seqbdl/PiecewiseRegression-v0", num_tasks=2, length=20)
        return env, ContinualLoop(env, "ekf", change=change, warmup=8, seed=1, surrogate_options={"network": (6,)})

    env, loop = make()
    whole = run(loop, env, 30, progress=False)  # type: ignore[arg-type]
    env, loop = make()
    run(loop, env, 13, progress=False, checkpoint=tmp_path / "a")  # type: ignore[arg-type]
    env, loop = make()
    resumed = run(loop, env, 30, progress=False, checkpoint=tmp_path / "a")  # type: ignore[arg-type]
    assert [r.log_score for r in whole] == [r.log_score for r in resumed]  # type: ignore[attr-defined]
    assert math.isfinite(whole.records[-1].log_score)  # type: ignore[attr-defined]
    with pytest.raises(StateError, match="warmup"):
        ContinualLoop(env, "ekf", change=change, warmup=9, surrogate_options={"network": (6,)}).load_state_dict(loop.state_dict())


def test_state_through_disk_by_hand(tmp_path: Path) -> None:
    X, Y = curve(20)
    one, two = (ContinualLoop(None, last_layer(), warmup=6) for _ in range(2))
    for i in range(4):
        one.ask(X[i])
        one.tell(None, Y[i])
    one.ask(X[4])
    save_tree(tmp_path / "s", one.state_dict())
    two.load_state_dict(load_tree(tmp_path / "s"))
    for loop in (one, two):
        loop.tell(None, Y[4])
        for i in range(5, 20):
            loop.ask(X[i])
            loop.tell(None, Y[i])
    assert torch.equal(one.ask(X).mean, two.ask(X).mean)
    assert [r.log_score for r in one.history] == [r.log_score for r in two.history]


def test_changes_are_found_and_pay() -> None:
    losses, runs = {}, {}
    for name, change in (("none", None), ("bocd", BOCD(0.02, 5))):
        env = gymnasium.make("seqbdl/PiecewiseRegression-v0", num_tasks=2, length=60)
        loop = ContinualLoop(env, "gp", change=change, warmup=20, seed=3)
        history = run(loop, env, 120, progress=False)  # type: ignore[arg-type]
        losses[name] = history.summary()["log_loss"]  # type: ignore[index]
        runs[name] = [record.run_length for record in history]  # type: ignore[attr-defined]
    assert losses["bocd"] < losses["none"]
    assert runs["bocd"][59] > 30
    assert runs["bocd"][75] < 20


def test_mixture_has_the_moments_and_quantiles_of_the_whole() -> None:
    X, Y = curve(16)
    parts = [last_layer().fit(X[:8], Y[:8]).predict(X), last_layer().fit(X[8:], 3 + Y[8:]).predict(X)]
    mixed = mixture(parts, [math.log(0.25), math.log(0.75)])
    mean = 0.25 * parts[0].mean + 0.75 * parts[1].mean
    second = 0.25 * (parts[0].std ** 2 + parts[0].mean ** 2) + 0.75 * (parts[1].std ** 2 + parts[1].mean ** 2)
    torch.testing.assert_close(mixed.mean, mean)
    torch.testing.assert_close(mixed.std**2, second - mean**2)
    q = mixed.quantile(0.3)
    cdf = sum(w * torch.special.ndtr((q - p.mean) / p.std) for w, p in zip((0.25, 0.75), parts, strict=True))
    torch.testing.assert_close(cdf, torch.full_like(q, 0.3))


def test_bad_use() -> None:
    with pytest.raises(InvalidOptionError, match="sizes"):
        ContinualLoop(None, "gp")
    for wrong in ({"warmup": 0}, {"change": "bocd"}, {"on_failure": "x"}):
        with pytest.raises(InvalidOptionError, match=next(iter(wrong))):
            ContinualLoop(None, last_layer(), **wrong)  # type: ignore[arg-type]
    loop = ContinualLoop(None, last_layer())
    with pytest.raises(InvalidOptionError, match="ask"):
        loop.tell(None, 1.0)
    with pytest.raises(InvalidOptionError, match="observation"):
        loop.ask()
    with pytest.raises(InvalidOptionError, match="no task"):
        loop.history.task_matrix()
