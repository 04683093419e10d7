"""BatchBALD: golden numbers, enumeration, and what its increments must obey."""

from __future__ import annotations

import itertools
import math
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seqbdl.acquisition import pool_scores
from seqbdl.acquisition.batches import batchbald
from seqbdl.acquisition.batches.batch import pool_rules
from seqbdl.errors import InvalidDataError, InvalidOptionError

module = sys.modules["seqbdl.acquisition.batches.batchbald"]


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_log_probs(n: int, N: int, C: int, seed: int, certain: bool = False, scale: float = 2.0) -> Tensor:
    logits = scale * torch.randn(n, N, C, generator=gen(seed), dtype=torch.float64)
    if certain:
        return torch.nn.functional.one_hot(logits.argmax(-1), C).double().log()
    return logits.log_softmax(-1)


def joint_information(log_probs: Tensor, points: list[int]) -> float:
    """By enumeration of all labels of all points."""
    n, _, C = log_probs.shape
    probs = log_probs.exp()
    entropy = 0.0
    for labels in itertools.product(range(C), repeat=len(points)):
        each = torch.ones(n, dtype=torch.float64)
        for point, label in zip(points, labels, strict=True):
            each = each * probs[:, point, label]
        entropy += float(torch.special.entr(each.mean()))
    return entropy - float(torch.special.entr(probs[:, points]).sum(-1).mean(0).sum())


def reference(log_probs: Tensor, q: int, pending: list[int], exclude: list[int], cost: Tensor) -> list[int]:
    """The greedy choice, every candidate evaluated."""
    chosen: list[int] = []
    for _ in range(q):
        known = pending + chosen
        base = joint_information(log_probs, known) if known else 0.0
        values = {
            x: (joint_information(log_probs, [*known, x]) - base) / float(cost[x])
            for x in range(log_probs.shape[1])
            if x not in known and x not in exclude
        }
        chosen.append(max(values, key=lambda x: values[x]))
    return chosen


def golden() -> Tensor:
    logits = 2 * torch.randn(50, 20, 4, dtype=torch.float64, generator=gen())
    return logits.log_softmax(-1).transpose(0, 1)


def test_golden_batch() -> None:
    batch = batchbald(golden(), 5, gen())
    assert batch.indices.tolist() == [26, 49, 0, 13, 5]
    expected = torch.tensor([0.70064771, 1.33147296, 1.83658207, 2.21368662, 2.49256948], dtype=torch.float64)
    assert torch.allclose(batch.scores, expected, rtol=0, atol=1e-8)
    assert batch.status.exact
    assert batch.status.ok
    assert torch.allclose(batch.increments.cumsum(0), batch.scores)
    top = pool_scores.bald(golden()).topk(5).indices.tolist()
    assert top != batch.indices.tolist()  # the five best points are another batch


@pytest.mark.parametrize("certain", [False, True])
def test_scores_are_joint_informations_by_enumeration(certain: bool) -> None:
    log_probs = random_log_probs(6, 9, 3, 1, certain)
    batch = batchbald(log_probs, 4, gen())
    picks = batch.indices.tolist()
    for length in range(1, 5):
        expected = joint_information(log_probs, picks[:length])
        assert float(batch.scores[length - 1]) == pytest.approx(expected, abs=1e-12)


def test_a_batch_of_one_is_bald() -> None:
    log_probs = random_log_probs(8, 30, 4, 2)
    scores = pool_scores.bald(log_probs)
    batch = batchbald(log_probs, 1, gen())
    assert int(batch.indices[0]) == int(scores.argmax())
    assert float(batch.scores[0]) == pytest.approx(float(scores.max()), abs=1e-14)


