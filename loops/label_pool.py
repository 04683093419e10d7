"""What can be labelled: rows of a table, images, texts with a feature function, or a data loader, as one matrix of inputs."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, SequentialSampler

from seqbdl._checks import check_finite
from seqbdl.errors import InvalidDataError, InvalidOptionError, InvalidSpaceError, ShapeError

Features: TypeAlias = Callable[[Any], Any]
CHUNK = 256
"""Items that a feature function sees at once."""
INDEX = "index"


class LabelPool:
    """Items to be labelled, and the matrix of inputs that the surrogate sees of them.

    Args:
        items: One of: a tensor or an array, ``N x ...``, whose trailing dimensions are flattened; a data frame of numbers; a
            sequence of anything (texts, file names) with ``features``; a ``torch.utils.data`` data set or unshuffled data
            loader, of which the first element of each item or batch is the input.
        features: Turns a slice of the items (of a loader: a batch) into numbers, ``k x ...``: a pretrained encoder, say. It is
            called once for each slice, without gradients.

    Raises:
        ShapeError: No items, or rows without numbers.
        InvalidDataError: NaN or infinite inputs.
        InvalidOptionError: Something that is no pool, or a loader that shuffles, under which indices would mean nothing.
    """

    names = (INDEX,)

    def __init__(self, items: Any, features: Features | None = None) -> None:
        self._features = features
        values = self._numbers(items)
        if values.dim() < 2 or values.shape[0] == 0 or values[0].numel() == 0:
            raise ShapeError(f"the pool has shape {tuple(values.shape)}; it needs N x ... with at least one number in each row")
        self.shape = tuple(values.shape[1:])
        self.X = values.flatten(1)
        check_finite("pool", self.X)

    def __len__(self) -> int:
        return self.X.shape[0]

    @property
    def dim(self) -> int:
        """``d``: numbers of an item."""
        return self.X.shape[1]

    @cached_property
    def bounds(self) -> Tensor:
        """``2 x d``, the range of every input; one range for all inputs where items have a shape, such as images, since
        their entries share a unit."""
        low, high = self.X.amin(0), self.X.amax(0)
        if len(self.shape) > 1:
            low, high = low.min().expand_as(low), high.max().expand_as(high)
        return torch.stack([low, torch.where(high > low, high, low + 1.0)])

    @cached_property
    def digest(self) -> str:
        """Which pool this is, for checkpoints."""
        return hashlib.sha256(self.X.cpu().contiguous().numpy().tobytes()).hexdigest()

    def inputs(self, items: Any) -> Tensor:
        """Other items (a test set, targets) as the surrogate sees them, ``k x d``.

        Raises:
            ShapeError: They have another shape than the pool's.
        """
        values = self._numbers(items)
        if tuple(values.shape[1:]) != self.shape:
            raise ShapeError(f"rows have shape {tuple(values.shape[1:])}, those of the pool {self.shape}; give the same features")
        X = values.flatten(1).to(self.X)
        check_finite("inputs", X)
        return X

    def _numbers(self, items: Any) -> Tensor:
        if isinstance(items, DataLoader):
            if not isinstance(items.sampler, SequentialSampler):
                raise InvalidOptionError("the data loader shuffles, so that indices mean nothing; make it with shuffle=False")
            return torch.cat([self._slice(_first(batch)) for batch in items])
        if isinstance(items, Dataset):
            size = len(items)  # type: ignore[arg-type]  # of a map-style data set, which indices need
            parts = [[_first(items[i]) for i in range(a, min(a + CHUNK, size))] for a in range(0, size, CHUNK)]
            return torch.cat([self._slice(_stacked(part)) for part in parts])
        if hasattr(items, "to_numpy"):
            items = items.to_numpy()
        if isinstance(items, Tensor | np.ndarray) or self._features is not None:
            if not hasattr(items, "__len__"):
                raise InvalidOptionError(f"the pool is a {type(items).__name__}; give a tensor, an array or a sequence")
            if self._features is None:
                return self._slice(items)
            return torch.cat([self._slice(items[a : a + CHUNK]) for a in range(0, len(items), CHUNK)])
        if isinstance(items, Sequence) and not isinstance(items, str) and len(items) and not isinstance(items[0], str):
            return self._slice(_stacked(items))
        raise InvalidOptionError(f"the pool is a {type(items).__name__} that holds no numbers; give features=, a function of it")

    def _slice(self, items: Any) -> Tensor:
        with torch.no_grad():
            made = items if self._features is None else self._features(items)
        if isinstance(made, Tensor):
            return made.detach().double()
        try:
            return torch.as_tensor(np.asarray(made, dtype=np.float64))
        except (TypeError, ValueError) as error:
            raise InvalidDataError(f"the pool holds what is no number ({error}); encode it, or give features=") from error

    # -- what the conditioning of the surrogate and the driver call

    def encode(self, points: Iterable[Mapping[str, Any]]) -> Tensor:
        """Inputs of some points of the history, ``k x d``."""
        return self.X[[int(point[INDEX]) for point in points]]

    def to_action(self, point: object) -> int:
        """An index, or a point of the history, as an index.

        Raises:
            InvalidSpaceError: It is none of this pool.
        """
        value = point.get(INDEX) if isinstance(point, Mapping) else point
        try:
            index = operator.index(value)  # type: ignore[arg-type]  # refused below
        except TypeError:
            raise InvalidSpaceError(f"{point!r} is not an index of the pool, an integer from 0 to {len(self) - 1}") from None
        if isinstance(value, bool) or not 0 <= index < len(self):
            raise InvalidSpaceError(f"index {value!r} is out of range; the pool's go from 0 to {len(self) - 1}")
        return index


def _first(item: Any) -> Any:
    return item[0] if isinstance(item, tuple | list) else item


def _stacked(items: Sequence[Any]) -> Any:
    return torch.stack(list(items)) if isinstance(items[0], Tensor) else list(items)
