"""`seqbdl bandit`: a policy plays a table of contexts and rewards, row by row, and sees the rewards of what it plays only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.progress import track

from seqbdl.errors import InvalidDataError, InvalidOptionError
from seqbdl.loops import BanditLoop

Array = NDArray[np.float64]


@dataclass(frozen=True)
class BanditSettings:
    """What the command was given.

    Attributes:
        table: A CSV file with a header, one row per decision, in the order in which they come.
        rewards: Columns of rewards, one per arm: what each arm would have earned there.
        label: Instead, a column of classes: arms are the classes, and the right one earns 1.
        features: Columns of the context; by default all numeric ones that are neither rewards nor the label.
        surrogate: See :class:`seqbdl.loops.BanditLoop`.
        policy: See there.
        rounds: How many rows are played; ``None``: all.
        shuffle: Rows in random order.
        out: Where the decisions go.
        seed: Of everything random.
        progress: Whether a bar is shown.
    """

    table: Path
    rewards: tuple[str, ...] | None = None
    label: str | None = None
    features: tuple[str, ...] | None = None
    surrogate: str = "neural-linear"
    policy: str = "thompson"
    rounds: int | None = None
    shuffle: bool = False
    out: Path | None = None
    seed: int = 0
    progress: bool = True

    @property
    def output(self) -> Path:
        """The file of decisions."""
        return self.out or self.table.with_name(self.table.stem + "-decisions.csv")


@dataclass(frozen=True)
class BanditOutcome:
    """Attributes:
    arms: Names of the arms.
    decisions: One row per round: ``row``, ``arm``, ``propensity``, ``reward``, and the ``best`` reward of that row.
    fixed: Mean reward of every arm, had it always been played.
    """

    arms: tuple[str, ...]
    decisions: pd.DataFrame
    fixed: Array

    def lines(self) -> list[str]:
        """What a person reads."""
        mean, best = self.decisions["reward"].mean(), int(self.fixed.argmax())
        shares = self.decisions["arm"].value_counts(normalize=True)
        played = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
        return [
            f"Mean reward {mean:.4g} over {len(self.decisions)} decisions.",
            f"At random {self.fixed.mean():.4g}; always {self.arms[best]!r}, the best single arm, {self.fixed[best]:.4g}; "
            f"with hindsight {self.decisions['best'].mean():.4g}.",
            f"Played: {played}.",
        ]


def run_bandit(settings: BanditSettings) -> BanditOutcome:
    """Play the table, and write the decisions and a picture.

    Raises:
        InvalidOptionError: Columns that are not there, or options that contradict each other.
        InvalidDataError: Cells that are missing or no number, with their row.
    """
    try:
        frame = pd.read_csv(settings.table)
    except ValueError as error:  # whatever pandas cannot parse
        raise InvalidDataError(f"{settings.table.name}: {error}") from error
    arms, rewards = _rewards(settings, frame)
    contexts = _contexts(settings, frame)
    order = np.arange(len(frame))
    if settings.shuffle:
        order = np.random.default_rng(settings.seed).permutation(order)
    order = order[: settings.rounds]
    known = contexts[order]  # standardized by what may be seen before any reward is
    spread = known.std(axis=0)
    contexts = (contexts - known.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    reward = "binary" if settings.surrogate not in ("linear", "neural-linear") and settings.label is not None else "continuous"
    loop = BanditLoop((contexts.shape[1], len(arms)), settings.surrogate, settings.policy, reward=reward, seed=settings.seed)
    rows = []
    for row in track(order.tolist(), "Playing", disable=not settings.progress, transient=True):
        decision = loop.ask(contexts[row])
        value = float(rewards[row, decision.arm])
        loop.tell(decision, value)
        rows.append((row, arms[decision.arm], decision.propensity, value, float(rewards[row].max())))
    decisions = pd.DataFrame(rows, columns=["row", "arm", "propensity", "reward", "best"])
    outcome = BanditOutcome(arms, decisions, rewards[order].mean(axis=0))
    settings.output.parent.mkdir(parents=True, exist_ok=True)
    decisions.to_csv(settings.output, index=False)
    _picture(outcome, rewards[order]).savefig(settings.output.with_suffix(".png"), dpi=130)
    return outcome


def _picture(outcome: BanditOutcome, rewards: Array) -> Figure:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes, rounds = figure.subplots(), np.arange(1, len(rewards) + 1)
    axes.plot(rounds, outcome.decisions["reward"].cumsum() / rounds, color="C0", label="the policy")
    best = int(outcome.fixed.argmax())
    axes.plot(rounds, rewards[:, best].cumsum() / rounds, color="C1", label=f"always {outcome.arms[best]}")
    axes.plot(rounds, rewards.mean(axis=1).cumsum() / rounds, color="0.5", label="at random, expected")
    axes.set(xlabel="decisions", ylabel="mean reward so far")
    axes.legend(frameon=False)
    return figure


def _rewards(settings: BanditSettings, frame: pd.DataFrame) -> tuple[tuple[str, ...], Array]:
    """Names of the arms, and ``n x K`` rewards."""
    if (settings.rewards is None) == (settings.label is None):
        raise InvalidOptionError(
            "what is earned? give --rewards a,b,c (a column per arm) or --label COLUMN (arms are its classes)"
        )
    if settings.label is not None:
        _known(frame, (settings.label,), settings.table.name)
        column = frame[settings.label]
        if column.isna().any():
            raise InvalidDataError(f"column {settings.label!r} has no class in row {int(column.isna().to_numpy().argmax())}")
        codes, names = pd.factorize(column.astype(str), sort=True)
        if len(names) < 2:
            raise InvalidDataError(f"column {settings.label!r} has one class only; a bandit needs at least two arms")
        return tuple(names), np.eye(len(names))[codes]
    assert settings.rewards is not None
    if len(settings.rewards) < 2:
        raise InvalidOptionError("--rewards names one column; a bandit needs at least two arms")
    return settings.rewards, _numbers(frame, settings.rewards, settings.table.name)


def _contexts(settings: BanditSettings, frame: pd.DataFrame) -> Array:
    taken = {*(settings.rewards or ()), settings.label}
    numeric = [name for name in frame.columns if name not in taken and pd.api.types.is_numeric_dtype(frame[name])]
    names = tuple(numeric) if settings.features is None else settings.features
    if not names:
        raise InvalidOptionError(f"{settings.table.name} has no numeric column besides the rewards; a context needs one")
    if shared := [name for name in names if name in taken]:
        raise InvalidOptionError(f"column {shared[0]!r} is a reward; the context would tell it before the arm is played")
    return _numbers(frame, names, settings.table.name)


def _known(frame: pd.DataFrame, names: tuple[str, ...], table: str) -> None:
    for name in names:
        if name not in frame:
            raise InvalidOptionError(f"{table} has no column {name!r}; its columns are {', '.join(map(str, frame.columns))}")


def _numbers(frame: pd.DataFrame, names: tuple[str, ...], table: str) -> Array:
    _known(frame, names, table)
    values = np.stack([pd.to_numeric(frame[name], errors="coerce").to_numpy(dtype=np.float64) for name in names], axis=1)
    bad = ~np.isfinite(values)
    if bad.any():
        row, place = np.argwhere(bad)[0]
        raise InvalidDataError(
            f"{table}: row {row} of column {names[place]!r} holds {frame[names[place]].iloc[row]!r}, no number"
        )
    if not len(values):
        raise InvalidDataError(f"{table} has no rows")
    return values
