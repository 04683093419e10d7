"""The pictures of the command line tool; no global matplotlib state is touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from seqbdl.cli.race import RANDOM, Trace
from seqbdl.cli.summary import RaceResult

# Okabe and Ito's colours, which readers with any colour vision tell apart; grey is random search.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY = "#777777"


def race_figure(traces: Sequence[Trace], result: RaceResult, initial: int, label: str) -> Figure:
    """Best value so far of each method (median and range over seeds), and where single evaluations landed."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    curves, spread = figure.subplots(1, 2, width_ratios=(1.6, 1))
    colours = _colours([item.method for item in result.surrogates])
    for item in reversed(result.methods):  # the best is drawn last, on top
        runs = [trace for trace in traces if trace.task.method == item.method]
        best = np.array([trace.best_so_far()[: result.evaluations] for trace in runs])
        _band(curves, best, colours[item.method], item.method)
    curves.axvline(initial, color="black", linewidth=0.8, linestyle=":")
    curves.set(xlabel="evaluations", ylabel=f"best {label} so far")
    curves.set_title("Best found so far (line: median; band: all seeds)", fontsize=10)
    curves.legend(loc="lower right", frameon=False)
    _limit_below(curves, [value for trace in traces for value in trace.best_so_far()[initial - 1 : result.evaluations]])
    _landings(spread, traces, result, initial, colours)
    spread.set(xlabel=f"{label} of single evaluations")
    return figure


def trials_figure(values: Sequence[float], maximize: bool, initial: int, label: str) -> Figure:
    """Every observed outcome of one optimization and the best so far; failed trials leave gaps."""
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    observed = np.asarray(values, dtype=float)
    count = np.arange(1, len(observed) + 1)
    running = np.fmax.accumulate(observed) if maximize else np.fmin.accumulate(observed)
    axes.plot(count, observed, "o", color=COLOURS[0], markersize=4, alpha=0.6, label="observed")
    axes.step(count, running, where="post", color=COLOURS[1], label="best so far")
    if 0 < initial < len(observed):
        axes.axvline(initial + 0.5, color="black", linewidth=0.8, linestyle=":", label="end of the initial design")
    axes.set(xlabel="evaluations", ylabel=label)
    axes.legend(frameon=False)
    return figure


def _colours(methods: Sequence[str]) -> Mapping[str, str]:
    chosen = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(sorted(methods))}
    return chosen | {RANDOM: GREY}


def _band(axes: Axes, best: np.ndarray, colour: str, label: str) -> None:
    """`best`: `seeds x evaluations`."""
    count = np.arange(1, best.shape[1] + 1)
    axes.fill_between(count, best.min(axis=0), best.max(axis=0), step="post", color=colour, alpha=0.15, linewidth=0)
    axes.step(count, np.median(best, axis=0), where="post", color=colour, linewidth=2, label=label)


def _limit_below(axes: Axes, values: Sequence[float]) -> None:
    """The first random points are often so bad that they would flatten everything that matters."""
    low, high = min(values), max(values)
    margin = 0.08 * (high - low) or 1e-3
    axes.set_ylim(low - margin, high + margin)


def _landings(
    axes: Axes, traces: Sequence[Trace], result: RaceResult, initial: int, colours: Mapping[str, str]
) -> None:
    """Cumulative share of single evaluations at least as good as a value: chosen ones against random ones."""
    everything = []
    for item in reversed(result.methods):
        if item.method == RANDOM:
            values = np.sort(np.asarray(result.pool))
        else:
            runs = [trace for trace in traces if trace.task.method == item.method]
            chosen = [e.value for trace in runs for e in trace.evaluations[initial : result.evaluations]]
            values = np.sort(np.asarray(chosen))
        if not len(values):
            continue
        share = 1.0 - np.arange(len(values)) / len(values)
        axes.step(values, share, where="pre", color=colours[item.method], linewidth=2)
        everything.append(np.quantile(values, 0.1))
    axes.set_ylabel("share at least as good")
    axes.set_title("Chosen points against random points", fontsize=10)
    if everything:
        low, high = min(everything), max(trace.best_so_far()[-1] for trace in traces)
        axes.set_xlim(low, high + 0.05 * ((high - low) or 1.0))
