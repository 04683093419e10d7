"""Decision problems as Gymnasium environments, `gymnasium.make("seqbdl/Hartmann6-v0")`; importing this registers them.

Every reward is to be maximized. `list_envs` says what there is.
"""

from seqbdl.envs.registry import EnvInfo, list_envs, register_all

__all__ = ["EnvInfo", "list_envs"]

register_all()
