"""Policies: networks that look at all designs and outcomes so far, and answer with the next design."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from seqbdl.acquisition.eig.critics import SeparableCritic
from seqbdl.acquisition.eig.perceptron import Perceptron
from seqbdl.acquisition.policies.box import DesignBox
from seqbdl.errors import InvalidDataError, ShapeError, StateError
from seqbdl.serialization import load_tree, save_tree

_VERSION = 1


class HistoryEncoder(torch.nn.Module):
    """A history as the sum of a code for each experiment: the order of experiments makes no difference.

    Designs are scaled to [-1, 1], outcomes to the mean and standard deviation that the prior predicts.

    Args:
        box: Of the designs.
        outcome_mean: ``m``.
        outcome_sd: ``m``, positive.
        hidden: Width of the hidden layers.
        code: Entries of the code.
        generator: Of the first weights.
    """

    outcome_mean: Tensor
    outcome_sd: Tensor

    def __init__(
        self, box: DesignBox, outcome_mean: Tensor, outcome_sd: Tensor, hidden: int, code: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.box = box
        self.register_buffer("outcome_mean", outcome_mean.detach().double())
        self.register_buffer("outcome_sd", outcome_sd.detach().double())
        self.net = Perceptron((box.dim + outcome_mean.shape[0], hidden, hidden, code), generator)

    def forward(self, designs: Tensor, outcomes: Tensor) -> Tensor:
        """The codes ``... x code`` of single experiments, from designs ``... x d`` and outcomes ``... x m``."""
        scaled = (outcomes - self.outcome_mean) / self.outcome_sd
        return self.net(torch.cat([2 * self.box.to_unit(designs) - 1, scaled], dim=-1))


class HistoryCritic(torch.nn.Module):
    """How much better a history fits some parameters than others: ``log p(h | theta)`` up to a function of ``h``, when trained.

    Args:
        encoder: Of the history.
        theta_mean: ``g``, by which what is asked about is standardized.
        theta_sd: ``g``.
        hidden: Width of the hidden layers.
        code: Entries of the history's code, and of those whose inner product is taken.
        generator: Of the first weights.
    """

    theta_mean: Tensor
    theta_sd: Tensor

    def __init__(
        self, encoder: HistoryEncoder, theta_mean: Tensor, theta_sd: Tensor, hidden: int, code: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("theta_mean", theta_mean.detach().double())
        self.register_buffer("theta_sd", theta_sd.detach().double())
        self.critic = SeparableCritic(code, theta_mean.shape[0], hidden, code, generator)

    def forward(self, designs: Tensor, outcomes: Tensor, theta: Tensor) -> Tensor:
        """Scores ``R x n`` of histories ``R x T x d`` and ``R x T x m`` with parameters ``n x g``."""
        return self.critic(self.encoder(designs, outcomes).sum(-2), (theta - self.theta_mean) / self.theta_sd)


class DesignPolicy(torch.nn.Module):
    """From all designs and outcomes so far to the next design; in microseconds, and blind to their order.

    A. Foster et al., "Deep adaptive design: amortizing sequential Bayesian experimental design", ICML 2021. Made by
    :func:`seqbdl.acquisition.policies.train_policy`.

    Attributes:
        horizon: The number of experiments that it was trained for.
        objective: What it was trained by: ``"spce"``, ``"infonce"`` or ``"nwj"``.
        critic: What was trained with it where the model has no likelihood; ``None`` for ``"spce"``.
        trace: The objective, step by step; empty after loading.
    """

    def __init__(
        self,
        box: DesignBox,
        outcome_mean: Tensor,
        outcome_sd: Tensor,
        horizon: int,
        hidden: int,
        code: int,
        generator: torch.Generator,
        objective: str = "spce",
        theta_moments: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.box, self.horizon, self.hidden, self.code, self.objective = box, horizon, hidden, code, objective
        self.encoder = HistoryEncoder(box, outcome_mean, outcome_sd, hidden, code, generator)
        self.emitter = Perceptron((code, hidden, box.dim), generator)
        self.critic: HistoryCritic | None = None
        if theta_moments is not None:
            encoder = HistoryEncoder(box, outcome_mean, outcome_sd, hidden, code, generator)
            self.critic = HistoryCritic(encoder, *theta_moments, hidden, code, generator)
        self.trace: list[float] = []

    def from_logits(self, logits: Tensor) -> Tensor:
        """Designs ``... x d`` of the emitter's answers."""
        return self.box.from_unit(logits.sigmoid())

    def forward(self, designs: Tensor, outcomes: Tensor) -> Tensor:
        """The next designs ``... x d``.

        Args:
            designs: ``... x t x d``, ``t`` at least 0.
            outcomes: ``... x t x m``.

        Raises:
            ShapeError: Other shapes.
            InvalidDataError: NaN or infinite values.
        """
        m = self.encoder.outcome_mean.shape[0]
        if designs.dim() < 2 or designs.shape[-1] != self.box.dim or outcomes.shape != (*designs.shape[:-1], m):
            raise ShapeError(
                f"designs has shape {tuple(designs.shape)}, outcomes {tuple(outcomes.shape)}; the policy needs "
                f"(... x) t x {self.box.dim} and (... x) t x {m}"
            )
        if not bool(designs.isfinite().all() and outcomes.isfinite().all()):
            raise InvalidDataError("designs or outcomes of the history are NaN or infinite; leave such experiments out")
        return self.from_logits(self.emitter(self.encoder(designs, outcomes).sum(-2)))

    def to_tree(self) -> dict[str, Any]:
        """Everything, for :func:`seqbdl.serialization.save_tree`."""
        return {
            "kind": "design-policy",
            "version": _VERSION,
            "box": self.box.to_tree(),
            "horizon": self.horizon,
            "hidden": self.hidden,
            "code": self.code,
            "objective": self.objective,
            "weights": dict(self.state_dict()),
        }

    @staticmethod
    def from_tree(tree: Mapping[str, Any]) -> DesignPolicy:
        """The policy that :meth:`to_tree` described.

        Raises:
            StateError: The tree is not one.
        """
        if tree.get("kind") != "design-policy" or tree.get("version") != _VERSION:
            raise StateError(f"the state holds no policy of version {_VERSION}, but {tree.get('kind')!r}")
        weights = tree["weights"]
        moments = (weights["critic.theta_mean"], weights["critic.theta_sd"]) if "critic.theta_mean" in weights else None
        policy = DesignPolicy(
            DesignBox(**tree["box"]),
            weights["encoder.outcome_mean"],
            weights["encoder.outcome_sd"],
            int(tree["horizon"]),
            int(tree["hidden"]),
            int(tree["code"]),
            torch.Generator().manual_seed(0),
            str(tree["objective"]),
            moments,
        )
        policy.load_state_dict(weights)
        return policy

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to one file, without code."""
        save_tree(path, self.to_tree())

    @staticmethod
    def load(path: str | os.PathLike[str]) -> DesignPolicy:
        """Read what :meth:`save` wrote; nothing stored is run.

        Raises:
            FileNotFoundError: There is no such file.
            StateError: The file holds no policy.
        """
        tree = load_tree(path)
        if not isinstance(tree, dict):
            raise StateError(f"{path} holds no policy")
        return DesignPolicy.from_tree(tree)
