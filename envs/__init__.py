"""Decision problems as Gymnasium environments, `gymnasium.make("seqbdl/Hartmann6-v0")`; importing this registers them.

Every reward is to be maximized. `list_envs` says what there is. `TestFunctionEnv` wraps any BoTorch test problem,
`TablePoolEnv` a table of your own, and a subclass of `DecisionEnv` is a problem of your own.
"""

from typing import TYPE_CHECKING, Any

from seqbdl.envs.registry import EnvInfo, list_envs, register_all

if TYPE_CHECKING:
    from seqbdl.envs.bandit import BanditEnv
    from seqbdl.envs.bandit_table import ClassificationBanditEnv, DelayedFeedback
    from seqbdl.envs.base import DecisionEnv, Evaluation
    from seqbdl.envs.design import DesignEnv
    from seqbdl.envs.labels import LabelPoolEnv, TableLabelEnv
    from seqbdl.envs.pool import TablePoolEnv
    from seqbdl.envs.stream import StreamEnv
    from seqbdl.envs.synthetic import TestFunctionEnv
    from seqbdl.envs.table_stream import TableStreamEnv

__all__ = [
    "BanditEnv",
    "ClassificationBanditEnv",
    "DelayedFeedback",
    "DecisionEnv",
    "DesignEnv",
    "EnvInfo",
    "Evaluation",
    "LabelPoolEnv",
    "TableLabelEnv",
    "StreamEnv",
    "TablePoolEnv",
    "TableStreamEnv",
    "TestFunctionEnv",
    "list_envs",
]

_LATER = {
    "BanditEnv": "bandit",
    "ClassificationBanditEnv": "bandit_table",
    "DelayedFeedback": "bandit_table",
    "DecisionEnv": "base",
    "DesignEnv": "design",
    "Evaluation": "base",
    "LabelPoolEnv": "labels",
    "StreamEnv": "stream",
    "TableLabelEnv": "labels",
    "TablePoolEnv": "pool",
    "TableStreamEnv": "table_stream",
    "TestFunctionEnv": "synthetic",
}


def __getattr__(name: str) -> Any:
    """Import a class when it is first asked for, so that listing the problems stays quick."""
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"seqbdl.envs.{_LATER[name]}"), name)


register_all()