@settings(deadline=None, derandomize=True, max_examples=25)
@given(st.integers(0, 10_000), st.booleans(), st.booleans(), st.booleans())
def test_the_choice_is_that_of_evaluating_everything(seed: int, certain: bool, priced: bool, waiting: bool) -> None:
    log_probs = random_log_probs(5, 8, 2, seed, certain)
    cost = 0.5 + torch.rand(8, generator=gen(seed), dtype=torch.float64) if priced else torch.ones(8, dtype=torch.float64)
    pending, exclude = ([1, 6] if waiting else []), [3]
    batch = batchbald(log_probs, 3, gen(), pending=pending, exclude=exclude, cost=cost if priced else None)
    picks = batch.indices.tolist()
    assert len(set(picks)) == 3
    assert not set(picks) & {*pending, *exclude}
    # Equal candidates may be taken in any order; so compare what each pick adds for its cost.
    known = list(pending)
    for pick, increment in zip(picks, batch.increments.tolist(), strict=True):
        base = joint_information(log_probs, known) if known else 0.0
        best = reference(log_probs, 1, known, exclude, cost)[0]
        gain, best_gain = (joint_information(log_probs, [*known, x]) - base for x in (pick, best))
        assert increment == pytest.approx(gain, abs=1e-12)
        assert gain / float(cost[pick]) == pytest.approx(best_gain / float(cost[best]), abs=1e-10)
        known.append(pick)
    if not priced:
        assert bool((batch.increments.diff() <= 1e-12).all())
    assert bool((batch.increments >= -1e-12).all())


def test_pending_points_are_the_beginning_of_the_batch() -> None:
    whole = batchbald(golden(), 5, gen())
    first, rest = whole.indices[:2].tolist(), whole.indices[2:].tolist()
    later = batchbald(golden(), 3, gen(), pending=first)
    assert later.indices.tolist() == rest
    assert torch.allclose(later.increments, whole.increments[2:], atol=1e-12)


def test_a_duplicate_under_sure_draws_adds_nothing() -> None:
    log_probs = random_log_probs(6, 3, 3, 3, certain=True)[:, [0, 0, 0]]
    batch = batchbald(log_probs, 3, gen())
    assert float(batch.increments[0]) > 0.1
    assert batch.increments[1:].tolist() == pytest.approx([0.0, 0.0], abs=1e-13)
    assert bool(batch.scores.isfinite().all())


def test_sure_draws_stay_exact_however_long_the_batch() -> None:
    # Eight draws allow eight label vectors, whatever 4 ** 12 is.
    log_probs = random_log_probs(8, 40, 4, 4, certain=True)
    batch = batchbald(log_probs, 12, gen(), num_configurations=100)
    assert batch.status.exact
    assert float(batch.scores[-1]) == pytest.approx(math.log(8), abs=1e-12)
    assert batch.status.saturated


def test_sampled_scores_are_unbiased_with_honest_errors() -> None:
    """One point is left to choose, so that no choice favours lucky samples."""
    log_probs, known = golden(), [26, 49, 0, 13]
    others = [i for i in range(50) if i not in [*known, 5]]
    exact = joint_information(log_probs, [*known, 5]) - joint_information(log_probs, known)
    deviations = []
    for seed in range(60):
        batch = batchbald(log_probs, 1, gen(seed), num_configurations=200, pending=known, exclude=others)
        assert not batch.status.exact
        assert batch.status.standard_errors is not None
        deviations.append((float(batch.increments[0]) - exact) / float(batch.status.standard_errors[0]))
    z = torch.tensor(deviations)
    assert abs(float(z.mean())) < 4 / math.sqrt(60)
    assert abs(float(z.std()) - 1) < 4 / math.sqrt(2 * 59)


def test_errors_of_later_picks_add_up() -> None:
    batch = batchbald(golden(), 5, gen(), num_configurations=200)
    errors = batch.status.standard_errors
    assert errors is not None
    assert errors[:4].tolist() == [0.0] * 4  # 4 ** 3 label vectors are enumerated, 4 ** 4 sampled
    assert float(errors[4]) > 0
    assert "sampled with 200" in str(batch.status)


