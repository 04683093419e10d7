"""Reading labels as users tell them, and which surrogate speaks of them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from seqbdl.acquisition.batches import get_batch_acquisition
from seqbdl.errors import InvalidDataError, InvalidOptionError, ShapeError, UnknownNameError
from seqbdl.loops.label_pool import LabelPool
from seqbdl.surrogates import Surrogate, make_surrogate, surrogate_class


@dataclass(frozen=True)
class Labels:
    """What a label may be.

    Attributes:
        class_names: One per class; empty for real values.
    """

    class_names: tuple[str, ...] = ()

    @staticmethod
    def build(classes: int | Sequence[object] | None) -> Labels:
        """From a loop's ``classes``.

        Raises:
            InvalidOptionError: Fewer than two classes, or names that repeat.
        """
        if classes is None:
            return Labels()
        names = [str(name) for name in (range(classes) if isinstance(classes, int) else classes)]
        if len(names) < 2 or len(set(names)) != len(names):
            raise InvalidOptionError(f"classes={classes!r}; give their number or their different names, at least two")
        return Labels(tuple(names))

    @property
    def num_classes(self) -> int:
        """0 for real values."""
        return len(self.class_names)

    def read(self, label: object, index: int) -> float:
        """A label as a number; NaN where the label is one.

        Args:
            label: A value; of classes a name or a number from 0.
            index: Of the pool, for messages.

        Raises:
            InvalidDataError: No label of this pool.
        """
        if isinstance(label, str) and label.strip() in self.class_names:
            return float(self.class_names.index(label.strip()))
        if isinstance(label, Tensor) and label.numel() == 1:
            label = label.item()
        try:
            value = float(label)  # type: ignore[arg-type]  # refused below
        except (TypeError, ValueError):
            value = None
        if value is None or isinstance(label, str):
            raise InvalidDataError(f"the label {label!r} of index {index} is not {self.described}")
        if self.class_names and not math.isnan(value) and (value != round(value) or not 0 <= value < self.num_classes):
            raise InvalidDataError(f"the label {label!r} of index {index} is not {self.described}")
        return value

    def parse(self, text: str) -> float:
        """A label that a person typed.

        Raises:
            InvalidDataError: No label of this pool.
        """
        text = text.strip()
        if text in self.class_names:
            return float(self.class_names.index(text))
        try:
            value = float(text)
        except ValueError:
            raise InvalidDataError(f"{text!r} is not {self.described}") from None
        if self.class_names or not math.isfinite(value):  # a number that is no name of a class would be ambiguous
            raise InvalidDataError(f"{text!r} is not {self.described}")
        return value

    @property
    def described(self) -> str:
        """What a label is, for messages."""
        if not self.class_names:
            return "a finite number"
        shown = ", ".join(self.class_names[:12]) + (", ..." if self.num_classes > 12 else "")
        return f"one of the classes {shown}"


def read_told(pool: LabelPool, labels: Labels, action: object, outcome: object, failed: object) -> tuple[bool, list[Any]]:
    """Whether one index was told, and ``(index, label or None, failed)`` for each.

    Raises:
        ShapeError: Another number of labels than of indices.
    """
    single = isinstance(action, Mapping) or not hasattr(action, "__len__") or (isinstance(action, Tensor) and not action.dim())
    actions: list[object] = [action] if single else _listed(action)
    size = len(actions)
    outcomes = [outcome] if single else [None] * size if outcome is None else _listed(outcome)
    if len(outcomes) != size:
        raise ShapeError(f"{len(outcomes)} labels for {size} indices; give one for each, None for those still to come")
    marks = [bool(failed)] * size if isinstance(failed, bool) else [bool(mark) for mark in _listed(failed)]
    if len(marks) != size:
        raise ShapeError(f"failed has {len(marks)} entries for {size} indices")
    told = []
    for point, value, mark in zip(actions, outcomes, marks, strict=True):
        index = pool.to_action(point)
        number = None if value is None else labels.read(_unwrapped(value), index)
        told.append((index, number, mark))
    return single, told


def _listed(values: Any) -> list[Any]:
    if isinstance(values, Tensor) or hasattr(values, "tolist"):
        return [_unwrapped(value) for value in values.tolist()]
    if isinstance(values, str):
        raise ShapeError(f"{values!r} for several indices; give a list with one label for each")
    return list(values)


def _unwrapped(value: Any) -> Any:
    """``[3.0]`` is 3.0: columns ``n x 1`` are as good as lists."""
    return value[0] if isinstance(value, list | tuple) and len(value) == 1 else value


def surrogate_for(
    surrogate: str | Surrogate,
    pool: LabelPool,
    labels: Labels,
    likelihood: str | None,
    noise: float | None,
    seed: int,
    options: dict[str, Any],
) -> Surrogate:
    """A surrogate for a pool: made by name, or an instance that fits.

    Raises:
        InvalidOptionError: It speaks of other outcomes than the labels, or of other inputs than the pool.
    """
    if isinstance(surrogate, str):
        known = surrogate_class(surrogate).likelihoods
        name = likelihood or _default_likelihood(surrogate, labels, known)
        if (name in ("categorical", "bernoulli")) != bool(labels.num_classes):
            raise InvalidOptionError(f"likelihood={name!r} with {labels.num_classes} classes; classes= belongs to classes only")
        outputs = labels.num_classes if name == "categorical" else 1
        if name == "bernoulli" and labels.num_classes != 2:
            raise InvalidOptionError(f"likelihood='bernoulli' is for 2 classes, not {labels.num_classes}; use 'categorical'")
        settings: dict[str, Any] = {"bounds": pool.bounds.cpu(), "seed": seed, **options}
        if noise is not None:
            settings["noise"] = noise
        return make_surrogate(surrogate, pool.dim, outputs, name, **settings)
    if not isinstance(surrogate, Surrogate):
        raise InvalidOptionError(f"surrogate is a {type(surrogate).__name__}; give a registered name or a Surrogate")
    if options or noise is not None or likelihood is not None:
        raise InvalidOptionError(
            "noise, likelihood and surrogate_options belong to a surrogate given by name; set them on the instance"
        )
    if surrogate.input_dim != pool.dim:
        raise InvalidOptionError(f"the surrogate has input_dim={surrogate.input_dim}, the pool {pool.dim} inputs")
    probs = surrogate.predict(pool.X[:1]).probs
    speaks_of = 0 if probs is None else probs.shape[-1]
    if (
        speaks_of != labels.num_classes
        or (probs is None and surrogate.num_outputs != 1)
        or (probs is not None and probs.dim() > 2)
    ):
        outcomes = f"{speaks_of} classes" if speaks_of else f"{surrogate.num_outputs} real values"
        wanted = f"{labels.num_classes} classes" if labels.num_classes else "one real value; for classes give classes="
        raise InvalidOptionError(f"the surrogate speaks of {outcomes}, the labels are {wanted}")
    return surrogate


def _default_likelihood(surrogate: str, labels: Labels, known: Sequence[str]) -> str:
    if not labels.num_classes:
        return "gaussian"
    if "categorical" in known:
        return "categorical"
    if labels.num_classes == 2 and "bernoulli" in known:
        return "bernoulli"
    raise InvalidOptionError(f"surrogate={surrogate!r} knows no classes, only {', '.join(known)}; use 'laplace' or 'ensemble'")


def check_selection(name: str, labels: Labels, has_targets: bool, options: Mapping[str, Any]) -> str:
    """The name of a selection when it can be used on such labels, ``"auto"`` too, before any label is paid for.

    Raises:
        UnknownNameError: It does not exist, or has no such option.
        InvalidOptionError: It is for other labels, or needs targets.
    """
    if name == "auto":
        return name
    entry = get_batch_acquisition(name)
    select = entry.for_classes if labels.num_classes else entry.for_values
    if select is None:
        kind, other = ("classes", "real values") if labels.num_classes else ("real values", "classes")
        raise InvalidOptionError(f"{entry.name} is for {other}; the labels are {kind}")
    if entry.needs_targets and not has_targets:
        raise InvalidOptionError(f"{entry.name} needs targets: inputs, without labels, from where the model will be used")
    known = [p.name for p in inspect.signature(select).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for option in options:
        if option not in (*known, "features"):
            raise UnknownNameError(f"option of {entry.name}", option, [*known, "features"])
    return name


def check_rows(name: str, values: object, size: int, what: str) -> Tensor:
    """A vector with one number per row.

    Raises:
        ShapeError: Another length.
    """
    vector = torch.as_tensor(values, dtype=torch.float64).flatten()
    if vector.shape[0] != size:
        raise ShapeError(f"{name} has {vector.shape[0]} entries; give one for each of {size} {what}")
    return vector


def read_test(pool: LabelPool, labels: Labels, inputs: Any, outcomes: Any) -> tuple[Tensor, Tensor]:
    """A test set as the surrogate sees it: ``k x d`` inputs and ``k`` labels, integers of classes.

    Raises:
        ShapeError: Another number of labels than of inputs, or inputs of another shape than the pool's.
        InvalidDataError: A label that is none.
    """
    X = pool.inputs(inputs)
    read = [labels.read(_unwrapped(value), row) for row, value in enumerate(_listed(outcomes))]
    y = check_rows("test labels", read, X.shape[0], "test inputs").to(X.device)
    if not bool(y.isfinite().all()):
        raise InvalidDataError(f"the test label in row {int((~y.isfinite()).nonzero()[0])} is not finite; drop such rows")
    return X, y.long() if labels.num_classes else y


def indices_of(pool: LabelPool, indices: Any) -> list[int]:
    """Indices of a pool as integers; none for ``None``.

    Raises:
        InvalidSpaceError: One is none of the pool's.
    """
    return [] if indices is None else [pool.to_action(index) for index in _listed(indices)]
