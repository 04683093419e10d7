"""The command `seqbdl`. Heavy imports happen inside the commands, so that help is quick."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

app = typer.Typer(
    name="seqbdl",
    help="Bayesian deep-learning surrogates for sequential decisions.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    rich_markup_mode="rich",
)


class Format(StrEnum):
    """How a listing is printed."""

    table = "table"
    json = "json"


class Kind(StrEnum):
    """What a problem's action is: a point, the prediction of a chunk of a stream, or an arm."""

    points = "points"
    stream = "stream"
    bandit = "bandit"


FormatOption = Annotated[Format, typer.Option("--format", help="A table to read, or JSON for programs.")]


def _console() -> Console:
    return Console()


def _fail(message: str) -> NoReturn:
    """One line on standard error, exit status 2."""
    Console(stderr=True).print(f"[bold red]error:[/] {_escape(message)}", soft_wrap=True, highlight=False)
    raise typer.Exit(2)


def _escape(text: str) -> str:
    return escape(" ".join(text.split()))


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """What users can cause is told in one line without a traceback; anything else is a bug and shows one."""
    import gymnasium

    from seqbdl.errors import SeqbdlError

    try:
        yield
    except (SeqbdlError, gymnasium.error.Error, OSError) as error:
        _fail(str(error))
    except KeyboardInterrupt:
        Console(stderr=True).print("Stopped.")
        raise typer.Exit(130) from None


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the report, the picture and the tables.")] = Path("demo-out"),
    budget: Annotated[int | None, typer.Option(min=2, help="Evaluations of each run.")] = None,
    initial: Annotated[int | None, typer.Option(min=1, help="Shared Sobol points at the start of each run.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Runs of each method.")] = None,
    surrogate: Annotated[list[str] | None, typer.Option(help="A registered surrogate; repeat for several.")] = None,
    env: Annotated[str | None, typer.Option(help="The problem, an environment id.")] = None,
    random_pool: Annotated[int | None, typer.Option(min=1, help="Random evaluations to judge random search by.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; all cores by default.")] = None,
    time_limit: Annotated[float | None, typer.Option(min=1, help="Seconds after which runs end early.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A few evaluations only, to see that it works.")] = False,
) -> None:
    """Optimize a real problem with three surrogates and with random search, and write a report."""
    from dataclasses import replace

    from seqbdl.cli.demo import DemoSettings, run_demo
    from seqbdl.surrogates import surrogate_class

    settings = DemoSettings(out=out)
    if quick:
        settings = replace(settings, budget=8, initial=5, seeds=1, random_pool=10, time_limit=120.0)
    given: dict[str, Any] = {
        "budget": budget,
        "initial": initial,
        "seeds": seeds,
        "surrogates": tuple(surrogate) if surrogate else None,
        "env_id": env,
        "random_pool": random_pool,
        "workers": workers,
        "time_limit": time_limit,
    }
    settings = replace(settings, **{key: value for key, value in given.items() if value is not None})
    if settings.initial >= settings.budget:
        _fail(f"--initial {settings.initial} leaves nothing of --budget {settings.budget}; lower it")
    console = _console()
    with _one_line_errors():
        for name in settings.surrogates:
            surrogate_class(name)
        result = run_demo(settings, console)
    _print_race(result, console)


def _print_race(result: object, console: Console) -> None:
    from seqbdl.cli.demo import DemoResult
    from seqbdl.cli.summary import table

    assert isinstance(result, DemoResult)
    content = table(result.race, result.goal)
    seeds = f"median of {result.race.seeds} seeds" if result.race.seeds > 1 else "one seed"
    shown = Table(title=f"After {result.race.evaluations} evaluations, {seeds}", box=SIMPLE_HEAD)
    columns = [index for index, name in enumerate(content.columns) if name not in ("worst … best", "matches at")]
    for index in columns:  # what fits 80 characters; the report has all columns
        shown.add_column(content.columns[index], justify="right" if content.is_number(index) else "left", no_wrap=True)
    for number, row in enumerate(content.rows):
        shown.add_row(*(row[index] for index in columns), style="bold" if number in content.marked else None)
    console.print(shown)
    for line in result.headline:
        console.print(line, highlight=False)
    console.print(f"Report: {result.report} ({result.seconds:.0f} s)", highlight=False, soft_wrap=True)


