"""What a race says follows from its numbers."""

from __future__ import annotations

from collections.abc import Sequence

from seqbdl.cli.plots import race_figure
from seqbdl.cli.race import RANDOM, Evaluation, Task, Trace
from seqbdl.cli.summary import Goal, RandomNeed, summarize, table, verdict

LOSS = Goal.named("-validation_loss")


def trace(method: str, seed: int, values: Sequence[float], budget: int | None = None) -> Trace:
    task = Task(method, seed, "seqbdl/Branin-v0", budget=budget or len(values))
    return Trace(task, tuple(Evaluation({"x": 0.0}, value, None, 1.0) for value in values), 1.0)


RUNS = [
    trace("a", 0, [-5, -4, -1, -2]),
    trace("a", 1, [-5, -3, -3, -1]),
    trace(RANDOM, 0, [-5, -4, -4, -2]),
    trace(RANDOM, 1, [-5, -4, -4, -2]),
]
POOL = [-4.0, -2.0, -4.0, -2.0, -1.0, -9.0, -9.0, -9.0]


def test_best_so_far_prefers_noise_free_values() -> None:
    task = Task("a", 0, "e", budget=2)
    noisy = Trace(task, (Evaluation({}, 5.0, 1.0, 0.0), Evaluation({}, 0.0, 2.0, 0.0)), 0.0)
    assert noisy.best_so_far() == [1.0, 2.0]


def test_numbers_by_hand() -> None:
    result = summarize(RUNS, POOL, initial=2)
    first, second = result.methods
    assert (first.method, first.finals, first.median, first.wins) == ("a", (-1, -1), -1, 2)
    assert first.caught == (3, 4)  # the evaluations at which -2, random search's best, was reached
    assert (first.need.hits, first.need.evaluations) == (1, 8.0)
    assert (second.method, second.median, second.need.hits) == (RANDOM, -2, 3)
    assert result.random is second
    assert result.surrogates == [first]


def test_seeds_that_were_cut_short_are_left_out() -> None:
    result = summarize([*RUNS[:3], trace(RANDOM, 1, [-5, -4, -4], budget=4)], POOL, initial=2)
    assert (result.evaluations, result.seeds, result.cut) == (4, 1, 1)
    assert "1 more seed(s) were cut short" in " ".join(verdict(result, LOSS))
    assert len(race_figure(result, 2, LOSS).axes) == 2
    assert result.surrogates[0].finals == (-1,)


def test_when_every_seed_was_cut_short_the_farthest_are_compared() -> None:
    short = [trace(RANDOM, 0, [-5, -4, -4], budget=4), trace(RANDOM, 1, [-5, -4], budget=4)]
    result = summarize([*RUNS[:2], *short], POOL, initial=2)
    assert (result.evaluations, result.seeds, result.cut) == (3, 1, 1)
    assert result.surrogates[0].finals == (-1,)
    assert len(race_figure(result, 2, LOSS).axes) == 2


def test_random_need_says_when_nothing_was_as_good() -> None:
    need = RandomNeed.of(1.0, [0.0] * 50)
    assert need.evaluations is None
    assert str(need) == "> 50"
    assert "none of 50" in need.sentence()


def test_verdict_of_a_win() -> None:
    text = " ".join(verdict(summarize(RUNS, POOL, initial=2), LOSS))
    assert "After 4 evaluations a reached a validation loss of 1 (median of 2 seeds); random search reached 2" in text
    assert "lower is better" in text
    assert "about 8 evaluations on average (1 of 8" in text
    assert "2 of 2 single runs" in text


def test_verdict_of_a_defeat_is_as_plain() -> None:
    runs = [trace("a", 0, [-5, -4]), trace(RANDOM, 0, [-5, -1])]
    text = " ".join(verdict(summarize(runs, [-1.0], initial=1), LOSS))
    assert "No surrogate beat random search" in text
    assert "To reach" not in text


def test_verdict_of_a_mixed_race() -> None:
    runs = [trace("a", 0, [-5, -1]), trace("b", 0, [-5, -4]), trace(RANDOM, 0, [-5, -3])]
    text = " ".join(verdict(summarize(runs, [-3.0], initial=1), LOSS))
    assert "Better than random search: a. Not better: b." in text


def test_a_draw_is_not_a_win() -> None:
    runs = [trace("a", 0, [-5, -3]), trace(RANDOM, 0, [-5, -3])]
    result = summarize(runs, [-3.0], initial=1)
    assert result.surrogates[0].wins == 0
    assert "No surrogate beat" in " ".join(verdict(result, LOSS))


def test_table_shows_the_users_sign() -> None:
    content = table(summarize(RUNS, POOL, initial=2), LOSS)
    assert content.rows[0][:3] == ["a", "1", "1 … 1"]
    assert content.rows[1][3:6] == ["–", "–", "–"]
    assert all(len(row) == len(content.columns) for row in content.rows)


def test_goal_names() -> None:
    assert (Goal.named("yield").sign, Goal.named("yield").better) == (1.0, "higher is better")
    assert (LOSS.label, LOSS.sign, LOSS.show(-0.5), LOSS.show(None)) == ("validation loss", -1.0, "0.5", "–")


def test_figure_of_one_seed_and_equal_values() -> None:
    runs = [trace("a", 0, [1.0, 1.0]), trace(RANDOM, 0, [1.0, 1.0])]
    figure = race_figure(summarize(runs, [1.0], initial=1), 1, Goal("reward"))
    assert len(figure.axes) == 2
