"""`seqbdl optimize`: from a configuration to a table, a picture, a report, and a checkpoint to go on from."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import pandas as pd
from matplotlib.figure import Figure
from rich.console import Console

import seqbdl.envs  # noqa: F401  (registers the environments)
from seqbdl.cli.config import ConfigError, ObjectiveConfig, OptimizeConfig, ParameterConfig
from seqbdl.cli.objectives import Objective, make_objective
from seqbdl.cli.report import Report, Section, Table, embed, format_number, versions
from seqbdl.errors import InvalidSpaceError, SeqbdlError, UnknownNameError
from seqbdl.loops import BayesOptLoop, Categorical, History, Integer, Ordinal, Parameter, Real, Record, Space, run
from seqbdl.loops.proposals import check_acquisition
from seqbdl.surrogates import surrogate_class, surrogate_options

_PARAMETERS: dict[str, type[Parameter]] = {
    "real": Real,
    "integer": Integer,
    "categorical": Categorical,
    "ordinal": Ordinal,
}


@dataclass(frozen=True)
class OptimizeOutcome:
    """What came out, and where it was written; `succeeded` is whether any trial did."""

    history: History
    headline: tuple[str, ...]
    report: Path
    succeeded: bool


def run_optimize(
    config: OptimizeConfig,
    folder: Path,
    *,
    out: Path | None,
    budget: int | None,
    fresh: bool,
    progress: bool,
    console: Console,
) -> OptimizeOutcome:
    """Optimize what a configuration describes, from its checkpoint when there is one.

    Args:
        config: The checked configuration.
        folder: Where it lies.
        out: Folder for results instead of the configured one.
        budget: Evaluations instead of the configured number.
        fresh: Forget a checkpoint.
        progress: Whether to show a progress bar.
        console: Where to say what happens.

    Raises:
        ConfigError: when the configuration names something that does not exist, or belongs to another checkpoint.
    """
    output, checkpoint = _places(config, out)
    _check_names(config)
    target, space, options = _problem(config, folder)
    loop = _make_loop(config, space, options)
    output.mkdir(parents=True, exist_ok=True)
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    if fresh:
        checkpoint.unlink(missing_ok=True)
    _check_identity(config, checkpoint)
    if checkpoint.exists():
        console.print(f"Going on from {checkpoint}.", highlight=False, soft_wrap=True)
    start = time.perf_counter()
    history = run(
        loop,
        target,
        config.budget if budget is None else budget,
        progress=progress,
        checkpoint=checkpoint,
        batch_size=config.batch_size,
        on_error=config.on_error,
    )
    return _write(config, loop, history, output, time.perf_counter() - start)


def _places(config: OptimizeConfig, out: Path | None) -> tuple[Path, Path]:
    """The output folder and the checkpoint; a checkpoint that was not named moves with the folder."""
    if out is None:
        return config.output, config.checkpoint
    moved = config.checkpoint == config.output / "checkpoint"
    return out, out / "checkpoint" if moved else config.checkpoint


def _check_names(config: OptimizeConfig) -> None:
    try:
        known = surrogate_options(surrogate_class(config.surrogate))
    except UnknownNameError as error:
        raise ConfigError("surrogate", str(error)) from error
    for option in config.surrogate_options:
        if option not in known:
            raise ConfigError(f"surrogate.{option}", f"{config.surrogate} has no such option; it has {', '.join(known)}")
    try:
        check_acquisition(config.acquisition)
    except UnknownNameError as error:
        raise ConfigError("acquisition", str(error)) from error


def _problem(config: OptimizeConfig, folder: Path) -> tuple[gymnasium.Env[Any, Any] | Objective, Space, dict[str, Any]]:
    """What is evaluated, its space, and the loop's arguments that follow from it."""
    if config.objective.kind == "env":
        env = _make_env(config.objective)
        return env, Space.from_gymnasium(env.action_space, env), _outcomes(env)
    if config.candidates is not None:
        pool = _read_candidates(config.candidates)
        # A table may hold columns that the objective does not need.
        return make_objective(config.objective, list(pool.point(0)), folder, whole=False), pool, {"objective": config.direction}
    space = make_space(config.space or ())
    objective = make_objective(config.objective, space.names, folder)
    return objective, space, {"objective": config.direction}


def _read_candidates(path: Path) -> Space:
    """The rows of a table as the only points there are."""
    try:
        table = pd.read_csv(path) if path.suffix.lower() == ".csv" else pd.read_excel(path)
        return Space.from_candidates(table)
    except ImportError as error:
        raise ConfigError("candidates", "spreadsheets need openpyxl: pip install 'seqbdl[lab]'") from error
    except ValueError as error:  # InvalidSpaceError, and whatever pandas cannot parse
        raise ConfigError("candidates", f"{path.name}: {error}") from error


def _make_env(objective: ObjectiveConfig) -> gymnasium.Env[Any, Any]:
    try:
        return gymnasium.make(objective.target, **objective.kwargs)
    except (gymnasium.error.Error, ValueError, TypeError, ImportError) as error:
        raise ConfigError("objective", f"{type(error).__name__}: {error}") from error


