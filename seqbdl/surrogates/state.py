"""A surrogate's options, copies and state: everything its answers depend on, as data."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar, Self

import torch
from botorch.models.model import FantasizeMixin, Model
from torch import Tensor

from seqbdl.errors import InvalidOptionError, StateError
from seqbdl.serialization import dense, generator_state, is_dense, restore_generator
from seqbdl.surrogates.scaling import Scaling

_REGISTERED = ("_parameters", "_buffers", "_modules")  # dictionaries in which torch.nn.Module keeps attributes


class SurrogateState(Model, FantasizeMixin):  # type: ignore[misc]  # the two disagree about signatures
    """What a surrogate remembers; its base class adds what it answers."""

    name: ClassVar[str] = ""
    input_dim: int
    output_dim: int
    generator: torch.Generator
    _scaling: Scaling
    _X: Tensor | None
    _Y: Tensor | None
    _Yvar: Tensor | None
    _num_rows: int
    _inherits: bool  # whether the prior of these rows was another posterior
    _output_indices: list[int] | None
    _training_data: tuple[Tensor, Tensor, Tensor | None] | None
    _config: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Remembers the options, for :meth:`clone` and for saving."""
        surrogate = super().__new__(cls)
        positional = dict(zip(("input_dim", "output_dim", "likelihood"), args, strict=False))
        options = {key: value for key, value in kwargs.items() if key != "training_data"}
        object.__setattr__(surrogate, "_config", {**positional, **options})
        return surrogate

    @abstractmethod
    def fit(self, X: Tensor, Y: Tensor, Yvar: Tensor | None = None) -> Self:
        """Condition the prior on the data, forgetting earlier data."""

    @property
    def has_fantasies(self) -> bool:
        """Whether this is a copy made by ``condition_on_observations`` or ``fantasize``."""
        return False

    @classmethod
    def construct_inputs(cls, training_data: Any, **options: Any) -> dict[str, Any]:
        """Constructor arguments from a BoTorch ``SupervisedDataset`` (Ax calls this), plus any options."""
        parsed = super().construct_inputs(training_data)
        X, Y = parsed["train_X"], parsed["train_Y"]
        given = (X, Y, parsed.get("train_Yvar"))
        return {"input_dim": X.shape[-1], "output_dim": Y.shape[-1], "training_data": given, **options}

    def fit_training_data(self) -> Self:
        """Fit the data handed to the constructor, if that was not done yet."""
        given, self._training_data = self._training_data, None
        return self if given is None else self.fit(*given)

    def clone(self) -> Self:
        """A new surrogate with the same options and no data."""
        return type(self)(**{key: value for key, value in self._config.items() if key != "training_data"})

    def save_state(self) -> dict[str, Any]:
        """Everything that answers depend on, as a tree for :func:`seqbdl.serialization.save_tree`."""
        self._require_whole("save_state")
        return {
            "name": self.name,
            "input_dim": self.input_dim,
            "output_dim": self.output_dim,
            "generator": generator_state(self.generator),
            "scaling": dict(self._scaling.__dict__),
            "X": self._X,
            "Y": self._Y,
            "Yvar": self._Yvar,
            "num_rows": self._num_rows,
            "inherits": self._inherits,
            "method": self._get_state(),
        }

    @contextmanager
    def _unchanged_if_it_fails(self) -> Iterator[None]:
        """Learning replaces what is known and changes nothing in place, so that a failure (or an interrupt) in the middle of it
        can be undone."""
        before = {key: copy.copy(value) if key in _REGISTERED else value for key, value in self.__dict__.items()}
        random, learned = self.generator.get_state(), False
        try:
            yield
            learned = True
        finally:
            if not learned:
                self.__dict__.clear()
                self.__dict__.update(before)
                self.generator.set_state(random)

    def load_state(self, state: Mapping[str, Any]) -> Self:
        """Take over a state that :meth:`save_state` of a surrogate of the same name and shape returned.

        Raises:
            StateError: The state belongs to another surrogate.
        """
        for key, own in (("name", self.name), ("input_dim", self.input_dim), ("output_dim", self.output_dim)):
            if state.get(key) != own:
                raise StateError(f"the state has {key}={state.get(key)!r}, this surrogate has {own!r}")
        self.generator = restore_generator(state["generator"])
        self._scaling = Scaling(**state["scaling"])
        self._X, self._Y, self._Yvar, self._num_rows = state["X"], state["Y"], state["Yvar"], int(state["num_rows"])
        self._inherits = bool(state["inherits"])
        self._set_state(state["method"])
        return self

    def get_extra_state(self) -> dict[str, Any]:
        """PyTorch's hook: ``state_dict()`` carries the whole posterior."""
        return self.save_state()

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """PyTorch's hook: ``load_state_dict()`` restores the whole posterior.

        A surrogate constructed with its own data keeps to them: a posterior of other data is not taken over, or
        held-out rows would leak into cross-validation.
        """
        given = self._training_data
        if given is None or (_same(state["X"], given[0]) and _same(state["Y"], given[1])):
            self._training_data = None
            self.load_state(state)
        else:
            self.fit_training_data()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """``.to(device)`` moves the state too; its precision stays float64, answers follow the dtype of ``X``."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

        def move(node: Any) -> Any:
            if isinstance(node, Tensor):
                return node.to(fn(node).device) if node.is_floating_point() else node
            if isinstance(node, dict):
                return {key: move(value) for key, value in node.items()}
            if isinstance(node, list):
                return [move(value) for value in node]
            return node

        if self._output_indices is None and not self.has_fantasies:
            self.load_state(move(self.save_state()))
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        twin = self._conditioned_copy()
        memo[id(self)] = twin
        twin.generator = restore_generator(generator_state(self.generator))
        twin._config = dict(self._config)
        twin._scaling = replace(self._scaling)
        return twin

    def _settle(self) -> None:
        """Lay the state out as loading would: products with transposed storage round differently, and a surrogate that
        was saved and loaded must answer the same to the last bit."""
        state = self._get_state()
        if not is_dense(state):
            self._set_state(dense(state))

    def _conditioned_copy(self) -> Self:
        """A shallow copy that shares every tensor; nothing here is ever changed in place."""
        twin = copy.copy(self)
        twin._modules = dict(self._modules)
        twin._buffers = dict(self._buffers)
        twin._parameters = dict(self._parameters)
        return twin

    def _require_whole(self, what: str) -> None:
        if self._output_indices is not None:
            raise InvalidOptionError(f"{what} needs all outputs; this is a view of some; use the surrogate it came from")
        if self.has_fantasies:
            raise InvalidOptionError(f"{what} is not for a conditioned copy; use the surrogate it came from")

    @abstractmethod
    def _get_state(self) -> dict[str, Any]:
        """The method's own state as a tree."""

    @abstractmethod
    def _set_state(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`_get_state`."""


def _same(a: Tensor | None, b: Tensor) -> bool:
    return a is not None and a.shape == b.shape and torch.equal(a.to(b), b)