@app.command()
def optimize(
    config: Annotated[Path, typer.Argument(help="A YAML file; see docs/bayesian-optimization.md.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the results; overrides `output` in the file.")] = None,
    budget: Annotated[int | None, typer.Option(min=1, help="Overrides `budget` in the file.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget a checkpoint instead of continuing from it.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    """Optimize what a configuration file describes; stop it at any time, and run it again to go on."""
    from seqbdl.cli.config import load_config
    from seqbdl.cli.optimize import run_optimize

    console = _console()
    with _one_line_errors():
        settings = load_config(config)
        result = run_optimize(
            settings, config.resolve().parent, out=out, budget=budget, fresh=fresh, progress=not quiet, console=console
        )
    for line in result.headline:
        console.print(line, highlight=False)
    console.print(f"Report: {result.report}", highlight=False, soft_wrap=True)
    if not result.succeeded:
        raise typer.Exit(1)


@app.command()
def label(
    table: Annotated[Path, typer.Argument(help="A CSV file with a header, one row per item.")],
    target: Annotated[str, typer.Option(help="The column of labels; may be missing, or filled in part.")] = "label",
    classes: Annotated[str | None, typer.Option(help="Names of the classes, comma-separated.")] = None,
    values: Annotated[bool, typer.Option("--values", help="Labels are numbers, not classes.")] = False,
    features: Annotated[
        str | None, typer.Option(help="Columns to learn from, comma-separated; all numeric ones by default.")
    ] = None,
    text: Annotated[str | None, typer.Option(help="A column of texts to learn from.")] = None,
    test: Annotated[Path | None, typer.Option(help="A CSV file with all labels, for a learning curve.")] = None,
    out: Annotated[Path | None, typer.Option(help="File of labels; by default beside the table.")] = None,
    surrogate: Annotated[str, typer.Option(help="A registered surrogate.")] = "laplace",
    acquisition: Annotated[str, typer.Option(help="How items are chosen; see docs/active-learning.md.")] = "auto",
    batch: Annotated[int, typer.Option(min=1, help="Labels between two fits of the model.")] = 5,
    budget: Annotated[int | None, typer.Option(min=1, help="Labels in all.")] = None,
    agreement: Annotated[float | None, typer.Option(help="Stop when predicted classes agree so well, such as 0.99.")] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget an earlier session instead of going on from it.")] = False,
) -> None:
    """Type the labels that teach a model most; stop at any time, and run it again to go on."""
    from seqbdl.cli.label import LabelSettings, run_label

    console = _console()
    with _one_line_errors():
        outcome = run_label(
            LabelSettings(
                table=table,
                target=target,
                classes=_names(classes),
                values=values,
                features=_names(features),
                text=text,
                test=test,
                out=out,
                surrogate=surrogate,
                acquisition=acquisition,
                batch=batch,
                budget=budget,
                agreement=agreement,
                seed=seed,
                fresh=fresh,
            ),
            console,
        )
    console.print(f"Done: {outcome.reason}.", highlight=False, markup=False)
    console.print(outcome.loop.history.summary(), highlight=False, markup=False)
    console.print(f"Labels: {outcome.output}", highlight=False, soft_wrap=True, markup=False)


@app.command()
def bandit(
    table: Annotated[Path, typer.Argument(help="A CSV file with a header, one row per decision.")],
    rewards: Annotated[str | None, typer.Option(help="Columns of rewards, one per arm: a,b,c.")] = None,
    label: Annotated[str | None, typer.Option(help="Or a column of classes: the right one earns 1.")] = None,
    features: Annotated[str | None, typer.Option(help="Columns of the context; all other numeric ones by default.")] = None,
    surrogate: Annotated[str, typer.Option(help="linear, neural-linear, or a registered surrogate.")] = "neural-linear",
    policy: Annotated[str, typer.Option(help="How arms are chosen; see docs/bandits.md.")] = "thompson",
    rounds: Annotated[int | None, typer.Option(min=1, help="Rows to play; all by default.")] = None,
    shuffle: Annotated[bool, typer.Option("--shuffle", help="Play the rows in random order.")] = False,
    out: Annotated[Path | None, typer.Option(help="File of decisions; by default beside the table.")] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    """Let a policy play a table of contexts and rewards: what would it have earned?"""
    from seqbdl.cli.bandit import BanditSettings, run_bandit

    settings = BanditSettings(
        table=table,
        rewards=_names(rewards),
        label=label,
        features=_names(features),
        surrogate=surrogate,
        policy=policy,
        rounds=rounds,
        shuffle=shuffle,
        out=out,
        seed=seed,
        progress=not quiet,
    )
    console = _console()
    with _one_line_errors():
        outcome = run_bandit(settings)
    for line in outcome.lines():
        console.print(line, highlight=False, markup=False)
    console.print(f"Decisions: {settings.output}", highlight=False, soft_wrap=True, markup=False)


def _names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(name.strip() for name in text.split(",") if name.strip())


@app.command()
def surrogates(form: FormatOption = Format.table) -> None:
    """List the surrogates that loops take by name."""
    from seqbdl.surrogates import list_surrogates, surrogate_class

    rows = [{"name": name, "summary": _first_sentence(surrogate_class(name).__doc__)} for name in list_surrogates()]
    _listing(rows, "Surrogates", form)


@app.command()
def envs(
    kind: Annotated[Kind | None, typer.Option(help="Only those of this kind.")] = None,
    form: FormatOption = Format.table,
) -> None:
    """List the decision problems that come with the package."""
    from seqbdl.envs import list_envs

    known = list_envs(None if kind is None else kind.value)
    if form is Format.json:
        _listing([asdict(info) for info in known], "Environments", form)
        return
    missing = {info.id: f" [needs: {info.install}]" for info in known if not info.available}
    _listing([{"id": info.id, "summary": info.summary + missing.get(info.id, "")} for info in known], "Environments", form)


def _first_sentence(text: str | None) -> str:
    paragraph = " ".join((text or "").strip().split("\n\n")[0].split()).replace("``", "")
    return paragraph


def _listing(rows: Sequence[Mapping[str, object]], title: str, form: Format) -> None:
    if form is Format.json:
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
        return
    table = Table(title=title, box=SIMPLE_HEAD)
    for key in rows[0] if rows else ():
        table.add_column(key, no_wrap=key in ("name", "id"))
    for row in rows:
        table.add_row(*(escape(str(cell)) for cell in row.values()))
    _console().print(table)


if __name__ == "__main__":
    app()
