"""Changepoints: weights against the enumeration of all partitions, evidence counted once, soft and hard resets."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import seqbdl
from seqbdl.diagnostics import log_predictive
from seqbdl.errors import InvalidOptionError
from seqbdl.loops.changes import BOCD, AdaptiveForgetting, Forgetting, Hypothesis, SoftReset, TemperedBeam, advance, log_sum
from seqbdl.surrogates import Surrogate

HAZARD = 0.2


def prior_and_stream(n: int = 8) -> tuple[Surrogate, torch.Tensor, torch.Tensor]:
    """A conjugate model with fixed hyperparameters, and two segments: the second is the first turned upside down."""
    generator = torch.Generator().manual_seed(0)
    X = torch.rand(n, 1, generator=generator, dtype=torch.float64)
    Y = torch.sin(5 * X) * torch.where(torch.arange(n) < n // 2, 1.0, -1.0).unsqueeze(-1)
    Y = Y + 0.1 * torch.randn(n, 1, generator=generator, dtype=torch.float64)
    grid = torch.linspace(0, 1, 12, dtype=torch.float64).unsqueeze(-1)
    fitted = seqbdl.make_surrogate("gp", 1, noise=0.01).fit(grid, torch.sin(5 * grid))
    return seqbdl.prior_from(fitted, temper=0.0), X, Y


def enumerate_partitions(prior: Surrogate, X: torch.Tensor, Y: torch.Tensor) -> tuple[dict[int, float], float]:
    """The log posterior of the last run's length, and the log evidence, over all ``2^(n - 1)`` partitions."""
    n = X.shape[0]
    evidence = {}
    for a in range(n):
        now, total = seqbdl.prior_from(prior), 0.0
        for b in range(a, n):
            total += float(log_predictive(now, X[b : b + 1], Y[b : b + 1]))
            now.update(X[b : b + 1], Y[b : b + 1])
            evidence[a, b + 1] = total
    joint: dict[int, list[float]] = {}
    for cuts in itertools.product((False, True), repeat=n - 1):
        edges = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), n]
        log_p = sum(math.log(HAZARD) if cut else math.log1p(-HAZARD) for cut in cuts)
        log_p += sum(evidence[a, b] for a, b in itertools.pairwise(edges))
        joint.setdefault(n - edges[-2], []).append(log_p)
    total = log_sum([value for values in joint.values() for value in values])
    return {run: log_sum(values) - total for run, values in joint.items()}, total


def test_weights_and_evidence_equal_enumeration() -> None:
    prior, X, Y = prior_and_stream()
    expected, evidence = enumerate_partitions(prior, X, Y)
    # The first row cannot follow a change: it is learned without the rule.
    hypotheses, total = advance(None, [Hypothesis(prior, 0.0, 0)], None, X[:1], Y[:1])
    for i in range(1, len(X)):
        hypotheses, score = advance(BOCD(HAZARD, None), hypotheses, prior, X[i : i + 1], Y[i : i + 1])
        total += score
    assert total == pytest.approx(evidence, abs=1e-10)
    assert {h.run: pytest.approx(h.log_weight, abs=1e-10) for h in hypotheses} == expected
    assert sum(math.exp(h.log_weight) for h in hypotheses if h.run <= 4) > 0.99  # no run reaches into the first segment


def test_a_hard_beam_without_a_limit_knows_the_same() -> None:
    prior, X, Y = prior_and_stream(6)
    _, evidence = enumerate_partitions(prior, X, Y)
    hypotheses, total = advance(None, [Hypothesis(prior, 0.0, 0)], None, X[:1], Y[:1])
    for i in range(1, len(X)):
        rule = TemperedBeam(HAZARD, temper=0.0, beam=64)
        hypotheses, score = advance(rule, hypotheses, prior, X[i : i + 1], Y[i : i + 1])
        total += score
    assert len(hypotheses) == 32
    assert total == pytest.approx(evidence, abs=1e-10)


