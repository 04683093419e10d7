"""``continual``: one network that learns task after task, by any of the methods of continual learning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from seqbdl.errors import InvalidOptionError, UnknownNameError
from seqbdl.inference.adam import AdamSettings
from seqbdl.inference.ewc import EWC
from seqbdl.inference.fromp import FROMP
from seqbdl.inference.laplace import Rows
from seqbdl.inference.online_laplace import OnlineLaplace
from seqbdl.inference.refits import FineTune, Refit
from seqbdl.inference.sfsvi import SFSVI
from seqbdl.inference.synaptic_intelligence import SynapticIntelligence
from seqbdl.inference.tasks import TaskMemory, TaskMethod
from seqbdl.inference.vcl import VCL
from seqbdl.surrogates.network_prior import NetworkSpec
from seqbdl.surrogates.particle import ParticleSurrogate

METHODS: dict[str, type[TaskMethod]] = {
    "vcl": VCL,
    "online-laplace": OnlineLaplace,
    "ewc": EWC,
    "si": SynapticIntelligence,
    "sfsvi": SFSVI,
    "fromp": FROMP,
    "fine-tune": FineTune,
    "refit": Refit,
}


class ContinualSurrogate(ParticleSurrogate):
    """One network; ``fit`` is the first task, every ``update`` another one, of thousands of rows or of few.

    ``network={"widths": (256, 256), "heads": 5}`` gives every one of five tasks a head of its own; the last input is then the
    task.

    Args:
        network: Hidden widths, with heads or without, a module, or a factory.
        method: One of :data:`METHODS`. ``"vcl"``, ``"online-laplace"`` and ``"sfsvi"`` answer with a posterior; ``"ewc"``,
            ``"si"`` and ``"fromp"`` with a point, as do the controls ``"fine-tune"`` and ``"refit"``.
        settings: Of the method: the attributes of its class.
        num_members: Functions that answer; of methods that answer with a point it is 2, both the same.
        steps: Adam's, per task (of at most 400 weights, modes are found by Gauss-Newton instead).
        learning_rate: Of the first step, of whitened weights; it falls to zero along a half cosine. ``None``: the ``rate`` of the
            method.
        batch_size: Rows per step; ``None``: all.

    Raises:
        UnknownNameError: There is no such method, or it has no such setting.
    """

    name = "continual"
    carries = "a Gaussian over weights, or a point with importances, and the rows that the method keeps of each task"
    update_tolerance = 3.0

    def __init__(
        self,
        *args: Any,
        network: NetworkSpec = (32,),
        method: str = "online-laplace",
        settings: Mapping[str, Any] | None = None,
        num_members: int = 32,
        steps: int = 1000,
        learning_rate: float | None = None,
        batch_size: int | None = 256,
        **kwargs: Any,
    ) -> None:
        if method not in METHODS:
            raise UnknownNameError("method", method, list(METHODS))
        kind, given = METHODS[method], dict(settings or {})
        learning_rate = kind.rate if learning_rate is None else learning_rate
        if steps < 1 or not learning_rate > 0 or (batch_size is not None and batch_size < 1):
            raise InvalidOptionError(f"steps={steps}, learning_rate={learning_rate} and batch_size={batch_size} must be positive")
        known = [field.name for field in fields(kind) if field.name != "descent"]
        for name in given:
            if name not in known:
                raise UnknownNameError(f"setting of {method!r}", name, known)
        self.method = kind(descent=AdamSettings(steps, learning_rate, batch_size), **given)
        answers_with_a_point = method not in ("vcl", "online-laplace", "sfsvi")
        super().__init__(*args, network=network, num_members=2 if answers_with_a_point else num_members, **kwargs)
        self._carried = self.method.begin(self._network, self.generator, self._prior.noise)
        self._z = self._draw_members()

    def _infer(self, X: Tensor, Y: Tensor, variance: Tensor, warm: bool) -> tuple[Tensor, Tensor]:
        del warm  # a fit forgets what was before
        generator = torch.Generator().manual_seed(self.seed)
        self._carried = self.method.begin(self._network, generator, X)
        return self._absorb(X, Y, variance)

    def _absorb(self, X: Tensor, Y: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        rows = Rows(self._lik, X, Y, variance)
        self._carried = self.method.learn(self._network, rows, self._carried, self.generator)
        return self._draw_members(), X.new_zeros(self.num_members)

    def _draw_members(self) -> Tensor:
        white = torch.randn(self.num_members, self._network.num_params, generator=self.generator, dtype=torch.float64)
        return self._carried.draws(white.to(self._carried.z))

    def _forget(self, X: Tensor, Y: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return X[:0], Y[:0], variance[:0]  # what is kept, the method keeps

    def _fit(self, X: Tensor, Y: Tensor, noise: Tensor | None) -> None:
        super()._fit(X, Y, noise)
        self._memory = self._forget(*self._memory)

    def _members(self, X: Tensor, picks: Tensor | None = None) -> Tensor:
        if not self.method.linearized:
            return super()._members(X, picks)
        z, mode = self._z if picks is None else self._z[picks], self._carried.z.unsqueeze(0)
        here = self._network.tangents(mode.to(X), X)
        return (here.values + self._network.jvp(here, (z - mode).to(X))).unflatten(1, X.shape[:-1])

    def _own_state(self) -> dict[str, Any]:
        return {"carried": self._carried.tree()}

    def _set_own_state(self, state: Mapping[str, Any]) -> None:
        self._carried = TaskMemory.from_tree(state["carried"])