def _outcomes(env: gymnasium.Env[Any, Any]) -> dict[str, Any]:
    source = env.unwrapped
    count = int(getattr(source, "num_outcomes", 1))
    names = getattr(source, "outcome_names", None)
    return {
        "num_outcomes": count,
        "outcome_names": list(names) if names else None,
        "constraints": int(getattr(source, "num_constraints", 0)),
        "ref_point": getattr(source, "ref_point", None) if count > 1 else None,
    }


def make_space(parameters: tuple[ParameterConfig, ...]) -> Space:
    """The space of a configuration.

    Raises:
        ConfigError: naming the parameter whose range or choices cannot be.
    """
    made = []
    for parameter in parameters:
        try:
            arguments = {key: tuple(v) if isinstance(v, list) else v for key, v in parameter.arguments.items()}
            made.append(_PARAMETERS[parameter.kind](parameter.name, **arguments))
        except InvalidSpaceError as error:
            raise ConfigError(f"space.{parameter.name}", str(error)) from error
    return Space(made)


def _make_loop(config: OptimizeConfig, space: Space, options: Mapping[str, Any]) -> BayesOptLoop:
    try:
        return BayesOptLoop(
            space,
            surrogate=config.surrogate,
            acquisition=config.acquisition,
            initial=config.initial,
            noise=config.noise,
            replicates=config.replicates,
            seed=config.seed,
            surrogate_options=config.surrogate_options,
            acquisition_options=config.acquisition_options,
            **options,
        )
    except ConfigError:
        raise
    except SeqbdlError as error:
        raise ConfigError("", str(error)) from error


def _check_identity(config: OptimizeConfig, checkpoint: Path) -> None:
    """A checkpoint is continued only by the configuration that made it."""
    # Through JSON, so that what is compared is what was written.
    mine: dict[str, Any] = json.loads(json.dumps(config.identity(), default=str))
    beside = checkpoint.with_name(checkpoint.name + ".config.json")
    if checkpoint.exists() and beside.exists():
        theirs = json.loads(beside.read_text(encoding="utf-8"))
        for key, value in mine.items():
            if theirs.get(key) != value:
                raise ConfigError(
                    key,
                    f"differs from that of the checkpoint {checkpoint}; use --fresh to forget it, or another output",
                )
    beside.write_text(json.dumps(mine, indent=2) + "\n", encoding="utf-8")


def _write(config: OptimizeConfig, loop: BayesOptLoop, history: History, out: Path, seconds: float) -> OptimizeOutcome:
    frame = history.frame()
    frame.to_csv(out / "trials.csv", index=False)
    figure = Figure(figsize=(8, 4.4), layout="constrained")
    history.plot(figure.subplots())
    figure.savefig(out / "trials.png", dpi=130)
    best = _best_records(history)
    headline = _headline(history, best, loop)
    best_rows = [{"point": record.point, "outcomes": record.outcomes} for record in best]
    (out / "best.json").write_text(json.dumps(best_rows, indent=2, default=str) + "\n", encoding="utf-8")
    report = Report(
        title=f"Optimization of {config.objective.target}",
        subtitle=f"{len(history)} trials, surrogate {config.surrogate}, acquisition {config.acquisition}",
        headline=headline,
        sections=[
            Section("Trials", image=embed(figure)),
            Section("Best", table=_record_table(history, best)),
            Section("All trials", table=_record_table(history, history.records, {record.step for record in best})),
        ],
        provenance=[*versions(), f"seed {config.seed}", f"{seconds:.0f} s", time.strftime("%Y-%m-%d %H:%M")],
    ).write(out / "report.html")
    return OptimizeOutcome(history, headline, report, bool(history.complete))


def _best_records(history: History) -> list[Record]:
    if len(history.outcome_names) > 1:
        return history.pareto()
    best = history.best()
    return [] if best is None else [best]


def _headline(history: History, best: list[Record], loop: BayesOptLoop) -> tuple[str, ...]:
    lines = history.summary().splitlines()
    if not history.complete:
        reason = history.failed[-1].reason if history.failed else "no trial was run"
        return (*lines, f"No trial succeeded; the last one: {reason}")
    if len(history.outcome_names) == 1 and best:
        chosen = loop.recommend()
        if chosen != best[0].point:
            text = ", ".join(f"{name}={_cell(value)}" for name, value in chosen.items())
            lines.append(f"by the posterior mean, which discounts luck: {text}")
    return tuple(lines)


def _record_table(history: History, records: list[Record], marked: set[int] | None = None) -> Table:
    names = list(history.records[0].point) if len(history) else list(history.parameter_names)
    columns = ["trial", "status", *names, *history.outcome_names, *history.constraint_names]
    rows = [
        [str(record.step), record.status]
        + [_cell(record.point[name]) for name in names]
        + [_outcome(value) for value in (*record.outcomes, *record.constraints)]
        for record in records
    ]
    return Table(columns, rows, [i for i, record in enumerate(records) if record.step in (marked or set())])


def _cell(value: object) -> str:
    return format_number(value) if isinstance(value, float) else str(value)


def _outcome(value: float) -> str:
    return format_number(None if value != value else value, 6)  # NaN: no outcome
