"""The pictures of the command line tool; no global matplotlib state is touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from seqbdl.cli.race import RANDOM, Trace
from seqbdl.cli.summary import Goal, RaceResult

# Okabe and Ito's colours, which readers with any colour vision tell apart; grey is random search.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY = "#777777"


def race_figure(result: RaceResult, initial: int, goal: Goal) -> Figure:
    """Best value so far of each method (median and range over seeds), and where single evaluations landed."""
    traces = result.traces
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    curves, spread = figure.subplots(1, 2, width_ratios=(1.6, 1))
    colours = _colours([item.method for item in result.surrogates])
    for item in reversed(result.methods):  # the best is drawn last, on top
        runs = [trace for trace in traces if trace.task.method == item.method]
        best = goal.sign * np.array([trace.best_so_far()[: result.evaluations] for trace in runs])
        _band(curves, best, colours[item.method], item.method)
    curves.axvline(initial, color="black", linewidth=0.8, linestyle=":")
    curves.set(xlabel="evaluations", ylabel=f"best {goal.label} so far ({goal.better})")
    curves.set_title("Best found so far (line: median; band: all seeds)", fontsize=10)
    curves.legend(loc="best", frameon=False)
    later = [value for trace in traces for value in trace.best_so_far()[initial - 1 : result.evaluations]]
    _fit_axis(curves, goal.sign * np.array(later))
    _landings(spread, traces, result, initial, colours, goal)
    spread.set(xlabel=f"{goal.label} of single evaluations")
    return figure


def _colours(methods: Sequence[str]) -> Mapping[str, str]:
    chosen = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(sorted(methods))}
    return chosen | {RANDOM: GREY}


def _band(axes: Axes, best: NDArray[np.float64], colour: str, label: str) -> None:
    """`best`: `seeds x evaluations`."""
    count = np.arange(1, best.shape[1] + 1)
    axes.fill_between(count, best.min(axis=0), best.max(axis=0), step="post", color=colour, alpha=0.15, linewidth=0)
    axes.step(count, np.median(best, axis=0), where="post", color=colour, linewidth=2, label=label)


def _fit_axis(axes: Axes, values: NDArray[np.float64]) -> None:
    """The first random points are often so bad that they would flatten everything that matters."""
    low, high = float(values.min()), float(values.max())
    if low > 0 and high > 5 * low:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.15, high * 1.15)
        _plain_ticks(axes.yaxis, high / low)
        return
    margin = 0.08 * (high - low) or 1e-3
    axes.set_ylim(low - margin, high + margin)


def _plain_ticks(axis: Axis, ratio: float) -> None:
    """Numbers such as 0.3 instead of powers of ten, between the powers too where there is room."""
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    axis.set_major_formatter(plain)
    axis.set_minor_locator(LogLocator(subs=(2.0, 3.0, 5.0)))
    axis.set_minor_formatter(plain if ratio < 200 else NullFormatter())


def _landings(
    axes: Axes,
    traces: Sequence[Trace],
    result: RaceResult,
    initial: int,
    colours: Mapping[str, str],
    goal: Goal,
) -> None:
    """The share of single evaluations that are at least as good as a value: chosen ones against random ones."""
    tenths = []
    for item in reversed(result.methods):
        if item.method == RANDOM:
            values = np.asarray(result.pool)
        else:
            runs = [trace for trace in traces if trace.task.method == item.method]
            values = np.asarray([e.value for trace in runs for e in trace.evaluations[initial : result.evaluations]])
        if not len(values):
            continue
        ordered = np.sort(values)[::-1]  # the best first
        share = np.arange(1, len(ordered) + 1) / len(ordered)
        axes.step(goal.sign * ordered, share, where="post", color=colours[item.method], linewidth=2)
        tenths.append(float(np.quantile(values, 0.1)))
    axes.set_ylabel("share at least as good")
    axes.set_title("Chosen points against random points", fontsize=10)
    best = max(trace.best_so_far()[-1] for trace in traces)
    if tenths and best > min(tenths):
        ends = sorted((goal.sign * min(tenths), goal.sign * (best + 0.02 * (best - min(tenths)))))
        if ends[0] > 0 and ends[1] > 5 * ends[0]:
            axes.set_xscale("log")
            _plain_ticks(axes.xaxis, ends[1] / ends[0])
        axes.set_xlim(*ends)