def test_rules_without_change_are_plain_learning() -> None:
    prior, X, Y = prior_and_stream(6)
    plain, score = advance(None, [Hypothesis(prior, 0.0, 0)], None, X, Y)
    forgetting, same = advance(Forgetting(1.0), [Hypothesis(prior, 0.0, 0)], prior, X, Y)
    assert score == same == pytest.approx(float(log_predictive(prior, X, Y)))
    assert torch.equal(plain[0].surrogate.predict(X).mean, forgetting[0].surrogate.predict(X).mean)
    assert prior.train_inputs is not None
    assert prior.train_inputs[0].shape[0] == 0  # nothing that was handed in changes


def test_soft_reset_forgets_when_the_world_is_new() -> None:
    prior, X, Y = prior_and_stream(20)
    state = [Hypothesis(prior, 0.0, 0)]
    runs = []
    for i in range(20):
        state, _ = advance(SoftReset(0.05), state, prior, X[i : i + 1], Y[i : i + 1])
        runs.append(state[0].run)
    assert runs[9] == 10
    assert min(runs[10:13]) == 1


@pytest.mark.parametrize("rule", [BOCD(0.05, 3), TemperedBeam(0.05, 0.3, 3), SoftReset(0.05), AdaptiveForgetting()])
def test_change_is_worth_expecting_where_it_happens(rule: BOCD) -> None:
    prior, X, Y = prior_and_stream(30)
    totals = []
    for policy in (None, rule):
        state, total = [Hypothesis(prior, 0.0, 0)], 0.0
        for i in range(30):
            state, score = advance(policy, state, prior, X[i : i + 1], Y[i : i + 1])
            total += score
        totals.append(total)
    assert totals[1] > totals[0] + 10
    assert len(state) <= 3
    assert log_sum([h.log_weight for h in state]) == pytest.approx(0.0, abs=1e-12)


def test_the_decay_follows_the_gradient_of_the_score() -> None:
    """One step by hand; over a stream, no decay while nothing changes, and some after the change."""
    prior, X, Y = prior_and_stream(40)
    rule = AdaptiveForgetting(rate=0.02)
    known = seqbdl.prior_from(prior).update(X[:10], Y[:10])
    (after,), score = advance(rule, [Hypothesis(known, 0.0, 10, decay=0.1)], prior, X[30:31], Y[30:31])
    low, high = (float(log_predictive(seqbdl.prior_from(known, temper=math.exp(-d)), X[30:31], Y[30:31])) for d in (0.1, 0.11))
    assert score == pytest.approx(log_sum([low, high]) - math.log(2))
    assert after.decay == pytest.approx(min(max(0.1 + 0.02 * (high - low) / 0.01, 0.0), 3.0))
    learned = seqbdl.prior_from(known, temper=math.exp(-0.1)).update(X[30:31], Y[30:31])
    torch.testing.assert_close(after.surrogate.predict(X).mean, learned.predict(X).mean)
    state, decays = [Hypothesis(prior, 0.0, 0)], []
    for i in range(40):
        state, _ = advance(rule, state, prior, X[i : i + 1], Y[i : i + 1])
        decays.append(state[0].decay)
    assert max(decays[10:20]) < 0.01
    assert max(decays[20:25]) > 0.1


@pytest.mark.parametrize("name", ["ensemble", "mfvi", "ekf", "laplace"])
def test_any_surrogate(name: str) -> None:
    _, X, Y = prior_and_stream(12)
    start = seqbdl.make_surrogate(name, 1, network=(8,)).fit(X[:6], Y[:6])
    prior = seqbdl.prior_from(start, temper=0.0)
    state = [Hypothesis(start, 0.0, 6)]
    for i in range(6, 10):
        state, score = advance(BOCD(0.1, 2), state, prior, X[i : i + 1], Y[i : i + 1])
        assert math.isfinite(score)


def test_bad_settings() -> None:
    bad = (lambda: BOCD(0.0), lambda: BOCD(0.1, 0), lambda: TemperedBeam(temper=1.0), lambda: Forgetting(0.0))
    for make in (*bad, lambda: AdaptiveForgetting(0.0), lambda: AdaptiveForgetting(largest=0.0)):
        with pytest.raises(InvalidOptionError):
            make()
    with pytest.raises(InvalidOptionError):
        SoftReset(threshold=1.0)
