"""Surrogates by name."""

from __future__ import annotations

import inspect
import os
from typing import Any

import torch

from seqbdl.errors import InvalidOptionError, StateError, UnknownNameError
from seqbdl.serialization import load_tree, save_tree
from seqbdl.surrogates.base import Surrogate

_REGISTRY: dict[str, type[Surrogate]] = {}


def register(cls: type[Surrogate]) -> type[Surrogate]:
    """Add a surrogate class under its ``name``; usable as a decorator.

    Raises:
        InvalidOptionError: The class has no name, or another class has it already.
    """
    if not cls.name:
        raise InvalidOptionError(f"{cls.__name__} has no name; set the class attribute `name`")
    if _REGISTRY.get(cls.name, cls) is not cls and _REGISTRY[cls.name].__qualname__ != cls.__qualname__:
        raise InvalidOptionError(f"the name {cls.name!r} belongs to {_REGISTRY[cls.name].__name__}; choose another")
    _REGISTRY[cls.name] = cls
    return cls


def list_surrogates() -> list[str]:
    """The registered names, sorted."""
    return sorted(_REGISTRY)


def surrogate_class(name: str) -> type[Surrogate]:
    """The class registered under a name.

    Raises:
        UnknownNameError: There is none.
    """
    if name not in _REGISTRY:
        raise UnknownNameError("surrogate", name, list_surrogates())
    return _REGISTRY[name]


def surrogate_options(cls: type[Surrogate]) -> list[str]:
    """Names of the keyword options that a surrogate's constructors take, its base classes' included."""
    names: dict[str, None] = {}
    for klass in cls.__mro__:
        init = klass.__dict__.get("__init__")
        if init is None or not issubclass(klass, Surrogate):
            continue
        for parameter in inspect.signature(init).parameters.values():
            if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD):
                names[parameter.name] = None
    return [name for name in names if name not in ("self", "training_data")]


def make_surrogate(name: str, input_dim: int, output_dim: int = 1, likelihood: str = "gaussian", **options: Any) -> Surrogate:
    """Build a surrogate by its registered name.

    Args:
        name: One of :func:`list_surrogates`.
        input_dim: ``d``, columns of ``X``.
        output_dim: ``m``, columns of ``Y``.
        likelihood: ``"gaussian"``, ``"heteroscedastic"``, ``"bernoulli"``, ``"categorical"`` or ``"poisson"``, where the
            surrogate supports it (its class lists them in ``likelihoods``).
        options: ``bounds=``, ``noise=``, ``seed=`` and the method's own.

    Raises:
        UnknownNameError: No surrogate has that name, or the surrogate has no such option.
    """
    cls = surrogate_class(name)
    known = surrogate_options(cls)
    for option in options:
        if option not in known:
            raise UnknownNameError(f"option of {name!r}", option, known)
    return cls(input_dim=input_dim, output_dim=output_dim, likelihood=likelihood, **options)


def save(path: str | os.PathLike[str], surrogate: Surrogate) -> None:
    """Write a surrogate, its whole posterior and its generator's state, to one file.

    Options that are not plain values (a ``torch.nn.Module``) are not written; hand them to :func:`load` again.
    """
    config = {key: _plain(value) for key, value in surrogate._config.items() if _is_plain(value)}
    missing = [key for key, value in surrogate._config.items() if not _is_plain(value)]
    save_tree(path, {"surrogate": surrogate.name, "config": config, "given": missing, "state": surrogate.save_state()})


def load(path: str | os.PathLike[str], **options: Any) -> Surrogate:
    """Read a surrogate that :func:`save` wrote; runs no stored code.

    Args:
        path: The file.
        options: Options that could not be written, such as ``network=``.

    Raises:
        StateError: The file holds no surrogate, or an option that it needs was not handed in.
    """
    tree = load_tree(path)
    if not isinstance(tree, dict) or "surrogate" not in tree:
        raise StateError(f"{path} holds no surrogate")
    needed = [key for key in tree["given"] if key not in options]
    if needed:
        raise StateError(f"{path} was saved with options that cannot be stored; hand them in: {', '.join(needed)}")
    surrogate = surrogate_class(tree["surrogate"])(**{**tree["config"], **options})
    return surrogate.load_state(tree["state"])


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    return value is None or isinstance(value, bool | int | float | str | torch.Tensor)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value