@pytest.mark.parametrize("num_configurations", [200, 10_000])
def test_shortcuts_change_nothing(num_configurations: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many label vectors, so that merged ones are used; against every candidate evaluated in double precision."""
    logits = 2 * torch.randn(20, 10, 6, generator=gen(1), dtype=torch.float64)
    like = logits[:, torch.arange(120) % 10] + 0.5 * torch.randn(20, 120, 6, generator=gen(2), dtype=torch.float64)
    log_probs = like.log_softmax(-1)
    short = batchbald(log_probs, 5, gen(), num_configurations=num_configurations)
    rules = pool_rules(120, 5)
    search = module._Search(log_probs, rules, gen(), num_configurations)
    everywhere = torch.arange(120)
    for step, pick in enumerate(short.indices.tolist()):
        increments = search._increments(everywhere, search._joint)
        increments[short.indices[:step]] = -torch.inf
        assert pick == int(increments.argmax())
        assert float(short.increments[step]) == pytest.approx(float(increments[pick]), abs=1e-13)
        search._absorb(pick)


def test_merged_label_vectors_leave_more_to_learn() -> None:
    log_probs = golden()
    search = module._Search(log_probs, pool_rules(50, 1), gen(), 10_000)
    for index in [26, 49, 0, 13]:
        search._absorb(index)
    joint, everywhere = search._joint, torch.arange(50)
    merged = joint.merged()
    assert merged.mass.shape[0] <= joint.mass.shape[0] // 3
    assert torch.allclose(merged.mass @ merged.weights, joint.mass @ joint.weights, atol=1e-14)
    assert bool((search._increments(everywhere, merged) >= search._increments(everywhere, joint) - 1e-13).all())


def test_the_ceiling_is_flagged() -> None:
    log_probs = random_log_probs(4, 50, 4, 5, scale=6.0)
    batch = batchbald(log_probs, 6, gen())
    assert float(batch.scores[-1]) <= math.log(4) + 1e-12
    assert batch.status.saturated
    assert "from pick" in str(batch.status)
    assert not batch.status.ok
    assert not batchbald(golden(), 3, gen()).status.saturated


def test_the_ceiling_knows_repeated_draws() -> None:
    # Fifty draws from four particles know no more than four.
    particles = random_log_probs(4, 50, 4, 5, scale=6.0)
    draws = particles[torch.arange(48) % 4]
    batch = batchbald(draws, 4, gen())
    assert float(batch.scores[-1]) <= math.log(4) + 1e-12
    assert batch.status.saturated


def test_pending_points_count_towards_the_ceiling() -> None:
    log_probs = random_log_probs(4, 50, 4, 5, scale=6.0)
    batch = batchbald(log_probs, 2, gen(), pending=batchbald(log_probs, 4, gen()).indices)
    assert batch.status.saturated


def test_single_precision_screens_and_double_decides() -> None:
    """Two candidates apart by 1e-10 nats, in both orders."""
    base = random_log_probs(20, 12, 3, 6)
    for order in ([0, 1], [1, 0]):
        log_probs = base.clone()
        best = int(pool_scores.bald(base).argmax())
        rival = (best + 1) % 12
        log_probs[:, rival] = ((1 + 1e-10) * base[:, best]).log_softmax(-1)  # a little surer, so it disagrees a little more
        pair = torch.tensor([best, rival])[order]
        values = pool_scores.bald(log_probs)[pair]
        assert 0 < float((values[0] - values[1]).abs()) < 1e-8
        rest = [i for i in range(12) if i not in pair.tolist()]
        swapped = log_probs[:, [*pair.tolist(), *rest]]
        assert int(batchbald(swapped, 1, gen()).indices[0]) == int(values.argmax())


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = batchbald(golden(), 4, gen())
    monkeypatch.setattr(module, "_COLUMNS", 9)
    monkeypatch.setattr(module, "_ROWS", 7)
    parts = batchbald(golden(), 4, gen())
    assert parts.indices.tolist() == whole.indices.tolist()
    assert torch.allclose(parts.scores, whole.scores, atol=1e-12)


def test_the_same_generator_gives_the_same_sampled_batch() -> None:
    first, second = (batchbald(golden(), 6, gen(3), num_configurations=200) for _ in range(2))
    assert first.indices.tolist() == second.indices.tolist()
    assert torch.equal(first.scores, second.scores)
    assert not first.status.exact


def test_arguments_are_not_changed() -> None:
    log_probs = golden()
    before = log_probs.clone()
    batchbald(log_probs, 3, gen())
    assert torch.equal(log_probs, before)


def test_bad_input_is_refused() -> None:
    log_probs = random_log_probs(10, 6, 3, 0)
    with pytest.raises(InvalidOptionError, match="Give 100 or more"):
        batchbald(log_probs, 2, gen(), num_configurations=99)
    with pytest.raises(InvalidOptionError, match="generator is None"):
        batchbald(log_probs, 2, None)  # type: ignore[arg-type]
    with pytest.raises(InvalidDataError, match="not to 1"):
        batchbald(log_probs.exp(), 2, gen())
    with pytest.raises(InvalidDataError, match="exclude holds index 1 2 times"):
        batchbald(log_probs, 2, gen(), exclude=[1, 1])
    with pytest.raises(InvalidOptionError, match="batch_size=7"):
        batchbald(log_probs, 7, gen())
