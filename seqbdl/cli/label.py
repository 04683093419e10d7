"""`seqbdl label`: a person types the labels that a model asks for; stop at any time, and go on."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from seqbdl.errors import InvalidDataError, InvalidOptionError
from seqbdl.loops import ActiveLearningLoop, LearningStop
from seqbdl.loops.history import COMPLETE, FAILED
from seqbdl.serialization import load_tree, save_tree

QUIT, NONE = ":q", "?"
TEXT_DIM = 32
"""Dimensions of text features."""
Reader = Callable[[str], str]


@dataclass(frozen=True)
class LabelSettings:
    """What the command was given.

    Attributes:
        table: A CSV file with a header, one row per item.
        target: The column of labels; it may be there, filled in part, or not at all.
        classes: Names of the classes; ``None``: those found in the column, or values.
        values: Labels are numbers.
        features: Columns that the model sees; all numeric ones by default.
        text: A column of texts that the model sees, as word weights in few dimensions.
        test: A CSV file like the table, with all labels, for a learning curve.
        out: Where the labels go.
        surrogate: A registered name.
        acquisition: A selection, see :class:`seqbdl.loops.ActiveLearningLoop`.
        batch: Labels between two fits of the model.
        budget: Labels in all.
        agreement: Stop when predicted classes agree so well between models; ``None``: never.
        seed: Of everything random.
        fresh: Forget an earlier session.
    """

    table: Path
    target: str = "label"
    classes: tuple[str, ...] | None = None
    values: bool = False
    features: tuple[str, ...] | None = None
    text: str | None = None
    test: Path | None = None
    out: Path | None = None
    surrogate: str = "laplace"
    acquisition: str = "auto"
    batch: int = 5
    budget: int | None = None
    agreement: float | None = None
    seed: int = 0
    fresh: bool = False

    @property
    def output(self) -> Path:
        """The file of labels."""
        return self.out or self.table.with_name(self.table.stem + "-labels.csv")

    @property
    def checkpoint(self) -> Path:
        """What a session goes on from."""
        return self.output.with_name(self.output.name + ".checkpoint")


@dataclass(frozen=True)
class LabelOutcome:
    """How far it came."""

    loop: ActiveLearningLoop
    output: Path
    reason: str


def run_label(settings: LabelSettings, console: Console, read: Reader | None = None) -> LabelOutcome:
    """Ask a person for labels until there is enough, or the person stops.

    Args:
        settings: See there.
        console: Where items are shown.
        read: Returns a typed line for a prompt, without its end; raises ``EOFError`` at the end. Standard input by default.

    Raises:
        InvalidOptionError: Columns or classes that are not there, or contradict each other.
        InvalidDataError: Cells that are no number, or no class.
        StateError: The earlier session was about another table or other settings.
    """
    frame = _read_table(settings.table)
    loop, given = _prepare(settings, frame)
    if settings.fresh:
        settings.checkpoint.unlink(missing_ok=True)
    if settings.checkpoint.exists():
        loop.load_state_dict(load_tree(settings.checkpoint))
        console.print(f"Going on: {len(loop.labelled)} labels so far.", highlight=False)
    known = {loop.history.action(record) for record in loop.history if not record.open}
    fresh = {row: label for row, label in given.items() if row not in known}
    if fresh:
        loop.tell(list(fresh), list(fresh.values()))
        console.print(f"{len(fresh)} labels were in the table.", highlight=False)
    console.print(
        f"Type {loop.labels.described}; {NONE} cannot be labelled, empty: later, {QUIT} stops.", highlight=False, markup=False
    )
    reason = _session(settings, frame, loop, console, read or _from_stdin)
    _write(settings, loop)
    return LabelOutcome(loop, settings.output, reason)


def _session(settings: LabelSettings, frame: pd.DataFrame, loop: ActiveLearningLoop, console: Console, read: Reader) -> str:
    rule = None if settings.agreement is None else LearningStop(agreement=settings.agreement)
    shown = [column for column in frame.columns if column != settings.target]
    queue = loop.pending  # left over from the last session
    while True:
        done = len(loop.labelled)
        if settings.budget is not None and done >= settings.budget:
            return f"{settings.budget} labels are given"
        if not queue:
            if rule is not None and loop.labelled and not loop.pending:
                loop.measure()
                if text := rule.reason(loop):
                    return text
            left = loop.remaining if settings.budget is None else min(loop.remaining, settings.budget - done)
            if left == 0:
                return "every item was asked"
            asked = loop.ask(n=min(settings.batch, left))
            queue = [asked] if isinstance(asked, int) else list(asked)
            _write(settings, loop)
        index = queue.pop(0)
        _show(frame, shown, index, done, console)
        try:
            answer = _answer(loop, read, console)
        except EOFError:
            return "stopped"
        if answer is not None:
            failed = bool(np.isnan(answer))
            loop.tell(index, None if failed else answer, failed=failed, reason="cannot be labelled" if failed else "")
            _write(settings, loop)


def _answer(loop: ActiveLearningLoop, read: Reader, console: Console) -> float | None:
    """A label, NaN where there is none, ``None`` for later; asks again after a slip."""
    while True:
        text = read("> ").strip()
        if text == QUIT:
            raise EOFError
        if text == "":
            return None
        if text == NONE:
            return float("nan")
        try:
            return loop.labels.parse(text)
        except InvalidDataError as error:
            console.print(str(error), style="red", highlight=False, markup=False)


def _show(frame: pd.DataFrame, columns: Sequence[str], index: int, done: int, console: Console) -> None:
    table = Table(title=f"row {index}, label {done + 1}", show_header=False, title_justify="left")
    for column in columns:
        table.add_row(escape(str(column)), escape(str(frame[column].iloc[index])))
    console.print(table)


def _from_stdin(prompt: str) -> str:
    sys.stdout.write(prompt)
    sys.stdout.flush()
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line


# -- reading


def _refuse(message: str) -> NoReturn:
    raise InvalidOptionError(message)


def _read_table(path: Path) -> pd.DataFrame:
    try:
        frame = pd.read_csv(path)
    except ValueError as error:  # whatever pandas cannot parse
        raise InvalidDataError(f"{path.name}: {error}") from error
    if not len(frame):
        raise InvalidDataError(f"{path.name} has no rows")
    return frame


def _prepare(settings: LabelSettings, frame: pd.DataFrame) -> tuple[ActiveLearningLoop, dict[int, Any]]:
    """The loop, and the labels that the table brings."""
    classes = _classes(settings, frame)
    features = _Features(settings, frame)
    test = None
    if settings.test is not None:
        held_out = _read_table(settings.test)
        if settings.target not in held_out:
            _refuse(f"{settings.test.name} has no column {settings.target!r}; a test set needs its labels")
        test = (features(held_out), [_cell(value, classes) for value in held_out[settings.target]])
    loop = ActiveLearningLoop(
        features(frame),
        settings.surrogate,
        settings.acquisition,
        classes=classes,
        test=test,
        seed=settings.seed,
    )
    given = {}
    if settings.target in frame:
        column = frame[settings.target]
        given = {int(row): _cell(column.iloc[row], classes) for row in np.flatnonzero(column.notna())}
    return loop, given


def _classes(settings: LabelSettings, frame: pd.DataFrame) -> tuple[str, ...] | None:
    if settings.classes is not None:
        if settings.values:
            _refuse("--classes and --values contradict each other; give one of them")
        return settings.classes
    if settings.values:
        return None
    column = frame[settings.target].dropna() if settings.target in frame else pd.Series(dtype=object)
    if pd.api.types.is_numeric_dtype(column) and len(column):
        _refuse(f"column {settings.target!r} holds numbers: give --values, or name the classes with --classes")
    names = sorted({str(value) for value in column})
    if len(names) < 2:
        _refuse("what is a label? name the classes with --classes a,b,c or give --values for numbers")
    return tuple(names)


def _cell(value: Any, classes: tuple[str, ...] | None) -> Any:
    """A cell of the target column as a label; 2.0 is the class 2 where a column of integers has gaps."""
    if classes is None:
        return value
    text = str(value).strip()
    return text[:-2] if text.endswith(".0") and text not in classes else text


class _Features:
    """From a table to what the model sees; learned from the pool, applied to the test set too."""

    def __init__(self, settings: LabelSettings, frame: pd.DataFrame) -> None:
        others = [column for column in frame.columns if column != settings.target]
        numeric = [column for column in others if pd.api.types.is_numeric_dtype(frame[column])]
        self.columns = list(settings.features) if settings.features is not None else [] if settings.text else numeric
        for column in (*self.columns, *([settings.text] if settings.text else [])):
            if column not in others:
                _refuse(f"{settings.table.name} has no column {column!r} to learn from; its columns are {', '.join(others)}")
        for column in self.columns:
            if column not in numeric:
                _refuse(f"column {column!r} is not numeric; leave it out of --features, or give it as --text")
        self.text, self._words = settings.text, None
        if settings.text is not None:
            self._words = _words(frame[settings.text], settings.seed)
        elif not self.columns:
            _refuse(f"{settings.table.name} has no numeric column to learn from; give --text COLUMN for texts")

    def __call__(self, frame: pd.DataFrame) -> np.ndarray:
        missing = [column for column in (*self.columns, *([self.text] if self.text else [])) if column not in frame]
        if missing:
            _refuse(f"the test set has no column {missing[0]!r}")
        parts = [frame[self.columns].to_numpy(dtype=np.float64)] if self.columns else []
        if self._words is not None:
            parts.append(np.asarray(self._words.transform(frame[self.text].fillna("").astype(str)), dtype=np.float64))
        return np.concatenate(parts, axis=1)


def _words(texts: pd.Series, seed: int) -> Any:
    """Word weights in few dimensions: latent semantic analysis of scikit-learn."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline

    words = texts.fillna("").astype(str)
    vocabulary = len(TfidfVectorizer().fit(words).vocabulary_)
    dimensions = min(TEXT_DIM, vocabulary - 1, len(words) - 1)
    if dimensions < 1:
        _refuse("the texts have too few different words to tell them apart")
    pipeline = make_pipeline(TfidfVectorizer(sublinear_tf=True), TruncatedSVD(dimensions, random_state=seed))
    return pipeline.fit(words)


# -- writing


def _write(settings: LabelSettings, loop: ActiveLearningLoop) -> None:
    """The labels and the checkpoint, each at once or not at all."""
    table = loop.history.frame()
    table = table[table["status"].isin([COMPLETE, FAILED])]
    names = table["class"] if loop.labels.num_classes else table["label"]
    status = table["status"].map({COMPLETE: "labelled", FAILED: "cannot be labelled"})
    labels = pd.DataFrame({"row": table["index"].astype(int), settings.target: names, "status": status})
    settings.output.parent.mkdir(parents=True, exist_ok=True)
    beside = settings.output.with_name(f".{settings.output.name}.part")
    labels.to_csv(beside, index=False)
    os.replace(beside, settings.output)
    save_tree(settings.checkpoint, loop.state_dict())
    if settings.test is not None and len(loop.history.curve) > 1:
        figure = Figure(figsize=(7, 4), layout="constrained")
        loop.history.plot(figure.subplots())
        figure.savefig(settings.output.with_suffix(".png"), dpi=130)
