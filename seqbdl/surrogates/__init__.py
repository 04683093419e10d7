"""What plugs into loops: BoTorch models that share one contract."""

from seqbdl.surrogates import dispatch as _dispatch
from seqbdl.surrogates.base import Surrogate
from seqbdl.surrogates.gp import GPSurrogate
from seqbdl.surrogates.registry import (
    list_surrogates,
    load,
    make_surrogate,
    register,
    save,
    surrogate_class,
    surrogate_options,
)

for _cls in (GPSurrogate,):
    register(_cls)

__all__ = [
    "GPSurrogate",
    "Surrogate",
    "list_surrogates",
    "load",
    "make_surrogate",
    "register",
    "save",
    "surrogate_class",
    "surrogate_options",
]
